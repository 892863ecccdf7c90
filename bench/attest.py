"""Devices that attest, beside something else: for `make bench DISTURBANCE=…`.

`python -m bench.attest` sends evidence to the installation that the environment names, as often as
10,000 devices do that attest within five minutes, until it is ended. They come at random moments,
as devices do that know nothing of each other, and each waits for its answer. Devices and keys are
made once an installation, and kept in its home.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from bench.evidence import KEYS, Key, attest_body
from cli.sim import Client, Target, enroll, serials

_RATE: Final = 10_000 / 300
_AT_ONCE: Final = 16
_PATH: Final = "/api/v1/devices/attest"


@dataclass(frozen=True, slots=True)
class Attesting:
    """A device with its key."""

    id: str
    token: str
    key: Key


def main() -> None:
    """Runs until it is ended, or for as long as it is told."""
    parser = argparse.ArgumentParser(prog="python -m bench.attest", description=__doc__)
    parser.add_argument("--rate", type=float, default=_RATE, help="attestations a second")
    parser.add_argument("--seconds", type=float, default=3600.0)
    options = parser.parse_args()
    # Devices sign on processors of their own: here they take what the product leaves.
    os.nice(19)
    facts = json.loads(Path(os.environ["BOOTSTRAP"]).read_text())
    kept = Path(os.environ["EVERGREEN_HOME"]) / "attesting.json"
    print(asyncio.run(_run(facts, kept, options.rate, options.seconds)), "attestations")


async def _run(facts: dict[str, Any], kept: Path, rate: float, seconds: float) -> int:
    async with Client(Target.of(facts["url"], facts["ca_file"]), connections=_AT_ONCE) as client:
        devices = await _devices(client, str(facts["pre_shared_key"]), kept)
        ends = time.monotonic() + seconds
        workers = (
            _attest(client, cycle(devices[first::_AT_ONCE]), rate / _AT_ONCE, ends)
            for first in range(_AT_ONCE)
        )
        return sum(await asyncio.gather(*workers))


async def _attest(client: Client, devices: Iterator[Attesting], rate: float, ends: float) -> int:
    sent = 0
    due = time.monotonic()
    while (due := due + random.expovariate(rate)) < ends:
        await asyncio.sleep(due - time.monotonic())
        device = next(devices)
        answer = await client.call(_PATH, attest_body(device.id, device.key), device.token)
        if answer.status != 200:
            raise SystemExit(f"an attestation was answered {answer.status or answer.fault}")
        sent += 1
    return sent


async def _devices(client: Client, pre_shared_key: str, kept: Path) -> list[Attesting]:
    if kept.exists():
        rows = json.loads(kept.read_text())
    else:
        enrolled = await enroll(client, pre_shared_key, serials(f"ATTEST-{time.time_ns()}", KEYS))
        rows = [(one.id, one.token, Key().pem) for one in enrolled]
        kept.touch(mode=0o600)
        kept.write_text(json.dumps(rows))
    return [Attesting(id_, token, Key(pem)) for id_, token, pem in rows]


if __name__ == "__main__":
    main()
