"""Virtual devices do what the released agent does; time is the test's."""

from __future__ import annotations

import itertools
import json
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cli.errors import CliError
from cli.sim import (
    EVENTS,
    POLL,
    STATE,
    Answer,
    Device,
    FleetTraffic,
    Ledger,
    PacedTraffic,
    Rhythm,
    SaturatingTraffic,
    load,
    save,
)
from cli.sim.bodies import rfc3339
from cli.sim.device import PATHS
from cli.sim.http import Done, Request
from cli.sim.schedule import Agenda

OK = Answer(200, b"{}")
NOT_MODIFIED = Answer(304)
AWAY = Answer(0, fault="connect")
BUSY = Answer(503)


@dataclass
class Sent:
    """A call that a device made."""

    at: float
    kind: int
    token: str
    body: Any
    done: Done


@dataclass
class Network:
    """The client's place: notes what is sent; a test answers, or `script` does at once."""

    now: float = 0.0
    sent: list[Sent] = field(default_factory=list)
    open: list[Sent] = field(default_factory=list)

    def request(self, path: bytes, body: bytes, token: str = "") -> bytes:
        return json.dumps([PATHS.index(path), token, json.loads(body)]).encode()

    def send(self, request: Request, done: Done, lane: int = 0) -> None:
        kind, token, body = json.loads(request if isinstance(request, bytes) else request())
        call = Sent(self.now, kind, token, body, done)
        self.sent.append(call)
        self.open.append(call)

    def answer(self, said: Callable[[Sent], Answer]) -> None:
        while self.open:
            call = self.open.pop(0)
            call.done(said(call))

    def of(self, kind: int) -> list[Sent]:
        return [call for call in self.sent if call.kind == kind]


def clocks(network: Network) -> dict[str, Any]:
    start = 1_767_225_600_000_000_000
    return {
        "clock": lambda: network.now,
        "wall": lambda: start + int(network.now * 1e9),
        "seed": 1,
    }


def fine(call: Sent) -> Answer:
    return NOT_MODIFIED if call.kind == POLL else OK


def live(
    traffic: FleetTraffic, network: Network, until: float, said: Callable[[Sent], Answer] = fine
) -> None:
    """Lets time pass; every call is answered at once."""
    while True:
        at = traffic.step()
        if network.open:
            network.answer(said)
            continue
        if at is None or at > until:
            break
        network.now = max(network.now + 1e-6, at)
    network.now = until


def fleet(count: int) -> list[Device]:
    return [Device(number, f"id-{number}", f"token-{number}", "3") for number in range(count)]


def gaps(calls: list[Sent]) -> list[float]:
    times = [call.at for call in calls]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def test_the_agents_periods() -> None:
    network = Network()
    traffic = FleetTraffic(network, fleet(1), Rhythm(jitter=0), steady=False, **clocks(network))
    live(traffic, network, 3600)
    assert {round(gap, 3) for gap in gaps(network.of(POLL))} == {60.0}
    assert {round(gap, 3) for gap in gaps(network.of(STATE))} == {300.0}
    assert network.sent[0].at == 0
    assert network.of(POLL)[0].body == {"current_version": "3"}


def test_a_fleet_makes_the_calls_that_its_rhythm_says() -> None:
    network, ledger = Network(), Ledger()
    rhythm = Rhythm(speed=10)
    devices = fleet(400)
    traffic = FleetTraffic(network, devices, rhythm, journal=ledger, **clocks(network))
    live(traffic, network, 360)
    expected = 400 * 360 * rhythm.calls_per_second
    assert len(network.sent) == pytest.approx(expected, rel=0.05)
    # Two batches of five an hour, and ten times as fast.
    assert ledger.event_count == pytest.approx(400 * 10, rel=0.15)
    assert traffic.stats.events == ledger.event_count
    for ids in ledger.events.values():
        assert len(set(ids)) == len(ids)


def test_failures_are_repeated_after_15_seconds_growing_to_5_minutes() -> None:
    network = Network()
    traffic = FleetTraffic(network, fleet(1), Rhythm(jitter=0), steady=False, **clocks(network))
    live(traffic, network, 1500, lambda _: AWAY)
    waits = [round(gap, 3) for gap in gaps(network.of(POLL))]
    assert waits == [15, 30, 60, 120, 240, 300, 300, 300]
    live(traffic, network, 1500 + 700)
    # After one success everything is as before.
    assert [round(gap, 3) for gap in gaps(network.of(POLL))][-3:] == [60, 60, 60]
    assert traffic.stats.failures[POLL] == {"connect": 9}


