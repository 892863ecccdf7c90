"""The SQL of what reports ask of users and credentials."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.rpc.pagination import Page

EVENT_CREDENTIAL: Final = "event credential"
API_TOKEN: Final = "API token"


@dataclass(frozen=True, slots=True)
class UserFacts:
    """What a review of access asks of a user."""

    id: UUID
    email: str
    role: str
    status: str
    origin: str
    factors: tuple[str, ...]
    created_at: datetime
    last_login_at: datetime | None
    open_sessions: int
    logins_known: bool
    """Whether nothing is missing of its logins: release 0.1.0 did not note them."""


@dataclass(frozen=True, slots=True)
class CredentialFacts:
    """What a program logs in with, without its secret."""

    kind: str
    id: UUID
    name: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    """`None` for one that release 0.1.0 made without an end."""
    last_used_at: datetime | None
    revoked_at: datetime | None


class CredentialPosition(NamedTuple):
    """A position in the list of credentials: event credentials come first."""

    rank: int
    id: UUID

    @classmethod
    def read(cls, rank: str, credential_id: str) -> CredentialPosition:
        """The position of a token's parts.

        Raises:
            ValueError: it is none.
        """
        return cls(int(rank), UUID(credential_id))


async def users(
    connection: Connection, tenant_id: UUID, after: UUID | None, limit: int, at: datetime
) -> Page[UserFacts, UUID]:
    """The users of a tenant, by id; `at` tells which sessions are open."""
    rows = await connection.fetch(
        "SELECT a.id, a.email, a.role, a.status, a.origin, a.created_at, a.last_login_at,"
        " EXISTS (SELECT FROM identity.totp t WHERE t.account_id = a.id"
        " AND t.confirmed_at IS NOT NULL) AS totp,"
        " EXISTS (SELECT FROM identity.passkey k WHERE k.account_id = a.id) AS passkey,"
        " (SELECT count(*) FROM identity.session s WHERE s.account_id = a.id"
        " AND s.ended_at IS NULL AND s.expires_at > $4) AS open_sessions,"
        # Who was there before logins were noted was seen first when that began.
        " (a.last_login_at IS NOT NULL OR a.seen_at <= a.created_at + interval '1 hour')"
        " AS logins_known"
        " FROM identity.account a WHERE a.tenant_id = $1 AND ($2::uuid IS NULL OR a.id > $2)"
        " ORDER BY a.id LIMIT $3",
        tenant_id,
        after,
        limit + 1,
        at,
    )
    found = [
        UserFacts(
            id=row["id"],
            email=row["email"],
            role=row["role"],
            status=row["status"],
            origin=row["origin"],
            factors=tuple(name for name in ("totp", "passkey") if row[name]),
            created_at=row["created_at"],
            last_login_at=row["last_login_at"],
            open_sessions=row["open_sessions"],
            logins_known=row["logins_known"],
        )
        for row in rows
    ]
    return Page.of(found, limit, lambda user: user.id)


async def credentials(
    connection: Connection, tenant_id: UUID, after: CredentialPosition | None, limit: int
) -> Page[CredentialFacts, CredentialPosition]:
    """The event credentials and the API tokens of a tenant, each by id."""
    rows = await connection.fetch(
        "SELECT * FROM (SELECT 0 AS rank, id, name, created_by, created_at, expires_at,"
        " last_used_at, coalesce(revoked_at, orphaned_at) AS revoked_at"
        " FROM identity.event_credential WHERE tenant_id = $1"
        " UNION ALL SELECT 1, id, name, created_by, created_at, expires_at, last_used_at,"
        " CASE WHEN ended_because IS NOT NULL THEN ends_at END"
        " FROM identity.api_token WHERE tenant_id = $1) AS found"
        " WHERE (rank, id) > ($2, $3) ORDER BY rank, id LIMIT $4",
        tenant_id,
        after.rank if after else -1,
        after.id if after else UUID(int=0),
        limit + 1,
    )
    found = [
        CredentialFacts(
            kind=API_TOKEN if row["rank"] else EVENT_CREDENTIAL,
            id=row["id"],
            name=row["name"],
            created_by=row["created_by"],
            created_at=row["created_at"],
            expires_at=row["expires_at"],
            last_used_at=row["last_used_at"],
            revoked_at=row["revoked_at"],
        )
        for row in rows
    ]
    return Page.of(found, limit, lambda one: CredentialPosition(int(one.kind == API_TOKEN), one.id))
