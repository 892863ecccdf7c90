"""The console's queries, one after the other, on a database of any size."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import httpx

from bench.figures import Outcome
from bench.fleet import device_id
from tests.support.stack import Stack

_A_SERIAL: Final = "devices, search: a serial"


def _queries(devices: int, chance: random.Random) -> dict[str, tuple[str, dict[str, str]]]:
    """One of each kind of query, with values that a person could have chosen."""
    number = chance.randint(1, devices)
    day = datetime.now(UTC) - timedelta(days=chance.randint(1, 80))
    since, until = day.isoformat(), (day + timedelta(days=1)).isoformat()
    return {
        "devices": ("/api/devices", {}),
        "devices, 500 a page": ("/api/devices", {"pageSize": "500"}),
        "devices, online": ("/api/devices", {"status": "online"}),
        "devices, critical": ("/api/devices", {"health": "critical"}),
        _A_SERIAL: ("/api/devices", {"search": f"BENCH-{number}"}),
        "devices, search: many": ("/api/devices", {"search": f"BENCH-{number % 9 + 1}"}),
        "devices, search: nothing found": ("/api/devices", {"search": f"absent-{number}"}),
        "devices, retired": ("/api/devices", {"status": "decommissioned"}),
        "devices, not seen lately": ("/api/devices", {"lastSeenBefore": since}),
        "a device": (f"/api/devices/{device_id(number)}", {}),
        "events": ("/api/events", {}),
        "events of a device": ("/api/events", {"deviceId": device_id(number)}),
        "events, errors": ("/api/events", {"severity": "error"}),
        "events, a type": ("/api/events", {"action": "update.failed"}),
        "events of a day": ("/api/events", {"occurredAfter": since, "occurredBefore": until}),
        "events, search": ("/api/events", {"search": "firefox"}),
        "events, search: rare": ("/api/events", {"search": f"number {number} "}),
    }


async def ask(stack: Stack, devices: int, times: int) -> Outcome:
    """Seconds by query; second pages and deep pages are queries of their own."""
    outcome = Outcome()
    chance = random.Random(5)
    token = stack.login()["token"]
    async with httpx.AsyncClient(
        base_url=stack.url,
        verify=stack.tls(),
        headers={"authorization": f"Bearer {token}"},
        timeout=60,
    ) as client:

        async def get(name: str, path: str, query: dict[str, str]) -> str:
            began = time.perf_counter()
            answer = await client.get(path, params=query)
            seconds = time.perf_counter() - began
            if answer.status_code != 200:
                outcome.fail(f"{name}: {answer.status_code}")
            elif name == _A_SERIAL and f'"{query["search"]}"' not in answer.text:
                outcome.fail(f"{name}: not on the first page")
            else:
                outcome.note(name, seconds)
            return str(answer.json().get("nextPageToken", ""))

        for _ in range(times):
            for name, (path, query) in _queries(devices, chance).items():
                following = await get(name, path, query)
                if following and name in ("devices", "events"):
                    query |= {"pageToken": following}
                    await get(f"{name}, second page", path, query)
    return outcome
