"""Goes through all checks of an installation, the nearest first."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cli.doctor import (
    backups,
    database,
    files,
    fips,
    former,
    machine,
    messaging,
    passkeys,
    public,
    services,
)
from cli.doctor.database import Login
from cli.doctor.finding import Check, Finding, findings, judged, skipped
from cli.doctor.installation import Installation
from cli.doctor.public import Public
from servicekit.security import mode

RUNNING: Final = "running"
_OF_THE_WAY: Final = {"DATABASE_UNREACHABLE", "DATABASE_POOLER_MODE", "DATABASE_POOLER_FULL"}
_AWAY: Final = {"PUBLIC_URL_UNKNOWN_HOST", "PUBLIC_URL_UNREACHABLE"}


async def examine(place: Installation, disks: Iterable[Path] = ()) -> list[Check]:
    """All checks, those that were skipped too."""
    here = _of_the_machine(place, disks)
    if place.stopped:
        return [*here, *_port(place, []), *_not_running(place, place.stopped, _names(place))]
    asked = [
        await _databases(place),
        await messaging.checks(place.nats) if place.nats else _unknown_nats(),
        await services.checks(place.services),
        *await asyncio.to_thread(lambda: [public.checks(address) for address in _addresses(place)]),
        *await asyncio.to_thread(lambda: [public.checks(address) for address in place.former]),
        former.checks(place.former, place.logs),
    ]
    there = [check for checks in asked for check in checks]
    if mode.is_required() or any(check.name == services.FIPS for check in there):
        there += await fips.checks(place)
    if _nothing_answers(place, there):
        why = "neither the database, nor NATS, nor the gateway answers"
        return [*here, *_port(place, there), *_not_running(place, why, _names_of(there))]
    known = bool(place.databases and place.nats)
    running = judged(RUNNING, [], "it runs") if known else skipped(RUNNING, "see public.port")
    return [*here, *_port(place, there), running, *there]


def _of_the_machine(place: Installation, disks: Iterable[Path]) -> list[Check]:
    return [
        machine.disks([*place.disks, *disks]),
        machine.clock(),
        machine.time_zone(machine.zones_of(place.processes)),
        files.permissions(place.private),
        files.master_key(place.master_key),
        files.authorities(place.authorities),
        *files.given(place.given),
    ]


def _addresses(place: Installation) -> list[Public]:
    return [address for address in (place.gateway, place.public) if address is not None]


async def _databases(place: Installation) -> list[Check]:
    if not place.databases:
        why = "set EVERGREEN_MIGRATE_DATABASE_URL, or EVERGREEN_DATABASE_URL"
        return [skipped(name, why) for name in (database.ENCRYPTION, database.LOGIN)]
    unverified = {
        finding: None
        for login in place.databases
        if (finding := database.unverified(login.dsn, os.environ)) is not None
    }
    checks = [judged(database.ENCRYPTION, unverified, "the server is known, or on this machine")]
    logins = list(place.databases)
    while logins:
        made = await database.checks(logins.pop(0))
        checks += made
        if any(finding.code in _OF_THE_WAY for finding in findings(made)):
            # The other roles would say the same.
            failed = next(check.name for check in made if check.status in {"error", "warning"})
            checks += [
                skipped(f"{database.ROLE}.{login.context}", f"needs {failed}") for login in logins
            ]
            break
    owner = next((login for login in place.databases if not login.context), None)
    checks.append(await _backups(owner, checks))
    checks.append(await _passkeys(owner, checks, place.public.host))
    return checks


async def _backups(owner: Login | None, checks: Sequence[Check]) -> Check:
    if owner is None:
        return skipped(backups.LAST, "set EVERGREEN_MIGRATE_DATABASE_URL")
    if {check.name: check.status for check in checks}.get(database.SCHEMA) != "ok":
        return skipped(backups.LAST, f"needs {database.SCHEMA}")
    return judged(backups.LAST, [f async for f in backups.of(owner)], "a good one is young enough")


async def _passkeys(owner: Login | None, checks: Sequence[Check], host: str) -> Check:
    if owner is None:
        return skipped(passkeys.HOST, "set EVERGREEN_MIGRATE_DATABASE_URL")
    if {check.name: check.status for check in checks}.get(database.SCHEMA) != "ok":
        return skipped(passkeys.HOST, f"needs {database.SCHEMA}")
    return judged(passkeys.HOST, [f async for f in passkeys.of(owner, host)], f"all are for {host}")


def _unknown_nats() -> list[Check]:
    return [skipped(name, "set EVERGREEN_NATS_URL") for name in messaging.NAMES]


def _port(place: Installation, there: Sequence[Check]) -> list[Check]:
    """Another program on the gateway's port explains the rest."""
    if place.port is None:
        return [skipped(machine.PORT, "the gateway listens in another container or machine")]
    nearest = _addresses(place)[0].what
    server = [check for check in there if check.name == f"{nearest}.server"]
    if server and server[0].status == "ok":
        return [judged(machine.PORT, [], f"the gateway has {place.port}")]
    return [judged(machine.PORT, machine.port(place.port), f"{place.port} is free")]


def _nothing_answers(place: Installation, there: Sequence[Check]) -> bool:
    codes = {finding.code for finding in findings(there)}
    return (
        bool(place.databases and place.nats)
        and {"DATABASE_UNREACHABLE", "NATS_UNREACHABLE"} <= codes
        and bool(codes & _AWAY)
    )


def _not_running(place: Installation, why: str, names: Iterable[str]) -> list[Check]:
    finding = Finding("NOT_RUNNING", f"Evergreen does not run: {why}", f"Start it: {place.start}.")
    return [judged(RUNNING, [finding]), *(skipped(name, "not running") for name in names)]


def _names_of(checks: Iterable[Check]) -> list[str]:
    return [check.name for check in checks]


def _names(place: Installation) -> list[str]:
    """The checks that need something that runs."""
    roles = [f"{database.ROLE}.{login.context}" for login in place.databases if login.context]
    return [
        database.ENCRYPTION, database.LOGIN, database.POOLER, *database.OWNERS, *roles,
        backups.LAST,
        passkeys.HOST,
        *messaging.NAMES,
        *services.NAMES,
        *(f"{address.what}.{name}" for address in _addresses(place) for name in public.NAMES),
    ]  # fmt: skip
