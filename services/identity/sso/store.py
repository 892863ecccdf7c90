"""Providers, and what works once, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.identity.sources import store as sources_store
from services.identity.sources.domain import RoleMapping, Source
from services.identity.sso.domain import MOST_SHOWN, Provider

_COLUMNS: Final = (
    "s.id, s.tenant_id, s.name, s.enabled, s.grace_hours, s.created_at, s.updated_at,"
    " p.issuer, p.client_id, p.sealed_secrets, p.ca_pem, p.scopes, p.groups_claim, p.email_claim,"
    " p.hosted_domain, p.just_in_time, p.login_button, p.trusts_mfa,"
    " p.single_logout"
)
_USERS: Final = (
    "(SELECT count(*) FROM identity.external_identity e WHERE e.source_id = s.id) AS users"
)
_TABLES: Final = "identity.source s JOIN identity.sso_provider p ON p.id = s.id"


def _provider(row: asyncpg.Record, mappings: Sequence[RoleMapping]) -> Provider:
    return Provider(
        source=Source(
            id=row["id"],
            tenant_id=row["tenant_id"],
            kind="sso",
            name=row["name"],
            enabled=row["enabled"],
            grace=timedelta(hours=row["grace_hours"]),
            created_at=row["created_at"],
            updated_at=row["updated_at"],
        ),
        issuer=row["issuer"],
        client_id=row["client_id"],
        sealed_secrets=row["sealed_secrets"],
        ca_pem=row["ca_pem"],
        scopes=tuple(row["scopes"]),
        groups_claim=row["groups_claim"],
        email_claim=row["email_claim"],
        hosted_domain=row["hosted_domain"],
        just_in_time=row["just_in_time"],
        login_button=row["login_button"],
        trusts_mfa=row["trusts_mfa"],
        single_logout=row["single_logout"],
        mappings=tuple(mappings),
        users=row["users"],
    )


def _written(provider: Provider) -> tuple[Any, ...]:
    return (
        provider.id,
        provider.source.tenant_id,
        provider.issuer,
        provider.client_id,
        provider.sealed_secrets,
        provider.ca_pem,
        list(provider.scopes),
        provider.groups_claim,
        provider.email_claim,
        provider.hosted_domain,
        provider.just_in_time,
        provider.login_button,
        provider.trusts_mfa,
        provider.single_logout,
    )


async def insert(connection: Connection, provider: Provider) -> None:
    """Adds a provider with its source and its mappings."""
    await sources_store.insert_source(connection, provider.source)
    await connection.execute(
        "INSERT INTO identity.sso_provider (id, tenant_id, issuer, client_id, sealed_secrets,"
        " ca_pem, scopes, groups_claim, email_claim, hosted_domain, just_in_time, login_button,"
        " trusts_mfa, single_logout)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        *_written(provider),
    )
    await sources_store.replace_mappings(connection, provider.id, provider.mappings)


async def update(connection: Connection, provider: Provider) -> None:
    """Writes a provider as it was changed."""
    await sources_store.update_source(connection, provider.source)
    await connection.execute(
        "UPDATE identity.sso_provider SET issuer = $3, client_id = $4, sealed_secrets = $5,"
        " ca_pem = $6, scopes = $7, groups_claim = $8, email_claim = $9, hosted_domain = $10,"
        " just_in_time = $11, login_button = $12, trusts_mfa = $13, single_logout = $14"
        " WHERE id = $1 AND tenant_id = $2",
        *_written(provider),
    )
    await sources_store.replace_mappings(connection, provider.id, provider.mappings)


async def provider(
    connection: Connection,
    scope: Scope,
    provider_id: UUID,
    *,
    lock: str = "",
    counted: bool = False,
) -> Provider | None:
    """One provider of the scope's tenants.

    Args:
        lock: `FOR UPDATE` or `FOR SHARE`, of its source.
        counted: whether its users are counted, which takes longer the more there are; else it
            has 0.
    """
    users = _USERS if counted else "0 AS users"
    of = f"{lock} OF s" if lock else ""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS}, {users} FROM {_TABLES}"
        f" WHERE s.id = $1 AND ($2::uuid[] IS NULL OR s.tenant_id = ANY ($2)) {of}",
        provider_id,
        scope.tenant_ids,
    )
    if row is None:
        return None
    return _provider(row, await sources_store.mappings(connection, provider_id))


async def list_providers(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[Provider, UUID]:
    """Providers of the scope's tenants behind a position, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS}, {_USERS} FROM {_TABLES}"
        " WHERE ($1::uuid[] IS NULL OR s.tenant_id = ANY ($1)) AND ($2::uuid IS NULL OR s.id > $2)"
        " ORDER BY s.id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    found = [_provider(row, await sources_store.mappings(connection, row["id"])) for row in rows]
    return Page.of(found, limit, lambda one: one.id)


