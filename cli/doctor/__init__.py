"""`evergreen doctor`: looks for what commonly goes wrong, and says how to mend it.

One module for each subject. Its checks (`finding.Check`) are listed whatever they come to: ok,
skipped with the reason, or with findings.
"""
