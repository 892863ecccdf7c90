"""NATS: reachable, with JetStream, and every message on the disk before it is acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import nats
import nats.errors

from cli.doctor.finding import Finding, warning
from servicekit.messaging import servers_of
from servicekit.streams import EVENTS

_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True)
class Server:
    """A NATS server, a user of it, and its monitoring address (which may be unknown)."""

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    monitor: str = ""
    ca_file: Path | None = None
    """The CA of the server's certificate, if it has one of its own."""


async def check(server: Server) -> AsyncIterator[Finding]:
    """All checks."""
    for finding in await _log_in(server):
        yield finding
    if not server.monitor:
        yield warning(
            "NATS_MONITOR_UNKNOWN",
            "whether NATS keeps what it acknowledges was not looked at",
            "Give the server's monitoring address in EVERGREEN_NATS_MONITOR_URL (http://HOST:8222).",
        )
        return
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False) as client:
            facts = (await client.get(f"{server.monitor}/varz")).json()
    except (httpx.HTTPError, ValueError) as error:
        yield Finding(
            "NATS_MONITOR_UNREACHABLE",
            f"{server.monitor} does not answer: {error}",
            "Start NATS, or correct EVERGREEN_NATS_MONITOR_URL.",
        )
        return
    for finding in settings(facts):
        yield finding


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
                f"NATS at {server.url} cannot be reached: {reason}",
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