async def shown(
    connection: Connection, tenant_ids: Sequence[UUID], domain: str
) -> list[tuple[UUID, str]]:
    """Id and name of the providers whose buttons a page has, by name: those that everybody
    sees, those of some tenants, and the one that a domain names."""
    rows = await connection.fetch(
        f"SELECT s.id, s.name FROM {_TABLES}"
        " JOIN identity.tenant t ON t.id = s.tenant_id"
        " WHERE s.enabled AND t.archived_at IS NULL AND (p.login_button OR s.tenant_id = ANY ($1)"
        " OR s.id = (SELECT d.source_id FROM identity.email_domain d WHERE d.domain = $2"
        " AND d.tenant_id = s.tenant_id))"
        " ORDER BY lower(s.name), s.id LIMIT $3",
        tenant_ids,
        domain,
        MOST_SHOWN,
    )
    return [(row["id"], row["name"]) for row in rows]


async def has_domains(connection: Connection) -> bool:
    """Whether an e-mail domain names a provider that is in use."""
    found: bool = await connection.fetchval(
        f"SELECT EXISTS (SELECT FROM {_TABLES} JOIN identity.email_domain d ON d.source_id = s.id"
        " AND d.tenant_id = s.tenant_id WHERE s.enabled)"
    )
    return found


async def of_tenants(connection: Connection, tenant_ids: Sequence[UUID]) -> list[tuple[UUID, str]]:
    """Id and name of the providers of some tenants that are in use, by name."""
    rows = await connection.fetch(
        f"SELECT s.id, s.name FROM {_TABLES} WHERE s.enabled AND s.tenant_id = ANY ($1)"
        " ORDER BY lower(s.name), s.id LIMIT $2",
        tenant_ids,
        MOST_SHOWN,
    )
    return [(row["id"], row["name"]) for row in rows]


async def of_session(connection: Connection, session_id: UUID) -> tuple[UUID, str] | None:
    """Id and name of the provider that opened a session of one of its people, if it is in use."""
    row = await connection.fetchrow(
        f"SELECT s.id, s.name FROM {_TABLES} JOIN identity.session o ON o.source_id = s.id"
        " JOIN identity.account a ON a.id = o.account_id"
        " WHERE s.enabled AND a.origin = 'sso' AND o.id = $1",
        session_id,
    )
    return (row["id"], row["name"]) if row is not None else None


async def to_leave(connection: Connection, session_id: UUID) -> UUID | None:
    """The provider that opened a session, if it is in use and signs people out."""
    found: UUID | None = await connection.fetchval(
        f"SELECT s.id FROM {_TABLES} JOIN identity.session o ON o.source_id = s.id"
        " WHERE s.enabled AND p.single_logout AND o.id = $1",
        session_id,
    )
    return found


async def known_account(connection: Connection, provider_id: UUID, subject: str) -> UUID | None:
    """Which account a person of a provider has."""
    found: UUID | None = await connection.fetchval(
        "SELECT account_id FROM identity.external_identity WHERE source_id = $1 AND subject = $2",
        provider_id,
        subject,
    )
    return found


async def note_groups(
    connection: Connection, provider_id: UUID, subject: str, groups: Sequence[str]
) -> None:
    """Writes which groups a provider has told of a person whom it knows."""
    await connection.execute(
        "UPDATE identity.external_identity SET groups_seen = $3"
        " WHERE source_id = $1 AND subject = $2",
        provider_id,
        subject,
        groups,
    )


async def accounts_of_sid(connection: Connection, provider_id: UUID, sid: str) -> list[UUID]:
    """The accounts with sessions that a provider calls so, or with logins that wait."""
    rows = await connection.fetch(
        "SELECT account_id FROM identity.session"
        " WHERE source_id = $1 AND external_sid = $2 AND ended_at IS NULL"
        " UNION SELECT account_id FROM identity.login_challenge"
        " WHERE source_id = $1 AND external_sid = $2 ORDER BY account_id",
        provider_id,
        sid,
    )
    return [row["account_id"] for row in rows]


async def tenant_of_code(connection: Connection, code: str) -> UUID | None:
    """The tenant with a code."""
    found: UUID | None = await connection.fetchval(
        "SELECT id FROM identity.tenant WHERE code = $1", code
    )
    return found


# What works once


async def use(connection: Connection, mark: bytes, expires_at: datetime) -> bool:
    """Uses what works once; answers whether this was the first time."""
    done: str = await connection.execute(
        "INSERT INTO identity.sso_used (hash, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        mark,
        expires_at,
    )
    return done == "INSERT 0 1"


async def forget_used(connection: Connection, at: datetime) -> None:
    """Deletes what would not work any more anyway."""
    await connection.execute("DELETE FROM identity.sso_used WHERE expires_at < $1", at)
