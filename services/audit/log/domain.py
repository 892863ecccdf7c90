"""What audit takes in and answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn
from uuid import UUID

from auditlog.chain import Columns, canonical
from auditlog.entries import Entry
from contract.events.telemetry import DeviceEvents
from contract.subjects import SUBJECT_ROOT
from servicekit.errors import invalid_field
from servicekit.spreadsheet import harmless_json
from servicekit.times import RULE, format_rfc3339, is_usable

_SUBJECT: Final = re.compile(
    re.escape(SUBJECT_ROOT) + r"\.([0-9a-f-]{36})\.([a-z]+\.[a-z0-9_]+)", re.ASCII
)
_NOT_RECORDED: Final = frozenset({DeviceEvents.NAME})
"""What devices report about themselves; telemetry stores it, and no admin did it."""


class MalformedError(ValueError):
    """A message is no event; the message says why."""


SEALED_FOR: Final = "audit-signing"
"""The purpose for which the master key seals the keys."""
CHECKPOINTS: Final = "audit"
"""The purpose of the keys that sign checkpoints."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event that is to be recorded."""

    id: UUID
    tenant_id: UUID
    columns: Columns
    record: str


@dataclass(frozen=True, slots=True)
class Filters:
    """Which entries a list shows; what is empty does not filter."""

    actor: str = ""
    action: str = ""
    resource: str = ""
    occurred_after: datetime | None = None
    occurred_before: datetime | None = None
    actions: tuple[str, ...] = ()
    """Any of them; `policy.*` is all that begin so."""
    actor_kind: str = ""
    outcome: str = ""
    source_ip: str = ""
    request_id: str = ""
    search: str = ""
    """How the actor, the resource or its name begins, in any case."""
    related_to: str = ""
    """A resource that an entry is about, or concerns beside others."""

    def is_in_time(self, entry: Entry) -> bool:
        """Whether an entry happened within the times."""
        at = entry.columns.occurred_at
        return (self.occurred_after is None or at >= self.occurred_after) and (
            self.occurred_before is None or at < self.occurred_before
        )


@dataclass(frozen=True, slots=True)
class Base:
    """Up to which entry a chain was pruned."""

    tenant_id: UUID
    sequence: int
    hash: bytes
    until_sequence: int
    """Where the pruning ends, if it was cut short; else the same."""
    until_hash: bytes
    archive_sha256: bytes
    pruned_at: datetime
    last_occurred_at: datetime
    """When the latest of those that are gone happened."""

    def reaches(self, start: datetime | None) -> bool:
        """Whether what is asked about from a time on may be without some of them."""
        return start is None or self.last_occurred_at >= start


MOST_BASES: Final = 100
"""Pruned chains that an answer names; it has the number of all."""


@dataclass(frozen=True, slots=True)
class Bases:
    """Pruned chains, those pruned last first."""

    shown: Sequence[Base] = ()
    """At most `MOST_BASES`,"""
    count: int = 0
    """of so many."""


_ACTION: Final = re.compile(r"[a-z]+\.(\*|[a-z0-9_]+)", re.ASCII)


def check_actions(actions: Iterable[str]) -> None:
    """Checks what actions are asked for.

    Raises:
        DomainError: INVALID_ARGUMENT, with the one that is none.
    """
    for index, action in enumerate(actions):
        if _ACTION.fullmatch(action) is None:
            raise invalid_field(
                f"actions[{index}]", "must be an action, or all of a context (policy.*)"
            )


def is_recorded(subject: str) -> bool:
    """Whether what is published under a subject belongs into the log."""
    return ".".join(subject.rsplit(".", 2)[-2:]) not in _NOT_RECORDED


