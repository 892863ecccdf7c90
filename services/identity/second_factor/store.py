"""Second factors in SQL. A caller has read the account within its scope before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from contract.access import Role
from servicekit.data.postgres import Connection
from services.identity.second_factor.domain import Policy, TotpKey
from services.identity.sources.domain import Origin

_EARLIER: Final = {Role.OWNER: "owners_from", Role.ADMIN: "admins_from"}
"""Where a policy has it from when on a role is asked that was asked before others were. Who asks
Auditors asks everybody: nobody is asked after them."""
_TOTP: Final = "id, account_id, sealed_secrets, created_at, confirmed_at, last_step"


@dataclass(frozen=True, slots=True)
class Challenge:
    """A login of a browser that waits for the second factor."""

    account_id: UUID
    tenant_id: UUID
    session_id: UUID
    methods: tuple[str, ...]
    mark: bytes = field(repr=False)
    tries: int
    origin: Origin | None = None
    by_link: bool = False


def _totp(row: asyncpg.Record) -> TotpKey:
    return TotpKey(
        id=row["id"],
        account_id=row["account_id"],
        sealed=row["sealed_secrets"],
        created_at=row["created_at"],
        confirmed_at=row["confirmed_at"],
        last_step=row["last_step"],
    )


# Authenticator apps


async def totp(connection: Connection, account_id: UUID, *, confirmed: bool) -> TotpKey | None:
    """The key of a user's app: the one that counts, or the one that waits."""
    row = await connection.fetchrow(
        f"SELECT {_TOTP} FROM identity.totp WHERE account_id = $1"
        " AND (confirmed_at IS NOT NULL) = $2",
        account_id,
        confirmed,
    )
    return None if row is None else _totp(row)


async def waiting_totp(
    connection: Connection, account_id: UUID, session_id: UUID, since: datetime
) -> TotpKey | None:
    """The key that waits, if it was made in a session, and not before a time."""
    row = await connection.fetchrow(
        f"SELECT {_TOTP} FROM identity.totp WHERE account_id = $1 AND confirmed_at IS NULL"
        " AND session_id = $2 AND created_at > $3",
        account_id,
        session_id,
        since,
    )
    return None if row is None else _totp(row)


async def insert_totp(connection: Connection, key: TotpKey, session_id: UUID) -> None:
    """Adds a key that waits, made in a session, in place of another one that does."""
    await connection.execute(
        "DELETE FROM identity.totp WHERE account_id = $1 AND confirmed_at IS NULL", key.account_id
    )
    await connection.execute(
        f"INSERT INTO identity.totp ({_TOTP}, session_id) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        key.id,
        key.account_id,
        key.sealed,
        key.created_at,
        key.confirmed_at,
        key.last_step,
        session_id,
    )


async def confirm_totp(connection: Connection, key: TotpKey, step: int, at: datetime) -> None:
    """Lets a key count, in place of the one that did."""
    await connection.execute(
        "DELETE FROM identity.totp WHERE account_id = $1 AND confirmed_at IS NOT NULL",
        key.account_id,
    )
    await connection.execute(
        "UPDATE identity.totp SET confirmed_at = $2, last_step = $3 WHERE id = $1", key.id, at, step
    )


async def take_step(connection: Connection, key: TotpKey, step: int) -> bool:
    """Takes a code, by its step; answers whether it had not been taken."""
    done: str = await connection.execute(
        "UPDATE identity.totp SET last_step = $2 WHERE id = $1 AND last_step < $2", key.id, step
    )
    return done == "UPDATE 1"


async def delete_totp(connection: Connection, account_id: UUID) -> None:
    """Removes the keys of a user."""
    await connection.execute("DELETE FROM identity.totp WHERE account_id = $1", account_id)


# Recovery codes


async def replace_recovery_codes(
    connection: Connection,
    account_id: UUID,
    codes: Sequence[tuple[UUID, bytes]],
    session_id: UUID | None = None,
) -> None:
    """Writes a user's codes, as ids and sealed digests, in place of all that there were.

    Args:
        session_id: the session that they are made in.
    """
    await connection.execute("DELETE FROM identity.recovery_code WHERE account_id = $1", account_id)
    await connection.executemany(
        "INSERT INTO identity.recovery_code (id, account_id, sealed_secrets, session_id)"
        " VALUES ($1, $2, $3, $4)",
        [(code_id, account_id, code, session_id) for code_id, code in codes],
    )


async def recovery_codes(connection: Connection, account_id: UUID) -> list[tuple[UUID, bytes]]:
    """The codes of a user that work, as ids and sealed digests."""
    rows = await connection.fetch(
        "SELECT id, sealed_secrets FROM identity.recovery_code"
        " WHERE account_id = $1 AND used_at IS NULL",
        account_id,
    )
    return [(row["id"], row["sealed_secrets"]) for row in rows]


async def use_recovery_code(connection: Connection, code_id: UUID, at: datetime) -> bool:
    """Takes a code; answers whether it worked until now."""
    done: str = await connection.execute(
        "UPDATE identity.recovery_code SET used_at = $2 WHERE id = $1 AND used_at IS NULL",
        code_id,
        at,
    )
    return done == "UPDATE 1"


