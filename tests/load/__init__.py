"""`make bench`: what a call costs, side by side with the cheapest answer there could be.

`plan` says how large the run is, `product` and `floor` start the two sides, `fleet` puts devices
and events into the database, `traffic` drives the load, `cpu` counts what it cost, `stages` is the
order of the run, `report` what a person and a program read. See docs/benchmarks.md.
"""
