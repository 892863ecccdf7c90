"""Searching a large fleet: an index that keeps up, from the first moment, within the walls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from deploy.launcher.home import password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from servicekit.app import Kit
from servicekit.data import migrate
from servicekit.data.postgres import SYSTEM, Scope
from servicekit.ids import now
from services.telemetry.inventory import store as inventory
from services.telemetry.inventory.domain import DeviceFilter, NamePosition, RegisteredDevice
from services.telemetry.inventory.query import DeviceQuery
from services.telemetry.reports import store as reports
from services.telemetry.reports.state import State, StateReport
from tests.conftest import MakeKit
from tests.support.servers import TestDatabase

HERE, THERE = UUID(int=3), UUID(int=4)
MOMENT = now()
INDEXED = "SELECT id FROM telemetry.devices_with($1, '', $2, 100, 1000)"
CHANGED = (
    "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
    " WHERE relid = 'telemetry.device'::regclass"
)


def device(number: int, serial: str, tenant: UUID = HERE) -> RegisteredDevice:
    return RegisteredDevice(UUID(int=number), tenant, "active", serial, "Book 14", MOMENT, None)


async def store(kit: Kit, *devices: RegisteredDevice) -> None:
    async with kit.database.system_transaction("a test works on all rows") as connection:
        await inventory.store_registered(connection, devices)


async def indexed(kit: Kit, text: str, scope: Scope = SYSTEM) -> list[int]:
    """The numbers of the devices that the index finds."""
    async with kit.database.transaction(scope) as connection:
        rows = await connection.fetch(INDEXED, f"%{text}%", UUID(int=0))
    return [row["id"].int for row in rows]


async def test_the_index_follows_the_registry(make_kit: MakeKit) -> None:
    """New names are found and old ones are not, in lists that read as little as they may."""
    kit = await make_kit("telemetry", tenants=[])
    await store(kit, *(device(n, f"LAB-{n:03}") for n in range(1, 30)))
    await store(kit, device(7, "Aula Ü7"), device(8, "LAB-008", THERE))
    assert await indexed(kit, "LAB-007") == []
    assert await indexed(kit, "aula ü7") == [7]
    assert await indexed(kit, "LAB-008", Scope((HERE,))) == []
    assert await indexed(kit, "lab-008", Scope((HERE, THERE))) == [8]
    found = []
    position: NamePosition | None = None
    async with kit.database.system_transaction("a test works on all rows") as connection:
        while True:
            page = await inventory.list_devices(
                connection,
                DeviceQuery(SYSTEM, DeviceFilter(search="lab-02"), position, 4, MOMENT, 1),
            )
            found += [one.name for one in page.items]
            position = page.after
            if position is None:
                break
    assert found == [f"LAB-02{n}" for n in range(10)]


async def test_a_frequent_text_is_left_to_the_list(make_kit: MakeKit) -> None:
    """What very many devices have is not put in order; the list goes on as without an index."""
    kit = await make_kit("telemetry", tenants=[])
    await store(kit, *(device(n, f"LAB-{n:03}") for n in range(1, 60)))
    async with kit.database.system_transaction("a test works on all rows") as connection:
        rows = await connection.fetch(
            "SELECT id FROM telemetry.devices_with('%lab%', '', $1, 10, 50)", UUID(int=0)
        )
        assert [row["id"] for row in rows] == [None]
        page = await inventory.list_devices(
            connection, DeviceQuery(SYSTEM, DeviceFilter(search="lab"), None, 5, MOMENT, 2)
        )
    assert page.items
    assert page.after is not None


async def test_the_service_sees_no_more_through_the_index(make_kit: MakeKit) -> None:
    """The texts are closed to it, and what is found keeps to the transaction's tenants."""
    kit = await make_kit("telemetry", tenants=[])
    await store(kit, device(1, "LAB-001", HERE), device(2, "LAB-002", THERE))
    assert await indexed(kit, "lab-00") == [1, 2]
    assert await indexed(kit, "lab-00", Scope((THERE,))) == [2]
    assert await indexed(kit, "lab-00", Scope(())) == []
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with kit.database.system_transaction("a test works on all rows") as connection:
            await connection.fetch("SELECT content FROM telemetry.device_text")


