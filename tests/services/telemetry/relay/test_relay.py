"""Events on their way to integrators: every stored event, once for who counts ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from nats.js import JetStreamContext
from prometheus_client import Gauge

from contract.subjects import TELEMETRY
from servicekit.app import Kit
from servicekit.ids import now
from services.telemetry.metrics import EVENTS_OLDEST
from services.telemetry.relay.service import BATCH, EventRelay
from services.telemetry.reports import store
from services.telemetry.reports.events import NewEvent, make_event
from tests.conftest import MakeKit
from tests.support.servers import Servers
from tests.support.stack import PATIENCE
from tests.support.streams import read_stream

STREAM = "incarnation-1"


class FakeMessaging:
    """A stream that can be away, and that drops what it has by its id, as JetStream does."""

    def __init__(self) -> None:
        self.messages: dict[str, tuple[str, dict[str, Any]]] = {}
        self.attempts = 0
        self.fail_after: int | None = None

    async def publish(self, subject: str, payload: bytes, message_id: str) -> None:
        self.attempts += 1
        if self.fail_after is not None:
            if self.fail_after == 0:
                raise ConnectionError("NATS is away")
            self.fail_after -= 1
        self.messages.setdefault(message_id, (subject, json.loads(payload)))

    def events(self) -> list[dict[str, Any]]:
        return [e for _, message in self.messages.values() for e in message["data"]["events"]]

    def event_ids(self) -> list[str]:
        return sorted(e["eventId"] for e in self.events())


def some_event(event_id: str) -> NewEvent:
    return make_event(
        event_id=event_id, type_="t", occurred_at=now(), payload='{"n":9007199254740993}', value={}
    )


async def store_events(
    kit: Kit, tenant: UUID, *event_ids: str, age: timedelta | None = None
) -> None:
    async with kit.database.system_transaction("a test works on all rows") as connection:
        await store.store_events(
            connection,
            [(UUID(int=7), tenant, some_event(event_id)) for event_id in event_ids],
            [],
            now() - (age or timedelta(0)),
        )


@pytest.fixture
def messaging() -> FakeMessaging:
    return FakeMessaging()


def shown(gauge: Gauge) -> float:
    """What a gauge shows."""
    (family,) = gauge.collect()
    return family.samples[0].value


def relay_of(kit: Kit, messaging: Any) -> EventRelay:
    return EventRelay(kit.database, messaging, kit.clock)


async def test_stored_events_are_published_by_tenant(
    make_kit: MakeKit, messaging: FakeMessaging
) -> None:
    """One CloudEvent for many of them; what was published is not published again."""
    kit = await make_kit("telemetry")
    one, two = uuid4(), uuid4()
    await store_events(kit, one, "a", "b")
    await store_events(kit, two, "c")
    relay = relay_of(kit, messaging)
    await relay.publish(STREAM)
    assert len(messaging.messages) == 2
    subject, message = next(m for m in messaging.messages.values() if m[1]["tenantid"] == str(one))
    assert subject == f"evergreen.v1.{one}.telemetry.device_events"
    assert message["type"] == "evergreen.v1.telemetry.device_events"
    assert message["specversion"] == "1.0"
    event = message["data"]["events"][0]
    assert (event["eventId"], event["deviceId"]) == ("a", str(UUID(int=7)))
    assert event["payload"] == {"n": 9007199254740993}
    await relay.publish(STREAM)
    await relay_of(kit, messaging).publish(STREAM)
    assert messaging.attempts == 2


async def test_it_shows_how_long_events_wait(make_kit: MakeKit, messaging: FakeMessaging) -> None:
    """An alert looks at it: with NATS away, nothing else tells that integrators hear nothing."""
    kit = await make_kit("telemetry")
    relay = relay_of(kit, messaging)
    await relay.publish(STREAM)
    await relay.look()
    assert shown(EVENTS_OLDEST) == 0
    await store_events(kit, uuid4(), "a", age=timedelta(minutes=9))
    await store_events(kit, uuid4(), "b")
    await relay.look()
    assert shown(EVENTS_OLDEST) >= 9 * 60
    await relay.publish(STREAM)
    await relay.look()
    assert shown(EVENTS_OLDEST) == 0


async def test_an_event_whose_transaction_commits_late_is_not_skipped(
    make_kit: MakeKit, messaging: FakeMessaging
) -> None:
    """Later transactions wait for it: the order of the relay has no gaps."""
    kit = await make_kit("telemetry")
    tenant = uuid4()
    relay = relay_of(kit, messaging)
    async with kit.database.system_transaction("a test works on all rows") as late:
        await store.store_events(late, [(UUID(int=7), tenant, some_event("late"))], [], now())
        await store_events(kit, tenant, "early")
        await relay.publish(STREAM)
        assert messaging.event_ids() == []
    await relay.publish(STREAM)
    assert messaging.event_ids() == ["early", "late"]


async def test_a_relay_that_was_killed_sends_the_same_messages_again(
    make_kit: MakeKit, messaging: FakeMessaging
) -> None:
    """Also when more events have been stored since: the stream takes them for what it has."""
    kit = await make_kit("telemetry")
    one, two = uuid4(), uuid4()
    await store_events(kit, one, "a")
    await store_events(kit, two, "b")
    messaging.fail_after = 1
    with pytest.raises(ConnectionError):
        await relay_of(kit, messaging).publish(STREAM)
    assert len(messaging.messages) == 1
    first = set(messaging.messages)
    await store_events(kit, one, "c")
    await store_events(kit, two, "d")
    messaging.fail_after = None
    await relay_of(kit, messaging).publish(STREAM)
    assert first <= set(messaging.messages)
    assert messaging.event_ids() == ["a", "b", "c", "d"]


async def test_a_new_stream_gets_what_is_still_worth_having(
    make_kit: MakeKit, messaging: FakeMessaging
) -> None:
    """Everything that is younger than what a stream keeps."""
    kit = await make_kit("telemetry")
    tenant = uuid4()
    await store_events(kit, tenant, "old", age=timedelta(days=40))
    await store_events(kit, tenant, *(str(n) for n in range(BATCH + 1)))
    await relay_of(kit, messaging).publish(STREAM)
    assert len(messaging.event_ids()) == BATCH + 1
    again = FakeMessaging()
    await relay_of(kit, again).publish("incarnation-2")
    assert again.event_ids() == messaging.event_ids()
    await relay_of(kit, again).publish("incarnation-2")
    assert len(again.event_ids()) == BATCH + 1


async def test_two_relays_at_once_publish_each_event_once(
    make_kit: MakeKit, messaging: FakeMessaging
) -> None:
    """As while one process takes over from another."""
    kit = await make_kit("telemetry")
    await store_events(kit, uuid4(), *(f"{n:05}" for n in range(3 * BATCH)))
    relays = [relay_of(kit, messaging) for _ in range(3)]
    await asyncio.gather(*(relay.publish(STREAM) for relay in relays))
    await relays[0].publish(STREAM)
    assert messaging.event_ids() == [f"{n:05}" for n in range(3 * BATCH)]


@asynccontextmanager
async def in_background(relay: EventRelay) -> AsyncIterator[None]:
    task = asyncio.create_task(relay.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def received(jetstream: JetStreamContext, tenant: UUID, count: int) -> list[dict[str, Any]]:
    """The tenant's messages on the stream, from its beginning, once they have so many events."""
    async with asyncio.timeout(PATIENCE):
        while True:
            messages = await read_stream(jetstream, TELEMETRY.name, f"evergreen.v1.{tenant}.>")
            if sum(len(message["data"]["events"]) for message in messages) >= count:
                return messages
            await asyncio.sleep(0.1)


async def test_events_arrive_on_a_stream_of_their_own(make_kit: MakeKit, servers: Servers) -> None:
    """Through the real server; what is thrown away there comes again, with the same ids."""
    kit = await make_kit("telemetry")
    tenant = uuid4()
    operator = await servers.operator()
    jetstream = operator.jetstream()
    relay = relay_of(kit, kit.messaging)
    async with in_background(relay):
        for event_id in ("a", "b", "c"):
            await store_events(kit, tenant, event_id)
            relay.wake()
        first = await received(jetstream, tenant, 3)
        assert [e["eventId"] for m in first for e in m["data"]["events"]] == ["a", "b", "c"]
        await jetstream.delete_stream(TELEMETRY.name)
        again = await received(jetstream, tenant, 3)
    await operator.close()
    assert [e["id"] for m in again for e in m["data"]["events"]] == [
        e["id"] for m in first for e in m["data"]["events"]
    ]
