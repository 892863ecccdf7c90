"""`make bench`: what it counts, what it sends, and what it reports; without any load."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import traffic
from bench.cpu import Process, below, part_of, processes, read_process, usage
from bench.drive import Sender, paced, saturating
from bench.figures import Outcome, Round, Series, by_part, percentile, ratio, series
from bench.floor import PLAIN_HTTP, Places, copied
from bench.profile import own_time
from bench.report import Report
from bench.traffic import Call, Device, Traffic
from cli.sim.http import Answer
from contract.contexts import CONTEXTS
from deploy import gateway
from tests.support import yaml_text


def test_processes_belong_to_parts() -> None:
    assert part_of("/venv/bin/python\0-P\0-m\0services.policy\0") == "policy"
    assert part_of("/x/site-packages/envoy/_bin/envoy\0--config-path\0a") == "gateway"
    assert part_of("/venv/bin/nats-server\0--config\0x") == "nats"
    assert part_of("postgres: evergreen_telemetry evergreen [local] idle") == "postgres/telemetry"
    assert part_of("postgres: walwriter ") == "postgres/walwriter"
    assert part_of("/opt/bin/postgres\0-D\0/data") == "postgres/main"
    assert part_of("/venv/bin/python\0-m\0bench.floor_http") == "python"
    assert part_of("/venv/bin/python\0/venv/bin/evergreen\0up\0") == "launcher"
    assert part_of("") == "?"


def _process(pid: int, parent: int, command: str, own: float, ended: float = 0.0) -> Process:
    return Process(pid, parent, command, own, ended)


def test_what_an_ended_process_used_is_not_lost() -> None:
    """A backend that ends in between is counted with its parent's ended children."""
    main = "/opt/bin/postgres\0"
    before = usage(
        [
            _process(1, 0, main, 1.0),
            _process(2, 1, "postgres: evergreen_policy a", 2.0),
            _process(3, 1, "postgres: evergreen_audit a", 0.5),
        ]
    )
    after = usage(
        [_process(1, 0, main, 1.5, ended=2.75), _process(3, 1, "postgres: evergreen_audit a", 1.0)]
    )
    spent = after.since(before)
    # Backend 2 went on to 2.75 before it ended.
    assert spent.total == pytest.approx(0.5 + 0.75 + 0.5)
    assert by_part(spent.seconds) == {"postgres": pytest.approx(1.75)}


def test_descendants_are_found_at_any_depth() -> None:
    tree = [_process(pid, parent, "", 0.0) for pid, parent in ((2, 1), (3, 2), (4, 9), (5, 3))]
    assert {process.pid for process in below(1, tree)} == {2, 3, 5}


def test_the_kernel_is_read(tmp_path: Path) -> None:
    (tmp_path / "42").mkdir()
    fields = ["S", "7", *["0"] * 9, "150", "50", "30", "20", *["0"] * 20]
    (tmp_path / "42" / "stat").write_text(f"42 (a (strange) name) {' '.join(fields)}")
    (tmp_path / "42" / "cmdline").write_bytes(b"program\0argument\0")
    found = read_process(42, tmp_path)
    assert found is not None
    assert (found.parent, found.command) == (7, "program\0argument\0")
    assert found.own / found.ended_children == pytest.approx(200 / 50)
    assert read_process(43, tmp_path) is None
    assert [process.pid for process in processes(tmp_path)] == [42]


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)]
)
def test_percentiles_are_values_that_occurred(share: float, expected: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], share) == expected


def test_a_percentile_of_nothing_is_no_number() -> None:
    assert math.isnan(percentile([], 0.5))


def _round(side: str, calls: int, cpu: dict[str, float], rest: float = 0.0) -> Round:
    outcome = Outcome(seconds=2.0, latencies={traffic.POLL: [0.01] * calls})
    return Round(side, outcome, cpu, others=0.5, client=0.1, rest=rest)