@pytest.mark.parametrize("place", ["", "extensions"])
async def test_devices_of_before_are_found(
    make_kit: MakeKit, database: TestDatabase, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Those that the last release stored, before and during the upgrade; wherever trigrams are."""
    dsn = database.servers.postgres.dsn(roles.MIGRATOR, database.name)
    secret = database.servers.home.secret(MIGRATOR_SECRET, password)
    everything = migrate.all_migrations()
    superuser = await database.superuser()
    monkeypatch.setattr(
        migrate,
        "all_migrations",
        lambda: [m for m in everything if m.schema != "telemetry" or m.version <= 8],
    )
    try:
        await superuser.execute(
            f"ALTER DATABASE {database.name} OWNER TO {roles.MIGRATOR};"
            " DROP SCHEMA telemetry CASCADE;"
            " DELETE FROM evergreen.schema_migrations WHERE schema_name = 'telemetry';"
        )
        if place:
            await superuser.execute(
                f"CREATE SCHEMA {place}; CREATE EXTENSION pg_trgm SCHEMA {place};"
                f" GRANT USAGE ON SCHEMA {place} TO {roles.MIGRATOR}"
            )
        await migrate.up(dsn, secret)
        await superuser.execute("ALTER TABLE telemetry.device DISABLE TRIGGER keep_text")
        kit = await make_kit("telemetry", tenants=[])
        # In the words of that release: today's have columns that are not there yet.
        told = (
            "INSERT INTO telemetry.device (id, tenant_id, name, serial, model, registered_at)"
            " VALUES ($1, $2, $3, $3, 'Book 14', $4) ON CONFLICT (id) DO UPDATE SET"
            " name = excluded.name, serial = excluded.serial"
        )
        await superuser.executemany(
            told, [(UUID(int=n), HERE, f"OLD-{n:05}", MOMENT) for n in range(1, 25_001)]
        )
        await superuser.execute("ALTER TABLE telemetry.device ENABLE TRIGGER keep_text")
        await superuser.execute(told, UUID(int=17), HERE, "NEW-17", MOMENT)
        monkeypatch.undo()
        await migrate.up(dsn, secret)
    finally:
        await superuser.close()
    assert await indexed(kit, "old-24999") == [24999]
    assert await indexed(kit, "old-00017") == []
    assert await indexed(kit, "new-17") == [17]
    assert len(await indexed(kit, "old-100")) == 100


async def test_the_few_that_are_retired_are_on_the_first_page(make_kit: MakeKit) -> None:
    """However far down the list they are."""
    kit = await make_kit("telemetry", tenants=[])
    await store(kit, *(device(n, f"LAB-{n:03}") for n in range(1, 60)))
    retired = RegisteredDevice(
        UUID(int=58), HERE, "decommissioned", "LAB-058", "Book 14", MOMENT, MOMENT
    )
    await store(kit, retired)
    for scope in (SYSTEM, Scope((HERE,)), Scope((HERE, THERE))):
        wanted = DeviceFilter(status="decommissioned")
        query = DeviceQuery(scope, wanted, None, 5, MOMENT - timedelta(days=1), 1)
        async with kit.database.transaction(scope) as connection:
            page = await inventory.list_devices(connection, query)
        assert [one.id for one in page.items] == [retired.id]
        assert page.after is None


async def test_the_few_that_have_not_called_for_long_are_on_the_first_page(
    make_kit: MakeKit,
) -> None:
    """Also those that only the last release has written, which does not note the day."""
    kit = await make_kit("telemetry", tenants=[])
    await store(kit, *(device(n, f"LAB-{n:03}") for n in range(1, 60)))
    long_ago = MOMENT - timedelta(days=40)
    async with kit.database.system_transaction("a test works on all rows") as connection:
        everyone = [(UUID(int=n), HERE) for n in range(1, 60)]
        await reports.store_contacts(connection, everyone[:56], MOMENT)
        await reports.store_contacts(connection, everyone[56:], long_ago)
        await connection.execute(
            "UPDATE telemetry.device SET seen_day = '-infinity' WHERE id = ANY ($1)",
            [UUID(int=3), UUID(int=57)],
        )
    for scope in (SYSTEM, Scope((HERE,)), Scope((HERE, THERE))):
        for text in ("", "lab-0"):
            wanted = DeviceFilter(search=text, seen_before=MOMENT - timedelta(days=30))
            query = DeviceQuery(scope, wanted, None, 5, MOMENT, 10)
            async with kit.database.transaction(scope) as connection:
                page = await inventory.list_devices(connection, query)
            assert [one.name for one in page.items] == ["LAB-057", "LAB-058", "LAB-059"]
            assert page.after is None


async def test_reports_leave_the_indexes_alone(make_kit: MakeKit) -> None:
    """But for the first one of a day: rows are written anew in their places, by the thousand."""
    kit = await make_kit("telemetry", tenants=[])
    await store(kit, *(device(n, f"LAB-{n:03}") for n in range(1, 6)))

    async def in_place(moment: datetime) -> tuple[int, int]:
        """How many rows a round of reports changes, and how many of them in no index."""
        async with kit.database.system_transaction("a test works on all rows") as connection:
            state = State(moment, "[]", disk_total_bytes=100, disk_free_bytes=50)
            everyone = [StateReport(UUID(int=n), HERE, state, moment) for n in range(1, 6)]
            before = await connection.fetch(CHANGED)
            assert await reports.store_states(connection, everyone) == []
            after = await connection.fetch(CHANGED)
            return after[0][0] - before[0][0], after[0][1] - before[0][1]

    day = datetime(2026, 11, 2, tzinfo=UTC)
    assert await in_place(day) == (5, 0)
    assert await in_place(day + timedelta(hours=5)) == (5, 5)
    assert await in_place(day + timedelta(hours=23)) == (5, 5)
    assert await in_place(day + timedelta(hours=24)) == (5, 0)