def test_states_wait_in_a_queue_that_is_sent_again_whole() -> None:
    network, ledger = Network(), Ledger()
    devices = fleet(1)
    traffic = FleetTraffic(
        network, devices, Rhythm(jitter=0), steady=False, journal=ledger, **clocks(network)
    )
    live(traffic, network, 50, lambda _: BUSY)
    assert len(devices[0].states) == 3
    network.sent.clear()
    accepted = iter([OK, BUSY])
    live(traffic, network, 110, lambda c: next(accepted) if c.kind == STATE else NOT_MODIFIED)
    first, second = network.of(STATE)
    assert first.body["state"]["timestamp"] < second.body["state"]["timestamp"]
    network.sent.clear()
    live(traffic, network, 400)
    states = network.of(STATE)
    times = [call.body["state"]["timestamp"] for call in states]
    # The one that was acknowledged before the failure is told once more, and new ones after it.
    assert times[0] == first.body["state"]["timestamp"]
    assert times == sorted(times)
    assert len(times) == 5
    assert devices[0].states == ()
    assert rfc3339(ledger.states["id-0"]) == times[-1]


def test_events_wait_in_a_queue_that_is_sent_again_whole_and_keep_their_ids() -> None:
    device = Device(0, "id-0", "token", "3")
    device.note_events(1000, 2)
    first = json.loads(device.body(EVENTS))["events"]
    assert device.settle(EVENTS, BUSY, None) == ("503", ())
    device.note_events(500, 1)
    second = json.loads(device.body(EVENTS))["events"]
    assert second[:2] == first
    ids = [int(event["id"]) for event in second]
    assert ids == sorted(set(ids)), "ids go up although the clock went back"
    # What happens while a batch is in flight is not acknowledged by its answer.
    device.note_events(2000, 1)
    assert device.settle(EVENTS, OK, None) == ("", tuple(ids))
    assert len(device.events) == 1
    assert set(second[0]) == {"id", "type", "timestamp", "payload"}


def test_a_full_queue_takes_nothing_more() -> None:
    device = Device(0, "id-0", "token")
    device.note_events(1, 60_000)
    device.note_events(2, 5)
    assert len(device.events) == 50_000


def policy(**other: Any) -> Answer:
    known = {"version": "4", "signature": "c2ln", "policy": {}, **other}
    return Answer(200, json.dumps(known).encode())


def test_a_new_policy_and_a_new_token_are_taken() -> None:
    device = Device(0, "id-0", "old", "3")
    seen: list[Any] = []

    def check(envelope: dict[str, Any]) -> bool:
        seen.append(envelope["signature"])
        return True

    assert device.settle(POLL, policy(device_token="new"), check) == ("", ())
    assert (device.version, device.token, seen) == ("4", "new", ["c2ln"])
    assert device.settle(POLL, policy(), None) == ("", ())
    assert device.token == "new"
    assert json.loads(device.poll()) == {"current_version": "4"}


def test_a_stuck_device_asks_again_with_what_it_has() -> None:
    """As one that gets a version and cannot apply it; its token is renewed all the same."""
    device = Device(0, "id-0", "old", "3")
    device.applies = False
    assert device.settle(POLL, policy(device_token="new"), None) == ("", ())
    assert (device.version, device.token) == ("3", "new")
    assert json.loads(device.poll()) == {"current_version": "3"}


@pytest.mark.parametrize(
    ("said", "check", "failure"),
    [
        (policy(device_token="new"), lambda _: False, "signature"),
        (policy(version="2", device_token="new"), None, "older policy"),
        (policy(version=4), None, "decode"),
        (policy(device_token=7), None, "decode"),
        (Answer(200, b"{"), None, "decode"),
        (Answer(200, b"[]"), None, "decode"),
        (Answer(200, b""), None, "decode"),
        (Answer(401), None, "401"),
        (Answer(0, fault="timeout"), None, "timeout"),
    ],
)
def test_what_is_no_policy_leaves_the_device_as_it_was(
    said: Answer, check: Any, failure: str
) -> None:
    device = Device(0, "id-0", "old", "3")
    assert device.settle(POLL, said, check) == (failure, ())
    assert (device.version, device.token) == ("3", "old")


def test_bodies_have_what_agents_send() -> None:
    device = Device(5, "id-5", "token")
    device.note_state(1_767_225_600_120_000_000)
    told = json.loads(device.body(STATE))
    assert told["device_id"] == "id-5"
    state = told["state"]
    assert state["timestamp"] == "2026-01-01T00:00:00.12Z"
    assert len(state["installed_apps"]) == 20
    assert set(state["installed_apps"][0]) == {"id", "version", "branch"}
    assert 0 < state["disk_free_bytes"] < state["disk_total_bytes"]
    assert 0 <= state["battery_percent"] <= 100
    assert rfc3339(1_767_225_600_000_000_000) == "2026-01-01T00:00:00Z"


