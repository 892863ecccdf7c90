"""A small real server with TLS in the gateway's place; a test says what it answers."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from cli.sim import Target

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\nserver: test\r\n\r\n"


def answer(status: int, body: Any = None, *headers: str) -> bytes:
    """An answer with JSON in it."""
    text = b"" if body is None else json.dumps(body).encode()
    head = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {status} Said\r\n{head}content-length: {len(text)}\r\n\r\n".encode() + text


@dataclass
class Request:
    """What a device sent."""

    path: str
    token: str
    body: Any
    connection: int
    """Over which it came; they are numbered from 1."""


@dataclass
class Gateway:
    """The server; `script` answers a request with bytes, or `None` to never answer."""

    port: int
    ca_file: Path
    script: Callable[[Request], bytes | None] = lambda _: OK
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    hang_up: bool = False
    """Whether a connection is closed after every answer, without a word about it."""

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def target(self) -> Target:
        return Target.of(self.url, self.ca_file)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        self.writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers["content-length"]))
                # The token's case matters.
                token = next((line[22:] for line in lines if line.startswith("Authorization")), "")
                path = lines[0].split(" ")[1]
                request = Request(path, token, json.loads(body), connection)
                self.requests.append(request)
                said = self.script(request)
                if said is not None:
                    writer.write(said)
                    await writer.drain()
                if self.hang_up:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Gateway]:
    """Starts one with a certificate of its own."""
    ca_file = directory / "cert.pem"
    certificate(ca_file, directory / "key.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(ca_file, directory / "key.pem")
    gateway = Gateway(0, ca_file)
    server = await asyncio.start_server(gateway.serve, "127.0.0.1", 0, ssl=tls)
    gateway.port = server.sockets[0].getsockname()[1]
    try:
        yield gateway
    finally:
        server.close()
        for writer in list(gateway.writers):
            writer.transport.abort()
        await asyncio.sleep(0)


def certificate(cert_file: Path, key_file: Path) -> None:
    """Writes a certificate for this machine that is its own CA."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test gateway")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, None)
    )
    cert_file.write_bytes(made.public_bytes(Encoding.PEM))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key_file.write_bytes(pem)
