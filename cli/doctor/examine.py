"""Goes through all checks of an installation, the nearest first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from cli.doctor import database, machine, messaging, public
from cli.doctor.finding import Finding
from cli.doctor.installation import Installation


async def examine(place: Installation, disks: Iterable[Path] = ()) -> list[Finding]:
    """All findings."""
    found: list[Finding] = []
    for path in (*place.disks, *disks):
        found += machine.disk(path)
    for login in place.databases:
        found += [finding async for finding in database.check(login)]
        if any(finding.code == "DATABASE_UNREACHABLE" for finding in found):
            # The other roles would say the same.
            break
    if place.nats is not None:
        found += [finding async for finding in messaging.check(place.nats)]
    outside = await asyncio.to_thread(lambda: list(public.check(place.public)))
    answered = not any(f.code in {"PUBLIC_URL_UNREACHABLE", "NOT_TLS"} for f in outside)
    if place.port is not None and not (answered and _is_evergreen(outside)):
        # Another program on the gateway's port explains the rest.
        found += machine.port(place.port)
    return found + outside


def _is_evergreen(outside: Iterable[Finding]) -> bool:
    return not any(finding.code == "PUBLIC_URL_WRONG_SERVER" for finding in outside)
