"""PostgreSQL: reachable, new enough, durable, the right roles, the schema of this release."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from cli.backup.catalog import SEALED
from cli.backup.keys import MissingKeyError, SealedKeys
from cli.doctor import rows
from cli.doctor.finding import Check, Finding, completed, judged, skipped, warning
from cli.doctor.machine import is_loopback
from contract.contexts import CONTEXTS
from deploy.postgres import settings as postgres_settings
from deploy.postgres.roles import MIGRATOR
from servicekit.data import migrate, pooler, rights
from servicekit.ids import now

OLDEST: Final = 14

ENCRYPTION: Final = "database.encryption"
LOGIN: Final = "database.login"
POOLER: Final = "database.pooler"
STATEMENTS: Final = "database.statements"
"""Only there when one fails."""
VERSION: Final = "database.version"
DURABILITY: Final = "database.durability"
RIGHTS: Final = "database.rights"
CLOCK: Final = "database.clock"
OWNER: Final = "database.owner"
SCHEMA: Final = "database.schema"
KEYS: Final = "keys.database"
QUARANTINE: Final = "database.quarantine"
BUDGETS: Final = "database.budgets"
POLICIES: Final = "database.policies"
POLICY_KEYS: Final = "database.policy_keys"
SEALED_POLICIES: Final = "database.sealed_policies"
OWNERS: Final = (
    VERSION, DURABILITY, RIGHTS, CLOCK, OWNER, SCHEMA, KEYS, QUARANTINE, BUDGETS, POLICIES,
    POLICY_KEYS, SEALED_POLICIES,
)  # fmt: skip
ROLE: Final = "database.role"
"""With a service's name behind it."""

_TIMEOUT: Final = 10.0
_MAX_SKEW: Final = timedelta(seconds=30)
_WENT_BACK: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Login:
    """A role's way into the database; `context` is empty for the role that owns the schemas."""

    dsn: str = field(repr=False)
    password: str | None = field(repr=False)
    context: str = ""
    master_key: str = field(default="", repr=False)
    """What opens the keys in the database, where it is known."""


async def checks(login: Login, clock: Callable[[], datetime] = now) -> list[Check]:
    """All checks of one role."""
    found = [check async for check in _checks(login, clock)]
    return completed([LOGIN, POOLER, *OWNERS], found) if not login.context else found


async def _checks(login: Login, clock: Callable[[], datetime]) -> AsyncIterator[Check]:
    name = f"{ROLE}.{login.context}" if login.context else LOGIN
    try:
        connection = await asyncpg.connect(login.dsn, password=login.password, timeout=_TIMEOUT)
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        OSError,
        TimeoutError,
        ValueError,
    ) as error:
        yield judged(name, [_not_let_in(login, error)])
        return
    try:
        pooled = await _pooled(login)
        if login.context:
            found = [pooled] if pooled else [f async for f in _service(connection, login.context)]
            yield judged(name, found, await _whoami(connection) if not pooled else "")
            return
        yield judged(LOGIN, [], await _whoami(connection))
        yield judged(POOLER, [pooled] if pooled else [], "each connection is a session of its own")
        if pooled is None:
            async for check in _owner(connection, login, clock):
                yield check
    except asyncpg.PostgresError as error:
        finding = Finding(
            "DATABASE_FAILS",
            f"the database says to {_whose(login)}: {error}",
            "See PostgreSQL's log.",
        )
        yield judged(name if login.context else STATEMENTS, [finding])
    finally:
        await connection.close(timeout=_TIMEOUT)


def _whose(login: Login) -> str:
    return f"the role of {login.context}" if login.context else "the role of the migrations"


async def _whoami(connection: asyncpg.Connection[asyncpg.Record]) -> str:
    return str(await connection.fetchval("SELECT current_user::text"))


def _not_let_in(login: Login, error: Exception) -> Finding:
    whose = _whose(login)
    if isinstance(
        error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError
    ):
        return Finding(
            "DATABASE_LOGIN_REFUSED",
            f"the database refuses {whose}: {error}",
            "The password's file and the role's password differ: set the one to the other.",
        )
    return Finding(
        "DATABASE_UNREACHABLE",
        f"the database cannot be reached as {whose}: {error or type(error).__name__}",
        "Start it; else see its address in the settings, and whether a firewall is between.",
    )


async def _pooled(login: Login) -> Finding | None:
    """Whether a pooler stands between, and mixes up sessions."""

    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(
            login.dsn, password=login.password, timeout=_TIMEOUT, statement_cache_size=0
        )

    try:
        await pooler.require_sessions(connect)
    except pooler.PoolerError as error:
        return Finding(
            "DATABASE_POOLER_MODE",
            str(error),
            "No service starts behind it; see docs/postgresql.md for a configuration that works.",
        )
    except TimeoutError as error:
        return warning(
            "DATABASE_POOLER_FULL",
            str(error),
            "See docs/postgresql.md for how many connections the services need.",
        )
    return None


