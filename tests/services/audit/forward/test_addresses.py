"""Whom forwarders may connect to: at creation, at delivery, by redirect, by a changing name."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import grpc
import pytest

from evergreen.v1 import audit_pb2 as pb
from servicekit.outgoing.addresses import (
    NotConnectedError,
    Reach,
    Rules,
    reach,
    read_allowed,
    read_denied,
)
from servicekit.outgoing.guard import Guard, Proxy, resolve
from services.audit.settings import AuditSettings
from tests.services.audit.forward.conftest import StartWorld
from tests.support import callers
from tests.support.audit import ORG, ROOT, event
from tests.support.receivers import receiving
from tests.support.refusals import refusal

NEVER = [
    "127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "0x7f.1", "0x7f000001", "2130706433",
    "017700000001", "0177.0.0.1", "0", "0.0.0.0", "0.1.2.3", "localhost", "LOCALHOST",
    "169.254.169.254", "169.254.1.1", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376",
    "168.63.129.16", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "203.0.113.9",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::1", "::", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe", "64:ff9b::127.0.0.1", "64:ff9b:1::1", "2002:7f00:1::",
    "2002:a9fe:a9fe::1", "2001:0:0:0:0:0:80ff:fffe", "::127.0.0.1", "::ffff:0:127.0.0.1",
    "fe80::1", "fe80::5efe:127.0.0.1", "fec0::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
    "100::1", "4000::1", "fe80::5efe:9.9.9.9", "ff02::5efe:9.9.9.9", "2620:fe::5efe:127.0.0.1",
]  # fmt: skip
"""Spellings of addresses that nobody reaches."""
PRIVATE = [
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fc00::1", "fd12::1",
    "::ffff:10.0.0.1", "64:ff9b::192.168.0.1", "2002:0a00:0001::", "0x0a000001", "167772161",
    "fd00::5efe:9.9.9.9", "2620:fe::200:5efe:10.0.0.1",
]  # fmt: skip
PUBLIC = [
    "9.9.9.9",
    "2620:fe::9",
    "::ffff:9.9.9.9",
    "64:ff9b::9.9.9.9",
    "100.128.0.1",
    "172.32.0.1",
]


async def _reaches(text: str) -> set[Reach]:
    return {reach(ip_address(found)) for found in await resolve(text, 443)}


async def test_every_spelling_is_what_it_reaches() -> None:
    """As the system resolves it."""
    assert len(NEVER) + len(PRIVATE) >= 40
    for texts, wanted in ((NEVER, Reach.NEVER), (PRIVATE, Reach.PRIVATE), (PUBLIC, Reach.PUBLIC)):
        for text in texts:
            try:
                found = await _reaches(text)
            except OSError:
                # A spelling that the system does not know reaches nothing.
                continue
            assert found == {wanted}, text


@asynccontextmanager
async def _canary() -> Any:
    """A listener on this machine's addresses, and the connections that came."""
    came: list[Any] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer.get_extra_info("peername"))
        writer.close()

    other = server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # Where the machine has IPv6, there, too.
    with contextlib.suppress(OSError):
        other = await asyncio.start_server(connected, "::1", port)
    try:
        yield port, came
    finally:
        server.close()
        other.close()


def _literal(text: str) -> str:
    return f"[{text}]" if ":" in text else text


async def test_no_spelling_of_this_machine_is_taken(start_world: StartWorld) -> None:
    """With a message at creation, in webhooks and syslog; nothing is connected to."""
    world = await start_world(forward_allow="", forward_private="all")
    root = callers.user(ROOT.id)
    async with _canary() as (port, came):
        for text in NEVER:
            for name, target in (
                ("webhook", {"url": f"http://{_literal(text)}:{port}/x"}),
                ("syslog", {"host": text, "port": port, "transport": "tcp"}),
            ):
                request = pb.CreateForwarderRequest(name="x", kind=name, **{name: target})
                try:
                    refused = await refusal(
                        world.audit.forwarders.CreateForwarder(request, metadata=root)
                    )
                except AssertionError:
                    # A name that the system cannot resolve may be one later.
                    with pytest.raises(OSError, match=r"."):
                        await resolve(text, port)
                    continue
                assert refused.code is grpc.StatusCode.INVALID_ARGUMENT, text
                assert refused.fields == ["webhook.url" if name == "webhook" else "syslog.host"]
        assert came == []