def test_rounds_side_by_side_make_the_ratio() -> None:
    """A machine that becomes slower in the middle of the run does not change it."""
    rounds = [
        _round("product", 1000, {"gateway": 0.2, "policy": 0.2}),
        _round("floor", 1000, {"gateway": 0.2}),
        _round("product", 1000, {"gateway": 0.6, "policy": 0.6}),
        _round("floor", 1000, {"gateway": 0.6}),
        _round("product", 1000, {"gateway": 0.3, "policy": 0.3}),
        _round("floor", 1000, {"gateway": 0.3}),
    ]
    sides = series(rounds)
    assert list(sides) == ["product", "floor"]
    assert ratio(sides["product"], sides["floor"]) == pytest.approx(2.0)
    assert sides["product"].cpu_us_per_call == pytest.approx(600)
    assert sides["product"].least == pytest.approx(400)
    assert sides["product"].calls_per_second == 500
    assert sides["product"].noise == pytest.approx(0.25)
    assert list(sides["product"].parts_us_per_call.values()) == pytest.approx([1100 / 3, 1100 / 3])


def test_the_cost_at_a_rate_does_not_depend_on_how_many_calls_got_through() -> None:
    """100 µs by itself, and a tenth of a processor at rest."""
    quiet = Series("product", [_round("product", 8000, {"policy": 1.0}, rest=0.2)])
    crowded = Series("product", [_round("product", 800, {"policy": 0.28}, rest=0.2)])
    assert quiet.at_rate(4000, 0.1) == pytest.approx(125)
    assert crowded.at_rate(4000, 0.1) == pytest.approx(125)


def _traffic(devices: int = 7) -> Traffic:
    return Traffic([Device(f"device-{n}", f"token-{n}") for n in range(devices)], 3, "code:secret")


def test_the_mix_is_exact_and_devices_take_turns() -> None:
    calls = list(islice(_traffic(50).of(traffic.MIX), 1000))
    assert Counter(call.kind for call in calls) == {
        kind: 10 * share for kind, share in traffic.FLEET_MIX.items()
    }
    assert set(Counter(call.token for call in calls).values()) == {20}


def test_every_kind_is_what_an_agent_sends() -> None:
    load = _traffic()
    assert json.loads(next(load.of(traffic.POLL)).body) == {"current_version": "3"}
    state = next(load.of(traffic.STATE))
    assert json.loads(state.body)["device_id"] == f"device-{state.token.removeprefix('token-')}"
    ids = [
        event["id"]
        for kind, size in ((traffic.EVENTS, 5), (traffic.EVENTS_100, 100))
        for call in islice(load.of(kind), 3)
        for event in json.loads(call.body)["events"][:size]
    ]
    assert len(set(ids)) == len(ids) == 3 * 105
    enroll = [next(load.of(traffic.ENROLL)) for _ in range(2)]
    assert {call.token for call in enroll} == {""}
    assert len({json.loads(call.body)["serial"] for call in enroll}) == 2


