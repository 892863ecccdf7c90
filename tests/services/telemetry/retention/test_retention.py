"""Events in time: each once whatever the clocks say, and for as long as it is to be kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest
from uuid_utils.compat import uuid7

from servicekit.app import Kit
from servicekit.errors import Code, DomainError
from servicekit.ids import new_id, now
from services.telemetry.relay.service import EventRelay
from services.telemetry.reports import store
from services.telemetry.reports.events import NewEvent, make_event, quarantine
from services.telemetry.retention.service import Maintenance
from tests.conftest import MakeKit
from tests.support.servers import TestDatabase
from tests.support.telemetry import ORG, RESELLER, SISTER, Admin, World, world

__all__ = ["world"]

DEVICE = UUID(int=7)
WEEK = timedelta(days=7)


class Sink:
    """A stream that takes everything."""

    async def publish(self, subject: str, payload: bytes, message_id: str) -> None:
        pass


def nanoseconds(time: datetime) -> str:
    """An event's id as the released agent makes it."""
    return f"{int(time.timestamp() * 1_000_000)}000"


def some_event(event_id: str, occurred_at: datetime | None = None) -> NewEvent:
    return make_event(
        event_id=event_id, type_="t", occurred_at=occurred_at or now(), payload=None, value=None
    )


class Events:
    """Stores events as the service does, and looks at them as nobody else can."""

    def __init__(self, kit: Kit, database: TestDatabase) -> None:
        self.kit = kit
        self._database = database

    async def send(
        self, *events: NewEvent | str, org: UUID = ORG.id, at: datetime | None = None
    ) -> int:
        """Sends events, or some with these ids; answers how many were new."""
        found = [some_event(e) if isinstance(e, str) else e for e in events]
        async with self.kit.database.system_transaction("a test works on all rows") as connection:
            return len(
                await store.store_events(
                    connection, [(DEVICE, org, event) for event in found], (), at or now()
                )
            )

    async def publish(self) -> None:
        await EventRelay(self.kit.database, Sink(), now).publish("stream")  # type: ignore[arg-type]  # all of it that is used

    async def rows(self, sql: str) -> list[Any]:
        connection = await self._database.superuser()
        try:
            return list(await connection.fetch(sql))
        finally:
            await connection.close()

    async def ids(self) -> list[str]:
        return sorted(r["event_id"] for r in await self.rows("SELECT * FROM telemetry.event"))

    async def partitions(self) -> dict[str, str]:
        """Which event is where."""
        rows = await self.rows(
            "SELECT event_id, tableoid::regclass::text AS p FROM telemetry.event"
        )
        return {row["event_id"]: row["p"].removeprefix("telemetry.event_") for row in rows}

    async def weeks(self) -> Sequence[date]:
        """Where the first week begins, and where the last one ends."""
        (row,) = await self.rows(
            "SELECT min(first_day) AS first, max(end_day) AS last FROM telemetry.event_week"
        )
        return row["first"], row["last"]

    def maintenance(self, later: timedelta = timedelta(0), days: int = 30) -> Maintenance:
        return Maintenance(self.kit.database, days, lambda: now() + later)


@pytest.fixture
async def events(make_kit: MakeKit, database: TestDatabase) -> Events:
    return Events(await make_kit("telemetry", tenants=[]), database)


LONG = timedelta(days=1_000)
"""Who has run for so long may trust the clock."""


async def finish(maintenance: Maintenance, ran: timedelta = LONG) -> None:
    """Does all that is to be done; a step that gave way (to autovacuum, say) is done again."""
    while True:
        try:
            return await maintenance.once(ran)
        except DomainError as gave_way:
            assert gave_way.code is Code.UNAVAILABLE


def week_of(time: datetime) -> str:
    return f"{time.date() - timedelta(days=time.weekday()):%Y%m%d}"


# Each once


