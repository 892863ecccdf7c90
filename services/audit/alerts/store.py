"""All the SQL of alerts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope, columns
from servicekit.rpc.pagination import Page, TimePosition
from services.audit.alerts.domain import MOST_OPEN, Alert, Finding, Rule, Rules

_ALERT: Final = "id, tenant_id, kind, subject, facts, raised_at, step, ended_since, resolved_at"
_RULES: Final = "tenant_id, rules, emails, roles, revision, updated_at, updated_by"
_IN_SCOPE: Final = "($1::uuid[] IS NULL OR tenant_id = ANY ($1))"
_CHAINS: Final = 200
_ENTRIES: Final = 5_000
"""Entries of a chain that are looked through at a time."""
_MOST_TIMES: Final = 50_000
"""Entries that are counted within an hour, the newest."""


@dataclass(frozen=True, slots=True)
class News:
    """Entries of a chain that alerts do not know yet."""

    tenant_id: UUID
    sequence: int
    """Up to which entry they know it,"""
    until: int
    """and to which they do then."""


@dataclass(frozen=True, slots=True)
class Noted:
    """An entry that alerts are made of."""

    sequence: int
    action: str
    resource: str
    occurred_at: datetime
    record: str
    """Empty for one that was redacted, and where it is not asked for."""


@dataclass(frozen=True, slots=True)
class Failing:
    """A forwarder that delivers nothing."""

    id: UUID
    tenant_id: UUID
    name: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Pem:
    """A certificate that a forwarder uses."""

    id: UUID
    name: str
    text: str


def _alert(row: asyncpg.Record) -> Alert:
    return Alert(
        id=row["id"],
        tenant_id=row["tenant_id"],
        kind=row["kind"],
        subject=row["subject"],
        facts=json.loads(row["facts"]),
        raised_at=row["raised_at"],
        step=row["step"],
        ended_since=row["ended_since"],
        resolved_at=row["resolved_at"],
    )


def _rules(row: asyncpg.Record) -> Rules:
    return Rules(
        tenant_id=row["tenant_id"],
        rules={name: Rule.read(one) for name, one in json.loads(row["rules"]).items()},
        emails=tuple(row["emails"]),
        roles=tuple(row["roles"]),
        revision=row["revision"],
        updated_at=row["updated_at"],
        updated_by=row["updated_by"],
    )


# Alerts


async def open_of(connection: Connection, tenant_id: UUID, kind: str) -> dict[str, Alert]:
    """The open alerts of a tenant and kind by subject, held by the transaction."""
    rows = await connection.fetch(
        f"SELECT {_ALERT} FROM audit.alert WHERE tenant_id = $1 AND kind = $2"
        " AND resolved_at IS NULL ORDER BY id FOR UPDATE",
        tenant_id,
        kind,
    )
    return {row["subject"]: _alert(row) for row in rows}


async def raise_alert(connection: Connection, alert: Alert) -> bool:
    """Opens an alert; answers whether there was none, and room for it."""
    done: str = await connection.execute(
        "INSERT INTO audit.alert (id, tenant_id, kind, subject, facts, raised_at, step)"
        " SELECT $1, $2, $3, $4, $5, $6, $7 WHERE (SELECT count(*) FROM audit.alert"
        " WHERE tenant_id = $2 AND kind = $3 AND resolved_at IS NULL) < $8"
        " ON CONFLICT (tenant_id, kind, subject) WHERE resolved_at IS NULL DO NOTHING",
        alert.id,
        alert.tenant_id,
        alert.kind,
        alert.subject,
        json.dumps(alert.facts),
        alert.raised_at,
        alert.step,
        MOST_OPEN,
    )
    return done == "INSERT 0 1"


async def keep_open(connection: Connection, alert: Alert, finding: Finding) -> None:
    """Notes that the condition of an open alert holds, and how."""
    await connection.execute(
        "UPDATE audit.alert SET facts = $3, step = $4, ended_since = NULL"
        " WHERE id = $1 AND tenant_id = $2",
        alert.id,
        alert.tenant_id,
        json.dumps(finding.facts),
        max(alert.step, finding.step),
    )


async def note_end(connection: Connection, alert: Alert, at: datetime) -> None:
    """Notes since when the condition of an open alert does not hold."""
    await connection.execute(
        "UPDATE audit.alert SET ended_since = $3 WHERE id = $1 AND tenant_id = $2",
        alert.id,
        alert.tenant_id,
        at,
    )


async def resolve(connection: Connection, alert: Alert, at: datetime) -> None:
    """Ends an alert."""
    await connection.execute(
        "UPDATE audit.alert SET resolved_at = $3, ended_since = coalesce(ended_since, $3)"
        " WHERE id = $1 AND tenant_id = $2",
        alert.id,
        alert.tenant_id,
        at,
    )


async def open_places(connection: Connection) -> set[tuple[UUID, str]]:
    """The tenants and kinds that have open alerts."""
    rows = await connection.fetch(
        "SELECT DISTINCT tenant_id, kind FROM audit.alert WHERE resolved_at IS NULL"
    )
    return {(row["tenant_id"], row["kind"]) for row in rows}


async def counted(connection: Connection) -> Mapping[str, int]:
    """How many alerts of each kind are open."""
    rows = await connection.fetch(
        "SELECT kind, count(*) AS n FROM audit.alert WHERE resolved_at IS NULL GROUP BY kind"
    )
    return {row["kind"]: row["n"] for row in rows}


async def forget(connection: Connection, before: datetime, most: int) -> None:
    """Deletes some alerts that were resolved before a time."""
    await connection.execute(
        "DELETE FROM audit.alert WHERE id IN"
        " (SELECT id FROM audit.alert WHERE resolved_at < $1 LIMIT $2)",
        before,
        most,
    )


async def list_alerts(
    connection: Connection,
    scope: Scope,
    kind: str,
    is_open: bool | None,
    after: TimePosition | None,
    limit: int,
) -> Page[Alert, TimePosition]:
    """Alerts of a scope, newest first, behind a position."""
    rows = await connection.fetch(
        f"SELECT {_ALERT} FROM audit.alert WHERE {_IN_SCOPE} AND ($2 = '' OR kind = $2)"
        " AND ($3::boolean IS NULL OR (resolved_at IS NULL) = $3)"
        " AND ($4::timestamptz IS NULL OR (raised_at, id) < ($4, $5::uuid))"
        " ORDER BY raised_at DESC, id DESC LIMIT $6",
        scope.tenant_ids,
        kind,
        is_open,
        after.at if after else None,
        after.id if after else None,
        limit + 1,
    )
    return Page.of([_alert(row) for row in rows], limit, lambda a: TimePosition(a.raised_at, a.id))


# Rules


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


# Who looks


async def lead(connection: Connection, lease: UUID, at: datetime, until: datetime) -> bool:
    """Takes or renews the lease of the process that looks; answers whether it has it."""
    return bool(
        await connection.fetchval(
            "INSERT INTO audit.alert_lead (lease, lease_until) VALUES ($1, $3)"
            " ON CONFLICT (only_row) DO UPDATE SET lease = $1, lease_until = $3"
            " WHERE alert_lead.lease = $1 OR alert_lead.lease_until < $2 RETURNING true",
            lease,
            at,
            until,
        )
    )


async def give_up_lead(connection: Connection, lease: UUID) -> None:
    """Gives the lease back."""
    await connection.execute("DELETE FROM audit.alert_lead WHERE lease = $1", lease)


# The log


async def news(
    connection: Connection, actions: Sequence[str], without: Sequence[UUID]
) -> tuple[list[News], bool]:
    """Chains with entries of some actions that alerts do not know; and whether there may be more.

    Of others they know it afterwards.

    Args:
        connection: of all tenants.
        actions: what alerts are made of.
        without: chains that are left alone.
    """
    rows = await connection.fetch(
        "WITH grown AS (SELECT h.tenant_id, coalesce(c.sequence, 0) AS known,"
        f" least(h.sequence, coalesce(c.sequence, 0) + {_ENTRIES}) AS until"
        " FROM audit.chain_head h LEFT JOIN audit.alert_position c ON c.chain_id = h.tenant_id"
        " WHERE h.sequence > coalesce(c.sequence, 0) AND h.tenant_id <> ALL ($2)"
        f" ORDER BY h.tenant_id LIMIT {_CHAINS})"
        " SELECT tenant_id, known, until, EXISTS (SELECT FROM audit.entry e"
        " WHERE e.tenant_id = g.tenant_id AND e.sequence > g.known AND e.sequence <= g.until"
        " AND e.action = ANY ($1)) AS any FROM grown g",
        list(actions),
        list(without),
    )
    await know(connection, [(row["tenant_id"], row["until"]) for row in rows if not row["any"]])
    found = [News(row["tenant_id"], row["known"], row["until"]) for row in rows if row["any"]]
    return found, bool(rows)


async def known(connection: Connection, chain_id: UUID) -> int:
    """Up to which entry alerts know a chain, held by the transaction."""
    await connection.execute(
        "INSERT INTO audit.alert_position (chain_id, sequence) VALUES ($1, 0)"
        " ON CONFLICT (chain_id) DO NOTHING",
        chain_id,
    )
    found: int = await connection.fetchval(
        "SELECT sequence FROM audit.alert_position WHERE chain_id = $1 FOR UPDATE", chain_id
    )
    return found


async def know(connection: Connection, chains: Sequence[tuple[UUID, int]]) -> None:
    """Notes up to which entries alerts know chains."""
    if chains:
        await connection.execute(
            "INSERT INTO audit.alert_position (chain_id, sequence)"
            " SELECT * FROM unnest($1::uuid[], $2::bigint[])"
            " ON CONFLICT (chain_id) DO UPDATE SET sequence ="
            " greatest(alert_position.sequence, excluded.sequence)",
            *columns(chains),
        )


async def noted(
    connection: Connection, tenant_id: UUID, actions: Sequence[str], first: int, last: int
) -> list[Noted]:
    """The entries of a chain behind one and up to another that have some actions, in order."""
    rows = await connection.fetch(
        "SELECT sequence, action, resource, occurred_at, record FROM audit.entry"
        " WHERE tenant_id = $1 AND sequence > $2 AND sequence <= $3 AND action = ANY ($4)"
        " ORDER BY sequence",
        tenant_id,
        first,
        last,
        list(actions),
    )
    return [Noted(**row) for row in rows]


async def within(
    connection: Connection,
    tenant_id: UUID,
    actions: Sequence[str],
    after: datetime,
    until: datetime,
) -> list[Noted]:
    """What happened in some time, in the order of time; of very many the newest."""
    rows = await connection.fetch(
        "SELECT sequence, action, resource, occurred_at,"
        " CASE WHEN action = 'identity.logins_refused' THEN record ELSE '' END AS record"
        " FROM audit.entry WHERE tenant_id = $1 AND action = ANY ($2) AND occurred_at > $3"
        f" AND occurred_at <= $4 ORDER BY occurred_at DESC, id DESC LIMIT {_MOST_TIMES}",
        tenant_id,
        list(actions),
        after,
        until,
    )
    return [Noted(**row) for row in reversed(rows)]


# What else is looked at


async def failing(connection: Connection) -> list[Failing]:
    """The forwarders that deliver nothing."""
    rows = await connection.fetch(
        "SELECT f.id, f.tenant_id, f.name, s.failing_since AS since FROM audit.forwarder f"
        " JOIN audit.forwarder_state s ON s.forwarder_id = f.id"
        " WHERE f.enabled AND s.failing_since IS NOT NULL ORDER BY f.id"
    )
    return [Failing(**row) for row in rows]


async def newest_backup(connection: Connection) -> datetime | None:
    """When the newest good backup was begun."""
    found: datetime | None = await connection.fetchval(
        "SELECT max(started_at) FROM audit.backup_run WHERE kind = 'backup' AND succeeded"
    )
    return found


async def pems(connection: Connection) -> list[Pem]:
    """The certificates that enabled forwarders use."""
    rows = await connection.fetch(
        "SELECT f.id, f.name, p.text FROM audit.forwarder f CROSS JOIN LATERAL (VALUES"
        " (f.config ->> 'ca_pem'), (f.config ->> 'client_certificate_pem')) AS p (text)"
        " WHERE f.enabled AND p.text <> '' ORDER BY f.id"
    )
    return [Pem(**row) for row in rows]


# Digests


async def digests_due(connection: Connection, before: datetime, most: int) -> list[UUID]:
    """Tenants with alerts that were raised before a time, who were not told since."""
    rows = await connection.fetch(
        "SELECT DISTINCT a.tenant_id FROM audit.alert a LEFT JOIN audit.alert_digest d"
        " USING (tenant_id) WHERE a.resolved_at IS NULL AND a.raised_at <= $1"
        " AND (d.told_at IS NULL OR d.told_at <= $1) LIMIT $2",
        before,
        most,
    )
    return [row["tenant_id"] for row in rows]


async def take_digest(
    connection: Connection, tenant_id: UUID, before: datetime, at: datetime
) -> bool:
    """Notes that a tenant is told now, unless it was told since a time; answers whether."""
    return bool(
        await connection.fetchval(
            "INSERT INTO audit.alert_digest (tenant_id, told_at) VALUES ($1, $3)"
            " ON CONFLICT (tenant_id) DO UPDATE SET told_at = $3"
            " WHERE alert_digest.told_at <= $2 RETURNING true",
            tenant_id,
            before,
            at,
        )
    )


async def all_open(connection: Connection, tenant_id: UUID, most: int) -> tuple[list[Alert], int]:
    """The oldest open alerts of a tenant, and how many there are."""
    rows: list[Any] = await connection.fetch(
        f"SELECT {_ALERT}, count(*) OVER () AS n FROM audit.alert WHERE tenant_id = $1"
        " AND resolved_at IS NULL ORDER BY raised_at, id LIMIT $2",
        tenant_id,
        most,
    )
    return [_alert(row) for row in rows], rows[0]["n"] if rows else 0
