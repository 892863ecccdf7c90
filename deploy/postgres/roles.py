"""The database and its roles: one login role a service, and one that owns the schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import asyncpg

DATABASE: Final = "evergreen"
MIGRATOR: Final = "evergreen_migrator"


def service_role(context: str) -> str:
    """The login role of a service."""
    return f"{DATABASE}_{context}"


async def ensure(superuser: asyncpg.Connection, passwords: Mapping[str, str]) -> bool:
    """Makes the database and the roles that are missing; sets their passwords.

    Args:
        superuser: a connection to the database `postgres`.
        passwords: role name → password, the migrator's among them.

    Returns:
        Whether the database was made now.
    """
    present = {row["rolname"] for row in await superuser.fetch("SELECT rolname FROM pg_roles")}
    for role, password in passwords.items():
        verb = "ALTER" if role in present else "CREATE"
        await superuser.execute(
            f"{verb} ROLE {_name(role)} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION "
            f"NOBYPASSRLS PASSWORD {_literal(password)}"
        )
    made = not await superuser.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE)
    if made:
        await superuser.execute(f"CREATE DATABASE {DATABASE} OWNER {MIGRATOR}")
    # By default everyone may connect and make temporary tables.
    await superuser.execute(f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC")
    for role in passwords:
        await superuser.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {_name(role)}")
    return made


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _literal(text: str) -> str:
    # Role passwords cannot be parameters: utility statements take none.
    if "\\" in text or "\0" in text:
        raise ValueError("a password holds a backslash or NUL")
    return "'" + text.replace("'", "''") + "'"