async def test_an_event_is_stored_once_whatever_the_clocks_say(events: Events) -> None:
    """The partition follows from the id: another time for the same id makes no other event."""
    today = now()
    ahead = today + timedelta(days=40)
    places = {
        nanoseconds(today): week_of(today),
        nanoseconds(today + WEEK): week_of(today + WEEK),
        str(uuid7()): week_of(today),
        # Clocks that lost their time, or run ahead.
        nanoseconds(datetime(1970, 1, 2, tzinfo=UTC)): "undated",
        nanoseconds(datetime(2003, 1, 2, tzinfo=UTC)): "undated",
        nanoseconds(datetime(2100, 1, 2, tzinfo=UTC)): "astray",
        nanoseconds(ahead): "astray",
        # Ids that tell no time.
        "1": "undated",
        "9" * 19: "astray",
        "9" * 18: "undated",
        "9" * 20: "undated",
        str(UUID(int=5)): "undated",
        "x'; DROP": "undated",
    }
    assert await events.send(*places) == len(places)
    assert await events.partitions() == places
    for time in (today - 9 * WEEK, ahead, datetime(1970, 1, 1, tzinfo=UTC)):
        again = [some_event(event_id, time) for event_id in places]
        assert await events.send(*again, *again) == 0
    # Five weeks later there is a week for what was ahead; it moves there, and is known there.
    await finish(events.maintenance(timedelta(days=35), days=730))
    assert (await events.partitions())[nanoseconds(ahead)] == week_of(ahead)
    assert await events.send(*places) == 0


async def test_many_clients_that_send_the_same_over_the_end_of_a_week(events: Events) -> None:
    """Each is told to be new once."""
    _, end = await events.weeks()
    monday = datetime(end.year, end.month, end.day, tzinfo=UTC) - WEEK
    ids = [nanoseconds(monday + timedelta(milliseconds=n)) for n in range(-20, 20)]
    new = await asyncio.gather(*(events.send(*ids) for _ in range(8)))
    assert sum(new) == 40
    assert len(set((await events.partitions()).values())) == 2


async def as_an_agent(events: Events, ids: Sequence[str]) -> int:
    """Sends events until they are taken, which is at once or in the moment after."""
    while True:
        try:
            return await events.send(*ids)
        except DomainError as refused:
            assert refused.code is Code.UNAVAILABLE


async def test_weeks_are_made_while_events_arrive(events: Events) -> None:
    """By two processes at once; no event is refused, lost, or stored twice."""
    sent: list[str] = []
    done = asyncio.Event()

    async def device(number: int) -> None:
        # For weeks that are there, that are being made, and that never will be.
        for turn in range(1_000):
            ids = [
                nanoseconds(now() + timedelta(days=days, microseconds=number))
                for days in (0, 50, 99)
            ]
            assert await as_an_agent(events, ids) == 3
            assert await as_an_agent(events, ids) == 0
            sent.extend(ids)
            if done.is_set() and turn > 3:
                return

    async def maintain() -> None:
        maintenance = [events.maintenance(timedelta(days=60), days=730) for _ in range(2)]
        for _ in range(2):
            # A step that finds everything locked is left for the next time.
            await asyncio.gather(*(m.once(LONG) for m in maintenance), return_exceptions=True)
        done.set()

    await asyncio.gather(maintain(), *(device(number) for number in range(3)))
    await finish(events.maintenance(timedelta(days=60), days=730))
    assert await events.ids() == sorted(sent)
    _, end = await events.weeks()
    assert end >= (now() + timedelta(days=74)).date()
    assert sum(place == "astray" for place in (await events.partitions()).values()) == len(sent) / 3


# No longer than they are kept


