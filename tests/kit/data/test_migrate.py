"""Migrations on a live database: rehearsed, patient with the traffic, safe to interrupt."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from deploy.launcher.home import password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from servicekit.data import migrate
from servicekit.data.migrate import Migration, MigrationError
from tests.support.servers import TestDatabase

ADD = Migration("attestation", 9001, "add", "CREATE TABLE attestation.later (a int);")
INDEX = Migration(
    "attestation",
    9002,
    "index",
    "-- outside a transaction\n"
    "DROP INDEX CONCURRENTLY IF EXISTS attestation.later_by_a;\n"
    "CREATE INDEX CONCURRENTLY later_by_a ON attestation.later (a);\n",
)
BROKEN = Migration("attestation", 9003, "broken", "CREATE TABLE attestation.more (a int); SELECT;x")


@pytest.fixture
def pending(monkeypatch: pytest.MonkeyPatch) -> list[Migration]:
    """What this release brings beside the migrations that the database has."""
    found: list[Migration] = []
    known = migrate.all_migrations()
    monkeypatch.setattr(migrate, "all_migrations", lambda: [*known, *found])
    return found


class Migrator:
    """The role that owns the schemas."""

    def __init__(self, database: TestDatabase) -> None:
        servers = database.servers
        self.dsn = servers.postgres.dsn(roles.MIGRATOR, database.name)
        self.secret = servers.home.secret(MIGRATOR_SECRET, password)
        self._database = database

    async def up(self, tell: migrate.Tell | None = None) -> list[Migration]:
        return await migrate.up(self.dsn, self.secret, tell=tell)

    async def rehearse(self) -> list[Migration]:
        return await migrate.rehearse(self.dsn, self.secret)

    async def has(self, name: str) -> bool:
        connection = await self._database.superuser()
        try:
            found: bool = await connection.fetchval(
                "SELECT to_regclass($1) IS NOT NULL", f"attestation.{name}"
            )
            return found
        finally:
            await connection.close()


@pytest.fixture
def migrator(database: TestDatabase) -> Migrator:
    return Migrator(database)


async def test_a_rehearsal_changes_nothing(migrator: Migrator, pending: list[Migration]) -> None:
    """It tells what would be applied; what cannot be taken back is only listed."""
    pending += [ADD, INDEX]
    assert await migrator.rehearse() == [ADD, INDEX]
    assert not await migrator.has("later")
    assert await migrator.up() == [ADD, INDEX]
    assert await migrator.has("later_by_a")
    assert await migrator.rehearse() == []


async def test_two_at_once_take_turns(
    migrator: Migrator, pending: list[Migration], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when one builds an index CONCURRENTLY, which no transaction may hold up meanwhile."""
    monkeypatch.setattr(migrate, "_TELL_SECONDS", 0.0)
    pending += [ADD, INDEX]
    busy = await migrator._database.superuser()
    apply = migrate._apply

    async def apply_when_another_waits(
        connection: asyncpg.Connection[asyncpg.Record], migration: Migration
    ) -> None:
        while not await busy.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND query ~ 'SELECT pg_(try_)?advisory_lock' AND pid <> pg_backend_pid())"
        ):
            await asyncio.sleep(0.01)
        await apply(connection, migration)

    monkeypatch.setattr(migrate, "_apply", apply_when_another_waits)
    told: list[str] = []
    found = await asyncio.wait_for(
        asyncio.gather(migrator.up(told.append), migrator.up(told.append)), 60
    )
    assert sorted(found, key=len) == [[], [ADD, INDEX]]
    assert await migrator.has("later_by_a")
    assert told
    assert "Waiting for other migrations" in told[0]
    # A restore does not wait in the transaction that it has open by then; it says so.
    await busy.execute("SELECT pg_advisory_lock($1)", migrate._LOCK)
    owner = await asyncpg.connect(migrator.dsn, password=migrator.secret)
    async with owner.transaction():
        with pytest.raises(MigrationError, match="just now"):
            await migrate.make(owner, [])
    await owner.close()
    await busy.close()


async def test_a_rehearsal_finds_what_does_not_work(
    migrator: Migrator, pending: list[Migration]
) -> None:
    """And so does the real thing, which leaves nothing half done."""
    pending.append(BROKEN)
    for attempt in (migrator.rehearse, migrator.up):
        with pytest.raises(asyncpg.PostgresSyntaxError):
            await attempt()
        assert not await migrator.has("more")


