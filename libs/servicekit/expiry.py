"""When the certificates end that a service shows, trusts and is shown (Prometheus).

Files are read, and servers are asked by a handshake of their own: what counts is what a server
shows, not what lies on its disk. Nothing is known without TLS, as between the processes of
`make run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from prometheus_client import Gauge

from servicekit.messaging.jetstream import servers_of
from servicekit.observability import logs
from servicekit.observability.logs import brief
from servicekit.settings import ServiceSettings

log = logs.get(__name__)

_EVERY_SECONDS: Final = 600.0
_TIMEOUT: Final = 10.0
_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
"""The first message of a client of PostgreSQL that wants TLS."""

ENDS: Final = Gauge(
    "evergreen_certificate_expiry_timestamp_seconds",
    "When a certificate ends: the service's `own`, the `database` server's, the one of `nats`, and"
    " those of the CAs that each is checked with.",
    ["certificate"],
)


class Expiry:
    """Keeps the metric of one service up to date."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings

    @property
    def has_any(self) -> bool:
        """Whether there is a certificate to look at."""
        settings = self._settings
        return (
            bool(self._files()) or _asks_tls(settings.database_url) or _has_tls(settings.nats_url)
        )

    async def run(self) -> None:
        """Looks every few minutes, for as long as the service lives."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_SECONDS)

    async def look(self) -> None:
        """Looks once; what cannot be asked now stays as it was last seen."""
        # Takes memory that services without TLS need not have.
        from servicekit.security.certificates import first_end  # noqa: PLC0415

        for name, file in self._files().items():
            try:
                found = await asyncio.to_thread(first_end, file)
            except (OSError, ValueError) as error:
                log.warning("certificate not readable", certificate=name, error=brief(error))
            else:
                ENDS.labels(name).set(found.timestamp())
        async for name, end in shown(self._settings):
            ENDS.labels(name).set(end.timestamp())

    def _files(self) -> dict[str, Path]:
        settings = self._settings
        found: dict[str, Path] = {}
        if settings.tls is not None:
            found |= {"own": settings.tls.certificate_file, "inside_ca": settings.tls.ca_file}
        root = _query(settings.database_url).get("sslrootcert")
        for name, file in (
            ("database_ca", Path(root) if root and root != "system" else None),
            ("nats_ca", settings.nats_ca_file if _has_tls(settings.nats_url) else None),
        ):
            if file is not None and file not in found.values():
                found[name] = file
        return found


async def shown(settings: ServiceSettings) -> AsyncIterator[tuple[str, datetime]]:
    """What PostgreSQL and NATS show now: `database` and `nats`, and when each ends."""
    url = urlsplit(settings.database_url)
    if url.hostname and _asks_tls(settings.database_url):
        with contextlib.suppress(OSError, ValueError, EOFError):
            yield "database", await _database(url.hostname, url.port or 5432)
    ends = []
    for server in servers_of(settings.nats_url) if _has_tls(settings.nats_url) else ():
        where = urlsplit(server)
        with contextlib.suppress(OSError, ValueError, EOFError):
            ends.append(await _nats(where.hostname or "", where.port or 4222))
    if ends:
        yield "nats", min(ends)


async def _database(host: str, port: int) -> datetime:
    async with asyncio.timeout(_TIMEOUT):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(_SSL_REQUEST)
            if await reader.readexactly(1) != b"S":
                raise ValueError("the server has no TLS")
            return await _end_of_peer(writer, host)
        finally:
            writer.close()


async def _nats(host: str, port: int) -> datetime:
    async with asyncio.timeout(_TIMEOUT):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            await reader.readline()  # INFO, in the clear
            return await _end_of_peer(writer, host)
        finally:
            writer.close()


async def _end_of_peer(writer: asyncio.StreamWriter, host: str) -> datetime:
    from servicekit.security.certificates import valid_until  # noqa: PLC0415 - as above

    # Nothing is told to it: an outdated certificate is to be seen, too.
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE
    await writer.start_tls(anyone, server_hostname=host)
    connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
    return valid_until(connection.getpeercert(binary_form=True) or b"")


def _query(url: str) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(urlsplit(url).query).items()}


def _asks_tls(url: str) -> bool:
    return _query(url).get("sslmode") in {"require", "verify-ca", "verify-full"}


def _has_tls(url: str) -> bool:
    return url.startswith("tls://")