async def test_a_week_is_dropped_when_it_is_old_and_published(events: Events) -> None:
    """Not before the stream has it; the weeks to come are there first."""
    old = nanoseconds(now())
    recent = nanoseconds(now() + WEEK)
    await events.send(old, recent)
    later = events.maintenance(timedelta(days=37))
    await finish(later)
    assert await events.ids() == sorted([old, recent])
    await events.publish()
    await finish(later)
    assert await events.ids() == [recent]
    first, end = await events.weeks()
    assert first == (now() + WEEK - timedelta(days=now().weekday())).date()
    assert end >= (now() + timedelta(days=51)).date()
    # Gone with its week. If it is sent once more, it is an event like one of a clock that is wrong.
    assert await events.send(old, recent) == 1
    assert (await events.partitions())[old] == "astray"


async def test_a_week_that_somebody_reads_is_dropped_later(events: Events) -> None:
    """Maintenance gives way: it neither waits nor keeps others waiting."""
    old = nanoseconds(now())
    await events.send(old, "undated")
    await events.publish()
    later = events.maintenance(timedelta(days=37))
    async with events.kit.database.system_transaction("a test works on all rows") as reader:
        await reader.fetch("SELECT id FROM telemetry.event")
        with pytest.raises(DomainError):
            await later.once(LONG)
        # The rest was done.
        assert await events.ids() == [old]
        assert await events.send(nanoseconds(now() + WEEK)) == 1
    await finish(later)
    assert old not in await events.ids()


async def test_every_organisation_keeps_its_events_for_its_own_time(events: Events) -> None:
    """In weeks, and where there are none; what was quarantined too."""
    await events.rows(
        "INSERT INTO telemetry.retention (tenant_id, event_days, changed_at)"
        f" VALUES ('{ORG.id}', 7, now()), ('{SISTER.id}', 100, now()) RETURNING 1"
    )
    orgs = {"short": ORG.id, "long": SISTER.id, "default": RESELLER.id}
    for name, org in orgs.items():
        await events.send(
            some_event(nanoseconds(now() + timedelta(microseconds=len(name)))),
            some_event(f"{name} undated"),
            some_event(nanoseconds(datetime(2100, 1, 1, tzinfo=UTC) + timedelta(days=len(name)))),
            org=org,
        )
        async with events.kit.database.system_transaction("a test works on all rows") as connection:
            await store.quarantine(
                connection, [(DEVICE, org, quarantine(name.encode(), "broken"))], now()
            )
    await events.publish()

    async def left() -> list[list[str]]:
        names = {org: name for name, org in orgs.items()}
        stored = await events.rows("SELECT tenant_id FROM telemetry.event")
        aside = await events.rows("SELECT tenant_id FROM telemetry.quarantined_event")
        return [sorted(names[r["tenant_id"]] for r in rows) for rows in (stored, aside)]

    await finish(events.maintenance(timedelta(days=6)))
    assert await left() == [["default"] * 3 + ["long"] * 3 + ["short"] * 3, [*sorted(orgs)]]
    await finish(events.maintenance(timedelta(days=20)))
    assert await left() == [["default"] * 3 + ["long"] * 3, ["default", "long"]]
    await finish(events.maintenance(timedelta(days=40)))
    assert await left() == [["long"] * 3, ["long"]]
    await finish(events.maintenance(timedelta(days=108)))
    assert await left() == [[], []]


async def test_nothing_is_deleted_before_it_is_published(events: Events) -> None:
    """Neither in a week that others keep, nor where there is none; also for a new stream."""
    await events.rows(
        "INSERT INTO telemetry.retention (tenant_id, event_days, changed_at)"
        f" VALUES ('{SISTER.id}', 730, now()) RETURNING 1"
    )
    ids = sorted([nanoseconds(now()), "undated", nanoseconds(datetime(2100, 1, 1, tzinfo=UTC))])
    await events.send(*ids)
    later = events.maintenance(timedelta(days=45))
    await finish(later)
    assert await events.ids() == ids
    await events.publish()
    await finish(later)
    assert await events.ids() == []