def unverified(dsn: str, environment: Mapping[str, str]) -> Finding | None:
    """Whether the way to the database leads over a network, and nobody checks its certificate."""
    url = urlsplit(dsn)
    query = dict(parse_qsl(url.query))
    host = query.get("host") or url.hostname or environment.get("PGHOST", "")
    mode = query.get("sslmode") or environment.get("PGSSLMODE") or "prefer"
    if mode.startswith("verify") or not host or host.startswith("/") or is_loopback(host):
        return None
    return warning(
        "DATABASE_NOT_VERIFIED",
        f"the database on {host} is reached with sslmode={mode}: anybody on the way can read and"
        " change everything",
        "Give sslmode=verify-full and sslrootcert=FILE in its address; see docs/postgresql.md.",
    )


async def _owner(
    connection: asyncpg.Connection[asyncpg.Record], login: Login, clock: Callable[[], datetime]
) -> AsyncIterator[Check]:
    version = connection.get_server_version()
    old = version.major < OLDEST
    yield judged(VERSION, [too_old(version.major)] if old else [], f"PostgreSQL {version.major}")
    if old:
        return
    yield judged(
        DURABILITY, [f async for f in _durable(connection)], "what is acknowledged is on the disk"
    )
    yield judged(
        RIGHTS,
        [
            Finding(f"DATABASE_LACKS_{lack.kind}", lack.what, lack.fix)
            async for lack in rights.lacks(connection)
        ],
        "the migrations' role may do what it has to",
    )
    yield judged(CLOCK, [f async for f in _clock(connection, clock)], "agrees with this machine's")
    wrong = [f async for f in _owners(connection)]
    yield judged(OWNER, wrong, "the schemas belong to the migrations' role")
    if wrong:
        return
    found = [f async for f in _schema(connection)]
    yield judged(SCHEMA, found, "up to date")
    yield await _keys(connection, login)
    yield judged(QUARANTINE, [f async for f in rows.quarantined(connection)], "no rows")
    yield judged(
        BUDGETS, [f async for f in rows.storage(connection, clock)], "nobody is near its budget"
    )
    yield judged(
        POLICIES,
        [f async for f in rows.orphaned(connection)],
        "no device runs a policy that is not in force",
    )
    yield judged(
        POLICY_KEYS,
        [f async for f in rows.wrong_keys(connection)],
        "devices pin keys that sign",
    )
    yield judged(
        SEALED_POLICIES,
        [f async for f in rows.unsealed(connection)],
        "all policies with secrets are stored alike",
    )