async def recovery_codes_left(connection: Connection, account_id: UUID) -> int:
    """How many codes of a user work."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM identity.recovery_code WHERE account_id = $1 AND used_at IS NULL",
        account_id,
    )
    return found


async def has_codes_of(connection: Connection, account_id: UUID, session_id: UUID) -> bool:
    """Whether a user has codes that work, all of them made in a session."""
    found: bool = await connection.fetchval(
        "SELECT coalesce(bool_and(session_id IS NOT DISTINCT FROM $2), false)"
        " FROM identity.recovery_code WHERE account_id = $1 AND used_at IS NULL",
        account_id,
        session_id,
    )
    return found


# Logins of browsers


async def insert_challenge(
    connection: Connection, id_hash: bytes, challenge: Challenge, expires_at: datetime
) -> None:
    """Adds a login that waits."""
    await connection.execute(
        "INSERT INTO identity.login_challenge"
        " (id_hash, account_id, session_id, methods, mark, tries, expires_at, source_id,"
        " external_sid, by_link) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        id_hash,
        challenge.account_id,
        challenge.session_id,
        list(challenge.methods),
        challenge.mark,
        challenge.tries,
        expires_at,
        challenge.origin.source_id if challenge.origin else None,
        challenge.origin.sid if challenge.origin else "",
        challenge.by_link,
    )


async def challenge(connection: Connection, id_hash: bytes, at: datetime) -> Challenge | None:
    """A login that waits, with the tenant that its account is in now."""
    row = await connection.fetchrow(
        "SELECT c.account_id, a.tenant_id, c.session_id, c.methods, c.mark, c.tries,"
        " c.source_id, c.external_sid, c.by_link"
        " FROM identity.login_challenge c JOIN identity.account a ON a.id = c.account_id"
        " WHERE c.id_hash = $1 AND c.expires_at > $2",
        id_hash,
        at,
    )
    if row is None:
        return None
    return Challenge(
        account_id=row["account_id"],
        tenant_id=row["tenant_id"],
        session_id=row["session_id"],
        methods=tuple(row["methods"]),
        mark=row["mark"],
        tries=row["tries"],
        origin=Origin(row["source_id"], row["external_sid"]) if row["source_id"] else None,
        by_link=row["by_link"],
    )


async def count_try(connection: Connection, id_hash: bytes, most: int) -> bool:
    """Counts a try of a login that waits; answers whether there was one left."""
    done: str = await connection.execute(
        "UPDATE identity.login_challenge SET tries = tries + 1 WHERE id_hash = $1 AND tries < $2",
        id_hash,
        most,
    )
    return done == "UPDATE 1"


async def end_challenge(connection: Connection, id_hash: bytes) -> bool:
    """Ends a login that waits; answers whether it was there."""
    done: str = await connection.execute(
        "DELETE FROM identity.login_challenge WHERE id_hash = $1", id_hash
    )
    return done == "DELETE 1"


async def forget_challenges(connection: Connection, at: datetime) -> None:
    """Deletes logins that waited for too long."""
    await connection.execute("DELETE FROM identity.login_challenge WHERE expires_at <= $1", at)


# Sessions


async def add_methods(connection: Connection, session_id: UUID, methods: Sequence[str]) -> None:
    """Notes how the user of a session has shown who it is, beside what is known."""
    await connection.execute(
        "UPDATE identity.session SET methods = methods || ARRAY"
        " (SELECT m FROM unnest($2::text[]) AS m WHERE m <> ALL (methods)) WHERE id = $1",
        session_id,
        list(methods),
    )


async def vouching_tenant(connection: Connection, session_id: UUID) -> UUID | None:
    """The tenant of the provider that opened a session, if that answers for a second factor."""
    found: UUID | None = await connection.fetchval(
        "SELECT p.tenant_id FROM identity.session s"
        " JOIN identity.sso_provider p ON p.id = s.source_id AND p.trusts_mfa WHERE s.id = $1",
        session_id,
    )
    return found


# Policies


async def policies(connection: Connection, tenant_id: UUID) -> list[Policy]:
    """The policies of a tenant and of all above it."""
    rows = await connection.fetch(
        "SELECT tenant_id, mfa, mfa_required_from, updated_at, owners_from, admins_from,"
        " local_login"
        " FROM identity.sign_in_policies($1)",
        tenant_id,
    )
    return [
        Policy(
            row["tenant_id"],
            row["mfa"],
            row["mfa_required_from"],
            row["updated_at"],
            {role: row[name] for role, name in _EARLIER.items() if row[name] is not None},
            row["local_login"],
        )
        for row in rows
    ]


async def write_policy(connection: Connection, policy: Policy) -> None:
    """Writes a tenant's policy."""
    await connection.execute(
        "INSERT INTO identity.sign_in_policy"
        " (tenant_id, mfa, mfa_required_from, updated_at, owners_from, admins_from, local_login)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)"
        " ON CONFLICT (tenant_id) DO UPDATE SET mfa = excluded.mfa,"
        " mfa_required_from = excluded.mfa_required_from, updated_at = excluded.updated_at,"
        " owners_from = excluded.owners_from, admins_from = excluded.admins_from,"
        " local_login = excluded.local_login",
        policy.tenant_id,
        policy.mfa,
        policy.required_from,
        policy.updated_at,
        *(policy.earlier.get(role) for role in _EARLIER),
        policy.local_login,
    )
