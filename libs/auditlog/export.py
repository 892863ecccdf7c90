"""The file in which the audit log leaves the system: JSON lines that hold all that a check needs.

The first line names the format and says whether the export is `complete` (not filtered by time).
One that is not can be verified, too, as far as it goes: a chain begins with its `base`, the place
and the hash of the entry before, and entries that the filter leaves out between others are
`withheld`.
Then, chain by chain, the entries in their order, and behind each chain where the log itself says
that it ends. The last line counts the entries, so that a broken download is told from a log that
was cut off. A record is a text within its line, so that its bytes stay exactly what was hashed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from auditlog.chain import Columns, Head, record_digest
from auditlog.leaves import TreeState, TreeVerifier
from auditlog.verify import Entry, Finding, Verifier, Withheld

EXPORT_FORMAT: Final = "evergreen audit export v1"


class ExportError(ValueError):
    """An export cannot be read, or cannot be verified; the message says why."""


def opening_line(taken_at: datetime, *, complete: bool, tree: TreeState | None = None) -> str:
    """The first line."""
    more: dict[str, Any] = {} if tree is None else {"tree": _tree(tree)}
    if not complete:
        more["based"] = True
    return _line(
        {"format": EXPORT_FORMAT, "takenAt": _time(taken_at), "complete": complete, **more}
    )


def _tree(tree: TreeState) -> dict[str, Any]:
    return {
        "origin": tree.origin,
        "size": tree.size,
        "before": tree.before,
        "allTenants": tree.all_tenants,
    }


def entry_line(entry: Entry) -> str:
    """The line of an entry."""
    if entry.redacted:
        return withheld_line(entry)
    columns = entry.columns
    salt = {"salt": entry.salt} if entry.salt else {}
    leaf = {} if entry.leaf is None else {"leaf": entry.leaf}
    return _line(
        {
            "entry": {
                "id": columns.id,
                "tenantId": entry.tenant_id,
                "sequence": entry.sequence,
                "previousHash": entry.previous_hash,
                "hash": entry.hash,
                "occurredAt": _time(columns.occurred_at),
                "actor": columns.actor,
                "actorId": columns.actor_id,
                "action": columns.action,
                "resource": columns.resource,
                "record": entry.record,
                **salt,
                **leaf,
            }
        }
    )


def entry_of_line(line: str) -> Entry:
    """Reads what `entry_line` wrote.

    Raises:
        ValueError: it is none.
    """
    try:
        return _entry(json.loads(line)["entry"])
    except (ValueError, KeyError, TypeError, RecursionError) as broken:
        raise ValueError("it is not a line of an entry") from broken


def withheld_line(entry: Entry) -> str:
    """The line of an entry that a filter leaves out, between others, or that was redacted."""
    digest: dict[str, Any] = {}
    if entry.salt or entry.digest:
        digest["digest"] = entry.digest or record_digest(entry.salt, entry.record)
    if entry.redacted:
        digest["redacted"] = True
        # Releases before 0.3.0 ignore them.
        digest["id"] = entry.columns.id
        digest["action"] = entry.columns.action
        digest["occurredAt"] = _time(entry.columns.occurred_at)
        if entry.leaf is not None:
            digest["leaf"] = entry.leaf
    return _line(
        {
            "withheld": {
                "tenantId": entry.tenant_id,
                "sequence": entry.sequence,
                "previousHash": entry.previous_hash,
                "hash": entry.hash,
                **digest,
            }
        }
    )


def base_line(entry: Entry) -> str:
    """The line before a chain's first entry, if a filter leaves out those before it."""
    return _place_line("base", Head(entry.tenant_id, entry.sequence - 1, entry.previous_hash))


def head_line(head: Head) -> str:
    """The line behind a chain's entries."""
    return _place_line("head", head)


def _place_line(what: str, head: Head) -> str:
    return _line({what: {"tenantId": head.tenant_id, "sequence": head.sequence, "hash": head.hash}})


def closing_line(entries: int, left_out: int = 0) -> str:
    """The last line; with how many entries could not be written, if there are any."""
    more = {"leftOut": left_out} if left_out else {}
    return _line({"end": {"entries": entries, **more}})


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n"


