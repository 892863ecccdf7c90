"""The tree over all entries (RFC 6962, SHA-256): roots, and proofs about them.

The data of a leaf are the 32 bytes of an entry's hash, so a leaf says nothing of what is in the
entry, nor whose it is. Nothing here reads a database: the maker of a proof is told which hashes
are needed (`Subtree`), and gives them.

A tree of `size` leaves is put together from complete subtrees. `Subtree(height, index)` spans the
`2**height` leaves from `index * 2**height` on. Of the hashes of heights 0, 8, 16, …, which are what
tiles hold (C2SP tlog-tiles), all others are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

HASH_BYTES: Final = 32
TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT
"""Hashes in a full tile."""


class ProofError(ValueError):
    """A proof proves nothing; the message says why."""


def sha256(data: bytes) -> bytes:
    """The digest of some bytes."""
    return hashlib.sha256(data).digest()


EMPTY_ROOT: Final = sha256(b"")
"""The root of a tree without leaves."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(b"\x00" + data)


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node above two others."""
    return sha256(b"\x01" + left + right)


def complete_root(hashes: Sequence[bytes]) -> bytes:
    """The root of a complete subtree, whose `2**n` hashes of one height are given."""
    row = list(hashes)
    while len(row) > 1:
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row), 2)]
    return row[0]


class Growing:
    """The root of a tree that is given leaf by leaf; it remembers a hash for each height."""

    def __init__(self) -> None:
        self.size = 0
        self._stack: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        """Takes the hash of the next leaf."""
        found, rest = leaf, self.size
        while rest & 1:
            found = node_hash(self._stack.pop(), found)
            rest >>= 1
        self._stack.append(found)
        self.size += 1

    @property
    def root(self) -> bytes:
        """The root of what was given so far."""
        return _folded(self._stack) if self._stack else EMPTY_ROOT


@dataclass(frozen=True, slots=True)
class Subtree:
    """A complete subtree."""

    height: int
    index: int

    @property
    def level(self) -> int:
        """The level of tiles that it is made of,"""
        return self.height // TILE_HEIGHT

    @property
    def first(self) -> int:
        """the first of its hashes at that level,"""
        return self.index << (self.height % TILE_HEIGHT)

    @property
    def count(self) -> int:
        """and how many there are."""
        return 1 << (self.height % TILE_HEIGHT)


Reader = Callable[[Subtree], bytes]
"""Answers the root of a complete subtree."""


def subtrees(first: int, end: int) -> list[Subtree]:
    """The complete subtrees of the leaves from `first` up to `end`, from left to right.

    Args:
        first: divisible by the largest power of two that is not above the number of leaves.
        end: the leaf behind the last one.
    """
    found = []
    while first < end:
        height = (end - first).bit_length() - 1
        found.append(Subtree(height, first >> height))
        first += 1 << height
    return found


def tile_path(index: int, width: int) -> str:
    """How a path names a tile of some hashes (C2SP tlog-tiles): `x001/x234/067.p/8`."""
    digits = f"{index:03}"
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    path = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


def range_root(first: int, end: int, read: Reader) -> bytes:
    """The root of the leaves from `first` up to `end`."""
    return _folded([read(subtree) for subtree in subtrees(first, end)])


def _folded(hashes: Sequence[bytes]) -> bytes:
    found = hashes[-1]
    for left in reversed(hashes[:-1]):
        found = node_hash(left, found)
    return found


def _split(count: int) -> int:
    """The largest power of two below a number of at least 2."""
    return 1 << ((count - 1).bit_length() - 1)


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """Of which leaves the hashes of an inclusion proof are the roots, in the order of the proof."""
    if not 0 <= index < size:
        raise ProofError(f"a tree of {size} leaves has no leaf {index}")
    first, end, found = 0, size, []
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((first, middle))
            first = middle
    return found[::-1]


def consistency_ranges(old: int, new: int) -> list[tuple[int, int]]:
    """Of which leaves the hashes of a consistency proof are the roots, in the proof's order."""
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} leaves has none of {old} in it")
    if old == 0:
        return []
    first, end, found, is_left = 0, new, [], True
    while old != end:
        middle = first + _split(end - first)
        if old <= middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((first, middle))
            first, is_left = middle, False
    if not is_left:
        found.append((first, end))
    return found[::-1]


def prove(ranges: Iterable[tuple[int, int]], read: Reader) -> list[bytes]:
    """The hashes of a proof."""
    return [range_root(first, end, read) for first, end in ranges]


def root_of_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes]) -> bytes:
    """The root that an inclusion proof leads to.

    Args:
        index: of the leaf.
        size: leaves of the tree.
        leaf: the hash of the leaf.
        proof: its hashes.

    Raises:
        ProofError: it does not have as many hashes as it must.
    """
    if not 0 <= index < size:
        raise ProofError(f"a tree of {size} leaves has no leaf {index}")
    found = leaf
    for sibling, is_left in _steps(index, size - 1, proof):
        found = node_hash(sibling, found) if is_left else node_hash(found, sibling)
    return found


def _steps(at: int, last: int, proof: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The hashes of a proof with their side, on the way from a node up to the root."""
    for sibling in proof:
        if last == 0:
            raise ProofError("the proof is too long")
        is_left = bool(at & 1) or at == last
        yield sibling, is_left
        while is_left and at and not at & 1:
            at, last = at >> 1, last >> 1
        at, last = at >> 1, last >> 1
    if last:
        raise ProofError("the proof is too short")


def check_consistency(
    old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Checks that a tree holds an older one as it was.

    Raises:
        ProofError: that is not proved.
    """
    if not 0 <= old <= new:
        raise ProofError(f"the tree became shorter: it had {old} leaves, and has {new}")
    if old in {0, new}:
        if proof:
            raise ProofError("the proof is too long")
        if old_root != (EMPTY_ROOT if old == 0 else new_root):
            raise ProofError("trees of the same size have different roots")
        return
    hashes = list(proof)
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    if at == 0:
        hashes.insert(0, old_root)
    if not hashes:
        raise ProofError("the proof is too short")
    one = other = hashes[0]
    for sibling, is_left in _steps(at, last, hashes[1:]):
        if is_left:
            one, other = node_hash(sibling, one), node_hash(sibling, other)
        else:
            other = node_hash(other, sibling)
    if (one, other) != (old_root, new_root):
        raise ProofError("something before the older checkpoint was changed or removed")
