"""Syslog: the form of messages, and that nothing is lost on connections that break."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from evergreen.v1 import audit_pb2 as pb
from services.audit.forward import syslog as syslog_module
from tests.services.audit.forward.conftest import StartWorld, World
from tests.support.audit import ORG, SISTER, event
from tests.support.receivers import Authority

HEAD = re.compile(
    r"<(?P<priority>\d+)>1 (?P<time>\S+) (?P<host>\S+) evergreen - (?P<msgid>\S+) "
    r'\[(?P<sd>\S+)(?P<parameters>(?: \w+="(?:[^"\\\]]|\\.)*")*)\] (?P<text>.*)',
    re.DOTALL,
)


@dataclass
class Lines:
    """A receiver of octet-counted messages, or of lines."""

    port: int = 0
    newline: bool = False
    messages: list[str] = field(default_factory=list)
    connections: int = 0
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    lose: int = 0
    """So many bytes are taken by the kernel and never looked at, before the connection breaks."""
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while True:
                if self.newline:
                    line = await reader.readuntil(b"\n")
                    self.messages.append(line[:-1].decode())
                    continue
                size = int(await reader.readuntil(b" "))
                self.messages.append((await reader.readexactly(size)).decode())
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()

    @property
    def allowed(self) -> str:
        return f"127.0.0.0/8:{self.port}"

    @property
    def sequences(self) -> list[int]:
        return [parsed(message)["auditsequence"] for message in self.messages]

    async def until(self, count: int) -> None:
        for _ in range(6000):
            if len(set(self.messages)) >= count:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{len(set(self.messages))} messages of {count}")

    def drop(self) -> None:
        for writer in list(self.writers):
            writer.transport.abort()


@asynccontextmanager
async def listening(
    tls: ssl.SSLContext | None = None, *, newline: bool = False
) -> AsyncIterator[Lines]:
    lines = Lines(newline=newline)
    server = await asyncio.start_server(lines.serve, "127.0.0.1", 0, ssl=tls)
    lines.port = server.sockets[0].getsockname()[1]
    try:
        yield lines
    finally:
        server.close()
        lines.drop()


def parsed(message: str) -> dict[str, Any]:
    found = HEAD.fullmatch(message)
    assert found, message
    event: dict[str, Any] = json.loads(found["text"])
    return event


async def create(world: World, lines: Lines, **syslog: Any) -> pb.Forwarder:
    target = {"host": "127.0.0.1", "port": lines.port, "transport": "tcp"} | syslog
    request = pb.CreateForwarderRequest(
        name=f"Syslog {uuid4()}", kind="syslog", start_at="beginning", syslog=target
    )
    return await world.audit.forwarders.CreateForwarder(request, metadata=world.admin)


async def test_a_message_is_of_rfc_5424(start_world: StartWorld) -> None:
    """With the entry in ASCII, and its place in the chain as structured data."""
    async with listening() as lines:
        world = await start_world(forward_allow=lines.allowed)
        await world.record(
            event(1, actor='o"w]n\\er@school.example'),
            event(2, name="identity.event_credential_created"),
            event(3, name="identity.login_failed"),
            event(4, name="identity.login_succeeded"),
        )
        made = await create(world, lines)
        assert list(made.warnings) == ["tcp is not encrypted"]
        await lines.until(4)
    heads = [HEAD.fullmatch(message) for message in lines.messages]
    assert all(heads)
    first, second, third, fourth = [head for head in heads if head]
    assert first["priority"] == str(13 * 8 + 5)
    assert [third["priority"], fourth["priority"]] == [str(13 * 8 + 4), str(13 * 8 + 6)]
    assert first["time"] == "2026-11-24T08:00:01Z"
    assert first["host"] == "evergreen.school.example"
    assert first["sd"] == "evergreen@32473"
    assert r'actor="o\"w\]n\\er@school.example"' in first["parameters"]
    assert 'sequence="1"' in first["parameters"]
    assert f'tenant="{ORG.id}"' in first["parameters"]
    assert second["msgid"] == "identity.event_credential_create"
    assert 'action="identity.event_credential_created"' in second["parameters"]
    assert 'outcome="failed"' in third["parameters"]
    assert lines.messages[0].isascii()
    assert json.loads(first["text"])["data"]["after"]["name"] == "nåme"


async def test_lines_cef_and_a_short_limit(start_world: StartWorld) -> None:
    """Newlines between messages, ArcSight's form, and what is cut of a long one."""
    async with listening(newline=True) as lines:
        world = await start_world(forward_allow=lines.allowed)
        await world.record(event(1, after={"a": "x" * 5000, "b": "two\nlines=|"}))
        await create(world, lines, framing="newline", max_bytes=2048, facility=4, sd_id="eg@1")
        await lines.until(1)
        found = HEAD.fullmatch(lines.messages[0])
        assert found is not None
        assert found["priority"] == str(4 * 8 + 5)
        assert found["sd"] == "eg@1"
        assert 'truncated="true"' in found["parameters"]
        assert json.loads(found["text"])["data"]["after"] is None
        lines.messages.clear()
        await create(world, lines, framing="newline", format="cef")
        await lines.until(1)
    found = HEAD.fullmatch(lines.messages[0])
    assert found is not None
    *header, extension = found["text"].split("|", 7)
    assert header[:3] == ["CEF:0", "Evergreen", "Evergreen"]
    assert header[4:] == ["policy.updated", "policy updated", "4"]
    assert "suser=owner@school.example" in extension
    assert "outcome=success" in extension
    assert r"two\\nlines\=" in extension


