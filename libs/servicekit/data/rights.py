"""What the role of the migrations must be allowed, and the extension that they need.

No superuser is needed. On a managed server, an administrator's role of the operator makes what the
role of the migrations may not make.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Literal

import asyncpg

from contract.contexts import CONTEXTS

EXTENSION: Final = "pg_trgm"
"""The index of trigrams, by which devices are searched. A role with CREATE on the database may add
it (it is a *trusted* extension), unless the server's settings forbid it."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that keeps a role from migrating, and the remedy."""

    kind: Literal["RIGHTS", "ROLES", "EXTENSION"]
    what: str
    fix: str


async def lacks(connection: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[Lack]:
    """What keeps the connection's role from migrating."""
    row = await connection.fetchrow(
        "SELECT current_user::text AS role, quote_ident(current_database()) AS name,"
        " has_database_privilege(current_database(), 'CREATE') AS may_create,"
        " ARRAY(SELECT r FROM unnest($1::text[]) AS r WHERE to_regrole(r) IS NULL) AS roles",
        [f"evergreen_{context}" for context in CONTEXTS],
    )
    assert row is not None
    role, name = row["role"], row["name"]
    if not row["may_create"]:
        yield Lack(
            "RIGHTS",
            f"{role} may not make schemas in the database {name}",
            f"As the database's owner, run: GRANT CREATE ON DATABASE {name} TO {role}",
        )
    if row["roles"]:
        yield Lack(
            "ROLES",
            f"the roles {', '.join(row['roles'])} are missing",
            "Make them by `evergreen database init`, or as docs/postgresql.md says.",
        )
    if (lack := await _extension(connection, role)) is not None:
        yield lack


async def extension_schema(connection: asyncpg.Connection[asyncpg.Record]) -> str | None:
    """The schema in which the extension is; `None` before it is there."""
    schema: str | None = await connection.fetchval(
        "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = $1", EXTENSION
    )
    return schema


async def _extension(connection: asyncpg.Connection[asyncpg.Record], role: str) -> Lack | None:
    schema = await extension_schema(connection)
    if schema is not None:
        if await connection.fetchval(
            "SELECT has_schema_privilege(to_regnamespace($1)::oid, 'USAGE')", schema
        ):
            return None
        return Lack(
            "EXTENSION",
            f"the extension {EXTENSION} is in the schema {schema}, which {role} may not use",
            f"As an administrator, run: GRANT USAGE ON SCHEMA {schema} TO {role}",
        )
    row = await connection.fetchrow(
        "SELECT bool_or(trusted) AS trusted, (SELECT rolsuper FROM pg_roles"
        " WHERE rolname = current_user) AS super FROM pg_available_extension_versions"
        " WHERE name = $1",
        EXTENSION,
    )
    assert row is not None
    if row["trusted"] is None:
        return Lack(
            "EXTENSION",
            f"PostgreSQL does not have the extension {EXTENSION}, by which devices are searched",
            "Install PostgreSQL's contrib modules, or allow the extension in the settings of the"
            " managed server.",
        )
    if not (row["trusted"] or row["super"]):
        return Lack(
            "EXTENSION",
            f"{role} may not add the extension {EXTENSION}, which is no trusted one on this server",
            f"As an administrator, run in the database: CREATE EXTENSION {EXTENSION}",
        )
    return None
