"""Migrations: numbered SQL files per schema, applied forward, each once, under one lock.

The role that applies them (`evergreen_migrator`) owns the schemas; the services' roles only
get what the files grant them.

A migration runs in a transaction of its own. One whose first line is `-- outside a transaction`
runs statement by statement instead, for what PostgreSQL does only there (an index built
CONCURRENTLY). It may be interrupted between two statements, so each must be safe to repeat, and
each ends with a semicolon at the end of a line. Below a line `-- run each answer`, a query answers
statements, and they run: for tables whose names a file cannot know.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

import asyncpg

from servicekit.access import CONTEXTS

SHARED: Final = "evergreen"
"""The schema of what all services share."""
_LOCK: Final = 0x45564752
_OUTSIDE: Final = "-- outside a transaction\n"
_EACH: Final = "-- run each answer\n"
_LOCK_SECONDS: Final = 5
_POLL_SECONDS: Final = 0.25
_TELL_SECONDS: Final = 5.0
_ATTEMPTS: Final = 6
_FILE: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


Tell = Callable[[str], None]
"""Takes a line for a person."""


class MigrationError(Exception):
    """The migrations on disk and the database do not fit; the message says how."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One SQL file."""

    schema: str
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """The SHA-256 of the file's text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def outside_transaction(self) -> bool:
        """Whether its statements run one by one, each for itself."""
        return self.sql.startswith(_OUTSIDE)


@dataclass(frozen=True, slots=True)
class Status:
    """A migration, and when it was applied."""

    migration: Migration
    applied_at: datetime | None


def migrations_of(context: str) -> list[Migration]:
    """The migrations of one context (or of the shared schema), in their order.

    Raises:
        MigrationError: when the files are not numbered 1, 2, 3, …
    """
    package = "servicekit" if context == SHARED else f"services.{context}"
    return _read(context, files(package) / "migrations")


def _read(schema: str, folder: Traversable) -> list[Migration]:
    if not folder.is_dir():
        return []
    found = []
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if (match := _FILE.fullmatch(file.name)) is not None:
            found.append(
                Migration(schema, int(match[1]), match[2], file.read_text(encoding="utf-8"))
            )
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise MigrationError(f"the migrations of {schema} are not numbered 1, 2, 3, …")
    return found


def all_migrations() -> list[Migration]:
    """All migrations, the shared schema's first."""
    return [m for context in (SHARED, *CONTEXTS) for m in migrations_of(context)]


def latest_version(context: str) -> int:
    """The number of the newest migration that this release has for a context."""
    return len(migrations_of(context))


@asynccontextmanager
async def _connected(
    dsn: str, password: str | None
) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn, password=password, timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


async def _applied(
    connection: asyncpg.Connection[asyncpg.Record],
) -> dict[tuple[str, int], tuple[str, datetime]]:
    if await connection.fetchval("SELECT to_regclass('evergreen.schema_migrations')") is None:
        return {}
    rows = await connection.fetch(
        "SELECT schema_name, version, checksum, applied_at FROM evergreen.schema_migrations"
    )
    return {(r["schema_name"], r["version"]): (r["checksum"], r["applied_at"]) for r in rows}


async def status(dsn: str, password: str | None = None) -> list[Status]:
    """All migrations of this release, with the time at which each was applied."""
    async with _connected(dsn, password) as connection:
        applied = await _applied(connection)
    return [
        Status(
            m,
            applied[m.schema, m.version][1] if (m.schema, m.version) in applied else None,
        )
        for m in all_migrations()
    ]


async def up(dsn: str, password: str | None = None, *, tell: Tell | None = None) -> list[Migration]:
    """Applies what is missing. Safe to run twice, also at the same time: the second one waits.

    A migration that does not get its locks within some seconds gives way to the traffic, and is
    tried again a few times. Answers what was applied now.

    Raises:
        MigrationError: when an applied migration is not what the file says now.
    """
    async with _pending(dsn, password, tell) as (connection, pending):
        for migration in pending:
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    await _apply(connection, migration)
                    break
                except asyncpg.LockNotAvailableError:
                    if attempt == _ATTEMPTS:
                        raise
                    await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        return pending


async def rehearse(
    dsn: str, password: str | None = None, *, tell: Tell | None = None
) -> list[Migration]:
    """Applies what is missing, and takes it all back; answers what would be applied.

    The tables are locked as they will be, for as long. What runs outside a transaction cannot be
    taken back, and is only listed.

    Raises:
        MigrationError: when an applied migration is not what the file says now.
    """
    async with _pending(dsn, password, tell) as (connection, pending):
        transaction = connection.transaction()
        await transaction.start()
        try:
            for migration in pending:
                if not migration.outside_transaction:
                    await _apply(connection, migration)
        finally:
            await transaction.rollback()
        return pending


