"""Devices with wrong clocks: lists have their events where they were received, and mark them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest

from contract.subjects import TELEMETRY
from evergreen.v1 import telemetry_pb2
from servicekit.ids import now
from tests.support.servers import Servers
from tests.support.streams import end_of, read_stream
from tests.support.telemetry import ORG, STRANGER, World, event, eventually, world

__all__ = ["world"]


def at(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def messages(answer: Any) -> list[str]:
    return [found.metadata["n"] for found in answer.events]


def told(number: str, moment: datetime) -> dict[str, Any]:
    return event(f"{number}-{uuid4()}", timestamp=at(moment), payload={"n": number})


async def test_events_of_the_future_do_not_hide_those_of_today(world: World) -> None:
    """120 events dated 2099, and one of 1970 from an unset clock: the first page is today's."""
    wrong, right = world.device(), world.device()
    future = datetime(2099, 1, 1, tzinfo=UTC)
    batch = [told(f"future-{n}", future + timedelta(seconds=n)) for n in range(120)]
    assert (await wrong.events([*batch, told("unset", datetime(1970, 1, 2, tzinfo=UTC))])).json()[
        "accepted"
    ] == 121
    # Ahead, but within what clocks may differ by.
    moment = now() + timedelta(minutes=5)
    assert (await right.events([told("today", moment)])).json()["accepted"] == 1

    first = await world.admin.events(limit=100)
    assert messages(first)[0] == "today"
    assert not first.events[0].clock_off
    assert all(found.clock_off for found in first.events[1:])
    everything = await world.admin.events(page_size=500)
    marked = {found.metadata["n"]: found for found in everything.events}
    assert len(marked) == 122
    # What the device said is still told; lists go by when it was received.
    assert marked["future-7"].occurred_at.ToDatetime(UTC) == future + timedelta(seconds=7)
    assert marked["unset"].clock_off
    assert marked["unset"].occurred_at.seconds == 86400
    since = (now() - timedelta(hours=1)).astimezone(UTC)
    assert len((await world.admin.events(occurred_after=since, page_size=500)).events) == 122


async def test_integrators_get_the_time_that_the_device_said(
    world: World, servers: Servers
) -> None:
    """Lists have it elsewhere; the published event is as the device told it."""
    future = event(f"future-{uuid4()}", timestamp="2099-01-01T00:00:00Z")
    client = await servers.operator()
    behind = await end_of(client.jetstream(), TELEMETRY.name)
    await world.device().events([future])

    async def published() -> list[str]:
        read = await read_stream(
            client.jetstream(),
            TELEMETRY.name,
            f"evergreen.v1.{ORG.id}.telemetry.device_events",
            behind=behind,
        )
        found = [e for message in read for e in message["data"]["events"]]
        return [e["occurredAt"] for e in found if e["eventId"] == future["id"]]

    async def is_published() -> bool:
        return bool(await published())

    await eventually(is_published, 60)
    assert await published() == ["2099-01-01T00:00:00Z"]
    await client.close()


async def test_a_list_in_the_order_of_receipt(world: World) -> None:
    """An event that comes late is first; pages follow the order; times of receipt filter."""
    device = world.device()
    for number, hours in (("a", 3), ("b", 48), ("c", 1), ("d", 400)):
        await device.events([told(number, now() - timedelta(hours=hours))])
    assert messages(await world.admin.events()) == ["c", "a", "b", "d"]
    for name in ("receivedAt desc", "received_at desc"):
        assert messages(await world.admin.events(order_by=name)) == ["d", "c", "b", "a"]
    assert messages(await world.admin.events(order_by="occurredAt desc")) == ["c", "a", "b", "d"]

    found, token = [], ""
    while True:
        page = await world.admin.events(order_by="receivedAt desc", page_size=1, page_token=token)
        found += messages(page)
        token = page.next_page_token
        if not token:
            break
    assert found == ["d", "c", "b", "a"]

    b = next(e for e in (await world.admin.events()).events if e.metadata["n"] == "b")
    for order in ("", "receivedAt desc"):
        since = await world.admin.events(received_after=b.received_at, order_by=order)
        assert sorted(messages(since)) == ["b", "c", "d"]
        until = await world.admin.events(received_before=b.received_at, order_by=order)
        assert messages(until) == ["a"]
    _, parts = await world.admin.export(format="json", received_before=b.received_at)
    assert b'{"n": "a"}' in b"".join(part.data for part in parts)
    assert b'{"n": "b"}' not in b"".join(part.data for part in parts)


async def test_another_organisation_is_not_seen_in_the_order_of_receipt(world: World) -> None:
    """The list of one organisation has none of another's events."""
    await world.device(STRANGER.id).events([told("theirs", now())])
    await world.device(ORG.id).events([told("ours", now())])
    assert messages(await world.admin.events(order_by="receivedAt desc")) == ["ours"]


@pytest.mark.parametrize("order", ["receivedAt", "receivedAt asc", "severity desc", "x"])
async def test_an_unknown_order_is_refused_by_name(world: World, order: str) -> None:
    """The error names the field and the orders there are."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.admin.event_service.ListEvents(
            telemetry_pb2.ListEventsRequest(order_by=order),
            metadata=world.admin.metadata,
            timeout=60,
        )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "order" in (refused.value.details() or "")
    assert "receivedAt desc" in (refused.value.details() or "")
