"""A directory's server in this process: it answers as one does, or lies as no real one would.

It knows people and groups, binds, searches and StartTLS. What real servers do is tested with them
(`tests/external/test_openldap.py`).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from ldap3.protocol import rfc4511 as wire
from pyasn1.codec.ber import encoder

from deploy.certificates import now
from deploy.launcher import tls

BASE = "DC=school,DC=example"
SERVICE = f"CN=evergreen,{BASE}"
SERVICE_PASSWORD = "the account that searches"
IN_CHAIN = "1.2.840.113556.1.4.1941"
START_TLS = "1.3.6.1.4.1.1466.20037"
_NAMES = UUID(int=0x1DA9)
_REQUESTS = {0x60: "bind", 0x42: "unbind", 0x63: "search", 0x77: "extended"}
_AND, _OR, _EQUAL, _PRESENT, _EXTENSIBLE = 0xA0, 0xA1, 0xA3, 0x87, 0xA9


def group_dn(name: str) -> str:
    return f"CN={name},OU=Groups,{BASE}"


@dataclass
class FakePerson:
    """Somebody in the directory."""

    dn: str
    mail: str
    password: str
    disabled: bool = False
    bind_message: str = ""
    """What the server says when it refuses the person, as Active Directory does."""
    shown_guid: bytes = b""
    """What the server sends as the id instead of it."""

    @property
    def guid(self) -> UUID:
        return uuid5(_NAMES, self.dn)


@dataclass
class FakeDirectory:
    """What the server knows, how it lies, and what it was asked."""

    ca_pem: str
    ldaps: str = ""
    starttls: str = ""
    people: dict[str, FakePerson] = field(default_factory=dict)
    groups: dict[str, set[str]] = field(default_factory=dict)
    """Group DN → DNs of members, people and groups."""
    lie: str = ""
    """`hang`, `drip`, `garbage`, `flood`, `cut`, `strip` (no StartTLS), `inject`, `mute` (no answer
    to a person's password), or nothing."""
    pause: threading.Event | None = None
    """What the next answer about a person waits for, which is that of before."""
    paused: threading.Event = field(default_factory=threading.Event)
    binds: list[tuple[str, str]] = field(default_factory=list)
    """Names and passwords that arrived, within TLS or not."""
    in_the_clear: list[bytes] = field(default_factory=list)
    """What arrived before TLS."""
    connections: int = 0
    hanging: int = 0
    """Questions that were left without an answer."""

    @property
    def allowed(self) -> str:
        """What allows to connect to it, as a setting says it: it is on this machine."""
        ports = [url.rpartition(":")[2] for url in (self.ldaps, self.starttls)]
        hosts = ("127.0.0.0/8", "localhost")
        return ",".join(f"{host}:{port}" for host in hosts for port in ports)

    def person(self, name: str, *groups: str, password: str = "", mail: str = "") -> FakePerson:
        """Adds somebody to groups, which are made when they are not there."""
        dn = f"CN={name},OU=Staff,{BASE}"
        made = FakePerson(
            dn, mail or f"{name}@school.example", password or f"the password of {name}"
        )
        self.people[dn] = made
        for group in groups:
            self.groups.setdefault(group_dn(group), set()).add(dn)
        return made

    def members(self, group: str) -> set[str]:
        """Everybody in a group, nested groups' members included."""
        found: set[str] = set()
        groups = [group]
        seen = set()
        while groups:
            one = groups.pop()
            if one in seen:
                continue
            seen.add(one)
            for member in self.groups.get(one, ()):
                if member in self.groups:
                    groups.append(member)
                else:
                    found.add(member)
        return found


@contextmanager
def running(directory: Path, port: int = 0) -> Iterator[FakeDirectory]:
    """Runs the server on two ports, for LDAPS (one of its own unless given) and for StartTLS."""
    directory.mkdir(exist_ok=True)
    files = tls.ensure(directory, ["localhost", "127.0.0.1"], now())
    found = FakeDirectory(files.ca_certificate.read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server_certificate, files.server_key)
    ended = threading.Event()
    listeners, threads = [], []
    for encrypted in (True, False):
        # All of 127.0.0.0/8: the certificate is for one address there.
        listener = socket.create_server(("", port if encrypted else 0), backlog=64)
        listener.settimeout(0.2)
        listeners.append(listener)
        port = listener.getsockname()[1]
        if encrypted:
            found.ldaps = f"ldaps://127.0.0.1:{port}"
        else:
            found.starttls = f"ldap://127.0.0.1:{port}"
        threads.append(
            threading.Thread(
                target=_accept, args=(listener, found, context, encrypted, ended), daemon=True
            )
        )
        threads[-1].start()
    try:
        yield found
    finally:
        ended.set()
        for listener in listeners:
            listener.close()
        for thread in threads:
            thread.join(10)


def _accept(
    listener: socket.socket,
    directory: FakeDirectory,
    context: ssl.SSLContext,
    encrypted: bool,
    ended: threading.Event,
) -> None:
    while not ended.is_set():
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        except OSError:
            return
        directory.connections += 1
        threading.Thread(
            target=_serve, args=(client, directory, context, encrypted, ended), daemon=True
        ).start()


def _serve(
    client: socket.socket,
    directory: FakeDirectory,
    context: ssl.SSLContext,
    encrypted: bool,
    ended: threading.Event,
) -> None:
    with contextlib.suppress(OSError):
        client.settimeout(30)
        session = _Session(client, directory, context, ended)
        if encrypted:
            session.encrypt()
        session.run()
    with contextlib.suppress(OSError):
        session.client.close()


class _Session:
    def __init__(
        self,
        client: socket.socket,
        directory: FakeDirectory,
        context: ssl.SSLContext,
        ended: threading.Event,
    ) -> None:
        self.client = client
        self.directory = directory
        self.context = context
        self.ended = ended
        self.encrypted = False

    def encrypt(self) -> None:
        self.client = self.context.wrap_socket(self.client, server_side=True)
        self.encrypted = True

    def run(self) -> None:
        buffer = b""
        while data := self.client.recv(65536):
            if not self.encrypted:
                self.directory.in_the_clear.append(data)
            buffer += data
            while (found := _read(buffer)) is not None:
                _, message, buffer = found
                if not self.answer(message):
                    return

    def answer(self, message: bytes) -> bool:
        (_, number_bytes), (tag, request), *_ = _parts(message)
        number = int.from_bytes(number_bytes, "big")
        kind = _REQUESTS[tag]
        if kind == "unbind":
            return False
        lie = self.directory.lie
        if kind == "extended" and lie in {"strip", "inject"}:
            if lie == "strip":
                self.send(
                    number, _result("extendedResp", wire.ExtendedResponse(), 2, "no TLS here")
                )
                return True
            # Both in one packet: the answer to StartTLS, and one to the bind that comes.
            self.client.sendall(
                _message(number, _result("extendedResp", wire.ExtendedResponse(), 0))
                + _message(number + 1, _result("bindResponse", wire.BindResponse(), 0))
            )
            self.encrypt()
            return True
        if kind != "extended" and lie not in {"", "mute"}:
            return self.deceive(lie, number)
        getattr(self, f"on_{kind}")(number, [part for _, part in _parts(request)], request)
        return True

    def deceive(self, lie: str, number: int) -> bool:
        if lie == "cut":
            return False
        if lie == "hang":
            self.directory.hanging += 1
            self.ended.wait(60)
            return False
        if lie == "drip":
            answer = _message(number, _result("bindResponse", wire.BindResponse(), 0, "x" * 4000))
            for byte in answer:
                self.client.sendall(bytes([byte]))
                if self.ended.wait(0.2):
                    break
            return False
        if lie == "garbage":
            self.client.sendall(b"\x30\x84\x00\x00\x00\x0a" + b"\xff" * 64)
            return True
        if lie == "flood":
            # An answer of 2 GB, as long as somebody reads it.
            self.client.sendall(b"\x30\x84\x7f\xff\xff\xff\x02\x01\x01\x61\x84\x7f\xff\xff\xf0")
            while not self.ended.is_set():
                self.client.sendall(b"\x04" * 65536)
            return False
        raise AssertionError(lie)

    def send(self, number: int, operation: Any) -> None:
        self.client.sendall(_message(number, operation))

    def on_extended(self, number: int, parts: list[bytes], _: bytes) -> None:
        assert parts[0].decode() == START_TLS
        self.send(number, _result("extendedResp", wire.ExtendedResponse(), 0))
        self.encrypt()

    def on_bind(self, number: int, parts: list[bytes], _: bytes) -> None:
        name, password = parts[1].decode(), parts[2].decode()
        self.directory.binds.append((name, password))
        if self.directory.lie == "mute" and name != SERVICE:
            self.ended.wait(60)
        person = self.directory.people.get(name)
        right = (name, password) == (SERVICE, SERVICE_PASSWORD) or (
            person is not None and password == person.password and not person.bind_message
        )
        text = person.bind_message if person is not None and not right else ""
        response = _result("bindResponse", wire.BindResponse(), 0 if right else 49, text)
        self.send(number, response)

    def on_search(self, number: int, parts: list[bytes], request: bytes) -> None:
        base, scope = parts[0].decode().lower(), parts[1][0]
        what = _parts(request)[6]
        entries = self.entries()
        pause = self.directory.pause
        if pause is not None and b"objectGUID" in request:
            self.directory.pause = None
            self.directory.paused.set()
            pause.wait(60)
        if base not in {BASE.lower(), *(dn.lower() for dn in entries)}:
            self.send(number, _result("searchResDone", wire.SearchResultDone(), 32))
            return
        for dn, attributes in entries.items():
            below = dn.lower() == base if scope == 0 else dn.lower().endswith(base)
            if below and self.matches(what, dn, attributes):
                entry = wire.SearchResultEntry()
                entry["object"] = wire.LDAPDN(dn)
                entry["attributes"] = wire.PartialAttributeList()
                person = self.directory.people.get(dn)
                shown = person.shown_guid if person is not None else b""
                for place, (attribute, known) in enumerate(attributes.items()):
                    value = shown if shown and attribute == "objectGUID" else known
                    part = wire.PartialAttribute()
                    part["type"] = wire.AttributeDescription(attribute)
                    part["vals"] = wire.Vals()
                    part["vals"][0] = wire.AttributeValue(value)
                    entry["attributes"][place] = part
                operation = wire.ProtocolOp()
                operation["searchResEntry"] = entry
                self.send(number, operation)
        self.send(number, _result("searchResDone", wire.SearchResultDone(), 0))

    def entries(self) -> dict[str, dict[str, bytes]]:
        found: dict[str, dict[str, bytes]] = {}
        for person in list(self.directory.people.values()):
            found[person.dn] = {
                "objectClass": b"user",
                "objectCategory": b"person",
                "objectGUID": person.guid.bytes_le,
                "mail": person.mail.encode("utf-8", "surrogateescape"),
                "displayName": person.dn.encode(),
                "userAccountControl": b"514" if person.disabled else b"512",
            }
        for group in list(self.directory.groups):
            found[group] = {"objectClass": b"group"}
        return found

    def matches(self, what: tuple[int, bytes], dn: str, attributes: dict[str, bytes]) -> bool:
        tag, content = what
        named = {name.lower(): value.lower() for name, value in attributes.items()}
        if tag in {_AND, _OR}:
            found = (self.matches(one, dn, attributes) for one in _parts(content))
            return all(found) if tag == _AND else any(found)
        if tag == _PRESENT:
            return content.decode().lower() in {*named, "objectclass"}
        if tag == _EQUAL:
            (_, name), (_, value) = _parts(content)
            if name.lower() == b"member":
                members = self.directory.groups.get(dn, set())
                return value.decode().lower() in {member.lower() for member in members}
            return named.get(name.decode().lower()) == value.lower()
        if tag == _EXTENSIBLE:
            given = dict(_parts(content))
            assert given[0x81].decode() == IN_CHAIN
            group = given[0x83].decode().lower()
            return any(
                dn in self.directory.members(one)
                for one in self.directory.groups
                if one.lower() == group
            )
        raise AssertionError(f"{tag:x}")


def _read(data: bytes) -> tuple[int, bytes, bytes] | None:
    """The first value (BER): its tag, its content, and what is behind it; `None` when it is not
    whole."""
    if len(data) < 2:
        return None
    length, at = data[1], 2
    if length & 0x80:
        at += length & 0x7F
        length = int.from_bytes(data[2:at], "big")
    if len(data) < at + length:
        return None
    return data[0], data[at : at + length], data[at + length :]


def _parts(content: bytes) -> list[tuple[int, bytes]]:
    """The values in a constructed one."""
    found = []
    while content:
        read = _read(content)
        assert read is not None
        tag, part, content = read
        found.append((tag, part))
    return found


def _result(name: str, response: Any, code: int, text: str = "") -> Any:
    response["resultCode"] = wire.ResultCode(code)
    response["matchedDN"] = wire.LDAPDN("")
    response["diagnosticMessage"] = wire.LDAPString(text)
    operation = wire.ProtocolOp()
    operation[name] = response
    return operation


def _message(number: int, operation: Any) -> bytes:
    message = wire.LDAPMessage()
    message["messageID"] = wire.MessageID(number)
    message["protocolOp"] = operation
    encoded: bytes = encoder.encode(message)
    return encoded
