"""A service tells when the certificates end that it shows, trusts and is shown."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from deploy.certificates import INSIDE, Authority
from servicekit.expiry import Expiry
from servicekit.security.certificates import first_end
from servicekit.security.tls import Tls
from servicekit.settings import ServiceSettings

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


def told(certificate: str) -> float | None:
    name = "evergreen_certificate_expiry_timestamp_seconds"
    return REGISTRY.get_sample_value(name, {"certificate": certificate})


@asynccontextmanager
async def serving(files: Tls, greeting: bytes = b"") -> AsyncIterator[int]:
    """A server that begins in the clear: NATS greets, PostgreSQL answers a request for TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate_file, files.key_file)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if greeting:
            writer.write(greeting)
        else:
            assert await reader.readexactly(8) == _SSL_REQUEST
            writer.write(b"S")
        await writer.start_tls(context)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def _files(authority: Authority, directory: Path, name: str, days: int) -> Tls:
    path = directory / name
    path.mkdir()
    return authority.ensure(path, name, kind=replace(INSIDE, life=timedelta(days=days)))


async def test_each_certificate_has_its_end(tmp_path: Path) -> None:
    """Files as they lie there, servers as they show themselves; renewed ones are seen again."""
    authority = Authority.ensure_in(tmp_path / "ca")
    own, nats, postgres = (
        _files(authority, tmp_path, name, days)
        for name, days in (("policy", 10), ("nats", 20), ("postgres", 30))
    )
    elsewhere = Authority.ensure_in(tmp_path / "elsewhere", "Of the database")
    async with serving(nats, b"INFO {}\r\n") as nats_port, serving(postgres) as postgres_port:
        settings = ServiceSettings(
            grpc_listen="unix:/nowhere/gw",
            internal_listen="unix:/nowhere/int",
            database_url=f"postgresql://policy@127.0.0.1:{postgres_port}/evergreen"
            f"?sslmode=verify-full&sslrootcert={elsewhere.certificate_file}",
            nats_url=f"tls://127.0.0.1:{nats_port}",
            nats_ca_file=own.ca_file,
            tls_ca_file=own.ca_file,
            tls_certificate_file=own.certificate_file,
            tls_key_file=own.key_file,
        )
        expiry = Expiry(settings)
        assert expiry.has_any
        await expiry.look()
        for name, file in (
            ("own", own.certificate_file),
            ("inside_ca", own.ca_file),
            ("database_ca", elsewhere.certificate_file),
            ("nats", nats.certificate_file),
            ("database", postgres.certificate_file),
        ):
            assert told(name) == first_end(file).timestamp(), name
        assert told("nats_ca") is None  # the same as inside
        before = told("own")
        own.certificate_file.unlink()
        await expiry.look()
        assert told("own") == before
        authority.ensure(own.certificate_file.parent, "policy")
        await expiry.look()
        assert told("own") == first_end(own.certificate_file).timestamp() != before
    # The servers are away: what was last seen counts.
    await expiry.look()
    assert told("nats") == first_end(nats.certificate_file).timestamp()


@pytest.mark.parametrize(
    "database", ["postgresql://p@/evergreen?host=/run/postgres", "postgresql://p@db/evergreen"]
)
def test_without_tls_there_is_nothing_to_look_at(database: str) -> None:
    """As between the processes of `make run`."""
    settings = ServiceSettings(
        grpc_listen="unix:/nowhere/gw", internal_listen="unix:/nowhere/int", database_url=database
    )
    assert not Expiry(settings).has_any
