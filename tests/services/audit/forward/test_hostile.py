"""What a target, a name server or another tenant may try: nobody else is held up by it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from evergreen.v1 import audit_pb2 as pb
from servicekit.outgoing import guard
from servicekit.outgoing.addresses import NotConnectedError, Rules
from servicekit.outgoing.guard import Guard
from servicekit.outgoing.wire import Wire, client_context
from services.audit.forward import deliver, outbound, service
from services.audit.forward.domain import Syslog
from services.audit.forward.formats import Item
from services.audit.forward.lines import Lines
from services.audit.forward.outbound import Lanes, Pace
from tests.services.audit.forward.conftest import StartWorld, World
from tests.support import callers
from tests.support.audit import ORG, RESELLER, ROOT, SISTER, event
from tests.support.receivers import Authority, Posted
from tests.support.refusals import refusal


async def test_a_replay_skips_nothing_that_was_never_sent(world: World) -> None:
    """A chain of which nothing was sent is sent from its beginning."""
    made = await world.create(enabled=False)
    await world.record(*(event(n) for n in range(1, 6)))
    request = pb.ReplayForwarderRequest(id=made.id)
    getattr(request, "from").FromJsonString("2026-11-24T08:00:04Z")
    await world.audit.forwarders.ReplayForwarder(request, metadata=world.admin)
    await world.update(made.id, enabled=True)
    await world.receiver.until_events(5)
    assert [e["auditsequence"] for e in world.receiver.events] == [1, 2, 3, 4, 5]


async def test_interim_answers_without_end_are_no_answer(world: World) -> None:
    """The connection is cut off, whatever comes behind them."""
    flood = b"HTTP/1.1 103 Hint\r\n\r\n" * 20_000
    world.receiver.answer = lambda _: flood + b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    made = await world.create()
    await world.record(event(1))
    found = await world.until(made.id, lambda f: f.state.attempts > 0)
    assert (found.state.last_error, found.state.backlog) == ("CONNECTION_LOST", 1)


async def test_a_peer_that_never_stops_does_not_keep_the_loop() -> None:
    """Timeouts end while it sends."""
    mine, other = socket.socketpair()
    mine.setblocking(False)

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                other.sendall(b"x" * (1 << 20))

    sending = threading.Thread(target=flood, daemon=True)
    sending.start()
    wire = Wire(mine)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            while await wire.receive(1 << 16):
                pass
    assert not wire.is_closed()
    wire.close()
    other.close()
    await asyncio.to_thread(sending.join)


async def test_an_entry_that_a_target_refuses_stops_its_own_chain_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an answer that blames the target: the chains behind it go first, then."""
    monkeypatch.setattr(deliver, "_LANES", 1)
    poison = event(1, ORG.id)

    def answer(posted: Posted) -> Any:
        return 403 if str(poison.id).encode() in posted.body else 204

    world.receiver.answer = answer
    await world.record(poison, event(2, ORG.id), event(3, SISTER.id))
    made = await world.create(callers.user(RESELLER.id))
    reseller = callers.user(RESELLER.id)
    for _ in range(1200):
        found = await world.get(made.id, reseller)
        if found.state.last_error == "HTTP_403":
            break
        await asyncio.sleep(0.05)
    world.time.move(seconds=10)
    await world.receiver.until_events(1)
    assert {e["tenantid"] for e in world.receiver.events} == {str(SISTER.id)}
    world.receiver.answer = lambda _: 204
    world.time.move(minutes=5)
    await world.receiver.until_events(3)


async def test_a_slow_target_lets_others_have_their_turn(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two messages, however many wait."""
    monkeypatch.setattr(outbound, "_MOST_LANES", 1)
    monkeypatch.setattr(deliver, "TURN_SECONDS", 0)
    world = await start_world()
    may, slow = asyncio.Semaphore(0), 0

    async def answer(posted: Posted) -> int:
        nonlocal slow
        if posted.events[0]["tenantid"] == str(ORG.id):
            slow += 1
            await may.acquire()
        return 204

    world.receiver.answer = answer
    await world.record(*(event(n) for n in range(1, 151)), event(1, SISTER.id))
    await world.create()
    await world.receiver.until(lambda: slow == 1)
    await world.create(callers.user(SISTER.id))

    def is_sent() -> bool:
        return any(e["tenantid"] == str(SISTER.id) for e in world.receiver.events)

    for turn in range(1, 150):
        await world.receiver.until(partial(lambda turn: is_sent() or slow == turn, turn))
        if is_sent():
            break
        await asyncio.sleep(0.1)
        may.release()
    assert is_sent()
    assert slow < 150
    for _ in range(200):
        may.release()


async def test_the_operators_places_are_its_own() -> None:
    """Tenants that fill all of theirs do not keep the root's forwarders waiting."""
    lanes = Lanes(2, 1)
    async with contextlib.AsyncExitStack() as stack:
        for number in (1, 2):
            await stack.enter_async_context(lanes.one(UUID(int=number), root=False))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), lanes.one(UUID(int=3), root=False):
                pass
        async with lanes.one(ROOT.id, root=True):
            pass


