"""Compares an export with the tree over all entries, as kept checkpoints know it.

The chains are checked by `auditlog.verify`. Somebody who rewrites a chain so that it fits together
must change leaves of the tree, too, and then the tree has another root than a kept checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from auditlog.tree import HASH_BYTES, TILE_WIDTH, Growing, leaf_hash, sha256
from auditlog.verify import Entry, Finding, Kind

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


class TreeVerifier:
    """Checks the entries of an export against the tree.

    Args:
        anchors: the checkpoints that were kept; their signatures are checked elsewhere.
        published: answers the data of so many leaves, from the first on, as the log publishes
            them; without it only an export of all tenants can be compared.
    """

    def __init__(
        self,
        anchors: Iterable[Anchor],
        published: Callable[[int], Iterable[bytes]] | None = None,
    ) -> None:
        self.unchecked: list[str] = []
        self.others = 0
        """Leaves before the newest kept checkpoint that belong to entries of other tenants."""
        self._anchors = sorted(anchors, key=lambda anchor: anchor.size)
        self._ask = published
        self._published: Leaves | None = None
        self._state: TreeState | None = None
        self._claimed = Leaves()
        self._tenant_id = ""
        self._last = -1
        self._without: list[int] = []

    def begin(self, state: TreeState | None) -> None:
        """Takes what the export says of the tree."""
        self._state = state
        if state is None:
            return
        if state.before:
            self._claimed[0] = beginning(state.before)
        size = max((a.size for a in self._anchors if a.origin == state.origin), default=0)
        if self._ask is not None and 0 < size <= state.size:
            self._published = Leaves()
            for index, data in enumerate(self._ask(size)):
                self._published[index] = data

    def entry(self, entry: Entry) -> Iterator[Finding]:
        """Takes the next entry of a chain; answers what is wrong with its leaf."""
        if entry.tenant_id != self._tenant_id:
            self._tenant_id, self._last, self._without = entry.tenant_id, -1, []
        if entry.leaf is None:
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
        known = self._published[at] if self._published is not None else None
        self._claimed[at] = bytes.fromhex(entry.hash)
        if known is not None and known.hex() != entry.hash:
            message = (
                f"entry {entry.sequence} ({entry.columns.id}) was changed: leaf {at} of the tree"
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
                yield Finding(
                    "",
                    0,
                    Kind.RESTORED,
                    f"the checkpoint of {anchor.size} leaves is of the log {anchor.origin}, which"
                    f" ended when the installation was restored; {state.origin} came behind it",
                )
            else:
                self.unchecked.append(
                    f"the checkpoint of {anchor.size} leaves: it is of the log {anchor.origin}, and"
                    f" the export is of {state.origin}"
                )
        if anchors:
            yield from self._compare(state, anchors)

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
        missing = [at for at in range(size) if self._claimed[at] is None]
        if state.all_tenants:
            for first, last in _spans(missing)[:_MOST_SPANS]:
                leaves = f"leaf {first}" if first == last else f"leaves {first} to {last}"
                message = f"what was in {leaves} of the tree was removed from the log"
                yield Finding("", first, Kind.REMOVED, message)
        self.others = len(missing)
        source = self._claimed if self._published is None else self._published
        if self._published is None and missing:
            if not state.all_tenants:
                self.unchecked.append(
                    f"the root of the tree: {len(missing)} of {size} leaves are other tenants',"
                    " which are asked for when there is a connection"
                )
            return
        yield from _roots(anchors, source)

    def _forged(self, sequence: int, what: str) -> Finding:
        return Finding(self._tenant_id, sequence, Kind.FORGED, f"entry {sequence} {what}")


def beginning(before: str) -> bytes:
    """The data of the leaf with which a log begins behind another one, whose end is given."""
    return sha256(before.encode())


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
