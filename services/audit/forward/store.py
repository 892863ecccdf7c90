"""The SQL of forwarders themselves, as people make and change them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.audit.forward.domain import (
    Config,
    Disabled,
    Filter,
    Format,
    Forwarder,
    Kind,
    State,
    Syslog,
    Transport,
    Webhook,
)

_COLUMNS: Final = (
    "id, tenant_id, name, kind, enabled, disabled_reason, below_too, filter, config,"
    " sealed_secrets, second_secret_until, start_at, revision, created_at, created_by, updated_at"
)
QUALIFIED: Final = ", ".join(f"f.{column}" for column in _COLUMNS.split(", "))
STATE: Final = (
    "s.failing_since, s.told, s.attempts, s.next_attempt_at, s.last_error, s.last_success_at"
)
IN_SCOPE: Final = "($1::uuid[] IS NULL OR f.tenant_id = ANY ($1))"


def _config(kind: Kind, text: str) -> Config:
    read = json.loads(text)
    if kind is Kind.WEBHOOK:
        return Webhook(
            **{**read, "format": Format(read["format"]), "headers": tuple(read["headers"])}
        )
    return Syslog(
        **{
            **read,
            "format": Format(read["format"]),
            "transport": Transport(read["transport"]),
        }
    )


def read_forwarder(row: asyncpg.Record) -> Forwarder:
    """The forwarder of a row with `QUALIFIED` and `STATE`."""
    kind = Kind(row["kind"])
    stored = json.loads(row["filter"])
    return Forwarder(
        id=row["id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        kind=kind,
        enabled=row["enabled"],
        disabled_reason=Disabled(row["disabled_reason"]),
        below_too=row["below_too"],
        filter=Filter(**{name: tuple(values) for name, values in stored.items()}),
        config=_config(kind, row["config"]),
        sealed_secrets=row["sealed_secrets"],
        second_secret_until=row["second_secret_until"],
        start_at=row["start_at"],
        revision=row["revision"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        updated_at=row["updated_at"],
        state=read_state(row),
    )


def read_state(row: asyncpg.Record) -> State:
    """How a forwarder does, of a row with `STATE`."""
    return State(
        failing_since=row["failing_since"],
        told=row["told"],
        attempts=row["attempts"],
        next_attempt_at=row["next_attempt_at"],
        last_error=row["last_error"],
        last_success_at=row["last_success_at"],
    )


async def lock_all(connection: Connection) -> None:
    """Lets one call at a time make a forwarder, so that the bounds hold."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('audit.forwarder'))")


async def count(connection: Connection, tenant_id: UUID) -> tuple[int, int]:
    """How many forwarders a tenant has, and how many there are in all."""
    row = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE tenant_id = $1) AS own, count(*) AS found"
        " FROM audit.forwarder",
        tenant_id,
    )
    return row["own"], row["found"]


async def has_name(connection: Connection, forwarder: Forwarder) -> bool:
    """Whether another forwarder of the tenant has a forwarder's name."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM audit.forwarder WHERE tenant_id = $1 AND name = $2"
        " AND id <> $3)",
        forwarder.tenant_id,
        forwarder.name,
        forwarder.id,
    )
    return found


async def insert(connection: Connection, forwarder: Forwarder) -> None:
    """Adds a forwarder."""
    await connection.execute(
        f"INSERT INTO audit.forwarder ({_COLUMNS}) VALUES"
        " ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        forwarder.id,
        forwarder.tenant_id,
        forwarder.name,
        forwarder.kind,
        forwarder.enabled,
        forwarder.disabled_reason,
        forwarder.below_too,
        json.dumps(asdict(forwarder.filter)),
        json.dumps(asdict(forwarder.config)),
        forwarder.sealed_secrets,
        forwarder.second_secret_until,
        forwarder.start_at,
        forwarder.revision,
        forwarder.created_at,
        forwarder.created_by,
        forwarder.updated_at,
    )
    await connection.execute(
        "INSERT INTO audit.forwarder_state (forwarder_id, tenant_id) VALUES ($1, $2)",
        forwarder.id,
        forwarder.tenant_id,
    )


async def update(connection: Connection, forwarder: Forwarder) -> None:
    """Stores what can be changed of a forwarder."""
    await connection.execute(
        "UPDATE audit.forwarder SET name = $3, enabled = $4, disabled_reason = $5, below_too = $6,"
        " filter = $7, config = $8, sealed_secrets = $9, second_secret_until = $10, revision = $11,"
        " updated_at = $12 WHERE id = $1 AND tenant_id = $2",
        forwarder.id,
        forwarder.tenant_id,
        forwarder.name,
        forwarder.enabled,
        forwarder.disabled_reason,
        forwarder.below_too,
        json.dumps(asdict(forwarder.filter)),
        json.dumps(asdict(forwarder.config)),
        forwarder.sealed_secrets,
        forwarder.second_secret_until,
        forwarder.revision,
        forwarder.updated_at,
    )


async def delete(connection: Connection, forwarder: Forwarder) -> None:
    """Removes a forwarder and all that is known of it."""
    await connection.execute(
        "DELETE FROM audit.forwarder WHERE id = $1 AND tenant_id = $2",
        forwarder.id,
        forwarder.tenant_id,
    )


async def find(
    connection: Connection, scope: Scope, forwarder_id: UUID, *, for_update: bool = False
) -> Forwarder | None:
    """A forwarder of a scope."""
    row = await connection.fetchrow(
        f"SELECT {QUALIFIED}, {STATE} FROM audit.forwarder f"
        " JOIN audit.forwarder_state s ON s.forwarder_id = f.id"
        f" WHERE {IN_SCOPE} AND f.id = $2{' FOR UPDATE OF f' if for_update else ''}",
        scope.tenant_ids,
        forwarder_id,
    )
    return None if row is None else read_forwarder(row)


async def list_forwarders(
    connection: Connection, scope: Scope, after: UUID | None, limit: int
) -> Page[Forwarder, UUID]:
    """The forwarders of a scope, the oldest first."""
    rows = await connection.fetch(
        f"SELECT {QUALIFIED}, {STATE} FROM audit.forwarder f"
        " JOIN audit.forwarder_state s ON s.forwarder_id = f.id"
        f" WHERE {IN_SCOPE} AND ($2::uuid IS NULL OR f.id > $2) ORDER BY f.id LIMIT $3",
        scope.tenant_ids,
        after,
        limit + 1,
    )
    return Page.of([read_forwarder(row) for row in rows], limit, lambda found: found.id)