def read_event(subject: str, payload: bytes) -> Arrival:
    """Makes sense of a message.

    The subject tells who could have published it (NATS lets every service publish under its own
    name only), so the event must say the same as its subject.

    Raises:
        MalformedError: when it is no event of this system.
    """
    named = _SUBJECT.fullmatch(subject)
    if named is None:
        raise MalformedError("the subject is not that of an event")
    try:
        event: Any = json.loads(payload.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as broken:
        raise MalformedError("it is not JSON in UTF-8") from broken
    if not isinstance(event, dict):
        raise MalformedError("it is not a JSON object")
    try:
        columns = Columns.of(event)
        record = canonical(event)
        record.encode("utf-8")
    except (ValueError, OverflowError, RecursionError) as broken:
        raise MalformedError(f"it is not an event: {broken}") from broken
    if not is_usable(columns.occurred_at):
        raise MalformedError(f"time: {RULE}")
    tenant_id, action = named.groups()
    if columns.tenant_id != tenant_id or str(_uuid(tenant_id)) != tenant_id:
        raise MalformedError("the tenant is not that of the subject")
    if columns.action != action:
        raise MalformedError("the action is not that of the subject")
    if str(_uuid(columns.id)) != columns.id:
        raise MalformedError("the id is not a UUID in its usual form")
    return Arrival(UUID(columns.id), UUID(tenant_id), columns, record)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as broken:
        raise MalformedError("an id is not a UUID") from broken


def data_of(record: str) -> Mapping[str, Any]:
    """The parts of a record that people read; empty when somebody damaged the record."""
    try:
        data = json.loads(record)["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def related_of(data: Mapping[str, Any]) -> list[str]:
    """What else an entry concerns."""
    found = data.get("related")
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def key_of(entry: Entry | Base) -> str:
    """What names an entry that cannot be read."""
    return f"{entry.tenant_id}/{entry.sequence}"


MOST_CHANGES: Final = 1_000
_DEEPEST: Final = 32
_NONE: Final = object()


@dataclass(frozen=True, slots=True)
class Change:
    """A value that differs; a side that has none is without it."""

    path: str
    sides: Mapping[str, Any]
    """`before` and `after`, those that there are."""


def changes_of(before: Any, after: Any) -> list[Change]:
    """What differs between two values, member by member, at most `MOST_CHANGES`; lists as a whole.

    Nothing, where one of them is no object: then it was made, or is no more.
    """
    found: list[Change] = []
    if isinstance(before, dict) and isinstance(after, dict):
        _compare("", before, after, found)
    return found


def _compare(path: str, before: Any, after: Any, found: list[Change]) -> None:
    if before == after and type(before) is type(after):
        return
    if len(found) >= MOST_CHANGES:
        return
    deeper = path.count("/") < _DEEPEST
    if isinstance(before, dict) and isinstance(after, dict) and deeper:
        for name in dict.fromkeys((*before, *after)):
            pointer = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
            _compare(pointer, before.get(name, _NONE), after.get(name, _NONE), found)
        return
    sides = {"before": before, "after": after}
    found.append(Change(path, {side: v for side, v in sides.items() if v is not _NONE}))


CSV_COLUMNS: Final = (
    "occurredAt",
    "tenantId",
    "sequence",
    "id",
    "actor",
    "actorId",
    "actorRole",
    "action",
    "resource",
    "sourceIp",
    "requestId",
    "before",
    "after",
    "hash",
    "outcome",
    "reason",
    "resourceName",
    "actorKind",
    "sessionId",
    "userAgent",
    "redacted",
    "related",
    "prunedAt",
    "archiveSha256",
)


def csv_row(item: Entry | Base) -> tuple[str, ...]:
    """An entry as the values of `CSV_COLUMNS`; or, in place of those that were pruned, up to which
    one that was, when that one happened, and where it is."""
    if isinstance(item, Base):
        return _base_row(item)
    entry = item
    data = data_of(entry.record)

    def part(name: str) -> str:
        value = data.get(name)
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        return harmless_json(json.dumps(value, ensure_ascii=False))

    return (
        format_rfc3339(entry.columns.occurred_at),
        entry.tenant_id,
        str(entry.sequence),
        entry.columns.id,
        part("actor"),
        part("actorId"),
        part("actorRole"),
        entry.columns.action if entry.redacted else part("action"),
        part("resource"),
        part("sourceIp"),
        part("requestId"),
        part("before"),
        part("after"),
        entry.hash,
        part("outcome"),
        part("reason"),
        part("resourceName"),
        part("actorKind"),
        part("sessionId"),
        part("userAgent"),
        "true" if entry.redacted else "",
        " ".join(related_of(data)),
        "",
        "",
    )


def _base_row(base: Base) -> tuple[str, ...]:
    told = {
        "occurredAt": format_rfc3339(base.last_occurred_at),
        "tenantId": str(base.tenant_id),
        "sequence": str(base.sequence),
        "hash": base.hash.hex(),
        "prunedAt": format_rfc3339(base.pruned_at),
        "archiveSha256": base.archive_sha256.hex(),
    }
    return tuple(told.get(name, "") for name in CSV_COLUMNS)