async def test_every_spelling_is_refused_where_it_is_connected() -> None:
    """Whatever was said at creation."""
    guard = Guard(Rules("all"))
    async with _canary() as (port, came):
        for text in NEVER:
            with pytest.raises(NotConnectedError) as refused:
                await guard.connect(text, port, root=True)
            assert refused.value.reason in {"ADDRESS_REFUSED", "NAME_NOT_FOUND"}, text
        assert came == []


async def test_a_name_that_changes_its_address_is_of_no_use() -> None:
    """The address that was looked at is connected to, and all of them have to be good."""
    answers: list[list[str]] = [["9.9.9.9"], ["127.0.0.1"], ["9.9.9.9", "127.0.0.1"], ["::1"]]
    asked = 0

    async def lookup(host: str, port: int) -> Sequence[str]:
        nonlocal asked
        asked += 1
        return answers[min(asked, len(answers)) - 1]

    for text in NEVER:
        # A spelling that the system does not know is no address.
        with contextlib.suppress(OSError):
            answers.append(await resolve(text, 443))
    assert len(answers) >= 40
    guard = Guard(Rules("all"), lookup=lookup)
    async with _canary() as (port, came):
        assert await guard.refusal("rebind.example", port, root=True) == ""
        for _ in answers[1:]:
            with pytest.raises(NotConnectedError, match="ADDRESS_REFUSED"):
                await guard.connect("rebind.example", port, root=True)
        assert came == []
    assert asked == len(answers), "each connection asks once"


