"""A receiver of webhooks: HTTP/1.1 over TCP or TLS, which answers as a test wants it to."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Posted:
    """A message that arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Its events, whether it has one or several."""
        found = self.json
        return found if isinstance(found, list) else [found]


Answer = int | tuple[int, dict[str, str]] | bytes
"""A status, with headers, or the raw bytes of an answer; the connection ends behind the latter."""


@dataclass
class Receiver:
    """What arrived, and what is answered."""

    port: int = 0
    scheme: str = "http"
    connections: int = 0
    posted: list[Posted] = field(default_factory=list)
    answer: Callable[[Posted], Answer | Awaitable[Answer]] = lambda _: 204
    peers: list[Any] = field(default_factory=list)
    """The certificates that clients showed."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        host = "localhost" if self.scheme == "https" else "127.0.0.1"
        return f"{self.scheme}://{host}:{self.port}/hook"

    @property
    def allowed(self) -> str:
        """What the operator has to name."""
        return f"127.0.0.0/8:{self.port},[::1/128]:{self.port}"

    @property
    def events(self) -> list[Any]:
        """The events of all messages that were taken."""
        return [event for posted in self.posted for event in posted.events]

    @property
    def ids(self) -> list[str]:
        return [event["id"] for event in self.events]

    async def until(self, condition: Callable[[], Any], otherwise: str = "") -> None:
        """Waits for a condition."""
        end = asyncio.get_running_loop().time() + 60
        while not condition():
            told = otherwise or f"{len(self.posted)} messages arrived"
            assert asyncio.get_running_loop().time() < end, told
            await asyncio.sleep(0.01)

    async def until_events(self, count: int) -> list[Any]:
        """Waits until as many events were taken."""
        await self.until(lambda: len(self.events) >= count)
        return self.events

    def drop(self) -> None:
        """Breaks all connections off."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        if certificate := writer.get_extra_info("peercert"):
            self.peers.append(certificate)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        posted = Posted(head[0].split(" ")[1], headers, body)
        answer = self.answer(posted)
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, bytes):
            writer.write(answer)
            await writer.drain()
            return False
        status, more = answer if isinstance(answer, tuple) else (answer, {})
        if 200 <= status < 300:
            self.posted.append(posted)
        lines = "".join(f"{name}: {value}\r\n" for name, value in more.items())
        writer.write(f"HTTP/1.1 {status} Told\r\n{lines}content-length: 0\r\n\r\n".encode())
        await writer.drain()
        return True


@asynccontextmanager
async def receiving(
    tls: ssl.SSLContext | None = None, port: int = 0, host: str = "127.0.0.1"
) -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver(scheme="https" if tls else "http")
    server = await asyncio.start_server(receiver.serve, host, port, ssl=tls, limit=1 << 20)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        receiver.drop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), 5)


@dataclass(frozen=True)
class Identity:
    """A certificate and its private key, in PEM."""

    certificate: str
    key: str

    def files(self, directory: Path, name: str) -> tuple[Path, Path]:
        """The two as files."""
        certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
        certificate.write_text(self.certificate)
        key.write_text(self.key)
        return certificate, key


class Authority:
    """A CA of a test's own."""

    def __init__(self, name: str = "Test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        key_id = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 30 * _DAY)
            .not_valid_after(now + 30 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_id, critical=False)
            .add_extension(_SIGNS_CERTIFICATES, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._key_id = key_id

    @property
    def pem(self) -> str:
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, *names: str, days: int = 20) -> Identity:
        """A certificate for names; one that has ended, with days below 0."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 29 * _DAY)
            .not_valid_after(now + days * _DAY)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._key_id),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Identity(
            certificate.public_bytes(serialization.Encoding.PEM).decode(),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode(),
        )

    def server(
        self, directory: Path, identity: Identity, *, mutual: bool = False
    ) -> ssl.SSLContext:
        """What a server shows, and whether it asks for a certificate of this CA."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*identity.files(directory, "server"))
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self.pem)
        return context


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
