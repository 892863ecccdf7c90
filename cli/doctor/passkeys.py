"""Whether passkeys are for the host that the installation has now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from cli.doctor.database import Login
from cli.doctor.finding import Finding, warning

HOST: Final = "passkeys.host"


async def of(login: Login, host: str) -> AsyncIterator[Finding]:
    """What is known in a database that the other checks could reach.

    Args:
        host: of the installation's public address.
    """
    try:
        connection = await asyncpg.connect(login.dsn, password=login.password, timeout=10)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError):
        # They have told it.
        return
    try:
        others = await connection.fetchrow(
            "SELECT count(*) AS passkeys, count(DISTINCT account_id) AS users, min(site) AS site"
            " FROM identity.passkey WHERE site <> $1",
            host,
        )
    except asyncpg.InsufficientPrivilegeError:
        # Not the owner of the schemas.
        return
    finally:
        await connection.close()
    if others is not None and others["passkeys"]:
        yield warning(
            "PASSKEYS_OF_ANOTHER_HOST",
            f"{others['passkeys']} passkeys of {others['users']} users are for another host, as"
            f" {others['site']}, and open nothing at {host}",
            "People log in with a recovery code, or an Owner resets their second factors, and add"
            " new ones: docs/second-factor.md. Or give the installation its old host again.",
        )
