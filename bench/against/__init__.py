"""`make bench BASE=…` and `make bench DISTURBANCE=…`: pairs of rounds, and what they say.

`checkout` makes a commit's files with an environment of their own, `installation` runs them as a
black box, `sections` says what is sent, `intervals` is the statistics; `base` and `disturbance` are
the two programs. See docs/benchmarks.md.
"""