def test_a_herd_comes_back_with_what_waited() -> None:
    network = Network()
    traffic = FleetTraffic(
        network, fleet(50), steady=False, backlog=3600, ramp=0, **clocks(network)
    )
    while traffic.step() == 0:
        pass
    assert {len(call.body.get("events", ())) for call in network.of(EVENTS)} != {0}
    assert len(network.of(POLL)) == len(network.of(STATE)) == 50
    network.answer(fine)
    told = sum(len(call.body["events"]) for call in network.of(EVENTS))
    assert told == pytest.approx(50 * 10, rel=0.3)
    # Twelve waited, and each device tells how it is now.
    assert len(network.of(STATE)) == 50 * 13


def test_a_stopped_traffic_begins_nothing() -> None:
    network = Network()
    traffic = FleetTraffic(network, fleet(1), Rhythm(), steady=False, **clocks(network))
    traffic.step()
    traffic.stop()
    before = len(network.sent)
    network.answer(fine)
    assert len(network.sent) == before
    assert traffic.in_flight == 0


def test_a_pace_is_kept_whatever_is_answered() -> None:
    network = Network()
    traffic = PacedTraffic(network, fleet(100), 50.0, {POLL: 1}, **clocks(network))
    for _ in range(10):
        network.now += 0.1
        traffic.step()
    assert len(network.sent) == pytest.approx(50, abs=1)
    # Nothing was answered; a call that was late says since when it was due.
    network.now += 5
    traffic.step()
    network.answer(fine)
    traffic.stats.tick(network.now)
    assert traffic.stats.latency[POLL].maximum >= 5e6


def test_a_device_has_one_call_of_a_kind_in_flight() -> None:
    network = Network()
    traffic = PacedTraffic(network, fleet(3), 10.0, {EVENTS: 1}, **clocks(network))
    network.now += 1.0
    traffic.step()
    assert len({call.body["device_id"] for call in network.sent}) == len(network.sent) == 3
    assert traffic.stats.skipped > 0


def test_as_many_in_flight_as_wanted() -> None:
    network = Network()
    traffic = SaturatingTraffic(network, fleet(20), 8, **clocks(network))
    traffic.step()
    assert len(network.open) == 8
    for _ in range(500):
        call = network.open.pop(0)
        call.done(fine(call))
    assert len(network.open) == 8
    shares = [len(network.of(kind)) / len(network.sent) for kind in (POLL, STATE, EVENTS)]
    assert shares == pytest.approx([0.81, 0.16, 0.03], abs=0.02)
    with pytest.raises(ValueError, match="at most one"):
        SaturatingTraffic(network, fleet(2), 3)


def test_an_agenda_gives_back_in_order() -> None:
    agenda, chance = Agenda(), random.Random(5)
    entries = [(chance.uniform(0, 1e6), chance.randrange(1 << 24), chance.randrange(3))
               for _ in range(500)]  # fmt: skip
    for entry in entries:
        agenda.put(*entry)
    assert agenda.take(0) is None
    for at, index, kind in sorted(entries):
        assert agenda.next_at() == pytest.approx(at, abs=2e-6)
        taken = agenda.take(2e6)
        assert taken is not None
        assert taken[1:] == (index, kind)
    assert agenda.next_at() is None


def test_a_fleet_is_kept_with_its_queues_for_its_owner_alone(tmp_path: Path) -> None:
    devices = fleet(3)
    devices[1].note_events(100, 2)
    devices[2].note_state(7)
    file = tmp_path / "fleet.jsonl"
    save(file, "https://here", devices)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
    again = load(file, "https://here")
    fields = ("index", "id", "token", "version", "serial", "states", "events")
    assert [[getattr(d, f) for f in fields] for d in again] == [
        [getattr(d, f) for f in fields] for d in devices
    ]
    assert len(load(file, limit=2)) == 2
    # Ids go on from there.
    again[1].note_events(1, 1)
    assert again[1].events[-1] > devices[1].events[-1]


@pytest.mark.parametrize(
    "text",
    ["", "{}\n", "[]\n", "text", '{"evergreen_fleet": 2, "url": ""}\n',
     '{"evergreen_fleet": 1, "url": "https://here"}\n{"id": "x"}\n'],
)  # fmt: skip
def test_a_file_that_is_no_fleet_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "fleet.jsonl"
    file.write_text(text)
    with pytest.raises(CliError, match="is no fleet"):
        load(file, "https://here")


def test_another_installations_fleet_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "fleet", "https://there", [])
    with pytest.raises(CliError, match="fleet of https://there"):
        load(tmp_path / "fleet", "https://here")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