async def test_a_clock_that_is_far_ahead_deletes_next_to_nothing(events: Events) -> None:
    """At a start, or however often it starts; once it is right, things are as they were."""
    ids = sorted([nanoseconds(now()), nanoseconds(now() + WEEK), "undated"])
    await events.send(*ids)
    async with events.kit.database.system_transaction("a test works on all rows") as connection:
        await store.quarantine(connection, [(DEVICE, ORG.id, quarantine(b"x", "broken"))], now())
    await events.publish()
    ahead = events.maintenance(timedelta(days=20_000))
    for _ in range(3):
        await finish(ahead, timedelta(seconds=1))
    await finish(ahead, timedelta(days=2))
    assert await events.ids() == ids
    assert len(await events.rows("SELECT 1 FROM telemetry.quarantined_event")) == 1
    # Nor are there partitions for all the years to come.
    _, end = await events.weeks()
    assert end < (now() + timedelta(days=500)).date()
    # A clock that was set meanwhile counts at once, one that is not set is no reason to go back.
    await finish(events.maintenance(timedelta(days=-20_000)), timedelta(0))
    await finish(events.maintenance(), timedelta(0))
    (row,) = await events.rows("SELECT reached FROM telemetry.retention_cursor")
    assert row["reached"] <= now()
    # Off for a year: it catches up, a week a day.
    year = events.maintenance(timedelta(days=365))
    await finish(year, timedelta(days=4))
    assert await events.ids() == ids
    await finish(year, timedelta(days=49))
    assert await events.ids() == []


async def test_what_came_late_is_kept_from_when_it_came(events: Events) -> None:
    """A device was off for months: its events are neither dropped with their week, nor deleted
    for an organisation that keeps them for a shorter time than others."""
    await events.rows(
        "INSERT INTO telemetry.retention (tenant_id, event_days, changed_at)"
        f" VALUES ('{ORG.id}', 7, now()) RETURNING 1"
    )

    def sent(number: int) -> str:
        return nanoseconds(now() + timedelta(milliseconds=number))

    def day(days: int) -> datetime:
        return now() + timedelta(days=days)

    short, default, too_late = sent(1), sent(2), sent(3)
    ordinary = [sent(number) for number in range(4, 10)]
    await events.send(*ordinary[:3], org=ORG.id)
    await events.send(*ordinary[3:], org=SISTER.id)
    await events.send(short, at=day(18), org=ORG.id)
    await events.publish()
    await finish(events.maintenance(timedelta(days=20)))
    assert await events.ids() == sorted([short, *ordinary[3:]])
    await finish(events.maintenance(timedelta(days=26)))
    assert await events.ids() == sorted(ordinary[3:])
    # No organisation keeps the week any longer.
    await events.send(short, at=day(36), org=ORG.id)
    await events.send(default, at=day(37), org=SISTER.id)
    await events.publish()
    await finish(events.maintenance(timedelta(days=38)))
    assert await events.partitions() == {
        event_id: f"{week_of(now())}_rest" for event_id in (short, default)
    }
    # It is the same event when it is sent again, and others may come for that week.
    assert await events.send(default, too_late, at=day(39), org=SISTER.id) == 1
    await events.publish()
    for later, left in ((44, [default, too_late]), (68, [too_late]), (70, [])):
        await finish(events.maintenance(timedelta(days=later)))
        assert await events.ids() == sorted(left)
    await finish(events.maintenance(timedelta(days=70)))
    assert not await events.rows("SELECT 1 FROM telemetry.event_week WHERE partition ~ 'rest'")


async def test_a_week_of_which_many_events_came_late_is_emptied_in_steps(events: Events) -> None:
    """Instead of a copy of them all; the weeks behind it are dropped meanwhile."""
    ids = [nanoseconds(now() + timedelta(milliseconds=number)) for number in range(6)]
    following = nanoseconds(now() + WEEK)
    await events.send(*ids[:3], following)
    await events.send(*ids[3:], at=now() + timedelta(days=37))
    await events.publish()
    for most in (2, 2, 3):
        await events.rows(
            f"SELECT telemetry.drop_oldest_week(now() + interval '37 days', 30, {most}) IS NULL"
        )
    place = f"{week_of(now())}_rest"
    assert await events.partitions() == {
        **dict.fromkeys(ids, place),
        following: week_of(now() + WEEK),
    }
    await finish(events.maintenance(timedelta(days=45)))
    assert await events.partitions() == dict.fromkeys(ids[3:], place)
    for _ in range(2):
        await finish(events.maintenance(timedelta(days=69)))
    assert await events.ids() == []
    assert not await events.rows("SELECT 1 FROM telemetry.event_week WHERE partition ~ 'rest'")


