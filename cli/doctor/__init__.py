"""`evergreen doctor`: looks for what commonly goes wrong, and says how to mend it.

One module for each subject; each check answers findings, and none for what is well.
"""
