"""From a committed change to the stream, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import nats
import pytest
import pytest_asyncio
from nats.js import JetStreamContext

from contract.events.base import Action
from contract.events.identity.sign_in import LoginAttempt, LoginFailed, PasswordChanged
from contract.events.policy import RevealedSecrets, SecretsRevealed
from contract.subjects import EVENTS
from servicekit.app import Kit
from servicekit.messaging import outbox
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.jetstream import Messaging
from tests.conftest import MakeKit
from tests.support.servers import Servers
from tests.support.streams import read_stream


@pytest_asyncio.fixture
async def jetstream(servers: Servers) -> AsyncIterator[JetStreamContext]:
    """The stream, to look at and to break."""
    client = await servers.operator()
    yield client.jetstream()
    await client.close()


@asynccontextmanager
async def relay(kit: Kit, messaging: Messaging | None = None) -> AsyncIterator[None]:
    task = asyncio.create_task(kit.outbox.run(messaging or kit.messaging))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def write(kit: Kit, tenant: UUID, *names: str, fail: bool = False) -> list[str]:
    """Commits (or not) one event per name."""
    events = [
        CloudEvent(LoginFailed(id=tenant, after=LoginAttempt(email=name)), tenant) for name in names
    ]
    try:
        async with kit.database.system_transaction("a test works on all rows") as connection:
            await kit.outbox.append(connection, *events)
            if fail:
                raise KeyError("the change failed")
    except KeyError:
        return []
    return [str(e.id) for e in events]


async def received(
    jetstream: JetStreamContext, tenant: UUID, count: int, seconds: float = 60
) -> list[str]:
    """The ids of the tenant's messages on the stream, in order, once there are `count`."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        messages = await read_stream(jetstream, EVENTS.name, f"evergreen.v1.{tenant}.>")
        ids = [m["id"] for m in messages]
        if len(ids) >= count or asyncio.get_running_loop().time() > end:
            return ids
        await asyncio.sleep(0.1)


async def test_what_committed_is_published_in_order(
    make_kit: MakeKit, jetstream: JetStreamContext
) -> None:
    """A CloudEvent on the tenant's subject for every committed event, none for another one."""
    kit, tenant = await make_kit("identity"), uuid4()
    ids = await write(kit, tenant, "a", "b")
    await write(kit, tenant, "never", fail=True)
    async with relay(kit):
        ids += await write(kit, tenant, "c")
        assert await received(jetstream, tenant, 3) == ids


async def test_events_wait_while_nats_is_away(
    make_kit: MakeKit, jetstream: JetStreamContext
) -> None:
    """The change commits without NATS; the event arrives when NATS is back."""
    kit, tenant = await make_kit("identity"), uuid4()
    away = Messaging(kit.settings.model_copy(update={"nats_url": "nats://127.0.0.1:9"}))
    async with relay(kit, away):
        ids = await write(kit, tenant, "a", "b")
        await asyncio.sleep(0.3)
    async with kit.database.system_transaction("a test works on all rows") as connection:
        waiting = await connection.fetchval(
            "SELECT count(*) FROM identity.outbox WHERE published_at IS NULL"
        )
    assert waiting == 2
    async with relay(kit):
        assert await received(jetstream, tenant, 2) == ids


async def test_a_lost_stream_is_published_again(
    make_kit: MakeKit, jetstream: JetStreamContext
) -> None:
    """PostgreSQL is the truth: the stream is made anew and holds the same events."""
    kit, tenant = await make_kit("identity"), uuid4()
    async with relay(kit):
        ids = await write(kit, tenant, "a", "b")
        assert await received(jetstream, tenant, 2) == ids
        await jetstream.delete_stream(EVENTS.name)
        assert await received(jetstream, tenant, 2) == ids


async def test_a_relay_that_rests_looks_when_nats_is_back(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have lost its streams."""
    monkeypatch.setattr(outbox, "_IDLE_POLL_SECONDS", 3600.0)
    monkeypatch.setattr(outbox, "_POLL_SECONDS", 0.01)
    kit = await make_kit("identity")
    looks = 0

    async def publish(_: str) -> None:
        nonlocal looks
        looks += 1

    task = asyncio.create_task(outbox.relay(kit.messaging, asyncio.Event(), publish))
    async with asyncio.timeout(60):
        while looks < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert looks == 2
        client = await kit.messaging._connected()
        client._transport.close()
        while looks < 3:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_two_relays_publish_each_event_once(
    make_kit: MakeKit, jetstream: JetStreamContext
) -> None:
    """Two processes of a service take turns; the order holds."""
    kit, tenant = await make_kit("identity"), uuid4()
    other = await make_kit("identity")
    async with relay(kit), relay(other):
        ids = [i for n in range(30) for i in await write(kit, tenant, f"e{n}")]
        assert await received(jetstream, tenant, 30) == ids
        await asyncio.sleep(0.3)
    assert await received(jetstream, tenant, 31, seconds=0.5) == ids


async def test_a_service_may_publish_for_its_own_context_only(make_kit: MakeKit) -> None:
    """NATS refuses a message on another context's subject."""
    kit = await make_kit("identity")
    await kit.messaging.ensure_stream()
    with pytest.raises(nats.errors.Error):
        await kit.messaging.publish(f"evergreen.v1.{uuid4()}.policy.published", b"{}", "x")


async def unpublished(kit: Kit) -> list[str]:
    async with kit.database.system_transaction("a test works on all rows") as connection:
        rows = await connection.fetch("SELECT id FROM identity.outbox WHERE published_at IS NULL")
    return [str(row["id"]) for row in rows]


async def test_what_the_stream_has_is_marked_when_the_next_one_fails(
    make_kit: MakeKit, jetstream: JetStreamContext
) -> None:
    """The rest waits in its order; nothing that was published is published again."""
    kit, tenant = await make_kit("identity"), uuid4()
    sent: list[str] = []

    class Failing(Messaging):
        async def publish(self, subject: str, payload: bytes, message_id: str) -> None:
            if len(sent) == 2:
                raise TimeoutError
            sent.append(message_id)
            await super().publish(subject, payload, message_id)

    ids = await write(kit, tenant, "a", "b", "c")
    failing = Failing(kit.settings)
    async with relay(kit, failing):
        assert await received(jetstream, tenant, 2) == ids[:2]
        async with asyncio.timeout(60):
            while await unpublished(kit) != ids[2:]:
                await asyncio.sleep(0.05)
    await failing.close()
    async with relay(kit):
        assert await received(jetstream, tenant, 3) == ids


class Unlisted(PasswordChanged):
    """A type without an example."""


@pytest.mark.parametrize(
    "event",
    [
        Unlisted(id=UUID(int=1)),
        SecretsRevealed(id=UUID(int=1), after=RevealedSecrets(name="x", version="1")),
    ],
)
async def test_an_outbox_takes_listed_events_of_its_service(
    make_kit: MakeKit, event: Action
) -> None:
    """Not those of another service, nor one that the contract does not list."""
    kit = await make_kit("identity")
    async with kit.database.system_transaction("a test works on all rows") as connection:
        with pytest.raises(ValueError, match="is no event of identity"):
            await kit.outbox.append(connection, CloudEvent(event, uuid4()))
