"""Compares an export with the tree over all entries, as kept checkpoints know it.

The chains are checked by `auditlog.verify`. Somebody who rewrites a chain so that it fits together
must change leaves of the tree, too, and then the tree has another root than a kept checkpoint; or
leave them, and then they belong to no entry. Whose entry a leaf is stands in no hash. So only an
export of all tenants shows leaves without an entry; in one of some tenants they pass for leaves of
others, and a kept checkpoint of the chains has to say that these are whole.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from auditlog.entries import Entry, Withheld
from auditlog.findings import Finding, Kind
from auditlog.told import RESTORED_ACTION
from auditlog.tree import HASH_BYTES, TILE_WIDTH, Growing, leaf_hash, sha256

_NOTHING: Final = bytes(HASH_BYTES)
_MOST_SPANS: Final = 20


class Anchor(Protocol):
    """What is known of a tree: a checkpoint that was kept."""

    @property
    def origin(self) -> str:
        """Which log it is,"""

    @property
    def size(self) -> int:
        """how many leaves it had,"""

    @property
    def root(self) -> bytes:
        """and its root."""


@dataclass(frozen=True, slots=True)
class TreeState:
    """The tree over all entries, when an export was begun."""

    origin: str
    size: int
    before: str = ""
    """What the log before this one said last of its tree: the text of its checkpoint, of which the
    digest is in leaf 0. Empty for the first log, which has no such leaf."""
    all_tenants: bool = False
    """Whether the export has the entries of all leaves."""


class Leaves:
    """The data of leaves by their index; those of a file that nobody vouches for, too."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def __getitem__(self, index: int) -> bytes | None:
        page = self._pages.get(index // TILE_WIDTH)
        at = index % TILE_WIDTH * HASH_BYTES
        found = bytes(page[at : at + HASH_BYTES]) if page is not None else _NOTHING
        return None if found == _NOTHING else found

    def __setitem__(self, index: int, data: bytes) -> None:
        page = self._pages.setdefault(index // TILE_WIDTH, bytearray(TILE_WIDTH * HASH_BYTES))
        at = index % TILE_WIDTH * HASH_BYTES
        page[at : at + HASH_BYTES] = data


@dataclass(frozen=True, slots=True)
class Published:
    """The data of a log's first leaves, as the log publishes them."""

    origin: str
    size: int
    leaves: Leaves


class TreeVerifier:
    """Checks the entries of an export against the tree.

    Args:
        anchors: the checkpoints that were kept; their signatures are checked elsewhere.
        published: the leaves that these know; without them only an export of all tenants can be
            compared.
        kept: tenant → the last entry of its chain that a kept checkpoint of the chains knows.
    """

    def __init__(
        self,
        anchors: Iterable[Anchor],
        published: Published | None = None,
        kept: Mapping[str, int] | None = None,
    ) -> None:
        self.unchecked: list[str] = []
        self.reach: dict[str, int] = {}
        """Tenant → the last entry that the kept checkpoints know, of chains that they know to be
        whole; empty for an export of all tenants, of which they know all."""
        self._anchors = sorted(anchors, key=lambda anchor: anchor.size)
        self._given = published
        self._kept = kept or {}
        self._published: Leaves | None = None
        self._state: TreeState | None = None
        self._size = 0
        self._claimed = Leaves()
        self._known: dict[str, int] = {}
        self._restores: set[tuple[str, str]] = set()
        self._tenant_id = ""
        self._last = -1
        self._without: list[int] = []
        self._is_pruned = False

    def without_some(self) -> None:
        """Some entries were pruned, which may have told of restores."""
        self._is_pruned = True

    def pruned(self, entry: Withheld) -> Iterator[Finding]:
        """Takes what the tree has of an entry that was pruned."""
        yield from self._leaf(entry, "")

    def begin(self, state: TreeState | None) -> None:
        """Takes what the export says of the tree."""
        self._state = state
        if state is None:
            return
        if state.before:
            self._claimed[0] = beginning(state.before)
        self._size = max((a.size for a in self._anchors if a.origin == state.origin), default=0)
        given = self._given
        if given is not None and given.origin == state.origin and given.size >= self._size:
            self._published = given.leaves

    def entry(self, entry: Entry) -> Iterator[Finding]:
        """Takes the next entry of a chain; answers what is wrong with its leaf."""
        if entry.columns.action == RESTORED_ACTION:
            self._restores |= _origins(entry)
        yield from self._leaf(entry, f" ({entry.columns.id})")

    def withheld(self, entry: Withheld) -> Iterator[Finding]:
        """Takes the next entry of a chain, of which there is no record; as `entry`."""
        yield from self._leaf(entry, "")

    def _leaf(self, entry: Entry | Withheld, name: str) -> Iterator[Finding]:
        if entry.tenant_id != self._tenant_id:
            self._tenant_id, self._last, self._without = entry.tenant_id, -1, []
            self._known.setdefault(entry.tenant_id, 0)
        # The tree may have grown while the export was written, page by page.
        if entry.leaf is None or self._state is None or entry.leaf >= self._state.size:
            self._without.append(entry.sequence)
            return
        for sequence in self._without:
            yield self._forged(sequence, "is in no leaf of the tree, in which a later one is")
        self._without = []
        at = entry.leaf
        if at <= self._last:
            message = f"entry {entry.sequence} is in leaf {at}, before an earlier one's"
            yield Finding(entry.tenant_id, entry.sequence, Kind.REORDERED, message)
        if self._claimed[at] is not None:
            yield self._forged(entry.sequence, f"is in leaf {at}, as another entry is")
        self._last = max(self._last, at)
        if at < self._size:
            self._known[entry.tenant_id] = max(self._known[entry.tenant_id], entry.sequence)
        known = self._published[at] if self._published is not None else None
        self._claimed[at] = bytes.fromhex(entry.hash)
        if known is not None and known.hex() != entry.hash:
            message = (
                f"entry {entry.sequence}{name} was changed: leaf {at} of the tree"
                f" has the hash {known.hex()[:16]}…, the entry has {entry.hash[:16]}…"
            )
            yield Finding(entry.tenant_id, entry.sequence, Kind.CHANGED, message)

    def finish(self) -> Iterator[Finding]:
        """Compares the tree with the checkpoints."""
        state = self._state
        if not self._anchors:
            return
        if state is None:
            self.unchecked.append("the tree: the export says nothing of it")
            return
        anchors = []
        for anchor in self._anchors:
            if anchor.origin == state.origin:
                anchors.append(anchor)
            elif state.before.partition("\n")[0] == anchor.origin:
                yield from self._ended(state, anchor)
            else:
                self.unchecked.append(
                    f"the checkpoint of {anchor.size} leaves: it is of the log {anchor.origin}, and"
                    f" the export is of {state.origin}"
                )
        if anchors:
            yield from self._compare(state, anchors)

    def _ended(self, state: TreeState, anchor: Anchor) -> Iterator[Finding]:
        """Judges a checkpoint of the log before this one."""
        known = f"{anchor.origin}\n{anchor.size}\n"
        text = f"{known}{base64.b64encode(anchor.root).decode()}\n"
        if state.before.startswith(known) and state.before != text:
            message = (
                f"the log {anchor.origin} ended with other {anchor.size} leaves than those of the"
                " checkpoint, which has another root"
            )
            yield Finding("", 0, Kind.FORGED, message)
        elif (anchor.origin, state.origin) in self._restores:
            message = (
                f"the checkpoint of {anchor.size} leaves is of the log {anchor.origin}, which"
                f" ended when the installation was restored; {state.origin} came behind it"
            )
            yield Finding("", 0, Kind.RESTORED, message)
        elif state.all_tenants and not self._is_pruned:
            message = (
                f"the checkpoint of {anchor.size} leaves is of the log {anchor.origin}, and no"
                f" entry says that a restore put {state.origin} in its place"
            )
            yield Finding("", 0, Kind.FORGED, message)
        else:
            self.unchecked.append(
                f"the checkpoint of {anchor.size} leaves: it is of the log {anchor.origin}, and no"
                f" entry of these tenants says that a restore put {state.origin} in its place"
            )

    def _compare(self, state: TreeState, anchors: list[Anchor]) -> Iterator[Finding]:
        size = anchors[-1].size
        if state.size < size:
            yield Finding(
                "",
                0,
                Kind.TRUNCATED,
                f"the tree became shorter: it had {size} leaves, and has {state.size}",
            )
            return
        missing = self._missing(size) if state.all_tenants else []
        for first, last in _spans(missing)[:_MOST_SPANS]:
            leaves = f"leaf {first}" if first == last else f"leaves {first} to {last}"
            message = f"what was in {leaves} of the tree was removed from the log"
            yield Finding("", first, Kind.REMOVED, message)
        if self._published is not None:
            yield from _roots(anchors, self._published)
        elif state.all_tenants:
            if not missing:
                yield from _roots(anchors, self._claimed)
            return
        elif others := sum(1 for at in range(size) if self._claimed[at] is None):
            self.unchecked.append(
                f"the root of the tree: {others} of {size} leaves are other tenants', which are"
                " asked for when there is a connection"
            )
            return
        else:
            yield from _roots(anchors, self._claimed)
        if not state.all_tenants:
            self._tell_reach()

    def _missing(self, size: int) -> list[int]:
        return [at for at in range(size) if self._claimed[at] is None]

    def _tell_reach(self) -> None:
        """Says of which chains it is known that no leaf of theirs passes for another's."""
        untold = 0
        for tenant_id, known in self._known.items():
            if tenant_id in self._kept:
                self.reach[tenant_id] = max(known, self._kept[tenant_id])
            elif untold < _MOST_SPANS:
                untold += 1
                self.unchecked.append(
                    f"which leaves are of tenant {tenant_id}: the kept tree has its entries up to"
                    f" {known}, and cannot tell whether there were others behind; give a checkpoint"
                    " of the chains, or verify as root"
                )

    def _forged(self, sequence: int, what: str) -> Finding:
        return Finding(self._tenant_id, sequence, Kind.FORGED, f"entry {sequence} {what}")


def beginning(before: str) -> bytes:
    """The data of the leaf with which a log begins behind another one, whose end is given."""
    return sha256(before.encode())


def _origins(entry: Entry) -> set[tuple[str, str]]:
    """The log before a restore and the one since, as an entry tells of it."""
    try:
        after = json.loads(entry.record)["data"]["after"]
        return {(str(after["treeBefore"]), str(after["tree"]))}
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()


def _roots(anchors: Iterable[Anchor], leaves: Leaves) -> Iterator[Finding]:
    tree = Growing()
    for anchor in anchors:
        while tree.size < anchor.size:
            data = leaves[tree.size]
            if data is None:
                message = f"the log publishes no leaf {tree.size}, which a checkpoint knows"
                yield Finding("", tree.size, Kind.REMOVED, message)
                return
            tree.add(leaf_hash(data))
        if tree.root != anchor.root:
            yield Finding(
                "",
                0,
                Kind.FORGED,
                f"the log was rewritten: its first {anchor.size} entries are not those of the"
                " checkpoint, which has another root",
            )
            return


def _spans(numbers: list[int]) -> list[tuple[int, int]]:
    """Numbers in order, those behind one another as one."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found
