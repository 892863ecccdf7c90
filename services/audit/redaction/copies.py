"""Copies of a redacted entry in the database: found, and removed where nothing needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from contract.contexts import CONTEXTS
from servicekit.data.postgres import SYSTEM, Connection
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import write
from services.audit.redaction.entry import ACTOR
from services.audit.reports import store as reports
from services.audit.reports.service import removal

MADE_ANEW = ("audit.entry", "audit.dead_letter", "audit.report_part")
"""Tables of which old versions of rows may still have the content, until they are vacuumed, beside
the outboxes."""


@dataclass(frozen=True, slots=True)
class Shows:
    """A kept report that has the entry."""

    id: UUID
    tenant_id: UUID
    kind: str
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Copies:
    """What was found."""

    dead_letters: int
    """Messages of the quarantine, which are deleted,"""
    outboxes: int
    """rows of outboxes, which are deleted,"""
    reports: Sequence[Shows]
    """and reports."""


def vacuumed() -> tuple[str, ...]:
    """The tables to vacuum after copies were removed."""
    return (*MADE_ANEW, *(f"{context}.outbox" for context in CONTEXTS))


async def remove(
    connection: Connection, entry_id: UUID, operator: str, *, reports_too: bool
) -> Copies:
    """Removes the copies of an entry from the quarantine and from outboxes, and finds reports.

    The log has the event: nothing needs it in an outbox, but a stream that is lost and published
    again, and that is to do without it.

    Args:
        connection: within a transaction, of a role that owns the schemas.
        entry_id: an entry, which is redacted.
        operator: the account of the machine that asks for it.
        reports_too: whether the reports are deleted.
    """
    await connection.execute("SELECT set_config('evergreen.scope', $1, true)", SYSTEM.setting)
    # Who knows an event by its id: what it says is not looked for.
    dead = await connection.fetch(
        "DELETE FROM audit.dead_letter WHERE position(convert_to($1, 'UTF8') IN payload) > 0"
        # What says that the entry was redacted has its id, too.
        " AND subject NOT LIKE '%.audit.entry_redacted' RETURNING 1",
        str(entry_id),
    )
    count = 0
    for context in CONTEXTS:
        gone = await connection.execute(f"DELETE FROM {context}.outbox WHERE id = $1", entry_id)
        count += int(gone.rpartition(" ")[2])
    found = await _showing(connection, entry_id)
    if reports_too:
        for one in found:
            await _delete(connection, one, operator)
    return Copies(len(dead), count, found)


async def _showing(connection: Connection, entry_id: UUID) -> Sequence[Shows]:
    """The reports that have the entry's hash, which stands beside each entry in all formats."""
    rows = await connection.fetch(
        "WITH searched AS (SELECT encode(hash, 'hex') AS hash, occurred_at FROM audit.entry"
        " WHERE id = $1) SELECT DISTINCT r.id, r.tenant_id, r.kind, r.as_of FROM searched s"
        " JOIN audit.report r ON r.kind = 'audit-extract' AND r.as_of >= s.occurred_at"
        " CROSS JOIN LATERAL (SELECT p.content || coalesce(substr(lead(p.content)"
        " OVER (PARTITION BY p.name ORDER BY p.part), 1, 63), ''::bytea) AS text"
        # A part ends anywhere, also within a hash.
        " FROM audit.report_part p WHERE p.report_id = r.id) AS parts"
        " WHERE position(convert_to(s.hash, 'UTF8') IN parts.text) > 0 ORDER BY r.id",
        entry_id,
    )
    return [Shows(row["id"], row["tenant_id"], row["kind"], row["as_of"]) for row in rows]


async def _delete(connection: Connection, one: Shows, operator: str) -> None:
    report = await reports.find(connection, SYSTEM, one.id, for_update=True)
    if report is not None and await reports.delete(connection, report):
        event = removal(report, "asked")
        told = CloudEvent(event, report.tenant_id, actor=ACTOR, actor_id=operator)
        await write(connection, "audit", told)