class _FakeClient:
    """Answers a poll when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[Answer], None]] = []
        self.most = 0

    def request(self, path: bytes, body: bytes, token: str = "") -> bytes:
        return path + body

    def send(self, request: bytes, done: Callable[[Answer], None], lane: int = 0) -> None:
        self.waiting.append(done)
        self.most = max(self.most, len(self.waiting))

    def answer(self, status: int) -> bool:
        if self.waiting:
            self.waiting.pop(0)(Answer(status, fault="" if status else "closed"))
        return bool(self.waiting)


class _Side:
    """Takes only a 304 for a poll."""

    def is_success(self, call: Call, status: int) -> bool:
        return status == 304


def _sender() -> tuple[Sender, _FakeClient]:
    client = _FakeClient()
    side: Any = _Side()
    sender: Any = client
    return Sender(side, sender), client


async def test_a_saturating_load_keeps_each_connection_busy_until_the_stream_ends() -> None:
    sender, client = _sender()
    calls: Iterator[Call] = _traffic(20).one_each()
    load = asyncio.ensure_future(saturating(calls, connections=4, seconds=600)(sender))
    await asyncio.sleep(0)
    for status in (304, 200, 0):
        client.answer(status)
    while client.answer(304):
        pass
    await load
    assert client.most == 4
    assert sender.outcome.calls == 18
    assert sender.outcome.failed == {"poll: 200": 1, "poll: closed": 1}


async def test_a_paced_load_does_not_wait_for_answers() -> None:
    sender, client = _sender()
    await paced(_traffic().of(traffic.POLL), per_second=10_000, seconds=0.02)(sender)
    sent = client.most
    assert sent == len(client.waiting) > 10
    while client.answer(304):
        pass
    assert sender.outcome.calls == sent


def _rendered(tmp_path: Path) -> dict[str, str]:
    return gateway.render(
        gateway.GatewaySettings(
            directory=tmp_path,
            port=8443,
            certificate_file=tmp_path / "a",
            private_key_file=tmp_path / "b",
            contexts={c: gateway.Endpoints(f"unix:/{c}.gw", f"unix:/{c}.http") for c in CONTEXTS},
            admin="127.0.0.1:9901",
        )
    )


@pytest.mark.parametrize("transcoded", [False, True])
def test_a_floor_has_the_products_filters_and_other_addresses(
    tmp_path: Path, *, transcoded: bool
) -> None:
    files = _rendered(tmp_path)
    places = Places(tmp_path / "floor", 1234, 5678, Path("/http.sock"), Path("/grpc.sock"))
    floor = copied(files, places, transcoded=transcoded)
    assert floor.keys() == files.keys()
    clusters = yaml_text.load(floor["clusters.yaml"])["resources"]
    pipes = {
        cluster["name"]: cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"][
            "address"
        ]["pipe"]["path"]
        for cluster in clusters
    }
    assert pipes["policy-http"] == "/http.sock"
    assert pipes["policy"] == "/grpc.sock"
    (listener,) = yaml_text.load(floor["listener.yaml"])["resources"]
    assert listener["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 1234}
    (original,) = yaml_text.load(files["listener.yaml"])["resources"]
    ours, theirs = (_http(one)["http_filters"] for one in (listener, original))
    assert [one["name"] for one in ours] == [one["name"] for one in theirs]
    if not transcoded:
        # Not a filter, a route or an answer differs: no cost of the gateway's is the product's.
        assert _http(listener) == _http(original)
    (transcoder,) = (one for one in ours if one["name"].endswith("transcoder"))
    services = transcoder["typed_config"]["services"]
    assert ("evergreen.v1.DeviceService" in services) is transcoded
    poll = next(
        route
        for route in _http(listener)["route_config"]["virtual_hosts"][0]["routes"]
        if route["match"].get("path") == "/api/v1/devices/policy" and "route" in route
    )
    assert (transcoder["name"] in poll["typed_per_filter_config"]) is not transcoded


def _http(listener: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def test_own_time_is_of_the_innermost_function() -> None:
    stacks = ["a;b 3", "a;b;c (x.py:1) 6", "a 1", "", "broken"]
    assert own_time(stacks) == [("c (x.py:1)", 0.6), ("b", 0.3), ("a", 0.1)]


def test_the_report_is_a_table_and_a_file(tmp_path: Path) -> None:
    text = io.StringIO()
    report = Report(Console(file=text, width=120))
    sides = series(
        [
            _round("product", 1000, {"gateway": 0.2, "postgres/policy": 0.1, "postgres/main": 0.1}),
            _round(PLAIN_HTTP, 1000, {"gateway": 0.1}),
        ]
    )
    sides["product"].rounds[0].outcome.fail("poll: 503")
    report.round(sides["product"].rounds[0])
    report.costs("Fleet mix", sides)
    report.latencies("Fleet mix", sides["product"])
    product = sides["product"].as_json()
    report.results["fleet_mix"] = {
        **product,
        "p99_ms": 10.0,
        "paced_calls_per_second": 300,
        "saturating": {name: side.as_json() for name, side in sides.items()},
        "paced": {"product": product},
    }
    latest = report.write(tmp_path)
    shown = text.getvalue()
    for expected in ("1 x poll: 503", "postgres", "400", "4.00 x", "p99"):
        assert expected in shown
    assert latest == tmp_path / "latest.json"
    assert json.loads(latest.read_text())["fleet_mix"]["cpu_us_per_call"] == 400
    picture = tmp_path / "latest.svg"
    assert not picture.exists() or "<svg" in picture.read_text()