async def test_more_than_one_step_of_rows(events: Events) -> None:
    """Steps go on where the one before ended, and stop at what is too young."""
    old = [f"old {n}" for n in range(4_500)]
    await events.send(*old, at=now() - timedelta(days=31))
    await events.send(*(f"new {n}" for n in range(10)))
    await events.publish()
    await finish(events.maintenance())
    assert await events.ids() == [f"new {n}" for n in range(10)]


async def test_the_service_itself_cannot_delete_events_or_change_tables(events: Events) -> None:
    """Only through the functions, which keep what is not published or not old."""
    await events.send("1")
    for sql in (
        "DELETE FROM telemetry.event",
        "DELETE FROM telemetry.event_undated",
        "SELECT 1 FROM telemetry.event_undated",
        "DROP TABLE telemetry.event_astray",
        "CALL telemetry.make_event_week('2020-01-06', '2020-01-13')",
        "UPDATE telemetry.event_week SET end_day = '2020-01-01'",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with events.kit.database.system_transaction(
                "a test works on all rows"
            ) as connection:
                await connection.execute(sql)


# What organisations say


async def test_an_administrator_reads_and_sets_how_long_events_are_kept(world: World) -> None:
    """The audit log hears of it; without a number the default counts again."""
    admin = Admin(world.channel, ORG.id, "Admin")
    found = await admin.retention()
    assert (found.days, found.default_days, found.HasField("own_days")) == (90, 90, False)
    changed = await admin.keep(days=30)
    assert (changed.org_id, changed.days, changed.own_days) == (str(ORG.id), 30, 30)
    assert await admin.retention(org_id=str(ORG.id)) == changed
    await admin.keep(days=14)
    assert (await admin.keep()).days == 90
    told = [
        json.loads(row["payload"])
        for row in await world.rows("SELECT payload FROM telemetry.outbox ORDER BY id")
    ]
    assert {event["type"] for event in told} == {"evergreen.v1.telemetry.event_retention_updated"}
    assert [(e["data"]["before"], e["data"]["after"]) for e in told] == [
        ({"days": None}, {"days": 30}),
        ({"days": 30}, {"days": 14}),
        ({"days": 14}, {"days": None}),
    ]
    assert {(e["tenantid"], e["data"]["actor"]) for e in told} == {
        (str(ORG.id), "admin@school.example")
    }


async def test_who_may_not_say_how_long_events_are_kept(world: World) -> None:
    """Auditors, neighbours, and nobody beyond the bounds."""
    admin = Admin(world.channel, ORG.id, "Admin")
    reseller = Admin(world.channel, RESELLER.id, "Owner")
    refused: list[tuple[Callable[[], Any], grpc.StatusCode]] = [
        (lambda: Admin(world.channel, ORG.id).keep(days=30), grpc.StatusCode.PERMISSION_DENIED),
        (lambda: admin.keep(days=6), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: admin.keep(days=731), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: admin.keep(org_id=str(SISTER.id), days=30), grpc.StatusCode.NOT_FOUND),
        (lambda: admin.retention(org_id=str(SISTER.id)), grpc.StatusCode.NOT_FOUND),
        (lambda: reseller.keep(days=30), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: admin.keep(org_id=str(new_id()), days=30), grpc.StatusCode.NOT_FOUND),
    ]
    for call, code in refused:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call()
        assert error.value.code() is code, error.value.details()
    assert (await reseller.keep(org_id=str(SISTER.id), days=60)).days == 60
