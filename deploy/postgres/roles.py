"""The database and its roles: one login role a service, and one that owns the schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import asyncpg

from contract.contexts import BY_NAME

DATABASE: Final = "evergreen"
MIGRATOR: Final = "evergreen_migrator"
_LIMITS: Final = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"


def service_role(context: str) -> str:
    """The login role of a service."""
    return BY_NAME[context].role


async def ensure(admin: asyncpg.Connection, passwords: Mapping[str, str]) -> bool:
    """Makes the database and the roles that are missing; sets their passwords.

    Args:
        admin: a connection to the database `postgres`, of a superuser or of a role that may make
            databases and roles; such a role becomes a member of the migrator's.
        passwords: role name → password, the migrator's among them.

    Returns:
        Whether the database was made now.
    """
    present = {row["rolname"] for row in await admin.fetch("SELECT rolname FROM pg_roles")}
    is_super = await admin.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    for role, password in passwords.items():
        is_new = role not in present
        # Nobody but a superuser may so much as name these of a role that is there.
        limits = _LIMITS if is_new or is_super else ""
        await admin.execute(
            f"{'CREATE' if is_new else 'ALTER'} ROLE {_name(role)} LOGIN {limits}"
            f" PASSWORD {_literal(password)}"
        )
    if not is_super and MIGRATOR in passwords:
        # What it gives to another role, and changes later, has to be its own too.
        await admin.execute(f"GRANT {_name(MIGRATOR)} TO CURRENT_USER")
    made = not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE)
    if made:
        await admin.execute(f"CREATE DATABASE {DATABASE} OWNER {MIGRATOR}")
    # By default everyone may connect and make temporary tables.
    await admin.execute(f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC")
    for role in passwords:
        await admin.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {_name(role)}")
    return made


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _literal(text: str) -> str:
    # Role passwords cannot be parameters: utility statements take none.
    if "\\" in text or "\0" in text:
        raise ValueError("a password holds a backslash or NUL")
    return "'" + text.replace("'", "''") + "'"
