"""The simulator against the product: what its devices saw acknowledged is what is stored."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from cli.sim import (
    EVENTS,
    POLL,
    STATE,
    Client,
    FleetTraffic,
    Ledger,
    Rhythm,
    SaturatingTraffic,
    Stats,
    Target,
    enroll,
    run,
    serials,
)
from cli.sim.device import DECODE, OLDER, SIGNATURE
from cli.sim.signature import Signatures
from tests.e2e.tokens import superuser
from tests.e2e.world import Org
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, Stack


async def simulated(stack: Stack, org: Org, ledger: Ledger) -> list[Stats]:
    """Some seconds of a small fleet, first in turns, then by its own clocks after an outage."""
    check = Signatures.pinned(Path(stack.bootstrap["policy_public_key_file"]))
    mix = {POLL: 1, STATE: 1, EVENTS: 1}
    async with Client(Target.of(stack.url, stack.ca_file), connections=8) as client:
        devices = await enroll(client, org.pre_shared_key, serials(org.code, 12), check=check)
        turns = SaturatingTraffic(client, devices, 4, mix, journal=ledger, check=check)
        found = [await run(turns, client, 1.0)]
        back = FleetTraffic(
            client, devices, Rhythm(speed=60), steady=False, backlog=1800, journal=ledger,
            check=check,
        )  # fmt: skip
        return [*found, await run(back, client, 1.0)]


def test_acknowledged_is_stored(stack: Stack, org: Org) -> None:
    version = org.publish()["version"]
    ledger = Ledger()
    for stats in asyncio.run(simulated(stack, org, ledger)):
        assert stats.calls > 0
        assert stats.in_flight == 0
        assert not stats.failures.get(POLL, {}).keys() & {SIGNATURE, DECODE, OLDER}
    assert set(ledger.versions.values()) == {str(version)}
    assert ledger.states
    assert ledger.events

    rows = superuser(
        stack,
        "SELECT device_id::text, event_id FROM telemetry.event WHERE tenant_id = $1::uuid",
        org.id,
    )
    stored = Counter((row["device_id"], int(row["event_id"])) for row in rows)
    acknowledged = Counter((device, at) for device, ids in ledger.events.items() for at in ids)
    assert set(stored.values()) == set(acknowledged.values()) == {1}
    assert not acknowledged - stored

    rows = superuser(
        stack,
        "SELECT id::text, (extract(epoch FROM observed_at) * 1000000)::bigint AS micros"
        " FROM telemetry.device WHERE tenant_id = $1::uuid AND observed_at IS NOT NULL",
        org.id,
    )
    observed = {row["id"]: row["micros"] for row in rows}
    # PostgreSQL keeps microseconds.
    assert all(observed[device] >= told // 1000 - 1 for device, told in ledger.states.items())


def test_the_command_makes_a_report_and_a_picture(stack: Stack, org: Org, tmp_path: Path) -> None:
    org.publish()
    report, picture = tmp_path / "report.json", tmp_path / "picture.png"
    ran = subprocess.run(
        [
            sys.executable, "-m", "cli.main", "sim", "--url", stack.url, "--ca-file", stack.ca_file,
            "--policy-key-file", stack.bootstrap["policy_public_key_file"], "--devices", "8",
            "--duration", "2", "--boot", "--speed", "60", "--fleet", str(tmp_path / "fleet"),
            "--report", str(report), "--picture", str(picture), "--max-failures", "1000",
        ],
        cwd=ROOT,
        env={**os.environ, "EVERGREEN_PRE_SHARED_KEY": org.pre_shared_key},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(report.read_text())
    assert figures["kinds"]["poll"]["calls"] > 0
    assert figures["kinds"]["state"]["calls"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    listed = org.admin.get("/api/devices", params={"pageSize": "50"}).json()["devices"]
    assert len(listed) == 8