async def test_a_backlog_is_spread_over_time() -> None:
    """Several that send take turns; what was not sent for a while is not made up for."""
    loop = asyncio.get_running_loop()
    pace = Pace(10_000)
    begun = loop.time()
    await pace.take(1_000)
    assert loop.time() - begun < 0.09
    await asyncio.gather(*(pace.take(490) for _ in range(3)))
    # Those before the last one: 1,010 and twice 500.
    assert loop.time() - begun >= 0.2
    await asyncio.sleep(0.06)
    begun = loop.time()
    await asyncio.gather(*(pace.take(490) for _ in range(2)))
    assert loop.time() - begun >= 0.04


async def test_others_keep_the_operator_from_no_forwarder(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what an installation has at most."""
    monkeypatch.setattr(service, "MOST_PER_INSTALLATION", 1)
    await world.create(enabled=False)
    assert (await refusal(world.create(enabled=False))).reason == "TOO_MANY_FORWARDERS"
    await world.create(callers.user(ROOT.id), enabled=False)


async def test_those_below_begin_as_the_forwarder_does(world: World) -> None:
    """When they are sent from some time on: not with their whole log."""
    reseller = callers.user(RESELLER.id)
    await world.record(event(1), event(2))
    world.receiver.answer = lambda _: 503
    made = await world.create(reseller, start_at="now", filter={"below_too": False})
    await world.record(event(4, RESELLER.id))
    wanted = pb.ForwarderFilterInput(below_too=True)
    request = pb.UpdateForwarderRequest(id=made.id, filter=wanted)
    await world.audit.forwarders.UpdateForwarder(request, metadata=reseller)
    await world.record(event(3))
    world.receiver.answer = lambda _: 204
    world.time.move(minutes=5)
    await world.receiver.until_events(2)
    found = {(e["tenantid"], e["auditsequence"]) for e in world.receiver.events}
    assert found == {(str(RESELLER.id), 1), (str(ORG.id), 3)}


async def test_a_target_is_not_tried_without_a_pause(world: World) -> None:
    """Whatever its `Retry-After` says."""
    world.receiver.answer = lambda _: (503, {"retry-after": "0"})
    made = await world.create()
    await world.record(event(1))
    found = await world.until(made.id, lambda f: f.state.last_error == "HTTP_503")
    wait = found.state.next_attempt_at.ToDatetime() - found.state.failing_since.ToDatetime()
    assert wait.total_seconds() >= 4


async def test_an_address_that_is_silent_leaves_time_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A target whose IPv6 leads nowhere is reached by IPv4."""
    monkeypatch.setattr(guard, "_EACH_SECONDS", 0.05)
    mine, other = socket.socketpair()

    async def connect(family: int, address: tuple[object, ...]) -> Wire:
        if family == socket.AF_INET6:
            await asyncio.Event().wait()
        return Wire(mine)

    async def lookup(host: str, port: int) -> list[str]:
        return ["2620:fe::9", "9.9.9.9"]

    monkeypatch.setattr(Wire, "connect", connect)
    wire = await Guard(Rules(), lookup=lookup).connect("siem.example", 443, root=False)
    wire.close()
    other.close()


async def test_a_name_server_that_is_silent_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither for a message at once nor for a connection."""
    monkeypatch.setattr(guard, "_LOOKUP_SECONDS", 0.05)

    async def lookup(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    found = Guard(Rules(), lookup=lookup)
    assert await found.refusal("slow.example", 443, root=False) == ""
    with pytest.raises(NotConnectedError, match="NAME_NOT_FOUND"):
        await found.connect("slow.example", 443, root=False)


def test_certificates_may_have_remarks_between_them() -> None:
    """In any language, as bundles have them."""
    client_context(f"# Főtanúsítvány\n{Authority().pem}", "", "")


@pytest.mark.parametrize("form", ["json", "cef"])
def test_who_writes_much_into_an_entry_hides_nothing(form: Any) -> None:
    """Its message fits into the least that a receiver may take."""
    long = event(1, actor="ő" * 250 + "@school.example", resource="policies/" + "x" * 3000)
    record = json.loads(long.payload()) | {"auditsequence": 48_113, "audithash": "ab" * 32}
    syslog = Syslog("h", 1, max_bytes=1024, format=form)
    line = Lines(syslog, "evergreen.school.example").message(Item(record["id"], 48_113, record))
    assert len(line) <= 1024
    assert b'truncated="true"' in line
    assert record["id"].encode() in line