def _time(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class _Opening:
    complete: bool
    based: bool
    tree: TreeState | None


@dataclass(frozen=True, slots=True)
class _Base:
    head: Head


@dataclass(frozen=True, slots=True)
class _Closing:
    entries: int


def verify(
    lines: Iterable[str], verifier: Verifier, tree: TreeVerifier | None = None
) -> Iterator[Finding]:
    """Runs a whole export through a verifier; answers what is wrong as soon as it is known.

    Args:
        lines: of the export.
        verifier: of the chains,
        tree: and of the tree over all entries.

    Raises:
        ExportError: when it is not a complete export; what was answered before still holds.
    """
    opening: _Opening | None = None
    closed = False
    tree = tree or TreeVerifier(())
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if closed:
            raise ExportError(f"line {number} stands behind the end of the export")
        item = _read(number, line)
        if opening is None:
            if not isinstance(item, _Opening):
                raise ExportError("it does not begin as an export of the audit log")
            opening = item
            _begin(item, verifier)
            tree.begin(item.tree)
        elif isinstance(item, Entry):
            yield from verifier.entry(item)
            yield from tree.entry(item)
        elif isinstance(item, Head | _Base | Withheld):
            yield from _place(item, verifier)
            if isinstance(item, Withheld) and item.redacted:
                yield from tree.withheld(item)
        elif isinstance(item, _Closing):
            closed = True
            if item.entries != verifier.entries:
                raise ExportError(
                    f"it holds {verifier.entries} entries and says that it holds {item.entries}"
                )
        else:
            raise ExportError(f"line {number} begins another export")
    if not closed:
        raise ExportError("it ends early; it is no proof of anything behind its last line")
    yield from verifier.finish()
    yield from tree.finish()


def _begin(opening: _Opening, verifier: Verifier) -> None:
    if opening.complete:
        return
    if not opening.based:
        raise ExportError(
            "it was filtered by time, and is of a release whose filtered exports cannot be verified"
        )
    if not verifier.takes_part:
        raise ExportError("it was filtered by time: it can only be verified as a part (--part)")
    verifier.in_part()


def _place(item: Head | _Base | Withheld, verifier: Verifier) -> Iterator[Finding]:
    if isinstance(item, Head):
        return verifier.head(item)
    return verifier.base(item.head) if isinstance(item, _Base) else verifier.withheld(item)


def _read(number: int, line: str) -> _Opening | Entry | Head | _Base | Withheld | _Closing:
    try:
        value = json.loads(line)
        if "entry" in value:
            return _entry(value["entry"])
        if "head" in value:
            return _head(value["head"])
        if "base" in value:
            return _Base(_head(value["base"]))
        if "withheld" in value:
            return _withheld(value["withheld"])
        if "end" in value:
            return _Closing(_int(value["end"], "entries"))
        if value["format"] != EXPORT_FORMAT:
            raise ValueError("another format")
        return _Opening(
            value["complete"] is True, value.get("based") is True, _tree_state(value.get("tree"))
        )
    except (ValueError, KeyError, TypeError, RecursionError) as broken:
        raise ExportError(f"line {number} is not a line of an export") from broken


def _head(value: dict[str, Any]) -> Head:
    return Head(_str(value, "tenantId"), _int(value, "sequence"), _str(value, "hash"))


def _withheld(value: dict[str, Any]) -> Withheld:
    occurred_at = datetime.fromisoformat(_str(value, "occurredAt")) if "id" in value else None
    return Withheld(
        tenant_id=_str(value, "tenantId"),
        sequence=_int(value, "sequence"),
        previous_hash=_str(value, "previousHash"),
        hash=_str(value, "hash"),
        digest=_str(value, "digest") if "digest" in value else "",
        leaf=_int(value, "leaf") if "leaf" in value else None,
        redacted=value.get("redacted") is True,
        id=_str(value, "id") if "id" in value else "",
        action=_str(value, "action") if "id" in value else "",
        occurred_at=occurred_at,
    )


def _tree_state(value: dict[str, Any] | None) -> TreeState | None:
    if value is None:
        return None
    return TreeState(
        _str(value, "origin"),
        _int(value, "size"),
        _str(value, "before"),
        value["allTenants"] is True,
    )


def _entry(value: dict[str, Any]) -> Entry:
    tenant_id = _str(value, "tenantId")
    occurred_at = datetime.fromisoformat(_str(value, "occurredAt"))
    if occurred_at.tzinfo is None:
        raise ValueError("a time without an offset")
    return Entry(
        tenant_id=tenant_id,
        sequence=_int(value, "sequence"),
        previous_hash=_str(value, "previousHash"),
        hash=_str(value, "hash"),
        record=_str(value, "record"),
        columns=Columns(
            id=_str(value, "id"),
            tenant_id=tenant_id,
            occurred_at=occurred_at,
            actor=_str(value, "actor"),
            actor_id=_str(value, "actorId"),
            action=_str(value, "action"),
            resource=_str(value, "resource"),
        ),
        salt=_str(value, "salt") if "salt" in value else "",
        leaf=_int(value, "leaf") if "leaf" in value else None,
    )


def _str(value: dict[str, Any], name: str) -> str:
    if not isinstance(found := value[name], str):
        raise TypeError(name)
    return found


def _int(value: dict[str, Any], name: str) -> int:
    if type(found := value[name]) is not int:
        raise TypeError(name)
    return found
