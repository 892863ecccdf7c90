"""What the servers of others do in FIPS mode: Envoy, NATS and PostgreSQL.

Nobody sees from outside which module a server uses. What can be seen is shown and no more: which
TLS it takes, what its build says of itself, and whether its OpenSSL has MD5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import httpx
from prometheus_client.parser import text_string_to_metric_families

from cli.doctor import tls_offers
from cli.doctor.database import Login
from cli.doctor.finding import Check, Finding, judged, skipped, warning
from cli.doctor.installation import Installation
from cli.doctor.messaging import Server
from cli.doctor.public import Public
from servicekit.messaging.jetstream import servers_of

GATEWAY: Final = "fips.gateway"
NATS: Final = "fips.nats"
DATABASE: Final = "fips.database"
NAMES: Final = (GATEWAY, NATS, DATABASE)
"""Only where somebody wants FIPS mode."""

NOT_VALIDATED: Final = "approved algorithms, module not validated"
_TIMEOUT: Final = 5.0
_POSTGRES_PORT: Final = 5432
_NATS_PORT: Final = 4222
_GO_HAS_ALWAYS: Final = "ChaCha20-Poly1305 in TLS 1.3"
"""Go has no setting for the suites of TLS 1.3 but its own FIPS mode, in which NATS refuses to ask
identity who connects (`auth_callout`)."""


async def checks(place: Installation) -> list[Check]:
    """All checks."""
    owner = next((login for login in place.databases if not login.context), None)
    return [
        await gateway(place.gateway or place.public, place.gateway_monitor, place.gateway_admin),
        await nats(place.nats) if place.nats else skipped(NATS, "set EVERGREEN_NATS_URL"),
        await database(owner) if owner else skipped(DATABASE, "set EVERGREEN_MIGRATE_DATABASE_URL"),
    ]


async def gateway(public: Public, monitor: str = "", admin: Path | None = None) -> Check:
    """The TLS of the gateway, and whether its Envoy is a FIPS build.

    Args:
        public: where it is reached.
        monitor: the address of its metrics, where it is known.
        admin: the socket of its administration, where it is on this machine.
    """
    found, seen = await _tls("GATEWAY", "the gateway", *public.there, public.host, None)
    build, is_fips = await _envoy(monitor, admin)
    if is_fips is False:
        found.append(
            warning(
                "GATEWAY_MODULE_NOT_VALIDATED",
                f"{build}: {NOT_VALIDATED}",
                "Where a validated one is asked for, use an Envoy that is built with boringssl-fips"
                " (docs/fips.md).",
            )
        )
    return judged(GATEWAY, found, f"{build}; {seen}")


async def nats(server: Server) -> Check:
    """The TLS of NATS, and which Go it was built with."""
    build = await _nats_build(server.monitor)
    first = servers_of(server.url)[0]
    url = urlsplit(first if "://" in first else f"nats://{first}")
    if url.scheme != "tls" and server.ca_file is None:
        return judged(NATS, [], f"{build}; no TLS on this machine; {NOT_VALIDATED}")
    host, port = url.hostname or "", url.port or _NATS_PORT
    found, seen = await _tls("NATS", "NATS", host, port, host, tls_offers.nats, _GO_HAS_ALWAYS)
    return judged(NATS, found, f"{build}; {seen}; {NOT_VALIDATED}")


async def database(login: Login) -> Check:
    """Whether PostgreSQL's OpenSSL is in FIPS mode, and which TLS it takes."""
    try:
        connection = await asyncpg.connect(login.dsn, password=login.password, timeout=_TIMEOUT)
    except Exception as error:
        return skipped(
            DATABASE, f"the database does not let it in: {error or type(error).__name__}"
        )
    try:
        build = f"PostgreSQL {await connection.fetchval('SHOW server_version')}"
        has_md5 = await _has_md5(connection)
    finally:
        await connection.close(timeout=_TIMEOUT)
    found: list[Finding] = []
    seen = "no TLS on this machine"
    if (there := _address(login.dsn)) is not None:
        found, seen = await _tls("DATABASE", "PostgreSQL", *there, there[0], tls_offers.postgres)
    if has_md5:
        found.append(
            warning(
                "DATABASE_MODULE_NOT_VALIDATED",
                f"{build} answers SELECT md5('x'), so its OpenSSL is not in FIPS mode:"
                f" {NOT_VALIDATED}",
                "Where a validated one is asked for, run PostgreSQL on an OpenSSL in FIPS mode"
                " (docs/fips.md).",
            )
        )
    return judged(DATABASE, found, f"{build}; its OpenSSL refuses MD5; {seen}")


