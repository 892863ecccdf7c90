"""Which of TLS a server takes that FIPS mode does not: it is asked, with the first message of a
handshake.

An OpenSSL in FIPS mode cannot make such offers, so the messages are written here, as RFC 8446 (4.1)
and RFC 5246 (7.4) have them. A server answers with what it has chosen, or with an alert, and the
connection ends: no secret is ever agreed. What is refused tells something only where the same
server takes an approved offer of the same version. In TLS 1.2 no server with a certificate of P-256
takes X25519 alone; what it says in 1.3 counts for both.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_SECONDS: Final = 5.0
_MOST: Final = 1 << 14
"""Bytes of an answer that are looked at."""

_HANDSHAKE: Final = 22
_SERVER_HELLO: Final = 2
_TLS_1_2: Final = 0x0303
_TLS_1_3: Final = 0x0304
_NAMES: Final = {_TLS_1_2: "1.2", _TLS_1_3: "1.3"}
# What RFC 8446 has for the random bytes of a server that asks for another key share.
_RETRY: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")

_AES: Final = (0x1301, 0x1302, 0xC02B, 0xC02F, 0xC02C, 0xC030)
_CHACHA20: Final = (0x1303, 0xCCA9, 0xCCA8)
_P_256: Final = 0x0017
_X25519: Final = 0x001D
_SCHEMES: Final = (0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601, 0x0807)
# The base points: each is a public key that a server takes.
_POINTS: Final = {
    _P_256: bytes.fromhex(
        "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    ),
    _X25519: b"\x09" + bytes(31),
}

_OFFERS: Final = {
    "approved": (_AES, _P_256),
    "ChaCha20-Poly1305": (_CHACHA20, _P_256),
    "X25519": (_AES, _X25519),
}

_POSTGRES: Final = struct.pack("!II", 8, 80877103)
"""`SSLRequest`."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a server takes."""

    approved: tuple[str, ...] = ()
    """The versions in which it takes approved algorithms."""
    others: tuple[str, ...] = ()
    """What else it takes, each with the version, such as `X25519 in TLS 1.3`."""


class NotTlsError(Exception):
    """The server does not speak TLS, or nothing answers."""


Begin = Callable[[socket.socket], None]
"""Leads a connection to where TLS begins."""


def taken(host: str, port: int, name: str = "", begin: Begin | None = None) -> Taken:
    """Asks a server.

    Args:
        host: its address.
        port: its port.
        name: the server's name, as it stands in its certificate.
        begin: what comes before TLS, if anything.

    Raises:
        NotTlsError: it does not speak TLS, or takes no approved offer at all.
    """
    approved, others = [], []
    for version, shown in _NAMES.items():
        if not _takes(host, port, name, begin, version, "approved"):
            continue
        approved.append(shown)
        others += [
            f"{offer} in TLS {shown}"
            for offer in _OFFERS
            if offer != "approved" and _takes(host, port, name, begin, version, offer)
        ]
    if not approved:
        raise NotTlsError(f"{host}:{port} takes no TLS with AES-GCM and P-256")
    return Taken(tuple(approved), tuple(others))


def postgres(connection: socket.socket) -> None:
    """Asks PostgreSQL for TLS.

    Raises:
        NotTlsError: it has none.
    """
    connection.sendall(_POSTGRES)
    if connection.recv(1) != b"S":
        raise NotTlsError("PostgreSQL has no TLS on this connection")


def nats(connection: socket.socket) -> None:
    """Reads what NATS says first; TLS follows it.

    Raises:
        NotTlsError: it has none.
    """
    said = b""
    while not said.endswith(b"\r\n") and len(said) < _MOST:
        if not (part := connection.recv(1 << 12)):
            break
        said += part
    if b'"tls_required":true' not in said and b'"tls_available":true' not in said:
        raise NotTlsError("NATS has no TLS on this connection")


def _takes(host: str, port: int, name: str, begin: Begin | None, version: int, offer: str) -> bool:
    suites, group = _OFFERS[offer]
    try:
        connection = socket.create_connection((host, port), _SECONDS)
    except OSError as error:
        raise NotTlsError(f"{host}:{port} does not answer: {error}") from error
    with connection:
        try:
            if begin is not None:
                begin(connection)
            connection.sendall(_client_hello(name, version, suites, group))
            return _chooses(connection)
        except ConnectionError:
            return False
        except OSError as error:
            raise NotTlsError(f"{host}:{port}: {error}") from error


def _chooses(connection: socket.socket) -> bool:
    """Whether the server has chosen something of what it was offered."""
    answer = b""
    while len(answer) < _MOST:
        if not (part := connection.recv(1 << 12)):
            break
        answer += part
        # The type of the record, 4 more bytes, that of the message, 5 more, 32 random ones.
        if len(answer) >= 43 or answer[0] != _HANDSHAKE:
            break
    return (
        len(answer) >= 43
        and answer[0] == _HANDSHAKE
        and answer[5] == _SERVER_HELLO
        and answer[11:43] != _RETRY
    )


def _client_hello(name: str, version: int, suites: tuple[int, ...], group: int) -> bytes:
    def numbers(*of: int) -> bytes:
        return b"".join(struct.pack("!H", one) for one in of)

    def sized(content: bytes, size: str = "!H") -> bytes:
        return struct.pack(size, len(content)) + content

    extensions = {
        0x000A: sized(numbers(group)),
        0x000B: b"\x01\x00",
        0x000D: sized(numbers(*_SCHEMES)),
        # Without an extended master secret and secure renegotiation, some take no TLS 1.2 at all.
        0x0017: b"",
        0xFF01: b"\x00",
        0x002B: sized(numbers(version), "!B"),
    }
    if name:
        extensions[0x0000] = sized(b"\x00" + sized(name.encode()))
    if version == _TLS_1_3:
        extensions[0x0033] = sized(numbers(group) + sized(_POINTS[group]))
    body = (
        numbers(_TLS_1_2)
        + os.urandom(32)
        + sized(os.urandom(32), "!B")
        + sized(numbers(*suites))
        + b"\x01\x00"
        + sized(b"".join(numbers(kind) + sized(said) for kind, said in extensions.items()))
    )
    message = b"\x01" + struct.pack("!I", len(body))[1:] + body
    return struct.pack("!BHH", _HANDSHAKE, 0x0301, len(message)) + message
