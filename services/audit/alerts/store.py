"""The SQL of alerts, of who looks after them, and of daily mails."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page, TimePosition
from services.audit.alerts.domain import DIGEST_EVERY, Alert, Finding

_ALERT: Final = "id, tenant_id, kind, subject, facts, raised_at, step, ended_since, resolved_at"
_IN_SCOPE: Final = "($1::uuid[] IS NULL OR tenant_id = ANY ($1))"
_LEFT_OUT_AGO: Final = timedelta(hours=1)
"""So long after the first mail that was left out the daily one is sent, with what came since."""


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
