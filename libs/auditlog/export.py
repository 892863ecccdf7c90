"""The file in which the audit log leaves the system: JSON lines that hold all that a check needs.

The first line names the format and says whether the export is `complete` (not filtered by time).
One that is not can be verified, too, as far as it goes: a chain begins with its `base`, the place
and the hash of the entry before, and entries that the filter leaves out between others are
`withheld`. Where entries of its time were pruned, `pruned` says so.
Then, chain by chain, the entries in their order, and behind each chain where the log itself says
that it ends. A chain of which entries were pruned begins with its `base` in a complete export, too;
in one of all tenants, `leaves` follow: where the tree has their hashes. The last line counts the
entries, so that a broken download is told from a log that was cut off. A record is a text within
its line, so that its bytes stay exactly what was hashed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol, Self, TypeAlias

from auditlog.chain import Columns, Head, record_digest
from auditlog.entries import Entry, Missing, Place, Withheld
from auditlog.findings import Finding, Kind
from auditlog.leaves import TreeState, TreeVerifier
from auditlog.verify import Verifier

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


def pruned_line(base: Head, until: Head) -> str:
    """The line before a chain's first entry, if those before it were pruned.

    Args:
        base: the last one that is gone.
        until: the last one that is to go.
    """
    more = {} if until == base else {"until": {"sequence": until.sequence, "hash": until.hash}}
    return _line({"base": {**_place_of(base), **more}})


def missing_line(
    last: Head, last_occurred_at: datetime, pruned_at: datetime, archive_sha256: str
) -> str:
    """The line in a part of a log that says that it is without entries which were pruned.

    Args:
        last: the last one that is gone.
        last_occurred_at: when the latest of them happened.
        pruned_at: when it was pruned.
        archive_sha256: of the archived file that has it, in hexadecimal.
    """
    more = {
        "lastOccurredAt": _time(last_occurred_at),
        "prunedAt": _time(pruned_at),
        "archiveSha256": archive_sha256,
    }
    return _line({"pruned": {**_place_of(last), **more}})


def leaves_line(tenant_id: str, leaves: Mapping[int, tuple[int, str]]) -> str:
    """A line of hashes that the tree has of entries that were pruned.

    Args:
        tenant_id: whose they were.
        leaves: sequence → leaf and hash, in order.
    """
    return _line(
        {
            "leaves": {
                "tenantId": tenant_id,
                "sequences": list(leaves),
                "at": [at for at, _ in leaves.values()],
                "hashes": [found for _, found in leaves.values()],
            }
        }
    )


def head_line(head: Head) -> str:
    """The line behind a chain's entries."""
    return _place_line("head", head)


def _place_line(what: str, head: Head) -> str:
    return _line({what: _place_of(head)})


def _place_of(head: Head) -> dict[str, Any]:
    return {"tenantId": head.tenant_id, "sequence": head.sequence, "hash": head.hash}


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
class _Leaves:
    """Hashes that the tree has of entries that were pruned."""

    entries: tuple[Withheld, ...]


@dataclass(frozen=True, slots=True)
class _Closing:
    entries: int


ArchivedItem: TypeAlias = "Entry | Withheld | Place"
"""What an export of one chain is made of."""
_Item: TypeAlias = "Entry | Withheld | Place | Missing | _Leaves"


class Joined(Protocol):
    """Entries of a chain that archives have, right before those of an export."""

    @property
    def first(self) -> int:
        """The first of them."""

    @property
    def origins(self) -> set[str]:
        """The trees that their leaves are of."""

    def items(self) -> Iterator[ArchivedItem]:
        """The base, if they do not begin with entry 1, and the entries."""


class Archived(Protocol):
    """What has entries that were pruned."""

    def before(self, base: Head) -> Joined | None:
        """What it has of a chain up to a base; `None` for nothing."""


