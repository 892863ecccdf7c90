"""What audit holds about one person, for an export: entries of the log, and what hangs on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from contract.subjects import SUBJECT_ROOT
from servicekit.rpc.persons import Person, Table, camel, plain_value
from services.audit.log.domain import data_of

_ACTORS: Final = (
    "actor", "actorId", "actorKind", "actorRole", "authMethod", "sourceIp", "userAgent",
    "sessionId", "requestId",
)  # fmt: skip
"""What an entry says of the one who did something."""
_DONE: Final = ("action", "resource", "resourceName", "outcome", "reason")
_MOST_LINES: Final = 20
"""Lines of a part of a report that are told."""


def _entry(person: Person, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What an entry says of a person: all of it, where the person did it; what was done and by
    whom in which role, where it was done to the person; and else the parts that name the person."""
    record = row["record"]
    if not record or not person.may_be_in(record):
        return None
    data = data_of(record)
    told = {
        "id": str(row["id"]),
        "sequence": row["sequence"],
        "occurredAt": plain_value(row["occurred_at"]),
    }
    did = any(person.is_in(str(data.get(name) or "")) for name in ("actor", "actorId"))
    suffered = any(person.is_in(str(data.get(name) or "")) for name in ("resource", "resourceName"))
    sides = {side: data[side] for side in ("before", "after") if data.get(side) is not None}
    if did or suffered:
        names = (*_DONE, *(_ACTORS if did else ("actorKind", "actorRole")))
        told |= {name: data[name] for name in names if data.get(name)}
        return {**person.all_of(told), **{side: person.all_of(one) for side, one in sides.items()}}
    found: dict[str, Any] = {
        side: parts for side, one in sides.items() if (parts := person.parts_of(one))
    }
    for name in ("reason", "userAgent"):
        if person.is_in(text := str(data.get(name) or "")):
            found[name] = person.text(text)
    if not found:
        return None
    shown = {name: data[name] for name in ("action", "resource", "outcome") if data.get(name)}
    return {**told, **person.all_of(shown), **found}


def _report_lines(person: Person, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The lines of a part of a report's file that have the person."""
    text = row["content"].decode("utf-8", "replace")
    if not person.may_be_in(text):
        return None
    lines = [person.text(line) for line in text.splitlines() if person.is_in(line)]
    if not lines:
        return None
    told = {camel(name): plain_value(value) for name, value in row.items() if name != "content"}
    return {**told, "lines": lines[:_MOST_LINES], "furtherLines": max(0, len(lines) - _MOST_LINES)}


TABLES: Final = (
    Table(
        kind="audit entry",
        source="audit.entry",
        key=(("sequence", "bigint"), ("id", "uuid")),
        shown=("id", "sequence", "occurred_at"),
        searched=("record",),
        tell=_entry,
    ),
    Table(
        kind="report",
        source="audit.report",
        shown=("id", "kind", "as_of", "expires_at"),
        searched=("requested_by", "parameters"),
        json=frozenset({"parameters"}),
    ),
    Table(
        kind="part of a report",
        # The same rows are in all formats: that with the fewest bytes is looked through.
        source="audit.report_part o JOIN audit.report r ON r.id = o.report_id",
        key=(("o.report_id", "uuid"), ("o.name", "text"), ("o.part", "integer")),
        of_tenant="o.tenant_id = $1 AND (o.name LIKE '%.csv' OR NOT EXISTS"
        " (SELECT FROM audit.report_file f WHERE f.report_id = o.report_id"
        " AND f.name LIKE '%.csv')) AND r.status = 'ready'",
        shown=(
            "o.report_id AS id", "r.kind AS report", "r.as_of AS as_of", "o.name AS file",
            "o.part AS part",
        ),
        searched=("o.content AS content",),
        tell=_report_lines,
    ),
    Table(
        kind="schedule of reports",
        source="audit.report_schedule",
        shown=("id", "kind", "created_at"),
        searched=("created_by", "parameters", "notify", "last_error"),
        json=frozenset({"parameters"}),
    ),
    Table(
        kind="alert",
        source="audit.alert",
        shown=("id", "kind", "raised_at", "resolved_at"),
        searched=("subject", "facts"),
        json=frozenset({"facts"}),
    ),
    Table(
        kind="rules of alerts",
        source="audit.alert_rules",
        key=(("tenant_id", "uuid"),),
        shown=("updated_at",),
        searched=("emails", "rules", "updated_by"),
        json=frozenset({"rules"}),
    ),
    Table(
        kind="retention of the log",
        source="audit.retention",
        key=(("chain_id", "uuid"),),
        of_tenant="chain_id = $1",
        shown=("updated_at",),
        searched=("hold_reason", "held_by", "updated_by"),
    ),
    Table(
        kind="mail that waits",
        source="audit.notice",
        shown=("id", "created_at"),
        searched=("addresses", "texts"),
        json=frozenset({"texts"}),
    ),
    Table(
        kind="forwarder",
        source="audit.forwarder",
        shown=("id", "kind", "created_at"),
        searched=("name", "created_by", "config", "filter", "disabled_reason"),
        json=frozenset({"config", "filter"}),
    ),
    Table(
        kind="entry that a forwarder could not deliver",
        source="audit.forwarder_quarantine o JOIN audit.entry e ON e.id = o.entry_id",
        key=(("o.id", "uuid"),),
        of_tenant="o.tenant_id = $1",
        shown=(
            "o.id AS id", "o.forwarder_id AS forwarder_id", "o.entry_id AS entry_id",
            "o.quarantined_at AS quarantined_at", "o.delivered_at AS delivered_at",
        ),
        searched=("e.record AS record",),
        tell=lambda person, row: (
            {camel(name): plain_value(value) for name, value in row.items() if name != "record"}
            if _entry(person, {**row, "sequence": 0, "occurred_at": None}) is not None
            else None
        ),
    ),
    Table(
        kind="message that is no event",
        source="audit.dead_letter",
        key=(("digest", "bytea"),),
        of_tenant=f"starts_with(subject, '{SUBJECT_ROOT}.' || $1::uuid::text || '.')",
        shown=("subject", "reason", "received_at"),
        searched=("payload",),
        json=frozenset({"payload"}),
    ),
)  # fmt: skip
"""What may hold something about a person, in the order of an export."""