async def test_a_name_that_becomes_forbidden_disables(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason; nothing is connected to."""
    found = ["9.9.9.9"]
    forbidden = []
    for text in NEVER:
        with contextlib.suppress(OSError):
            forbidden.append(list(await resolve(text, 443)))
    assert len(forbidden) >= 40

    async def lookup(host: str, port: int) -> Sequence[str]:
        return found

    monkeypatch.setattr("services.audit.__main__.Guard", lambda *rules: Guard(*rules, lookup))
    world = await start_world(forward_allow="", forward_private="all")
    async with _canary() as (port, came):
        made = await world.create(
            webhook={"url": f"https://rebind.example:{port}/"}, start_at="now"
        )
        for addresses in forbidden:
            found[:] = addresses
            tested = await world.test(made.id)
            assert (tested.delivered, tested.error) == (False, "ADDRESS_REFUSED"), addresses
        found[:] = ["127.0.0.1"]
        await world.record(event(1))
        disabled = await world.until(made.id, lambda f: not f.enabled)
        assert disabled.state.reason == "ADDRESS_REFUSED"
        assert came == []
    (told,) = await world.told("audit.forwarder_disabled")
    assert told["data"]["after"]["reason"] == "ADDRESS_REFUSED"


async def test_a_redirect_reaches_nothing(start_world: StartWorld) -> None:
    """In no spelling, and not even a host that is allowed."""
    async with _canary() as (port, came), receiving() as other:
        world = await start_world(other, forward_allow=f"{other.allowed},127.0.0.1/32:{port}")
        made = await world.create()
        for text in NEVER:
            there = f"http://{_literal(text)}:{port}/"
            for status in (302, 307):
                other.answer = lambda _, to=there, said=status: (said, {"location": to})
                tested = await world.test(made.id)
                assert (tested.delivered, tested.error) == (False, f"REDIRECTED_{status}"), there
        other.answer = lambda _: (307, {"location": f"http://127.0.0.1:{port}/"})
        await world.record(event(1))
        await world.until(made.id, lambda f: f.state.last_error == "REDIRECTED_307")
        assert came == []


async def test_private_addresses_are_the_operators(start_world: StartWorld) -> None:
    """By the setting: those of the root tenant, of all, or nobody's."""
    for setting, root_may, org_may in (
        ("root", True, False),
        ("all", True, True),
        ("none", False, False),
    ):
        rules = Rules(setting)  # type: ignore[arg-type]  # one of the three
        for text in ("10.1.2.3", "fd00::5", "::ffff:192.168.0.9"):
            address = ip_address(text)
            assert (not rules.refusal(address, 443, root=True, plain_http=True)) is root_may
            assert (not rules.refusal(address, 443, root=False, plain_http=True)) is org_may
    world = await start_world(forward_allow="")
    request = pb.CreateForwarderRequest(
        name="x", kind="webhook", enabled=False, webhook={"url": "http://10.9.8.7:8080/"}
    )
    made = await world.audit.forwarders.CreateForwarder(request, metadata=callers.user(ROOT.id))
    assert list(made.warnings) == ["http:// is not encrypted"]
    refused = await refusal(
        world.audit.forwarders.CreateForwarder(request, metadata=callers.user(ORG.id))
    )
    assert "its address is private" in refused.body["message"]


def test_rules_of_the_operator() -> None:
    """What is named is allowed, with its port alone; what is denied is not; ports are few."""
    rules = Rules(
        "root",
        read_allowed("127.0.0.1/32:9531, siem.example:6000,[fd00::/8]:443, 10.0.0.0/8:25"),
        read_denied("9.9.9.0/24,10.0.0.0/8"),
    )

    def allows(text: str, port: int, *, root: bool = False, plain: bool = False) -> bool:
        return not rules.refusal(ip_address(text), port, root=root, plain_http=plain)

    assert allows("127.0.0.1", 9531)
    assert not allows("127.0.0.1", 9532)
    assert allows("::ffff:127.0.0.1", 9531)
    assert allows("fd00::1", 443)
    assert not allows("9.9.9.9", 443)
    assert not allows("::ffff:9.9.9.9", 443)
    assert allows("10.1.1.1", 25)
    assert not allows("10.1.1.1", 443, root=True)
    assert allows("8.8.8.8", 443)
    assert allows("8.8.8.8", 8088)
    assert not allows("8.8.8.8", 22)
    assert not allows("8.8.8.8", 25)
    assert not allows("8.8.8.8", 80, plain=True)
    assert rules.names_host("SIEM.example", 6000)
    assert not rules.names_host("siem.example", 6001)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("forward_allow", "siem.example"),
        ("forward_allow", "10.0.0.0/8"),
        ("forward_allow", "a/b:80"),
        ("forward_allow", "x:70000"),
        ("forward_deny", "siem.example"),
        ("forward_private", "some"),
        ("forward_proxy", "https://proxy:3128"),
        ("forward_proxy", "proxy:3128"),
        ("forward_proxy", "http://user:x@proxy:3128"),
    ],
)
def test_a_wrong_setting_stops_the_start(name: str, value: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match=name.removeprefix("forward_") + "|must|CIDR|network"):
        AuditSettings(  # type: ignore[call-arg]  # the others have defaults
            grpc_listen="unix:/x", internal_listen="unix:/y", database_url="x", **{name: value}
        )


async def test_a_proxy_gets_the_address_that_was_looked_at() -> None:
    """By CONNECT, and never a name; what is private does not go through it."""
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\nhello")
        await writer.drain()

    async def lookup(host: str, port: int) -> Sequence[str]:
        return ["9.9.9.9"]

    server = await asyncio.start_server(proxy, "127.0.0.1", 0, family=socket.AF_INET)
    port = server.sockets[0].getsockname()[1]
    guard = Guard(Rules(), Proxy.read(f"http://127.0.0.1:{port}"), lookup)
    wire = await guard.connect("siem.example", 443, root=False)
    assert await wire.receive(5) == b"hello"
    wire.close()
    server.close()
    assert asked == [b"CONNECT 9.9.9.9:443 HTTP/1.1\r\nhost: 9.9.9.9:443\r\n\r\n"]
