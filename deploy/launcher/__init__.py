"""The launcher behind `evergreen up`: the whole product as supervised processes of one machine.

`up` is the order of the start and the stop; `supervisor` keeps processes running; `home` is the
state on disk; `report` is what a person sees. The rest describes single processes.
"""
