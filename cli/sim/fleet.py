"""The devices of a simulation: enrolled once, and kept in a file for the next time."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cli.errors import CliError
from cli.sim.bodies import enroll_body
from cli.sim.device import ENROLL, PATHS, Check, Device
from cli.sim.http import Answer, Client

_AT_ONCE: Final = 32
_LATER: Final = frozenset({429, 503})
_PATIENCE: Final = 300.0
"""Seconds that an installation may refuse or be away before enrolling is given up."""


class EnrollError(CliError):
    """The installation does not take the devices."""


def serials(prefix: str, count: int, first: int = 0) -> list[str]:
    """Serial numbers of a fleet."""
    return [f"{prefix}-{number:07d}" for number in range(first, first + count)]


async def enroll(
    client: Client,
    pre_shared_key: str,
    wanted: Sequence[str],
    *,
    first_index: int = 0,
    check: Check | None = None,
    done: Callable[[Device], None] | None = None,
    waiting: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
) -> list[Device]:
    """Enrolls devices; a gateway that asks for patience is waited for.

    Args:
        client: with at least one connection.
        pre_shared_key: as an agent is configured with.
        wanted: the serial numbers.
        first_index: the number of the first device in its fleet.
        check: looks at the signature of the first policy.
        done: shown every device as it is enrolled.
        waiting: told once, in a sentence, when the installation is away and is tried again.
        stop: ends it early when it is set; the answer has the devices up to then.

    Returns:
        the devices in the order of their serial numbers, numbered without a gap.

    Raises:
        EnrollError: a device is refused, or nothing moves for five minutes.
    """
    found: dict[int, Device] = {}
    queue = iter(enumerate(wanted))
    stop = stop or asyncio.Event()
    told = False

    def away(answer: Answer) -> None:
        nonlocal told
        if waiting is not None and not told:
            told = True
            waiting(f"{explained(answer)}; enrolling is tried again, for up to five minutes")

    async def worker() -> None:
        for place, serial in queue:
            if stop.is_set():
                return
            device = await _enroll(client, pre_shared_key, serial, place, check, away, stop)
            if device is None:
                return
            found[place] = device
            if done is not None:
                done(device)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(_AT_ONCE, len(wanted))):
                workers.create_task(worker())
    except* EnrollError as errors:
        raise _first(errors) from None
    devices = [found[place] for place in sorted(found)]
    for number, device in enumerate(devices, first_index):
        device.index = number
    return devices


def _first(errors: BaseExceptionGroup[EnrollError]) -> EnrollError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _enroll(
    client: Client,
    pre_shared_key: str,
    serial: str,
    place: int,
    check: Check | None,
    away: Callable[[Answer], None],
    stop: asyncio.Event,
) -> Device | None:
    """Enrolls one; `None` when it was stopped while it waited for another try."""
    body = enroll_body(serial, pre_shared_key)
    loop = asyncio.get_running_loop()
    end = loop.time() + _PATIENCE
    while True:
        answer = await client.call(PATHS[ENROLL].decode(), body, lane=place)
        if answer.status == 200:
            return _device(answer, serial, place, check)
        unreachable = answer.status == 0 and answer.fault != "tls"
        if not (unreachable or answer.status in _LATER) or loop.time() > end:
            raise EnrollError(f"{serial} cannot enroll: {explained(answer)}")
        # With many devices 429 is usual, and no trouble.
        if answer.status != 429:
            away(answer)
        asked = float(answer.retry_after) if answer.retry_after.isdecimal() else 1.0
        pause = min(max(asked, 0.1), 30.0) * random.uniform(1.0, 1.3)  # noqa: S311
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)
            return None


def _device(answer: Answer, serial: str, place: int, check: Check | None) -> Device:
    try:
        enrolled = json.loads(answer.body)
        device = Device(place, enrolled["device_id"], enrolled["device_token"], serial=serial)
        envelope = enrolled.get("policy") or {}
        version = envelope.get("version") or ""
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EnrollError(f"{serial} got an answer that is not this product's") from None
    if version:
        if check is not None and not check(envelope):
            raise EnrollError(f"the first policy of {serial} has a bad signature")
        device.version = version
    return device


def explained(answer: Answer) -> str:
    """What came of a call that failed, for a person."""
    if not answer.status:
        return {
            "connect": "nothing answers at that address",
            "tls": "the gateway's certificate is not trusted; name its CA with --ca-file",
            "timeout": "no answer within the agent's 30 seconds",
            "closed": "the connection was closed before an answer",
            "open files": "this process may open no further files",
        }.get(answer.fault, "the answer is not HTTP")
    try:
        message = json.loads(answer.body)["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.body[:200].decode("utf-8", "replace")
    return f"{answer.status} {message}"


def save(path: Path, url: str, devices: Iterable[Device]) -> None:
    """Writes a fleet to a file that only its owner can read: it has the devices' tokens.

    One JSON line says what it is, then there is one for each device, its queues included: what was
    not acknowledged is sent in the next run.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps({"evergreen_fleet": 1, "url": url}) + "\n")
            for device in devices:
                file.write(_line(device))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _line(device: Device) -> str:
    known: dict[str, Any] = {
        "serial": device.serial,
        "id": device.id,
        "token": device.token,
        "version": device.version,
    }
    if device.states:
        known["states"] = device.states
    if device.events:
        known["events"] = device.events
    return json.dumps(known, separators=(",", ":")) + "\n"


def load(path: Path, url: str = "", limit: int | None = None) -> list[Device]:
    """Reads a fleet.

    Args:
        path: what `save` wrote.
        url: the installation that it should belong to, if it matters.
        limit: how many devices at most.

    Raises:
        FileNotFoundError: there is none.
        CliError: it is another installation's, or cannot be read.
    """
    devices: list[Device] = []
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(file.readline())
            if head["evergreen_fleet"] != 1:
                raise ValueError("another version's")
            if url and head["url"] != url:
                raise CliError(
                    f"{path} is the fleet of {head['url']}; name another file with --fleet"
                )
            for number, line in enumerate(file):
                if number == limit:
                    break
                known = json.loads(line)
                devices.append(
                    Device(
                        number,
                        known["id"],
                        known["token"],
                        known["version"],
                        known["serial"],
                        tuple(known.get("states", ())),
                        tuple(known.get("events", ())),
                    )
                )
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as broken:
        raise CliError(f"{path} is no fleet of the simulator: {broken}") from broken
    return devices
