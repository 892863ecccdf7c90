"""All the SQL of alerts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope, columns
from servicekit.observability import logs
from servicekit.rpc.pagination import Page, TimePosition
from services.audit.alerts.domain import (
    ATTESTATION_FAILED,
    DIGEST_EVERY,
    MOST_FAILED,
    Alert,
    Finding,
    Rule,
    Rules,
)
from services.audit.forward.domain import Disabled

log = logs.get(__name__)

_ALERT: Final = "id, tenant_id, kind, subject, facts, raised_at, step, ended_since, resolved_at"
_RULES: Final = "tenant_id, rules, emails, roles, revision, updated_at, updated_by"
_IN_SCOPE: Final = "($1::uuid[] IS NULL OR tenant_id = ANY ($1))"
_CHAINS: Final = 200
_ENTRIES: Final = 5_000
"""Entries of a chain that are looked through at a time."""
_MOST_TIMES: Final = 50_000
"""Entries that are counted within an hour, the newest."""
_LEFT_OUT_AGO: Final = timedelta(hours=1)
"""So long after the first mail that was left out the daily one is sent, with what came since."""


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
    """The certificates that a forwarder uses."""

    id: UUID
    tenant_id: UUID
    name: str
    ca: str
    own: str


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


def _alert(row: asyncpg.Record) -> Alert:
    facts = json.loads(row["facts"])
    return Alert(
        id=row["id"],
        tenant_id=row["tenant_id"],
        kind=row["kind"],
        subject=row["subject"],
        facts=facts if isinstance(facts, dict) else {},
        raised_at=row["raised_at"],
        step=row["step"],
        ended_since=row["ended_since"],
        resolved_at=row["resolved_at"],
    )


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
    """Opens an alert; answers whether there was none."""
    done: str = await connection.execute(
        "INSERT INTO audit.alert (id, tenant_id, kind, subject, facts, raised_at, step)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)"
        " ON CONFLICT (tenant_id, kind, subject) WHERE resolved_at IS NULL DO NOTHING",
        alert.id,
        alert.tenant_id,
        alert.kind,
        alert.subject,
        json.dumps(alert.facts),
        alert.raised_at,
        alert.step,
    )
    return done == "INSERT 0 1"


async def keep_open(connection: Connection, alert: Alert, finding: Finding) -> None:
    """Notes that the condition of an open alert holds, and how; writes nothing that is known."""
    step = max(alert.step, finding.step)
    if alert.facts == finding.facts and alert.step == step and alert.ended_since is None:
        return
    await connection.execute(
        "UPDATE audit.alert SET facts = $3, step = $4, ended_since = NULL"
        " WHERE id = $1 AND tenant_id = $2",
        alert.id,
        alert.tenant_id,
        json.dumps(finding.facts),
        step,
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


# Who looks


async def lead(connection: Connection, lease: UUID, at: datetime, until: datetime) -> bool:
    """Takes or renews the lease of the process that looks; answers whether it has it.

    One that ends much later than this one would was taken by a clock that was wrong.
    """
    return bool(
        await connection.fetchval(
            "INSERT INTO audit.alert_lead (lease, lease_until) VALUES ($1, $3)"
            " ON CONFLICT (only_row) DO UPDATE SET lease = $1, lease_until = $3"
            " WHERE alert_lead.lease = $1 OR alert_lead.lease_until < $2"
            " OR alert_lead.lease_until > $4 RETURNING true",
            lease,
            at,
            until,
            until + (until - at),
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
    """The forwarders that deliver nothing: that fail, and that the system has disabled."""
    rows = await connection.fetch(
        "SELECT f.id, f.tenant_id, f.name, coalesce(s.failing_since, f.updated_at) AS since"
        " FROM audit.forwarder f JOIN audit.forwarder_state s ON s.forwarder_id = f.id"
        " WHERE f.enabled AND s.failing_since IS NOT NULL"
        " OR NOT f.enabled AND f.disabled_reason <> ALL ($1) ORDER BY f.id",
        [Disabled.NOT, Disabled.BY_USER],
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
        "SELECT id, tenant_id, name, ca, own FROM (SELECT id, tenant_id, name,"
        " coalesce(config ->> 'ca_pem', '') AS ca,"
        " coalesce(config ->> 'client_certificate_pem', '') AS own"
        " FROM audit.forwarder WHERE enabled) AS f WHERE ca <> '' OR own <> '' ORDER BY id"
    )
    return [Pem(**row) for row in rows]


# Digests


async def note_left_out(connection: Connection, tenant_id: UUID, at: datetime) -> None:
    """Notes that a mail of a tenant was left out, which the daily one makes up for."""
    # Without one before, it was not told for a day.
    await connection.execute(
        "INSERT INTO audit.alert_digest (tenant_id, told_at, left_out_at) VALUES ($1, $2, $3)"
        " ON CONFLICT (tenant_id) DO UPDATE SET"
        " left_out_at = coalesce(alert_digest.left_out_at, excluded.left_out_at)",
        tenant_id,
        at - DIGEST_EVERY,
        at,
    )


async def digests_due(connection: Connection, at: datetime, most: int) -> list[UUID]:
    """Tenants that were not told for a day, with alerts that are open for a day or mails that
    were left out an hour ago."""
    rows = await connection.fetch(
        "SELECT w.tenant_id FROM (SELECT tenant_id FROM audit.alert"
        " WHERE resolved_at IS NULL AND raised_at <= $1 UNION"
        " SELECT tenant_id FROM audit.alert_digest WHERE left_out_at <= $4) AS w"
        " LEFT JOIN audit.alert_digest d USING (tenant_id)"
        # A clock that was wrong may have told it in the future.
        " WHERE d.told_at IS NULL OR d.told_at <= $1 OR d.told_at > $3"
        " ORDER BY d.told_at NULLS FIRST, w.tenant_id LIMIT $2",
        at - DIGEST_EVERY,
        most,
        at,
        at - _LEFT_OUT_AGO,
    )
    return [row["tenant_id"] for row in rows]


async def take_digest(
    connection: Connection, tenant_id: UUID, at: datetime
) -> tuple[bool, datetime | None]:
    """Notes that a tenant is told now, unless it was told within a day.

    Answers whether it is, and since when mails were left out.
    """
    await connection.execute(
        "INSERT INTO audit.alert_digest (tenant_id, told_at) VALUES ($1, $2)"
        " ON CONFLICT (tenant_id) DO NOTHING",
        tenant_id,
        at - DIGEST_EVERY,
    )
    row = await connection.fetchrow(
        "SELECT told_at, left_out_at FROM audit.alert_digest WHERE tenant_id = $1 FOR UPDATE",
        tenant_id,
    )
    if at - DIGEST_EVERY < row["told_at"] <= at:
        return False, None
    await note_digest(connection, tenant_id, at)
    return True, row["left_out_at"]


async def note_digest(
    connection: Connection, tenant_id: UUID, at: datetime, left_out_at: datetime | None = None
) -> None:
    """Notes when a tenant was told of all that is open, and since when mails are left out."""
    await connection.execute(
        "UPDATE audit.alert_digest SET told_at = $2, left_out_at = $3 WHERE tenant_id = $1",
        tenant_id,
        at,
        left_out_at,
    )


async def to_tell(
    connection: Connection,
    tenant_id: UUID,
    without: Sequence[str],
    left_out_at: datetime | None,
    most: int,
) -> tuple[list[Alert], int, int]:
    """What a daily mail tells of: open alerts, the newest first, and what else became of some.

    Args:
        connection: in a transaction of the tenant.
        tenant_id: whose alerts.
        without: kinds that are paused.
        left_out_at: since when mails were left out; what was resolved since is told, too.
        most: so many are answered.

    Returns:
        Alerts, how many there are, and how many are open.
    """
    rows: list[Any] = await connection.fetch(
        f"SELECT {_ALERT}, count(*) OVER () AS n,"
        " count(*) FILTER (WHERE resolved_at IS NULL) OVER () AS open"
        " FROM audit.alert WHERE tenant_id = $1 AND kind <> ALL ($2)"
        " AND (resolved_at IS NULL OR resolved_at >= $3)"
        " ORDER BY resolved_at IS NULL DESC, raised_at DESC, id DESC LIMIT $4",
        tenant_id,
        list(without),
        left_out_at,
        most,
    )
    first = rows[0] if rows else {"n": 0, "open": 0}
    return [_alert(row) for row in rows], first["n"], first["open"]


# Devices that fail their check


async def note_verdicts(
    connection: Connection, tenant_id: UUID, failed: Sequence[str], good: Sequence[str]
) -> None:
    """Notes devices that fail their check since now, and those that do no more."""
    await connection.execute(
        "DELETE FROM audit.alert_failed_device WHERE tenant_id = $1 AND subject = ANY ($2)",
        tenant_id,
        list(good),
    )
    await connection.execute(
        "INSERT INTO audit.alert_failed_device (tenant_id, subject) SELECT $1, one"
        " FROM unnest($2::text[]) AS one LIMIT greatest(0, $3 - (SELECT count(*)"
        " FROM audit.alert_failed_device WHERE tenant_id = $1)) ON CONFLICT DO NOTHING",
        tenant_id,
        list(failed),
        MOST_FAILED,
    )


async def failed_devices(connection: Connection, tenant_id: UUID) -> list[str]:
    """The devices of a tenant that fail their check."""
    rows = await connection.fetch(
        "SELECT subject FROM audit.alert_failed_device WHERE tenant_id = $1 ORDER BY subject",
        tenant_id,
    )
    return [row["subject"] for row in rows]


async def untold_failures(connection: Connection) -> set[UUID]:
    """Tenants with devices that fail their check, and have no open alert."""
    rows = await connection.fetch(
        "SELECT DISTINCT tenant_id FROM audit.alert_failed_device f WHERE NOT EXISTS"
        " (SELECT FROM audit.alert a WHERE a.tenant_id = f.tenant_id AND a.kind = $1"
        " AND a.subject = f.subject AND a.resolved_at IS NULL)",
        ATTESTATION_FAILED,
    )
    return {row["tenant_id"] for row in rows}
