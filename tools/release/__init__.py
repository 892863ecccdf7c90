"""Makes a release: `python -m tools.release VERSION`.

A release is a commit whose files say its version. The next commit records it (`tests/upgrade`
and buf hold the tree against it from then on) and begins the version after it. No tag is needed:
`tests/upgrade/releases.json` names the commits. What is published is built of the first commit,
in a clean copy: image, chart, wheel, source, bills of materials, provenance and their digests.
"""
