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
import contextlib
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

import asyncpg

from contract.contexts import BY_NAME, CONTEXTS
from servicekit.data import key_check, pooler
from servicekit.data.rights import extension_schema, lacks
from servicekit.security.digests import sha256_hex

SHARED: Final = "evergreen"
"""The schema of what all services share."""
_LOCK: Final = 0x45564752
_OUTSIDE: Final = "-- outside a transaction\n"
_EACH: Final = "-- run each answer\n"
_LOCK_SECONDS: Final = 2
"""So long a migration waits for a lock. Calls queue behind it, each with a connection of the pool:
for less than others wait for a connection (`ACQUIRE_SECONDS`)."""
_POLL_SECONDS: Final = 0.25
_TELL_SECONDS: Final = 5.0
_ATTEMPTS: Final = 12
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
        return sha256_hex(self.sql.encode())

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
    package = "servicekit.data" if context == SHARED else f"services.{context}"
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


async def require_sessions(dsn: str, password: str | None) -> None:
    """Makes sure that no pooler mixes up sessions: the lock of the migrations belongs to one.

    Raises:
        MigrationError: one does.
    """

    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(dsn, password=password, timeout=10, statement_cache_size=0)

    try:
        await pooler.require_sessions(connect)
    except pooler.PoolerError as error:
        raise MigrationError(str(error)) from error


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


async def up(
    dsn: str,
    password: str | None = None,
    *,
    tell: Tell | None = None,
    master_key: bytes | None = None,
) -> list[Migration]:
    """Applies what is missing. Safe to run twice, also at the same time: the second one waits.

    A migration that does not get its locks within some seconds gives way to the traffic, and is
    tried again a few times. Answers what was applied now. A new database notes the master key, if
    one is given.

    Raises:
        MigrationError: when an applied migration is not what the file says now.
        OtherKeyError: when the database has another master key; nothing was changed.
    """
    async with _pending(dsn, password, tell, master_key) as (connection, pending):
        is_new = len(pending) == len(all_migrations())
        for migration in pending:
            await _patiently(partial(_apply, connection, migration))
        if is_new and master_key is not None:
            await key_check.note(connection, master_key)
        return pending


async def rehearse(
    dsn: str,
    password: str | None = None,
    *,
    tell: Tell | None = None,
    master_key: bytes | None = None,
) -> list[Migration]:
    """Applies what is missing, and takes it all back; answers what would be applied.

    One context's migrations at a time, so that no table is locked for longer than they take. What
    runs outside a transaction cannot be taken back, and is only listed.

    Raises:
        MigrationError: when an applied migration is not what the file says now.
        OtherKeyError: when the database has another master key.
    """
    async with _pending(dsn, password, tell, master_key) as (connection, pending):
        schemas = {m.schema for m in pending}
        for schema in schemas - {SHARED} or schemas:
            part = [m for m in pending if m.schema in {SHARED, schema}]
            await _patiently(partial(_apply_and_take_back, connection, part))
        return pending


async def _apply_and_take_back(
    connection: asyncpg.Connection[asyncpg.Record], migrations: Sequence[Migration]
) -> None:
    transaction = connection.transaction()
    await transaction.start()
    try:
        for migration in migrations:
            if not migration.outside_transaction:
                await _apply(connection, migration)
    finally:
        await transaction.rollback()


async def _patiently(work: Callable[[], Awaitable[None]]) -> None:
    """Does what needs locks, some time after the traffic has held them for too long."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(asyncpg.LockNotAvailableError):
            return await work()
        await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 - no secret
    return await work()


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
        await connection.execute(f"SET LOCAL search_path = {await _path(connection, migration)}")
        if migration.outside_transaction:
            async for statement in _statements(connection, migration):
                await connection.execute(statement.replace(" CONCURRENTLY", ""))
        else:
            await connection.execute(migration.sql)
        await _record(connection, migration)
    await connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")


@asynccontextmanager
async def _pending(
    dsn: str, password: str | None, tell: Tell | None, master_key: bytes | None
) -> AsyncIterator[tuple[asyncpg.Connection[asyncpg.Record], list[Migration]]]:
    """The only connection that migrates at the moment, and what is missing."""
    await require_sessions(dsn, password)
    async with _connected(dsn, password) as connection:
        if found := [f"{lack.what}. {lack.fix}" async for lack in lacks(connection)]:
            raise MigrationError("\n".join(found))
        await _take_turn(connection, tell)
        if master_key is not None:
            await key_check.is_noted(connection, master_key)
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
    roles = ", ".join(context.role for context in BY_NAME.values())
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
        for name, context in BY_NAME.items():
            await connection.execute(
                f"CREATE SCHEMA IF NOT EXISTS {name};"
                f"GRANT USAGE ON SCHEMA {name} TO {context.role};"
            )


async def _path(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> str:
    """Where a migration finds names: its schema, and an extension that an administrator made."""
    schema = await extension_schema(connection)
    elsewhere = f", {schema}" if schema not in {None, migration.schema} else ""
    return f"{migration.schema}{elsewhere}, pg_temp"


async def _apply(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    if migration.outside_transaction:
        await connection.execute(
            f"SET lock_timeout = '{_LOCK_SECONDS}s';"
            f" SET search_path = {await _path(connection, migration)}"
        )
        async for statement in _statements(connection, migration):
            await connection.execute(statement)
        await _record(connection, migration)
        await connection.execute("RESET ALL")
        return
    async with connection.transaction():
        await connection.execute(
            f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s';"
            f" SET LOCAL search_path = {await _path(connection, migration)}"
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
