"""NATS: reachable, with JetStream, and every message on the disk before it is acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import nats
import nats.errors

from cli.doctor.finding import Check, Finding, completed, judged, skipped, warning
from contract.subjects import EVENTS, TELEMETRY
from servicekit.messaging.jetstream import servers_of

LOGIN: Final = "nats.login"
DURABILITY: Final = "nats.durability"
STREAMS: Final = "nats.streams"
NAMES: Final = (LOGIN, DURABILITY, STREAMS)

_TIMEOUT: Final = 5.0
_MIB: Final = 1 << 20
_NEARLY_FULL: Final = 0.95
"""A stream that drops its oldest messages is never quite full."""
_SETTINGS: Final = {
    EVENTS.name: "EVERGREEN_EVENTS_STREAM_BYTES",
    TELEMETRY.name: "EVERGREEN_TELEMETRY_STREAM_BYTES",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A NATS server, a user of it, and its monitoring address (which may be unknown)."""

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    monitor: str = ""
    ca_file: Path | None = None
    """The CA of the server's certificate, if it has one of its own."""

    @property
    def where(self) -> str:
        """The address as it may be shown: a password can be part of it."""
        return re.sub(r"//[^,]*@", "//", self.url)


async def checks(server: Server) -> list[Check]:
    """All checks."""
    found = [judged(LOGIN, await _log_in(server), server.where)]
    if not server.monitor:
        why = "set EVERGREEN_NATS_MONITOR_URL to the server's monitoring address (http://HOST:8222)"
        return [*found, skipped(DURABILITY, why), skipped(STREAMS, why)]
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False) as client:
            facts = (await client.get(f"{server.monitor}/varz")).json()
            streams = (await client.get(f"{server.monitor}/jsz?streams=true&config=true")).json()
    except (httpx.HTTPError, ValueError) as error:
        finding = Finding(
            "NATS_MONITOR_UNREACHABLE",
            f"{server.monitor} does not answer: {error}",
            "Start NATS, or correct EVERGREEN_NATS_MONITOR_URL.",
        )
        return completed(NAMES, [*found, judged(DURABILITY, [finding])])
    found.append(judged(DURABILITY, settings(facts), "messages are on the disk when acknowledged"))
    if found[-1].status == "ok":
        found.append(judged(STREAMS, full(streams), _use(streams) or "none made yet"))
    return completed(NAMES, found)


async def _log_in(server: Server) -> list[Finding]:
    said: list[str] = []

    async def keep(error: Exception) -> None:
        said.append(str(error))

    try:
        client = await asyncio.wait_for(
            nats.connect(
                servers_of(server.url),
                user=server.user or None,
                password=server.password or None,
                tls=_trusting(server.ca_file),
                inbox_prefix=f"_INBOX_{server.user}",
                connect_timeout=int(_TIMEOUT),
                max_reconnect_attempts=4,
                reconnect_time_wait=0.1,
                error_cb=keep,
            ),
            2 * _TIMEOUT,
        )
    except Exception as error:
        # The client tries a few times; a refusal may be followed by the end of the connection.
        said.append(str(error) or type(error).__name__)
        refused = [text for text in said if "authorization" in text.lower()]
        reason = (refused or said)[0]
        if refused:
            return [
                Finding(
                    "NATS_LOGIN_REFUSED",
                    f"NATS refuses the user {server.user!r}: {reason}",
                    "The password's file and NATS's configuration differ.",
                )
            ]
        return [
            Finding(
                "NATS_UNREACHABLE",
                f"NATS at {server.where} cannot be reached: {reason}",
                "Start it. Nothing is lost meanwhile: events wait in PostgreSQL.",
            )
        ]
    try:
        await client.jetstream(timeout=_TIMEOUT).stream_info(EVENTS.name)
    except nats.errors.NoRespondersError:
        return [_without_jetstream()]
    except Exception as error:
        if "not enabled" in str(error) or "ServiceUnavailable" in type(error).__name__:
            return [_without_jetstream()]
        # The stream may not have been made yet.
        return []
    finally:
        with contextlib.suppress(Exception):
            await client.close()
    return []


def _trusting(ca_file: Path | None) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=str(ca_file)) if ca_file else None


def _without_jetstream() -> Finding:
    return Finding(
        "NATS_WITHOUT_JETSTREAM",
        "NATS runs without JetStream: it keeps no events",
        "Start it with JetStream and a directory for its store (deploy/nats has the settings).",
    )


def settings(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """What the server's own words (`/varz`) tell."""
    configured = (facts.get("jetstream") or {}).get("config")
    if not configured:
        yield _without_jetstream()
        return
    if not configured.get("sync_always"):
        yield Finding(
            "NATS_SYNC_INTERVAL",
            "NATS acknowledges messages before they are on the disk (sync_interval is not always)",
            'Set sync_interval: always in the "jetstream" part of its configuration.',
        )


def _streams(facts: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Each stream's name, bytes and most bytes (`/jsz`)."""
    for account in facts.get("account_details") or ():
        for stream in account.get("stream_detail") or ():
            most = int((stream.get("config") or {}).get("max_bytes") or -1)
            used = int((stream.get("state") or {}).get("bytes") or 0)
            if most > 0:
                yield str(stream.get("name")), used, most


def full(facts: Mapping[str, Any]) -> Iterator[Finding]:
    """Which streams are as large as they may be: they drop the oldest events already."""
    for name, used, most in _streams(facts):
        if used >= _NEARLY_FULL * most:
            yield warning(
                "STREAM_FULL",
                f"the stream {name} holds {used / _MIB:.0f} MiB of {most / _MIB:.0f} MiB that it"
                " may: it drops the oldest events, before the 30 days that integrators have",
                f"Give it more ({_SETTINGS.get(name, 'max_bytes')} of the services), if its disk"
                " has room. An integrator that missed events reads them by GET /api/events.",
            )


def _use(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {used / most:.0%} full" for name, used, most in _streams(facts))
