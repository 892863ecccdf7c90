"""API tokens in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

import asyncpg

from contract.access import Role
from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.identity.api_tokens.domain import ApiToken

CHANGING: Final = ("SELECT changed_xid FROM identity.api_token",)
"""What the feed of API tokens tells of (`servicekit.feeds.changes`)."""
TOKENS: Final = (
    "SELECT changed_xid::text AS changed_xid, id AS key, id, expires_at,"
    # By this clock, which ended them.
    " CASE WHEN ends_at > now() THEN ends_at END AS works_until FROM identity.api_token"
    " WHERE expires_at > now() AND (changed_xid, id) > ($1::text::xid8, $2)"
    " ORDER BY api_token.changed_xid, id LIMIT $3"
)
"""The feed of API tokens that have not expired (`servicekit.feeds.feed.read_page`)."""

_COLUMNS: Final = (
    "id, tenant_id, account_id, service_account_id, held_by, name, role, scopes, created_at,"
    " created_by, expires_at, ends_at, ended_because, replaced_by, last_used_at, last_used_from,"
    " source_id"
)

_HELD_BY: Final = "(account_id = $1 OR service_account_id = $1 OR source_id = $1)"


def _token(row: asyncpg.Record) -> ApiToken:
    return ApiToken(
        id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        role=Role(row["role"]),
        scopes=tuple(row["scopes"]),
        held_by=row["held_by"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        expires_at=row["expires_at"],
        ends_at=row["ends_at"],
        account_id=row["account_id"],
        service_account_id=row["service_account_id"],
        ended_because=row["ended_because"],
        replaced_by=row["replaced_by"],
        last_used_at=row["last_used_at"],
        last_used_from=row["last_used_from"] or "",
        source_id=row["source_id"],
    )


async def take_turns(connection: Connection, holder_id: UUID, tenant_id: UUID) -> None:
    """Waits until no other transaction adds tokens of the holder or of the tenant."""
    for key in sorted({str(holder_id), str(tenant_id)}):
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext('identity:api-tokens'), hashtext($1))", key
        )


async def counts(
    connection: Connection, holder_id: UUID, tenant_id: UUID, at: datetime
) -> tuple[int, int, int]:
    """How many working tokens a holder has, how many a user that have not expired, and how many a
    tenant."""
    row = await connection.fetchrow(
        "SELECT (SELECT count(*) FROM identity.api_token"
        f" WHERE {_HELD_BY} AND ends_at > $3) AS of_holder,"
        " (SELECT count(*) FROM identity.api_token"
        " WHERE account_id = $1 AND expires_at > $3) AS of_person,"
        " (SELECT count(*) FROM identity.api_token"
        " WHERE tenant_id = $2 AND expires_at > $3) AS of_tenant",
        holder_id,
        tenant_id,
        at,
    )
    assert row is not None
    return row["of_holder"], row["of_person"], row["of_tenant"]


async def has_name(connection: Connection, holder_id: UUID, name: str, at: datetime) -> bool:
    """Whether a holder has a working token of a name, but for those that have a successor."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.api_token"
        f" WHERE {_HELD_BY} AND name = $2 AND ends_at > $3"
        " AND replaced_by IS NULL)",
        holder_id,
        name,
        at,
    )
    return found


async def insert(connection: Connection, token: ApiToken) -> None:
    """Adds a token."""
    await connection.execute(
        "INSERT INTO identity.api_token (id, tenant_id, account_id, service_account_id, held_by,"
        " name, role, scopes, created_at, created_by, expires_at, ends_at, source_id)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        token.id,
        token.tenant_id,
        token.account_id,
        token.service_account_id,
        token.held_by,
        token.name,
        token.role.value,
        list(token.scopes),
        token.created_at,
        token.created_by,
        token.expires_at,
        token.ends_at,
        token.source_id,
    )


async def end(connection: Connection, token: ApiToken) -> None:
    """Writes until when a token works, why no longer, and what takes its place."""
    await connection.execute(
        "UPDATE identity.api_token SET ends_at = $3, ended_because = $4, replaced_by = $5,"
        " changed_xid = pg_current_xact_id() WHERE id = $1 AND tenant_id = $2",
        token.id,
        token.tenant_id,
        token.ends_at,
        token.ended_because,
        token.replaced_by,
    )


async def token(
    connection: Connection, scope: Scope, token_id: UUID, *, for_update: bool = False
) -> ApiToken | None:
    """One token of the scope's tenants."""
    lock = " FOR UPDATE" if for_update else ""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM identity.api_token"
        f" WHERE id = $1 AND ($2::uuid[] IS NULL OR tenant_id = ANY ($2)){lock}",
        token_id,
        scope.tenant_ids,
    )
    return _token(row) if row else None