async def test_udp_is_sent_and_forgotten(start_world: StartWorld) -> None:
    """One datagram for each message, without a frame; whether somebody listens is not known."""
    came: list[bytes] = []

    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            came.append(data)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        Protocol, local_addr=("127.0.0.1", 0)
    )
    port = transport.get_extra_info("sockname")[1]
    lines = Lines(port=port)
    world = await start_world(forward_allow=lines.allowed)
    await world.record(event(1), event(2))
    made = await create(world, lines, transport="udp")
    assert "UDP loses messages silently" in made.warnings
    await world.until(made.id, lambda f: f.state.backlog == 0)
    for _ in range(600):
        if len(came) == 2:
            break
        await asyncio.sleep(0.05)
    transport.close()
    assert [parsed(data.decode())["auditsequence"] for data in came] == [1, 2]
    await world.record(event(3))
    await world.until(made.id, lambda f: f.state.backlog == 0)


async def positions(world: World) -> list[tuple[int, int]]:
    rows = await world.audit.sql(
        "SELECT sequence, sent FROM audit.forwarder_position ORDER BY chain_id"
    )
    return [tuple(row) for row in rows]


async def until_positions(world: World, wanted: list[tuple[int, int]]) -> None:
    for _ in range(1200):
        if await positions(world) == wanted:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(await positions(world))


@pytest.fixture
def unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, nothing is confirmed by its time within a test."""
    monkeypatch.setattr(syslog_module, "CONFIRMED_AFTER", timedelta(hours=1))


@pytest.mark.usefixtures("unconfirmed")
async def test_what_may_be_lost_comes_again(start_world: StartWorld) -> None:
    """A connection that breaks makes all sent again that a minute has not confirmed."""
    async with listening() as lines:
        world = await start_world(forward_allow=lines.allowed)
        await world.record(*(event(n) for n in range(1, 121)))
        await create(world, lines)
        await lines.until(120)
        await until_positions(world, [(0, 120)])
        lines.drop()
        await world.record(event(121))
        await lines.until(121)
        assert lines.connections == 2
        assert lines.sequences == [*range(1, 121), *range(1, 122)]


async def test_what_is_confirmed_does_not_come_again(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time on a connection that still stands."""
    monkeypatch.setattr(syslog_module, "CONFIRMED_AFTER", syslog_module.CONFIRMED_AFTER / 100)
    async with listening() as lines:
        world = await start_world(forward_allow=lines.allowed)
        await world.record(*(event(n) for n in range(1, 11)), event(1, SISTER.id))
        await create(world, lines)
        await lines.until(10)
        await until_positions(world, [(10, 10)])
        lines.drop()
        await world.record(event(11))
        await lines.until(11)
        assert lines.sequences == [*range(1, 12)]


async def test_an_orderly_end_confirms(start_world: StartWorld, tmp_path: Path) -> None:
    """Over TLS, too: a service that stops repeats nothing."""
    ca = Authority()
    async with listening(ca.server(tmp_path, ca.issue("127.0.0.1"))) as lines:
        world = await start_world(forward_allow=lines.allowed)
        await world.record(*(event(n) for n in range(1, 6)))
        made = await create(world, lines, transport="tls", ca_pem=ca.pem)
        await lines.until(5)
        await world.until(made.id, lambda f: f.state.backlog == 0)
        await world.audit.running.stop(0)
        await until_positions(world, [(5, 5)])


async def test_a_test_of_syslog(start_world: StartWorld, tmp_path: Path) -> None:
    """Taken, or with what is wrong."""
    ca, other = Authority(), Authority("Other")
    async with listening(ca.server(tmp_path, ca.issue("127.0.0.1"))) as lines:
        world = await start_world(forward_allow=lines.allowed)
        for pem, error in ((ca.pem, ""), (other.pem, "CERTIFICATE_UNKNOWN")):
            made = await create(world, lines, transport="tls", ca_pem=pem)
            answer = await world.audit.forwarders.TestForwarder(
                pb.TestForwarderRequest(id=made.id), metadata=world.admin
            )
            assert (answer.delivered, answer.error) == (not error, error)
    await lines.until(1)
    assert "audit.forwarder_tested" in lines.messages[0]


@pytest.mark.usefixtures("unconfirmed")
async def test_a_replay_goes_back(start_world: StartWorld) -> None:
    """Whatever was sent on the connection that stands."""
    async with listening() as lines:
        world = await start_world(forward_allow=lines.allowed)
        await world.record(*(event(n) for n in range(1, 4)))
        made = await create(world, lines)
        await lines.until(3)
        await until_positions(world, [(0, 3)])
        request = pb.ReplayForwarderRequest(id=made.id)
        getattr(request, "from").FromJsonString("2026-11-24T08:00:02Z")
        await world.audit.forwarders.ReplayForwarder(request, metadata=world.admin)
        for _ in range(1200):
            if len(lines.messages) >= 5:
                break
            await asyncio.sleep(0.05)
        assert set(lines.sequences) == {1, 2, 3}
        assert lines.sequences[-2:] == [2, 3]