async def test_what_was_interrupted_is_repeated(
    migrator: Migrator, pending: list[Migration]
) -> None:
    """An index whose building was cut short is there, and unusable; it is built anew."""
    pending.append(ADD)
    await migrator.up()
    connection = await migrator._database.superuser()
    await connection.execute("CREATE INDEX later_by_a ON attestation.later (a)")
    await connection.execute(
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = 'attestation.later_by_a'::regclass"
    )
    await connection.execute("ALTER INDEX attestation.later_by_a OWNER TO evergreen_migrator")
    pending.append(INDEX)
    assert await migrator.up() == [INDEX]
    assert await connection.fetchval(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'attestation.later_by_a'::regclass"
    )
    await connection.close()


async def test_statements_for_tables_that_a_file_cannot_name(
    migrator: Migrator, pending: list[Migration]
) -> None:
    """A query answers what is to run, outside a transaction and where a schema is made at once."""
    pending.append(ADD)
    await migrator.up()
    each = Migration(
        "attestation",
        9006,
        "each",
        "-- outside a transaction\n-- run each answer\n"
        "SELECT format('CREATE INDEX CONCURRENTLY IF NOT EXISTS %I ON attestation.%I (a)',"
        " c.relname || n, c.relname) FROM pg_class AS c, generate_series(1, 2) AS n"
        " WHERE c.oid = 'attestation.later'::regclass;\n",
    )
    pending.append(each)
    assert await migrator.up() == [each]
    assert await migrator.has("later1")
    assert await migrator.has("later2")
    owner = await asyncpg.connect(migrator.dsn, password=migrator.secret)
    async with owner.transaction():
        await owner.execute("DROP TABLE attestation.later")
        await owner.execute("DELETE FROM evergreen.schema_migrations WHERE version IN (9001, 9006)")
        await migrate.make(owner, [ADD, each])
    await owner.close()
    assert await migrator.has("later2")


async def test_a_migration_gives_way_to_the_traffic(
    migrator: Migrator, pending: list[Migration], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is in use is not locked for long; the migration comes again."""
    monkeypatch.setattr(migrate, "_LOCK_SECONDS", 0.1)
    pending.append(ADD)
    await migrator.up()
    busy = await migrator._database.superuser()
    transaction = busy.transaction()
    await transaction.start()
    await busy.execute("LOCK TABLE attestation.later IN ROW EXCLUSIVE MODE")
    pending.append(
        Migration("attestation", 9004, "b", "ALTER TABLE attestation.later ADD COLUMN b int;")
    )
    migrating = asyncio.create_task(migrator.up())
    await asyncio.sleep(0.5)
    await transaction.commit()
    assert [m.name for m in await migrating] == ["b"]
    # Somebody who never ends is told of, and nothing is changed.
    transaction = busy.transaction()
    await transaction.start()
    await busy.execute("LOCK TABLE attestation.later IN ROW EXCLUSIVE MODE")
    monkeypatch.setattr(migrate, "_ATTEMPTS", 2)
    pending.append(
        Migration("attestation", 9005, "c", "ALTER TABLE attestation.later ADD COLUMN c int;")
    )
    with pytest.raises(asyncpg.LockNotAvailableError):
        await migrator.up()
    await transaction.rollback()
    await busy.close()


async def test_a_rehearsal_locks_one_contexts_tables_at_a_time(
    migrator: Migrator, pending: list[Migration], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits for another context's, which it does again and again, calls go on."""
    monkeypatch.setattr(migrate, "_LOCK_SECONDS", 0.2)
    policy = Migration("policy", 9001, "later", "CREATE TABLE policy.later (a int);")
    pending += [ADD, policy]
    await migrator.up()
    pending += [
        Migration(m.schema, 9004, "b", f"ALTER TABLE {m.schema}.later ADD COLUMN b int;")
        for m in (ADD, policy)
    ]
    for locked, free in (("attestation", "policy"), ("policy", "attestation")):
        busy, caller = await migrator._database.superuser(), await migrator._database.superuser()
        transaction = busy.transaction()
        await transaction.start()
        await busy.execute(f"LOCK TABLE {locked}.later IN ROW EXCLUSIVE MODE")
        rehearsing = asyncio.create_task(migrator.rehearse())
        until = asyncio.get_running_loop().time() + 1.5
        while asyncio.get_running_loop().time() < until:
            await caller.execute(f"INSERT INTO {free}.later VALUES (1)")
            await asyncio.sleep(0.01)
        assert not rehearsing.done()
        await transaction.commit()
        assert len(await rehearsing) == 2
        await busy.close()
        await caller.close()


async def test_an_applied_migration_does_not_change(
    migrator: Migrator, pending: list[Migration]
) -> None:
    """Whoever edits it is told to write a new one."""
    pending.append(ADD)
    await migrator.up()
    pending[:] = [Migration(ADD.schema, ADD.version, ADD.name, ADD.sql + "\n")]
    for attempt in (migrator.rehearse, migrator.up):
        with pytest.raises(MigrationError, match="write a new migration"):
            await attempt()