async def make(connection: asyncpg.Connection[asyncpg.Record], wanted: Sequence[Migration]) -> None:
    """Makes the schema that the wanted migrations make, in an open transaction.

    For a database without any rows: an index takes no time there, so that it need not be built
    outside a transaction. Nobody else migrates until the transaction ends.

    Raises:
        MigrationError: somebody else migrates the database just now.
    """
    # Not waited for: the transaction, which holds locks already, would be waited for in turn.
    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK):
        raise MigrationError(
            "something else migrates the database just now; try again when it is done"
        )
    await _prepare(connection)
    for migration in wanted:
        await connection.execute(f"SET LOCAL search_path = {migration.schema}, pg_temp")
        if migration.outside_transaction:
            async for statement in _statements(connection, migration):
                await connection.execute(statement.replace(" CONCURRENTLY", ""))
        else:
            await connection.execute(migration.sql)
        await _record(connection, migration)
    await connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")


@asynccontextmanager
async def _pending(
    dsn: str, password: str | None, tell: Tell | None
) -> AsyncIterator[tuple[asyncpg.Connection[asyncpg.Record], list[Migration]]]:
    """The only connection that migrates at the moment, and what is missing."""
    async with _connected(dsn, password) as connection:
        await _take_turn(connection, tell)
        await _prepare(connection)
        yield connection, _missing(all_migrations(), await _applied(connection))


async def _take_turn(connection: asyncpg.Connection[asyncpg.Record], tell: Tell | None) -> None:
    """Waits until nobody else migrates.

    By asking again and again: a statement that waits in the server is a transaction, and an index
    that the other one builds CONCURRENTLY waits for the end of every transaction.
    """
    began = told = time.monotonic()
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
        await asyncio.sleep(_POLL_SECONDS)
        now = time.monotonic()
        if tell is not None and now - told >= _TELL_SECONDS:
            told = now
            tell(f"Waiting for other migrations of this database to end: {now - began:.0f} s")


def _missing(
    known: Sequence[Migration], applied: dict[tuple[str, int], tuple[str, datetime]]
) -> list[Migration]:
    for migration in known:
        found = applied.get((migration.schema, migration.version))
        if found is not None and found[0] != migration.checksum:
            raise MigrationError(
                f"{migration.schema} {migration.version:04d}_{migration.name} was changed after"
                " it was applied; write a new migration instead"
            )
    return [m for m in known if (m.schema, m.version) not in applied]


async def _prepare(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    roles = ", ".join(f"evergreen_{context}" for context in CONTEXTS)
    async with connection.transaction():
        await connection.execute(
            f"""
            CREATE SCHEMA IF NOT EXISTS evergreen;
            CREATE TABLE IF NOT EXISTS evergreen.schema_migrations (
                schema_name text NOT NULL,
                version integer NOT NULL,
                name text NOT NULL,
                checksum text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now(),
                PRIMARY KEY (schema_name, version));
            GRANT USAGE ON SCHEMA evergreen TO {roles};
            GRANT SELECT ON evergreen.schema_migrations TO {roles};
            """
        )
        for context in CONTEXTS:
            await connection.execute(
                f"CREATE SCHEMA IF NOT EXISTS {context};"
                f"GRANT USAGE ON SCHEMA {context} TO evergreen_{context};"
            )


async def _apply(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    if migration.outside_transaction:
        await connection.execute(
            f"SET lock_timeout = '{_LOCK_SECONDS}s'; SET search_path = {migration.schema}, pg_temp"
        )
        async for statement in _statements(connection, migration):
            await connection.execute(statement)
        await _record(connection, migration)
        await connection.execute("RESET ALL")
        return
    async with connection.transaction():
        await connection.execute(
            f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s';"
            f" SET LOCAL search_path = {migration.schema}, pg_temp"
        )
        await connection.execute(migration.sql)
        await _record(connection, migration)


async def _statements(
    connection: asyncpg.Connection[asyncpg.Record], migration: Migration
) -> AsyncIterator[str]:
    """The statements of a migration outside a transaction, one by one as they run."""
    for statement in migration.sql.removeprefix(_OUTSIDE).split(";\n"):
        if _EACH in statement:
            for row in await connection.fetch(statement):
                yield row[0]
        elif statement.strip():
            yield statement


async def _record(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO evergreen.schema_migrations (schema_name, version, name, checksum)"
        " VALUES ($1, $2, $3, $4)",
        migration.schema,
        migration.version,
        migration.name,
        migration.checksum,
    )
