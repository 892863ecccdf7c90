"""All the SQL of what tenants say of their logs, and of what was pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection
from services.audit.retention.domain import Hold, Rule

_RULE: Final = (
    "chain_id, hold_reason, held_from, held_by, held_at, revision, updated_at, updated_by"
)
_SAID: Final = "FROM audit.retention_years y WHERE y.chain_id = r.chain_id ORDER BY y.said_from"
_RULES: Final = (
    f"SELECT {_RULE}, ARRAY(SELECT y.said_from {_SAID}) AS said_from,"
    f" ARRAY(SELECT y.keep_years {_SAID}) AS keep_years FROM audit.retention r"
)


def _rule(row: asyncpg.Record) -> Rule:
    hold = None
    if row["hold_reason"] is not None:
        hold = Hold(
            reason=row["hold_reason"],
            set_from=row["held_from"],
            set_by=row["held_by"],
            set_at=row["held_at"],
        )
    return Rule(
        tenant_id=row["chain_id"],
        years=dict(zip(row["said_from"], row["keep_years"], strict=True)),
        hold=hold,
        revision=row["revision"],
        updated_at=row["updated_at"],
        updated_by=row["updated_by"],
    )


async def rules(connection: Connection, tenant_ids: Sequence[UUID]) -> dict[UUID, Rule]:
    """What some tenants say, of those that say something."""
    rows = await connection.fetch(f"{_RULES} WHERE chain_id = ANY ($1)", tenant_ids)
    return {row["chain_id"]: _rule(row) for row in rows}


async def lock_rule(connection: Connection, tenant_id: UUID) -> Rule:
    """What a tenant says, held by the transaction."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('audit.retention'), hashtext($1))", str(tenant_id)
    )
    row = await connection.fetchrow(f"{_RULES} WHERE chain_id = $1 FOR UPDATE OF r", tenant_id)
    return _rule(row) if row is not None else Rule(tenant_id)


async def keep_rules(connection: Connection) -> None:
    """Has all changes of what tenants say wait for the end of the transaction, which first waits
    for those that are being made; of the role that owns the tables."""
    await connection.execute("LOCK TABLE audit.retention, audit.retention_years IN SHARE MODE")


async def store_rule(connection: Connection, rule: Rule) -> None:
    """Stores what a tenant says."""
    hold = rule.hold
    await connection.execute(
        f"INSERT INTO audit.retention ({_RULE}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
        " ON CONFLICT (chain_id) DO UPDATE SET hold_reason = excluded.hold_reason,"
        " held_from = excluded.held_from, held_by = excluded.held_by, held_at = excluded.held_at,"
        " revision = excluded.revision, updated_at = excluded.updated_at,"
        " updated_by = excluded.updated_by",
        rule.tenant_id,
        hold.reason if hold else None,
        hold.set_from if hold else None,
        hold.set_by if hold else None,
        hold.set_at if hold else None,
        rule.revision,
        rule.updated_at,
        rule.updated_by,
    )
    await connection.execute(
        "DELETE FROM audit.retention_years WHERE chain_id = $1", rule.tenant_id
    )
    await connection.executemany(
        "INSERT INTO audit.retention_years (chain_id, said_from, keep_years) VALUES ($1, $2, $3)",
        [(rule.tenant_id, said_from, years) for said_from, years in rule.years.items()],
    )
