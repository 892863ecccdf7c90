"""PostgreSQL: reachable, new enough, durable, the right roles, the schema of this release."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from cli.doctor.finding import Finding
from deploy.postgres.roles import MIGRATOR
from deploy.postgres.settings import DURABILITY
from servicekit import migrate
from servicekit.access import CONTEXTS
from servicekit.ids import now

OLDEST: Final = 14
EXTENSION: Final = "pg_trgm"
"""What the migrations add to PostgreSQL; whoever may make schemas may add it."""
_TIMEOUT: Final = 10.0
_MAX_SKEW: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Login:
    """A role's way into the database; `context` is empty for the role that owns the schemas."""

    dsn: str
    password: str | None = field(repr=False)
    context: str = ""


async def check(login: Login, clock: Callable[[], datetime] = now) -> AsyncIterator[Finding]:
    """All checks of one role."""
    whose = f"the role of {login.context}" if login.context else "the role of the migrations"
    try:
        connection = await asyncpg.connect(login.dsn, password=login.password, timeout=_TIMEOUT)
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        yield Finding(
            "DATABASE_LOGIN_REFUSED",
            f"the database refuses {whose}: {error}",
            "The password's file and the role's password differ: set the one to the other.",
        )
        return
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        OSError,
        TimeoutError,
        ValueError,
    ) as error:
        yield Finding(
            "DATABASE_UNREACHABLE",
            f"the database cannot be reached as {whose}: {error or type(error).__name__}",
            "Start it; else see its address in the settings, and whether a firewall is between.",
        )
        return
    try:
        if login.context:
            async for finding in _service(connection, login.context):
                yield finding
        else:
            async for finding in _owner(connection, clock):
                yield finding
    except asyncpg.PostgresError as error:
        yield Finding(
            "DATABASE_FAILS", f"the database says to {whose}: {error}", "See PostgreSQL's log."
        )
    finally:
        await connection.close(timeout=_TIMEOUT)


async def _owner(
    connection: asyncpg.Connection[asyncpg.Record], clock: Callable[[], datetime]
) -> AsyncIterator[Finding]:
    version = connection.get_server_version()
    if version.major < OLDEST:
        yield too_old(version.major)
        return
    for name, wanted in DURABILITY.items():
        found = await connection.fetchval("SELECT current_setting($1)", name)
        if found != wanted:
            yield Finding(
                "DATABASE_NOT_DURABLE",
                f"PostgreSQL's setting {name} is {found}: what it acknowledges can be lost",
                f"Set {name} = {wanted}.",
            )
    if not await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)", EXTENSION
    ):
        yield Finding(
            "DATABASE_LACKS_EXTENSION",
            f"PostgreSQL does not have the extension {EXTENSION}, by which devices are searched",
            "Install PostgreSQL's contrib modules, or allow the extension in the settings of the"
            " managed server.",
        )
    skew = abs(clock() - await connection.fetchval("SELECT clock_timestamp()"))
    if skew > _MAX_SKEW:
        yield Finding(
            "CLOCK_SKEW",
            f"the clocks of this machine and of the database differ by {skew.total_seconds():.0f}"
            " seconds",
            "Let both follow a time server (timedatectl set-ntp true).",
        )
    role = await connection.fetchval("SELECT current_user::text")
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
        return
    async for finding in _schema(connection):
        yield finding


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
