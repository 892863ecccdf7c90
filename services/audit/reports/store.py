"""The SQL of reports and of their files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from servicekit.data.postgres import Connection, Scope
from servicekit.rpc.pagination import Page
from services.audit.reports.domain import File, Parameters, Report, Schedule, Status

_REPORT: Final = (
    "id, tenant_id, kind, parameters, formats, status, as_of, requested_by, asked_from, request_id,"
    " schedule_id, attempts, waiting_since, finished_at, rows, bytes, manifest, entry_id, error,"
    " expires_at"
)
_IN_SCOPE: Final = "($1::uuid[] IS NULL OR tenant_id = ANY ($1))"


@dataclass(frozen=True, slots=True)
class Load:
    """How many reports a tenant has, and how many bytes they hold."""

    kept: int
    bytes: int


def _report(row: asyncpg.Record) -> Report:
    return Report(
        id=row["id"],
        tenant_id=row["tenant_id"],
        kind=row["kind"],
        parameters=Parameters.read(json.loads(row["parameters"])),
        formats=tuple(row["formats"]),
        status=Status(row["status"]),
        as_of=row["as_of"],
        requested_by=row["requested_by"],
        asked_from=row["asked_from"],
        expires_at=row["expires_at"],
        request_id=row["request_id"],
        schedule_id=row["schedule_id"],
        attempts=row["attempts"],
        waiting_since=row["waiting_since"],
        finished_at=row["finished_at"],
        rows=row["rows"],
        bytes=row["bytes"],
        manifest=row["manifest"],
        entry_id=row["entry_id"],
        error=row["error"],
    )


async def lock_tenant(connection: Connection, tenant_id: UUID) -> None:
    """Lets one call at a time add reports and schedules of a tenant, so that the bounds hold."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtext('audit.report'), hashtext($1))", str(tenant_id)
    )


async def load(connection: Connection, tenant_id: UUID, *, scheduled: bool) -> Load:
    """How much of a tenant is kept: of schedules, or of what people and programs asked for."""
    row = await connection.fetchrow(
        "SELECT count(*) AS kept, coalesce(sum(bytes), 0)::bigint AS bytes FROM audit.report"
        " WHERE tenant_id = $1 AND (schedule_id IS NOT NULL) = $2",
        tenant_id,
        scheduled,
    )
    return Load(row["kept"], row["bytes"])


async def bytes_of_all(connection: Connection, running: int) -> int:
    """How many bytes the reports of all tenants hold.

    Args:
        connection: of the system.
        running: the bytes that one counts for that is being made.
    """
    found: int = await connection.fetchval(
        "SELECT coalesce(sum(CASE WHEN status = 'running' AND lease_until >= now() THEN $1"
        " ELSE bytes END), 0)::bigint FROM audit.report",
        running,
    )
    return found


