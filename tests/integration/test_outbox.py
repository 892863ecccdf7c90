"""From a committed change to the stream, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import nats
import pytest
import pytest_asyncio
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy

from servicekit.app import Kit
from servicekit.events import Event
from servicekit.messaging import Messaging
from servicekit.streams import EVENTS
from tests.conftest import MakeKit
from tests.servers import Servers


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
        Event("identity.tenant_updated", tenant, f"things/{n}", after={"n": n}) for n in names
    ]
    try:
        async with kit.database.transaction() as connection:
            await kit.outbox.append(connection, *events)
            if fail:
                raise KeyError("the change failed")
    except KeyError:
        return []
    return [str(e.id) for e in events]


async def received(
    jetstream: JetStreamContext, tenant: UUID, count: int, seconds: float = 15
) -> list[str]:
    """The ids of the tenant's messages on the stream, in order, once there are `count`."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            subscription = await jetstream.pull_subscribe(
                f"evergreen.v1.{tenant}.>",
                stream=EVENTS.name,
                config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL),
            )
            messages = await subscription.fetch(1000, timeout=0.5)
        except (TimeoutError, nats.js.errors.NotFoundError):
            messages = []
        ids = [json.loads(m.data)["id"] for m in messages]
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
    async with kit.database.transaction() as connection:
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
        await asyncio.sleep(0.3)
    await failing.close()
    async with kit.database.transaction() as connection:
        rows = await connection.fetch("SELECT id FROM identity.outbox WHERE published_at IS NULL")
    assert [str(row["id"]) for row in rows] == ids[2:]
    async with relay(kit):
        assert await received(jetstream, tenant, 3) == ids