async def list_tokens(
    connection: Connection,
    scope: Scope,
    after: UUID | None,
    limit: int,
    *,
    holder_id: UUID | None,
    ended: bool,
    at: datetime,
) -> Page[ApiToken, UUID]:
    """Tokens of the scope's tenants behind a position, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM identity.api_token"
        " WHERE ($1::uuid[] IS NULL OR tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR id > $2)"
        " AND ($3::uuid IS NULL OR account_id = $3 OR service_account_id = $3 OR source_id = $3)"
        " AND ($4 OR ends_at > $5) ORDER BY id LIMIT $6",
        scope.tenant_ids,
        after,
        holder_id,
        ended,
        at,
        limit + 1,
    )
    return Page.of([_token(row) for row in rows], limit, lambda one: one.id)


async def ended_now(connection: Connection, holder_id: UUID) -> list[ApiToken]:
    """The tokens that this transaction ended with what it did to their holder."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM identity.api_token"
        f" WHERE {_HELD_BY} AND ended_because = 'holder'"
        " AND changed_xid = pg_current_xact_id() AND ends_at = now() ORDER BY id",
        holder_id,
    )
    return [_token(row) for row in rows]


async def end_of_account(connection: Connection, account_id: UUID) -> list[ApiToken]:
    """Ends the tokens of a user that work, of whatever tenants; answers them."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM identity.end_api_tokens_of($1)", account_id
    )
    return [_token(row) for row in rows]


async def unconfirmed_holders(connection: Connection, since: datetime, most: int) -> list[UUID]:
    """Users with tokens that work, who come from a directory or a provider that is not in use, or
    that has not confirmed them since a time."""
    rows = await connection.fetch(
        "SELECT DISTINCT a.id FROM identity.api_token t JOIN identity.account a"
        " ON a.id = t.account_id AND a.origin IN ('directory', 'sso')"
        " WHERE t.ends_at > now() AND NOT EXISTS (SELECT FROM identity.external_identity e"
        " JOIN identity.source s ON s.id = e.source_id AND s.kind = a.origin AND s.enabled"
        " WHERE e.account_id = a.id AND greatest(e.seen_at, e.last_login_at) > $1)"
        " ORDER BY a.id LIMIT $2",
        since,
        most,
    )
    return [row["id"] for row in rows]


async def end_of_source(connection: Connection, source_id: UUID) -> list[ApiToken]:
    """Ends the tokens of a SCIM source that work; answers them."""
    rows = await connection.fetch(
        "UPDATE identity.api_token SET ends_at = now(), ended_because = 'holder',"
        " changed_xid = pg_current_xact_id() WHERE source_id = $1 AND ends_at > now()"
        f" RETURNING {_COLUMNS}",
        source_id,
    )
    return [_token(row) for row in rows]


async def works(connection: Connection, token_id: UUID) -> bool:
    """Whether a token works."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM identity.api_token WHERE id = $1 AND ends_at > now())",
        token_id,
    )
    return found


async def note_uses(connection: Connection, uses: Sequence[tuple[UUID, datetime, str]]) -> None:
    """Notes when and from where tokens were used, and that their holders are here."""
    ids, times, places = (list(column) for column in zip(*uses, strict=True))
    await connection.execute(
        "UPDATE identity.api_token t SET last_used_at = u.at, last_used_from = u.place"
        " FROM unnest($1::uuid[], $2::timestamptz[], $3::text[]) AS u (id, at, place)"
        " WHERE t.id = u.id AND (t.last_used_at IS NULL OR t.last_used_at < u.at)",
        ids,
        times,
        places,
    )
    await connection.execute(
        "UPDATE identity.account a SET seen_at = u.at FROM"
        " (SELECT t.account_id, max(n.at) AS at"
        " FROM unnest($1::uuid[], $2::timestamptz[]) AS n (id, at)"
        " JOIN identity.api_token t ON t.id = n.id GROUP BY t.account_id) u"
        # Once an hour is often enough to know who is here.
        " WHERE a.id = u.account_id AND a.seen_at < u.at - interval '1 hour'",
        ids,
        times,
    )


async def take_to_tell(
    connection: Connection, what: Literal["soon", "expired"], after: datetime, until: datetime
) -> list[ApiToken]:
    """Tokens that nobody ended and that expire between two times; each is told of once."""
    rows = await connection.fetch(
        "UPDATE identity.api_token SET told = $3 WHERE id IN (SELECT id FROM identity.api_token"
        " WHERE ended_because IS NULL AND ends_at > $1 AND ends_at <= $2"
        " AND (told IS NULL OR told = 'soon' AND $3 = 'expired')"
        f" ORDER BY id LIMIT 500 FOR UPDATE SKIP LOCKED) RETURNING {_COLUMNS}",
        after,
        until,
        what,
    )
    return [_token(row) for row in rows]


async def forget(connection: Connection, before: datetime) -> None:
    """Deletes tokens that expired before a time."""
    await connection.execute("DELETE FROM identity.api_token WHERE expires_at < $1", before)