class _Export:
    """Reads the lines of an export, and checks that it is whole."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = ((n, line) for n, line in enumerate(lines, start=1) if line.strip())

    def opening(self) -> _Opening:
        """The first line.

        Raises:
            ExportError: it is none.
        """
        for number, line in self._lines:
            item = _read(number, line)
            if not isinstance(item, _Opening):
                break
            return item
        else:
            raise ExportError("it ends early; it is no proof of anything behind its last line")
        raise ExportError("it does not begin as an export of the audit log")

    def items(self) -> Iterator[_Item]:
        """The others.

        Raises:
            ExportError: when it is not a complete export.
        """
        count = 0
        for number, line in self._lines:
            item = _read(number, line)
            if isinstance(item, _Opening):
                raise ExportError(f"line {number} begins another export")
            if isinstance(item, _Closing):
                break
            count += isinstance(item, Entry)
            yield item
        else:
            raise ExportError("it ends early; it is no proof of anything behind its last line")
        if item.entries != count:
            raise ExportError(f"it holds {count} entries and says that it holds {item.entries}")
        for number, _ in self._lines:
            raise ExportError(f"line {number} stands behind the end of the export")


def items_of(lines: Iterable[str]) -> Iterator[ArchivedItem]:
    """What an export is made of, without its first and its last line.

    Raises:
        ExportError: when it is not a complete export.
    """
    export = _Export(lines)
    export.opening()
    for item in export.items():
        if not isinstance(item, _Leaves | Missing):
            yield item


def verify(
    lines: Iterable[str],
    verifier: Verifier,
    tree: TreeVerifier | None = None,
    archives: Archived | None = None,
) -> Iterator[Finding]:
    """Runs a whole export through a verifier; answers what is wrong as soon as it is known.

    Args:
        lines: of the export.
        verifier: of the chains,
        tree: and of the tree over all entries.
        archives: have entries that were pruned.

    Raises:
        ExportError: when it is not a complete export; what was answered before still holds.
    """
    export = _Export(lines)
    opening = export.opening()
    _begin(opening, verifier)
    tree = tree or TreeVerifier(())
    tree.begin(opening.tree)
    beginning = _Beginning(Place(Head("", 0, ""), is_base=True))
    for item in export.items():
        if isinstance(item, _Leaves):
            yield from beginning.leaves(item, tree)
            continue
        if isinstance(item, Missing):
            verifier.missing.append(item)
            continue
        yield from beginning.take(verifier, tree)
        if isinstance(item, Place) and item.is_base and opening.complete:
            beginning = _Beginning.of(item, opening, archives)
            continue
        yield from verifier.take(item)
        if isinstance(item, Entry):
            yield from tree.entry(item)
        elif isinstance(item, Withheld) and item.redacted:
            yield from tree.withheld(item)
    yield from beginning.take(verifier, tree)
    yield from verifier.finish()
    yield from tree.finish()


@dataclass(slots=True)
class _Beginning:
    """The beginning of a chain that was pruned, with what archives have of it.

    It is taken behind the hashes that the tree has of what is before it, as the tree grew.
    """

    place: Place
    found: Joined | None = None
    is_of_tree: bool = False
    """Whether its leaves are those of the export's tree."""
    is_taken: bool = True

    @classmethod
    def of(cls, place: Place, opening: _Opening, archives: Archived | None) -> Self:
        """Looks for what archives have of it."""
        found = archives.before(place.head) if archives else None
        # Leaves of the log before a restore are of another tree.
        is_of_tree = (
            found is not None
            and opening.tree is not None
            and found.origins == {opening.tree.origin}
        )
        return cls(place, found, is_of_tree, is_taken=False)

    def leaves(self, leaves: _Leaves, tree: TreeVerifier) -> Iterator[Finding]:
        """Takes leaves of what was pruned, without those that an archive has."""
        base = self.place.head
        for leaf in leaves.entries:
            if leaf.sequence == base.sequence and leaf.hash != base.hash:
                message = f"the tree has another hash of entry {leaf.sequence} than its chain"
                yield Finding(leaf.tenant_id, leaf.sequence, Kind.CHANGED, message)
            if self.found is None or not self.is_of_tree or leaf.sequence < self.found.first:
                yield from tree.pruned(leaf)

    def take(self, verifier: Verifier, tree: TreeVerifier) -> Iterator[Finding]:
        """Begins the chain; once."""
        if self.is_taken:
            return
        self.is_taken = True
        if self.found is None:
            tree.without_some()
            yield from verifier.pruned_up_to(self.place.head, self.place.until)
            return
        for item in self.found.items():
            if isinstance(item, Place):
                tree.without_some()
                yield from verifier.pruned_up_to(item.head, in_archive=True)
                continue
            yield from verifier.take(item)
            if self.is_of_tree:
                yield from tree.entry(item) if isinstance(item, Entry) else tree.withheld(item)


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


def _read(number: int, line: str) -> _Opening | _Item | _Closing:
    try:
        value = json.loads(line)
        if "entry" in value:
            return _entry(value["entry"])
        if "head" in value:
            return Place(_head(value["head"]), is_base=False)
        if "base" in value:
            return _base(value["base"])
        if "withheld" in value:
            return _withheld(value["withheld"])
        if "leaves" in value:
            return _leaves(value["leaves"])
        if "pruned" in value:
            return _missing(value["pruned"])
        if "end" in value:
            return _Closing(_int(value["end"], "entries"))
        if value["format"] != EXPORT_FORMAT:
            raise ValueError("another format")
        return _Opening(
            value["complete"] is True, value.get("based") is True, _tree_state(value.get("tree"))
        )
    except (ValueError, KeyError, TypeError, RecursionError) as broken:
        raise ExportError(f"line {number} is not a line of an export") from broken


def _base(value: dict[str, Any]) -> Place:
    head, until = _head(value), value.get("until")
    if until is None:
        return Place(head, is_base=True)
    end = Head(head.tenant_id, _int(until, "sequence"), _str(until, "hash"))
    return Place(head, is_base=True, until=end)


def _missing(value: dict[str, Any]) -> Missing:
    return Missing(
        head=_head(value),
        last_occurred_at=datetime.fromisoformat(_str(value, "lastOccurredAt")),
        pruned_at=datetime.fromisoformat(_str(value, "prunedAt")),
        archive=_str(value, "archiveSha256"),
    )


def _leaves(value: dict[str, Any]) -> _Leaves:
    tenant_id = _str(value, "tenantId")
    found = zip(value["sequences"], value["at"], value["hashes"], strict=True)
    entries = []
    for sequence, at, text in found:
        if type(sequence) is not int or type(at) is not int or len(bytes.fromhex(text)) != 32:
            raise ValueError("it is not a leaf")
        entries.append(Withheld(tenant_id, sequence, "", text, "", leaf=at, redacted=True))
    return _Leaves(tuple(entries))


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
