"""The SQL of what tenants say of alerts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection
from servicekit.observability import logs
from services.audit.alerts.domain import Rule, Rules

log = logs.get(__name__)

_RULES: Final = "tenant_id, rules, emails, roles, revision, updated_at, updated_by"


@lru_cache(1_000)
def _tell_unreadable(tenant_id: UUID, what: str) -> None:
    """Tells it once."""
    log.warning("alert rules unreadable", tenant=str(tenant_id), rule=what)


def _read_rules(tenant_id: UUID, text: str) -> dict[str, Rule]:
    """The rules in a row; one that cannot be read is none, and keeps no other tenant waiting."""
    stored = json.loads(text)
    if not isinstance(stored, dict):
        _tell_unreadable(tenant_id, "all")
        return {}
    rules = {}
    for name, one in stored.items():
        try:
            rules[name] = Rule.read(one)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            _tell_unreadable(tenant_id, name)
    return rules


def _rules(row: asyncpg.Record) -> Rules:
    return Rules(
        tenant_id=row["tenant_id"],
        rules=_read_rules(row["tenant_id"], row["rules"]),
        emails=tuple(row["emails"]),
        roles=tuple(row["roles"]),
        revision=row["revision"],
        updated_at=row["updated_at"],
        updated_by=row["updated_by"],
    )


async def all_rules(connection: Connection) -> dict[UUID, Rules]:
    """What tenants have said, by tenant."""
    rows = await connection.fetch(f"SELECT {_RULES} FROM audit.alert_rules")
    return {row["tenant_id"]: _rules(row) for row in rows}


async def rules_of(connection: Connection, tenant_ids: Sequence[UUID]) -> dict[UUID, Rules]:
    """What some tenants have said."""
    rows = await connection.fetch(
        f"SELECT {_RULES} FROM audit.alert_rules WHERE tenant_id = ANY ($1)", list(tenant_ids)
    )
    return {row["tenant_id"]: _rules(row) for row in rows}


async def lock_rules(connection: Connection, tenant_id: UUID) -> None:
    """Lets one call at a time change the rules of a tenant."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('audit.alert_rules'), hashtext($1))", str(tenant_id)
    )


async def hold_rules(connection: Connection, tenant_ids: Sequence[UUID]) -> None:
    """Lets nobody change the rules of some tenants until the transaction ends."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock_shared(hashtext('audit.alert_rules'), hashtext(one))"
        " FROM unnest($1::text[]) AS one",
        [str(one) for one in tenant_ids],
    )


async def store_rules(connection: Connection, rules: Rules) -> None:
    """Stores what a tenant says."""
    await connection.execute(
        f"INSERT INTO audit.alert_rules ({_RULES}) VALUES ($1, $2, $3, $4, $5, $6, $7)"
        " ON CONFLICT (tenant_id) DO UPDATE SET rules = excluded.rules, emails = excluded.emails,"
        " roles = excluded.roles, revision = excluded.revision, updated_at = excluded.updated_at,"
        " updated_by = excluded.updated_by",
        rules.tenant_id,
        json.dumps({name: rule.json() for name, rule in rules.rules.items()}),
        list(rules.emails),
        list(rules.roles),
        rules.revision,
        rules.updated_at,
        rules.updated_by,
    )


async def delete_rules(connection: Connection, tenant_id: UUID) -> None:
    """Forgets what a tenant has said."""
    await connection.execute("DELETE FROM audit.alert_rules WHERE tenant_id = $1", tenant_id)