async def _durable(connection: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[Finding]:
    for name, wanted in postgres_settings.DURABILITY.items():
        found = await connection.fetchval("SELECT current_setting($1)", name)
        if found != wanted:
            yield Finding(
                "DATABASE_NOT_DURABLE",
                f"PostgreSQL's setting {name} is {found}: what it acknowledges can be lost",
                f"Set {name} = {wanted}.",
            )


async def _clock(
    connection: asyncpg.Connection[asyncpg.Record], clock: Callable[[], datetime]
) -> AsyncIterator[Finding]:
    here, there = clock(), await connection.fetchval("SELECT clock_timestamp()")
    if (skew := abs(here - there)) > _MAX_SKEW:
        yield Finding(
            "CLOCK_SKEW",
            f"the clocks of this machine and of the database differ by {skew.total_seconds():.0f}"
            " seconds",
            "Let both follow a time server (timedatectl set-ntp true).",
        )
    if await connection.fetchval("SELECT to_regclass('evergreen.schema_migrations')") is None:
        return
    # Nothing is written in the future: the clock was right then and is not now, or the reverse.
    last = await connection.fetchval("SELECT max(applied_at) FROM evergreen.schema_migrations")
    if last is not None and last - here > _WENT_BACK:
        yield Finding(
            "CLOCK_WENT_BACK",
            f"it is {here:%Y-%m-%d %H:%M} by this machine's clock, but the database was set up at"
            f" {last:%Y-%m-%d %H:%M}",
            "Set the clock right (timedatectl set-ntp true). If it was wrong when the database was"
            " set up, certificates and tokens of that time are not valid yet.",
        )


async def _owners(connection: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[Finding]:
    role = await _whoami(connection)
    owners = {
        row["owner"]
        for row in await connection.fetch(
            "SELECT DISTINCT pg_get_userbyid(nspowner)::text AS owner FROM pg_namespace"
            " WHERE nspname = ANY ($1)",
            [migrate.SHARED, *CONTEXTS],
        )
    }
    if owners - {role}:
        yield Finding(
            "DATABASE_WRONG_ROLE",
            f"migrations would run as {role}, but the schemas belong to"
            f" {', '.join(sorted(owners - {role}))}",
            f"Give the address of the role that owns them ({MIGRATOR}) in"
            " EVERGREEN_MIGRATE_DATABASE_URL.",
        )


async def _keys(connection: asyncpg.Connection[asyncpg.Record], login: Login) -> Check:
    """Whether the master key opens the private keys that lie sealed in the database."""
    if not login.master_key:
        return skipped(KEYS, "no master key is known here")
    try:
        sealed = SealedKeys(login.master_key.encode())
    except MissingKeyError:
        return skipped(KEYS, "needs keys.master")
    tables = [
        table
        for table in SEALED
        if await connection.fetchval("SELECT to_regclass($1)", table) is not None
    ]
    try:
        async with connection.transaction(readonly=True):
            await connection.execute("SELECT set_config('evergreen.scope', '*', true)")
            for table in tables:
                for row in await connection.fetch(
                    f"SELECT public_key, sealed_seed FROM {table} WHERE sealed_seed IS NOT NULL"
                ):
                    sealed.check(table, row["public_key"], row["sealed_seed"])
    except MissingKeyError as wrong:
        finding = Finding(
            "MASTER_KEY_DOES_NOT_FIT",
            str(wrong),
            "Put back the master key that this database was made with: `evergreen backup restore`"
            " takes it out of a backup. Without it, nothing that is sealed can be read any more.",
        )
        return judged(KEYS, [finding])
    return judged(KEYS, [], f"the master key opens all {sealed.opened} sealed keys")


async def _schema(connection: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[Finding]:
    applied: dict[str, int] = {}
    if await connection.fetchval("SELECT to_regclass('evergreen.schema_migrations')") is not None:
        rows = await connection.fetch(
            "SELECT schema_name, max(version) AS version FROM evergreen.schema_migrations"
            " GROUP BY schema_name"
        )
        applied = {row["schema_name"]: row["version"] for row in rows}
    behind, ahead = [], []
    for schema in (migrate.SHARED, *CONTEXTS):
        latest, found = migrate.latest_version(schema), applied.get(schema, 0)
        if found < latest:
            behind.append(f"{schema} ({found} of {latest})")
        elif found > latest:
            ahead.append(f"{schema} ({found}, known {latest})")
    if behind:
        yield Finding(
            "SCHEMA_BEHIND",
            f"migrations are missing: {', '.join(behind)}",
            "Run: evergreen migrate up",
        )
    if ahead:
        yield Finding(
            "SCHEMA_AHEAD",
            f"a newer release has migrated the database: {', '.join(ahead)}",
            "Run that release; one release back works, further back is not tested.",
        )


async def _service(
    connection: asyncpg.Connection[asyncpg.Record], context: str
) -> AsyncIterator[Finding]:
    row = await connection.fetchrow(
        "SELECT rolname::text AS name, rolsuper, rolbypassrls FROM pg_roles"
        " WHERE rolname = current_user"
    )
    assert row is not None
    fix = f"Give {context} a role of its own (evergreen_{context}) that owns nothing."
    if row["rolsuper"] or row["rolbypassrls"]:
        yield Finding(
            "DATABASE_WRONG_ROLE",
            f"{context} connects as {row['name']}, which may pass over the walls between tenants",
            fix,
        )
    schemas = await connection.fetch(
        "SELECT n.nspname::text AS name, pg_get_userbyid(n.nspowner) = current_user AS owned,"
        " has_schema_privilege(n.oid, 'USAGE') AS used FROM pg_namespace n"
        " WHERE n.nspname = ANY ($1)",
        list(CONTEXTS),
    )
    if any(schema["owned"] for schema in schemas):
        yield Finding(
            "DATABASE_WRONG_ROLE",
            f"{context} connects as {row['name']}, which owns schemas and could change them",
            fix,
        )
        return
    own = {schema["name"]: schema["used"] for schema in schemas}
    if context in own and not own[context]:
        yield Finding(
            "DATABASE_WRONG_ROLE",
            f"{context} connects as {row['name']}, which may not use the schema {context}",
            fix,
        )


def too_old(major: int) -> Finding:
    """The finding for a server that is older than what is supported."""
    return Finding(
        "DATABASE_TOO_OLD",
        f"PostgreSQL is version {major}; Evergreen needs {OLDEST} or newer",
        "Upgrade PostgreSQL (pg_upgrade), or use another server.",
    )