async def _tls(
    code: str,
    what: str,
    host: str,
    port: int,
    name: str,
    begin: tls_offers.Begin | None,
    bearable: str = "",
) -> tuple[list[Finding], str]:
    """What is wrong with the TLS of a server, and what was seen; `bearable` is nothing wrong."""
    try:
        taken = await asyncio.to_thread(tls_offers.taken, host, port, name, begin)
    except tls_offers.NotTlsError as error:
        return [
            warning(f"{code}_TLS_UNKNOWN", f"nobody knows the TLS of {what}: {error}", "Start it.")
        ], ""
    if others := [other for other in taken.others if other != bearable]:
        return [
            Finding(
                f"{code}_TLS_NOT_APPROVED",
                f"{what} takes {', '.join(others)}",
                "Set EVERGREEN_FIPS=required where its configuration is written, and start it anew;"
                " docs/fips.md says how for servers of your own.",
            )
        ], ""
    seen = f"TLS {' and '.join(taken.approved)} with approved algorithms"
    if taken.others:
        return [], f"{seen}, and {bearable} for who has nothing else"
    return [], f"{seen} alone"


async def _envoy(monitor: str, admin: Path | None) -> tuple[str, bool | None]:
    """Envoy's build as it says itself, and whether it is one for FIPS; `None` if nobody knows."""
    try:
        if admin is not None:
            transport = httpx.AsyncHTTPTransport(uds=str(admin))
            async with httpx.AsyncClient(transport=transport, timeout=_TIMEOUT) as client:
                version = str((await client.get("http://envoy/server_info")).json()["version"])
            return f"Envoy {version}", version.endswith("BoringSSL-FIPS")
        if monitor:
            async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False) as client:
                text = (await client.get(f"{monitor}/metrics")).text
            modes = list(_values(text, "envoy_server_compilation_settings_fips_mode"))
            if modes:
                is_fips = modes[0] == 1
                return f"Envoy with {'BoringSSL-FIPS' if is_fips else 'BoringSSL'}", is_fips
    except (httpx.HTTPError, OSError, ValueError, KeyError):
        pass
    return "Envoy, whose build nobody was asked for", None


def _values(metrics: str, name: str) -> Iterator[float]:
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == name:
                yield sample.value


async def _nats_build(monitor: str) -> str:
    if monitor:
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False) as client:
                said: dict[str, Any] = (await client.get(f"{monitor}/varz")).json()
        except (httpx.HTTPError, ValueError):
            said = {}
        if "version" in said:
            return f"nats-server {said['version']} by {said.get('go', 'Go')}"
    return "nats-server, whose build nobody was asked for"


async def _has_md5(connection: asyncpg.Connection[asyncpg.Record]) -> bool:
    try:
        await connection.fetchval("SELECT md5('x')")
    except asyncpg.PostgresError:
        return False
    return True


def _address(dsn: str) -> tuple[str, int] | None:
    """Where PostgreSQL is reached over a network with TLS; `None` for a socket or without TLS."""
    url = urlsplit(dsn)
    query = dict(parse_qsl(url.query))
    host = query.get("host") or url.hostname or ""
    if not host or host.startswith("/") or query.get("sslmode") == "disable":
        return None
    return host, url.port or _POSTGRES_PORT
