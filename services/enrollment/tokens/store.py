"""Enrollment tokens: what devices enroll with."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope, columns
from servicekit.errors import already_exists
from servicekit.rpc.pagination import Page
from servicekit.serials import serial_key
from services.enrollment.tokens.domain import EnrollmentToken

_TOKEN: Final = (
    "id, tenant_id, name, created_at, expires_at, max_uses, uses, serial_count, require_approval,"
    " last_used_at, revoked_at, labels, only_expected, policy_key_id,"
    # Those that were deleted are nobody's any more.
    " ARRAY(SELECT g.id FROM enrollment.device_group g WHERE g.id = ANY (token.group_ids)"
    " AND g.deleted_at IS NULL ORDER BY g.id) AS group_ids"
)
_NO_LIST: Final = 1
"""The length of a list that admits nobody, for services that do not know `only_expected`."""


def _token(row: asyncpg.Record) -> EnrollmentToken:
    return EnrollmentToken(
        id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        max_uses=row["max_uses"],
        uses=row["uses"],
        serial_count=0 if row["only_expected"] else row["serial_count"],
        require_approval=row["require_approval"],
        last_used_at=row["last_used_at"],
        revoked_at=row["revoked_at"],
        labels=json.loads(row["labels"]),
        group_ids=tuple(row["group_ids"]),
        only_expected=row["only_expected"],
        policy_key_id=row["policy_key_id"] or "",
    )


async def insert_token(
    connection: Connection, token: EnrollmentToken, secret_hash: bytes, serials: Sequence[str]
) -> None:
    """Adds a token, with the serial numbers that it is limited to.

    Raises:
        DomainError: ALREADY_EXISTS when secret: already in use.
    """
    try:
        await connection.execute(
            "INSERT INTO enrollment.token (id, tenant_id, name, secret_hash, created_at,"
            " expires_at, max_uses, uses, serial_count, require_approval, labels, group_ids,"
            " only_expected, policy_key_id)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, $9, $10, $11, $12, $13)",
            token.id,
            token.tenant_id,
            token.name,
            secret_hash,
            token.created_at,
            token.expires_at,
            token.max_uses,
            _NO_LIST if token.only_expected else len(serials),
            token.require_approval,
            json.dumps(dict(token.labels), ensure_ascii=False),
            list(token.group_ids),
            token.only_expected,
            token.policy_key_id or None,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "token_secret":
            raise already_exists("SECRET_TAKEN", "secret: already in use") from error
        raise
    if serials:
        await connection.execute(
            "INSERT INTO enrollment.token_serial (token_id, serial, serial_key, tenant_id)"
            " SELECT $1, u.serial, u.serial_key, $2"
            " FROM unnest($3::text[], $4::text[]) AS u(serial, serial_key)",
            token.id,
            token.tenant_id,
            serials,
            [serial_key(serial) for serial in serials],
        )


async def token(
    connection: Connection, scope: Scope, token_id: UUID, *, for_update: bool = False
) -> EnrollmentToken | None:
    """One token of the scope."""
    lock = " FOR NO KEY UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_TOKEN} FROM enrollment.token"
        f" WHERE id = $1 AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2)){lock}",
        token_id,
        scope.tenant_ids,
    )
    return _token(row) if row else None


async def list_tokens(
    connection: Connection, scope: Scope, before: UUID | None, limit: int
) -> Page[EnrollmentToken, UUID]:
    """Tokens of the scope, newest first, behind a position."""
    rows = await connection.fetch(
        f"SELECT {_TOKEN} FROM enrollment.token"
        " WHERE ($1::uuid[] IS NULL OR tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR id < $2)"
        " ORDER BY id DESC LIMIT $3",
        scope.tenant_ids,
        before,
        limit + 1,
    )
    return Page.of([_token(row) for row in rows], limit, lambda token: token.id)


async def serials_of(
    connection: Connection, scope: Scope, token_ids: Collection[UUID]
) -> dict[UUID, list[str]]:
    """The serial numbers that tokens are limited to, in order."""
    rows = await connection.fetch(
        "SELECT token_id, serial FROM enrollment.token_serial"
        " WHERE token_id = ANY ($1) AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2))"
        " ORDER BY token_id, serial",
        list(token_ids),
        scope.tenant_ids,
    )
    found: dict[UUID, list[str]] = {}
    for row in rows:
        found.setdefault(row["token_id"], []).append(row["serial"])
    return found


async def revoke_token(connection: Connection, token_id: UUID, at: datetime) -> None:
    """Revokes a token."""
    await connection.execute(
        "UPDATE enrollment.token SET revoked_at = $2 WHERE id = $1", token_id, at
    )


async def count(
    connection: Connection,
    tenant_ids: Sequence[UUID],
    at: datetime,
    made_from: datetime | None,
    made_before: datetime | None,
) -> tuple[int, int]:
    """How many tokens organisations have; and, of those made in a time, how many admit devices."""
    row = await connection.fetchrow(
        "SELECT count(*) AS tokens, count(*) FILTER (WHERE revoked_at IS NULL"
        " AND expires_at > $2 AND (max_uses = 0 OR uses < max_uses)"
        " AND ($3::timestamptz IS NULL OR created_at >= $3)"
        " AND ($4::timestamptz IS NULL OR created_at < $4)) AS active"
        " FROM enrollment.token WHERE tenant_id = ANY ($1)",
        tenant_ids,
        at,
        made_from,
        made_before,
    )
    assert row is not None
    return row["tokens"], row["active"]


# Admission, many devices in one statement


async def lock_tokens(
    connection: Connection, hashes: Collection[bytes]
) -> dict[bytes, EnrollmentToken]:
    """The tokens with these secrets, by hash; locked, so that their uses are counted one by one."""
    rows = await connection.fetch(
        f"SELECT {_TOKEN}, secret_hash FROM enrollment.token WHERE secret_hash = ANY ($1)"
        # One order of locks for all processes.
        " ORDER BY id FOR NO KEY UPDATE",
        list(hashes),
    )
    return {row["secret_hash"]: _token(row) for row in rows}


async def policy_keys(connection: Connection, hashes: Collection[bytes]) -> dict[str, UUID]:
    """The keys for policies of tokens with these secrets that are not revoked, and an organisation
    that has such a token; an empty id is that of the first key of the installation."""
    rows = await connection.fetch(
        "SELECT coalesce(policy_key_id, '') AS key_id, tenant_id FROM enrollment.token"
        " WHERE secret_hash = ANY ($1) AND revoked_at IS NULL",
        list(hashes),
    )
    return {row["key_id"]: row["tenant_id"] for row in rows}


async def listed(
    connection: Connection, pairs: Collection[tuple[UUID, str]]
) -> set[tuple[UUID, str]]:
    """Those of the pairs (token, key of a serial number) that are on the tokens' lists."""
    if not pairs:
        return set()
    rows = await connection.fetch(
        "SELECT t.token_id, t.serial_key FROM enrollment.token_serial t"
        " JOIN unnest($1::uuid[], $2::text[]) AS u(token_id, serial_key)"
        " ON t.token_id = u.token_id AND t.serial_key = u.serial_key",
        *columns(list(pairs)),
    )
    return {(row["token_id"], row["serial_key"]) for row in rows}


async def count_uses(connection: Connection, uses: Mapping[UUID, int], at: datetime) -> None:
    """Adds to the tokens' uses (0 for a device that was counted before)."""
    if uses:
        await connection.execute(
            "UPDATE enrollment.token t SET uses = t.uses + u.more, last_used_at = $3"
            " FROM unnest($1::uuid[], $2::integer[]) AS u(id, more) WHERE t.id = u.id",
            *columns(list(uses.items())),
            at,
        )


# The first start


async def first_token_made(connection: Connection) -> bool:
    """Whether the first start's token was made, once."""
    made: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM enrollment.first_start)")
    return made


async def note_first_token(connection: Connection, token_id: UUID) -> None:
    """Notes that the first start's token was made."""
    await connection.execute("INSERT INTO enrollment.first_start (token_id) VALUES ($1)", token_id)


async def lock_first_start(connection: Connection) -> None:
    """Makes processes that start at the same time take turns."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('enrollment:first-start'))")
