"""The tree over all entries: its roots, and that a proof proves what it says and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditlog.tree import (
    EMPTY_ROOT,
    TILE_HEIGHT,
    Growing,
    ProofError,
    Subtree,
    check_consistency,
    complete_root,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    prove,
    range_root,
    root_of_inclusion,
)

sizes = st.integers(1, 700)


def by_the_book(leaves: Sequence[bytes]) -> bytes:
    """The root as RFC 6962, section 2.1, defines it."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(
        b"\x01" + by_the_book(leaves[:split]) + by_the_book(leaves[split:])
    ).digest()


def data(size: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(size)]


class Tiles:
    """The hashes of heights 0, 8, 16, as tiles hold them."""

    def __init__(self, size: int) -> None:
        self.levels = [[leaf_hash(leaf) for leaf in data(size)]]
        while len(self.levels[-1]) >= 1 << TILE_HEIGHT:
            row, width = self.levels[-1], 1 << TILE_HEIGHT
            self.levels.append(
                [
                    complete_root(row[at : at + width])
                    for at in range(0, len(row) - width + 1, width)
                ]
            )

    def __call__(self, subtree: Subtree) -> bytes:
        row = self.levels[subtree.level]
        return complete_root(row[subtree.first : subtree.first + subtree.count])


def test_roots_of_the_specification() -> None:
    """The test vectors of Certificate Transparency's reference implementation."""
    inputs = (
        *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
        "606162636465666768696a6b6c6d6e6f",
    )
    tree = Growing()
    assert tree.root == EMPTY_ROOT
    roots = []
    for text in inputs:
        tree.add(leaf_hash(bytes.fromhex(text)))
        roots.append(tree.root.hex())
    assert roots[0] == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert roots[2] == "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
    assert roots[7] == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@given(sizes)
def test_the_root_is_that_of_the_specification(size: int) -> None:
    """Leaf by leaf, and out of tiles."""
    tree = Growing()
    for leaf in data(size):
        tree.add(leaf_hash(leaf))
    wanted = by_the_book(data(size))
    assert tree.root == wanted
    assert range_root(0, size, Tiles(size)) == wanted


@given(sizes, st.data())
def test_each_leaf_can_be_proved(size: int, drawn: st.DataObject) -> None:
    """And no other leaf at its place, nor it at another place or in another tree."""
    index = drawn.draw(st.integers(0, size - 1))
    leaves = data(size)
    proof = prove(inclusion_ranges(index, size), Tiles(size))
    leaf = leaf_hash(leaves[index])
    root = by_the_book(leaves)
    assert root_of_inclusion(index, size, leaf, proof) == root
    assert root_of_inclusion(index, size, leaf_hash(b"x"), proof) != root
    other = drawn.draw(st.integers(0, size - 1))
    if other != index:
        with contextlib.suppress(ProofError):
            assert root_of_inclusion(other, size, leaf, proof) != root
    with pytest.raises(ProofError):
        root_of_inclusion(index, size, leaf, [*proof, root])
    if proof:
        with pytest.raises(ProofError):
            root_of_inclusion(index, size, leaf, proof[:-1])


@given(sizes, st.data())
def test_an_older_tree_is_in_a_newer_one(new: int, drawn: st.DataObject) -> None:
    """And one with a leaf of another content is not."""
    old = drawn.draw(st.integers(0, new))
    leaves = data(new)
    proof = prove(consistency_ranges(old, new), Tiles(new))
    check_consistency(old, by_the_book(leaves[:old]), new, by_the_book(leaves), proof)
    if old:
        changed = leaves[:old]
        changed[drawn.draw(st.integers(0, old - 1))] = b"changed"
        with pytest.raises(ProofError):
            check_consistency(old, by_the_book(changed), new, by_the_book(leaves), proof)
    if old < new:
        with pytest.raises(ProofError, match="shorter"):
            check_consistency(new, by_the_book(leaves), old, by_the_book(leaves[:old]), proof)
    with pytest.raises(ProofError):
        check_consistency(
            old, by_the_book(leaves[:old]), new, by_the_book(leaves), [*proof, EMPTY_ROOT]
        )


def test_what_is_not_there_cannot_be_proved() -> None:
    """A leaf behind the end, and a tree that is longer."""
    with pytest.raises(ProofError):
        inclusion_ranges(3, 3)
    with pytest.raises(ProofError):
        root_of_inclusion(3, 3, EMPTY_ROOT, [])
    with pytest.raises(ProofError):
        consistency_ranges(4, 3)