async def count_running(connection: Connection, tenant_id: UUID) -> int:
    """How many reports on a tenant are being made, or wait to be."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM audit.report WHERE tenant_id = $1 AND status = 'running'", tenant_id
    )
    return found


async def count_asked(connection: Connection, asked_from: UUID) -> int:
    """How many reports that a tenant asked for are being made, in the scope of the connection."""
    found: int = await connection.fetchval(
        "SELECT count(*) FROM audit.report WHERE asked_from = $1 AND status = 'running'"
        " AND schedule_id IS NULL",
        asked_from,
    )
    return found


async def insert(connection: Connection, report: Report) -> None:
    """Adds a report that is to be made."""
    await connection.execute(
        "INSERT INTO audit.report (id, tenant_id, kind, parameters, formats, status, as_of,"
        " requested_by, asked_from, request_id, schedule_id, expires_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        report.id,
        report.tenant_id,
        report.kind,
        report.parameters.canonical(),
        list(report.formats),
        report.status,
        report.as_of,
        report.requested_by,
        report.asked_from,
        report.request_id,
        report.schedule_id,
        report.expires_at,
    )


async def by_request(connection: Connection, tenant_id: UUID, request_id: UUID) -> Report | None:
    """The report that a request made."""
    row = await connection.fetchrow(
        f"SELECT {_REPORT} FROM audit.report WHERE tenant_id = $1 AND request_id = $2",
        tenant_id,
        request_id,
    )
    return _report(row) if row else None


async def find(
    connection: Connection, scope: Scope, report_id: UUID, *, for_update: bool = False
) -> Report | None:
    """A report of a scope, without its files."""
    row = await connection.fetchrow(
        f"SELECT {_REPORT} FROM audit.report WHERE {_IN_SCOPE} AND id = $2"
        f"{' FOR UPDATE' if for_update else ''}",
        scope.tenant_ids,
        report_id,
    )
    return _report(row) if row else None


async def files(connection: Connection, report_ids: Sequence[UUID]) -> dict[UUID, tuple[File, ...]]:
    """The files of reports, in their order."""
    rows = await connection.fetch(
        "SELECT report_id, name, media_type, bytes, sha256 FROM audit.report_file"
        " WHERE report_id = ANY ($1) ORDER BY report_id, position",
        report_ids,
    )
    found: dict[UUID, tuple[File, ...]] = {}
    for row in rows:
        file = File(row["name"], row["media_type"], row["bytes"], row["sha256"])
        found[row["report_id"]] = (*found.get(row["report_id"], ()), file)
    return found


async def list_reports(
    connection: Connection,
    scope: Scope,
    kind: str,
    schedule_id: UUID | None,
    before: UUID | None,
    limit: int,
) -> Page[Report, UUID]:
    """The reports of a scope, newest first, without their files."""
    rows = await connection.fetch(
        f"SELECT {_REPORT} FROM audit.report WHERE {_IN_SCOPE} AND ($2 = '' OR kind = $2)"
        " AND ($3::uuid IS NULL OR schedule_id = $3) AND ($4::uuid IS NULL OR id < $4)"
        " ORDER BY id DESC LIMIT $5",
        scope.tenant_ids,
        kind,
        schedule_id,
        before,
        limit + 1,
    )
    return Page.of([_report(row) for row in rows], limit, lambda report: report.id)


async def part(
    connection: Connection, report_id: UUID, name: str, after: int
) -> tuple[int, bytes] | None:
    """The part of a file behind a number."""
    row = await connection.fetchrow(
        "SELECT part, content FROM audit.report_part WHERE report_id = $1 AND name = $2"
        " AND part > $3 ORDER BY part LIMIT 1",
        report_id,
        name,
        after,
    )
    return (row["part"], row["content"]) if row else None


async def delete(connection: Connection, report: Report) -> bool:
    """Removes a report with its files; answers whether it was there."""
    done = await connection.execute(
        "DELETE FROM audit.report WHERE id = $1 AND tenant_id = $2", report.id, report.tenant_id
    )
    return bool(done == "DELETE 1")


async def expired(connection: Connection, at: datetime, most: int) -> list[Report]:
    """Some reports that are kept no longer, the oldest first."""
    rows = await connection.fetch(
        f"SELECT {_REPORT} FROM audit.report WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2",
        at,
        most,
    )
    return [_report(row) for row in rows]


async def surplus(connection: Connection, most: int) -> list[Report]:
    """Some reports of schedules that have newer ones, as many as they keep: of those that are
    ready and of those that failed, each."""
    columns = ", ".join(f"r.{column}" for column in _REPORT.split(", "))
    rows = await connection.fetch(
        f"SELECT {columns} FROM audit.report_schedule s"
        " CROSS JOIN (VALUES ('ready'), ('failed')) AS t (status) CROSS JOIN LATERAL ("
        "SELECT * FROM audit.report o WHERE o.schedule_id = s.id AND o.status = t.status"
        " ORDER BY o.id DESC OFFSET s.keep) AS r LIMIT $1",
        most,
    )
    return [_report(row) for row in rows]


async def failed(connection: Connection, tenant_id: UUID, most: int) -> list[Report]:
    """Some failed reports of a tenant that no schedule made, the oldest first."""
    rows = await connection.fetch(
        f"SELECT {_REPORT} FROM audit.report WHERE tenant_id = $1 AND schedule_id IS NULL"
        " AND status = 'failed' ORDER BY id LIMIT $2",
        tenant_id,
        most,
    )
    return [_report(row) for row in rows]


async def of_schedule(connection: Connection, schedule: Schedule) -> list[Report]:
    """The reports of a schedule that are not being made: failed ones first, then the oldest."""
    rows = await connection.fetch(
        f"SELECT {_REPORT} FROM audit.report WHERE tenant_id = $1 AND schedule_id = $2"
        " AND status <> 'running' ORDER BY status = 'ready', id",
        schedule.tenant_id,
        schedule.id,
    )
    return [_report(row) for row in rows]


# Making: only who holds the lease writes.


async def claim(connection: Connection, lease: UUID, at: datetime, seconds: float) -> Report | None:
    """Takes the next report to make.

    Tenants that ask have their turns, the one first that has waited longest; of each, and on each,
    one report is made at a time.
    """
    # One process after the other, so that none overlooks what another one takes.
    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('audit.report_claim'))")
    row = await connection.fetchrow(
        "UPDATE audit.report SET lease = $1, lease_until = now() + make_interval(secs => $3),"
        " attempts = attempts + 1 WHERE id = (SELECT r.id FROM audit.report r"
        " LEFT JOIN audit.report_turn t ON t.tenant_id = r.asked_from"
        " WHERE r.status = 'running' AND (r.lease_until IS NULL OR r.lease_until < now())"
        " AND (r.not_before IS NULL OR r.not_before <= $2) AND NOT EXISTS ("
        "SELECT FROM audit.report o WHERE o.status = 'running' AND o.lease_until >= now()"
        " AND (o.tenant_id = r.tenant_id OR o.asked_from = r.asked_from))"
        " ORDER BY t.at NULLS FIRST, r.id LIMIT 1 FOR UPDATE OF r SKIP LOCKED)"
        f" RETURNING {_REPORT}",
        lease,
        at,
        seconds,
    )
    if row is None:
        return None
    found = _report(row)
    await connection.execute(
        "INSERT INTO audit.report_turn (tenant_id, at) VALUES ($1, clock_timestamp())"
        " ON CONFLICT (tenant_id) DO UPDATE SET at = clock_timestamp()",
        found.asked_from,
    )
    return found


async def forget_parts(connection: Connection, report: Report, lease: UUID) -> bool:
    """Removes what an attempt before left; answers whether the report is still held."""
    held = await connection.fetchval(
        "SELECT true FROM audit.report WHERE id = $1 AND lease = $2 AND status = 'running'"
        " FOR UPDATE",
        report.id,
        lease,
    )
    if not held:
        return False
    await delete_parts(connection, report)
    return True


async def delete_parts(connection: Connection, report: Report) -> None:
    """Removes all parts of a report whose row is locked."""
    await connection.execute("DELETE FROM audit.report_part WHERE report_id = $1", report.id)


async def renew(connection: Connection, report: Report, lease: UUID, seconds: float) -> bool:
    """Holds a report; answers whether it is still there and held."""
    done = await connection.execute(
        "UPDATE audit.report SET lease_until = now() + make_interval(secs => $3)"
        " WHERE id = $1 AND lease = $2 AND status = 'running'",
        report.id,
        lease,
        seconds,
    )
    return bool(done == "UPDATE 1")


async def keep_part(
    connection: Connection, report: Report, lease: UUID, name: str, number: int, content: bytes
) -> bool:
    """Keeps a part of a file; answers whether the report is still held."""
    done = await connection.execute(
        "INSERT INTO audit.report_part (report_id, tenant_id, name, part, content)"
        " SELECT id, tenant_id, $3, $4, $5 FROM audit.report"
        " WHERE id = $1 AND lease = $2 AND status = 'running' FOR SHARE",
        report.id,
        lease,
        name,
        number,
        content,
    )
    return bool(done == "INSERT 0 1")


async def finish(connection: Connection, report: Report, lease: UUID) -> bool:
    """Stores what came of a report; answers whether it was still held."""
    done = await connection.execute(
        "UPDATE audit.report SET status = $3, finished_at = $4, rows = $5, bytes = $6,"
        " manifest = $7, entry_id = $8, error = $9, lease = NULL, lease_until = NULL"
        " WHERE id = $1 AND lease = $2 AND status = 'running'",
        report.id,
        lease,
        report.status,
        report.finished_at,
        report.rows,
        report.bytes,
        report.manifest,
        report.entry_id,
        report.error,
    )
    if done != "UPDATE 1":
        return False
    await connection.executemany(
        "INSERT INTO audit.report_file (report_id, tenant_id, position, name, media_type, bytes,"
        " sha256) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [
            (report.id, report.tenant_id, n, file.name, file.media_type, file.bytes, file.sha256)
            for n, file in enumerate(report.files)
        ],
    )
    return True


async def answered(connection: Connection, report: Report, lease: UUID) -> None:
    """Notes that nobody is away any more for whom a report waited."""
    await connection.execute(
        "UPDATE audit.report SET waiting_since = NULL WHERE id = $1 AND lease = $2",
        report.id,
        lease,
    )


async def waiting_since(connection: Connection, report: Report) -> datetime | None:
    """Since when somebody is away for whom a report waits."""
    found: datetime | None = await connection.fetchval(
        "SELECT waiting_since FROM audit.report WHERE id = $1", report.id
    )
    return found


async def postpone(
    connection: Connection, report: Report, lease: UUID, until: datetime, since: datetime
) -> None:
    """Gives a report back, to be made later; the attempt does not count.

    Args:
        connection: of the report's tenant.
        report: the report.
        lease: with which it is held.
        until: when it is tried again.
        since: when the wait began.
    """
    await connection.execute(
        "UPDATE audit.report SET lease = NULL, lease_until = NULL, not_before = $3,"
        " attempts = attempts - 1, waiting_since = coalesce(waiting_since, $4)"
        " WHERE id = $1 AND lease = $2",
        report.id,
        lease,
        until,
        since,
    )


async def release(connection: Connection, report: Report, lease: UUID) -> None:
    """Gives a report back, to be made at once; the attempt does not count."""
    await connection.execute(
        "UPDATE audit.report SET lease = NULL, lease_until = NULL, attempts = attempts - 1"
        " WHERE id = $1 AND lease = $2",
        report.id,
        lease,
    )
