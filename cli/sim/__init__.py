"""The simulator: virtual devices that behave as the released agent does, very many in one process.

From Python, for load and fault tests (all of it within one event loop, best uvloop's):

    target = Target.of(url, ca_file)
    async with Client(target, connections=64) as client:           # None: one for each device
        devices = await enroll(client, pre_shared_key, serials("lab", 1000))
        ledger = Ledger()
        traffic = FleetTraffic(client, devices, Rhythm(speed=10), ramp=6, journal=ledger)
        stats = await run(traffic, client, seconds=60)
    stats.worst("p99"), stats.failures, stats.as_json()
    ledger.events, ledger.states                                    # what must be in the database

Instead of enrolling, `load(file)` takes a fleet that was kept with `save`, and `Device(index, id,
token, version)` makes one from what you have. `PacedTraffic(client, devices, rate, {POLL: 1})` and
`SaturatingTraffic(client, devices, in_flight, FLEET_MIX)` take the place of `FleetTraffic` for one
kind of call or another mix; `await client.call(path, body, token)` makes a single call.

A herd after an outage of an hour: `FleetTraffic(…, ramp=0, steady=False, backlog=3600)`. `run` can
be stopped with an event, and shows every second as it ends; `Traffic.stats` may be exchanged, and a
`Journal` of your own is told about every success at once. A run's memory does not grow with its
calls (a `Ledger` does, by 40 bytes for each event).
"""

from cli.sim.device import ENROLL, EVENTS, KINDS, POLL, STATE, Device
from cli.sim.fleet import EnrollError, enroll, load, save, serials
from cli.sim.http import Answer, Client
from cli.sim.journal import Journal, Ledger
from cli.sim.run import run
from cli.sim.schedule import Rhythm
from cli.sim.stats import Stats
from cli.sim.target import Target
from cli.sim.traffic import FLEET_MIX, FleetTraffic, PacedTraffic, SaturatingTraffic

__all__ = [
    "ENROLL",
    "EVENTS",
    "FLEET_MIX",
    "KINDS",
    "POLL",
    "STATE",
    "Answer",
    "Client",
    "Device",
    "EnrollError",
    "FleetTraffic",
    "Journal",
    "Ledger",
    "PacedTraffic",
    "Rhythm",
    "SaturatingTraffic",
    "Stats",
    "Target",
    "enroll",
    "load",
    "run",
    "save",
    "serials",
]
