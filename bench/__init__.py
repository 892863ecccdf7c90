"""`make bench`: what a call costs, side by side with the cheapest answer there could be.

`plan` says how large the run is, `product` and `floor` start the two sides, `fleet` and `growth`
put devices and events into the database, `traffic` and `drive` are the load, `cpu` counts what it
cost; `stages` and `compare` are the two parts of a run, `report` is what a person and a program
read. `herd` is a program of its own, and so is `against`, which compares two commits.
See docs/benchmarks.md.
"""
