"""One run: the product, its callers, one fault after the other, and the count at the end."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from chaos import check, product
from chaos.faults import Fault
from chaos.load import Load
from chaos.product import Product
from tests.support.stack import PATIENCE

Say = Callable[[str], None]


@dataclass(slots=True)
class Result:
    """What came of a run."""

    recoveries: list[tuple[str, float]] = field(default_factory=list)
    """Each fault, and the seconds from its end until everything worked."""
    broken: list[str] = field(default_factory=list)
    acknowledged_events: int = 0
    acknowledged_states: int = 0
    acknowledged_actions: int = 0
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def slowest(self) -> tuple[str, float]:
        """The fault after which it took longest."""
        return max(self.recoveries, key=lambda entry: entry[1], default=("none", 0.0))

    def write(self, file: Path) -> None:
        """Writes it as JSON."""
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            json.dumps(
                {
                    "recoveries": [
                        {"fault": f, "seconds": round(s, 2)} for f, s in self.recoveries
                    ],
                    "brokenPromises": self.broken,
                    "acknowledgedEvents": self.acknowledged_events,
                    "devicesWithStates": self.acknowledged_states,
                    "acknowledgedActions": self.acknowledged_actions,
                    "calls": self.calls,
                },
                indent=2,
            )
            + "\n"
        )


async def run(
    directory: Path,
    faults: Sequence[Fault],
    *,
    devices: int,
    pause: float,
    every: float,
    seed: int,
    say: Say,
) -> Result:
    """Runs it.

    Args:
        directory: where the product's home will be.
        faults: in their order.
        devices: how many there are.
        pause: seconds between two calls of a device, on average.
        every: seconds from one fault to the next, or longer when it has not recovered.
        seed: of all chance.
        say: gets a line for each thing that happens.
    """
    result = Result()
    async with product.running(directory) as found:
        say("the product is ready")
        load = Load(found.stack, devices, pause, random.Random(seed))
        await load.start()
        say(f"{devices} devices work")
        for number, fault in enumerate(faults, 1):
            if fault.kind == "full" and not found.can_fill_disk:
                say("the disk is not filled: that needs root")
                continue
            began = time.monotonic()
            await fault.apply(found)
            seconds = await _recovery(found, load)
            result.recoveries.append((str(fault), seconds))
            say(f"{number}/{len(faults)} {fault}: all works again after {seconds:.1f} s")
            await asyncio.sleep(max(0.0, began + every - time.monotonic()))
        await load.finish()
        say("the devices are done; counting")
        promises = load.promises
        result.acknowledged_events = promises.ledger.event_count
        result.acknowledged_states = len(promises.ledger.states)
        result.acknowledged_actions = promises.actions.total()
        result.calls = dict(sorted(promises.calls.items()))
        result.broken = await check.broken_promises(found, promises)
    return result


async def _recovery(found: Product, load: Load) -> float:
    """Seconds until it is ready, devices get answers, and an administrator can act."""
    began = time.monotonic()
    answered = load.answered
    async with asyncio.timeout(3 * PATIENCE):
        while not (
            await found.is_ready()
            and load.answered > answered
            and await asyncio.to_thread(_can_act, load)
        ):
            await asyncio.sleep(0.05)
    return time.monotonic() - began


def _can_act(load: Load) -> bool:
    try:
        answers = [
            load.org.root.get("/api/devices", params={"orgId": load.org.id, "pageSize": 1}),
            load.org.root.get("/api/policies", params={"orgId": load.org.id}),
            load.org.root.get("/api/enrollment-tokens", params={"orgId": load.org.id}),
            load.org.root.get("/api/audit", params={"pageSize": 1}),
            load.org.root.get("/api/users", params={"pageSize": 1}),
        ]
    except httpx.TransportError:
        return False
    return all(answer.status_code == 200 for answer in answers)
