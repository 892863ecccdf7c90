"""`evergreen audit follow` and `check-proof` against an installation that lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from auditlog.chain import NO_HASH, Columns, entry_hash
from auditlog.entries import Entry
from auditlog.keys import CheckpointKey
from auditlog.notes import Consistency, Proof, Signature, TreeCheckpoint
from auditlog.tree import (
    Subtree,
    complete_root,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    prove,
    range_root,
)
from cli.audit_report import NOT_CHECKED, TAMPERED, VERIFIED, Report
from cli.audit_tree import check_proof, continues
from tests.support.audit import ORG, event

ORIGIN = "school.example/audit/0000aaaa"
_PRIVATE = Ed25519PrivateKey.generate()
_KEY = CheckpointKey(_PRIVATE.public_key().public_bytes_raw())
_RECORD = event(1).payload()
_HASH = entry_hash(str(ORG.id), 1, NO_HASH, _RECORD)


class Tree:
    """A log of fewer than 256 entries, whatever they are."""

    def __init__(self, leaves: Sequence[bytes], origin: str = ORIGIN) -> None:
        self._leaves = [leaf_hash(leaf) for leaf in leaves]
        self._origin = origin

    def _read(self, subtree: Subtree) -> bytes:
        assert subtree.level == 0
        return complete_root(self._leaves[subtree.first : subtree.first + subtree.count])

    def checkpoint(self, size: int, *, forged: bool = False) -> TreeCheckpoint:
        found = TreeCheckpoint(self._origin, size, range_root(0, size, self._read))
        value = _PRIVATE.sign(b"another text" if forged else found.text.encode())
        return TreeCheckpoint(
            found.origin, size, found.root, (Signature.by(self._origin, _KEY.raw, value),)
        )

    def consistency(self, old: int, new: int, *, forged: bool = False) -> Consistency:
        hashes = prove(consistency_ranges(old, new), self._read)
        return Consistency(old, hashes, self.checkpoint(new, forged=forged))

    def proof(self, size: int) -> Proof:
        """Of the entry in leaf 1."""
        hashes = prove(inclusion_ranges(1, size), self._read)
        columns = Columns.of(json.loads(_RECORD))
        entry = Entry(str(ORG.id), 1, NO_HASH, _HASH, _RECORD, columns)
        return Proof(entry, 1, tuple(hashes), self.checkpoint(size), "")


def leaves(mark: bytes) -> list[bytes]:
    """Those of a log that has the entry in leaf 1."""
    found = [mark + bytes([number]) * 31 for number in range(40)]
    found[1] = bytes.fromhex(_HASH)
    return found


KEPT = Tree(leaves(b"a"))
REWRITTEN = Tree(leaves(b"b"))
ELSEWHERE = Tree(leaves(b"a"), "other.example/audit/0000bbbb")

Ask = Callable[[int], Consistency]


def follow(newest: TreeCheckpoint, ask: Ask) -> tuple[int, str, TreeCheckpoint]:
    """Of a kept checkpoint of ten leaves."""
    said: list[str] = []
    report = Report(said.append)
    kept = continues(newest, [_KEY], [("kept", KEPT.checkpoint(10))], report, ask)
    return report.exit_code, "\n".join(said), kept


def test_a_log_that_grew_is_followed() -> None:
    """Also while it grows: what is kept is what the proof ends with."""
    code, said, kept = follow(KEPT.checkpoint(20), lambda old: KEPT.consistency(old, 23))
    assert (code, said) == (VERIFIED, "")
    assert kept == KEPT.checkpoint(23)
    code, _, kept = follow(KEPT.checkpoint(10), lambda old: KEPT.consistency(old, 23))
    assert (code, kept) == (VERIFIED, KEPT.checkpoint(10))


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (lambda old: KEPT.consistency(old, 20), TAMPERED, "two trees of 20 leaves"),
        (lambda old: KEPT.consistency(old, 15), TAMPERED, "became shorter"),
        (lambda old: KEPT.consistency(old, 30, forged=True), TAMPERED, "is forged"),
        (lambda old: REWRITTEN.consistency(old, 20), TAMPERED, "what the checkpoint kept knows"),
        (lambda old: ELSEWHERE.consistency(old, 20), NOT_CHECKED, "of another log"),
    ],
)
def test_a_rewritten_log_is_not_followed(answer: Ask, code: int, told: str) -> None:
    """Whatever tree it proves the kept one to be in, other than the one that it shows."""
    found, said, _ = follow(REWRITTEN.checkpoint(20), answer)
    assert found == code
    assert told in said


def test_a_log_that_shows_the_kept_tree_is_not_rewritten_by_that() -> None:
    """What is kept then is of the kept log, and convicts the other one later."""
    code, _, kept = follow(REWRITTEN.checkpoint(20), lambda old: KEPT.consistency(old, 30))
    assert (code, kept) == (VERIFIED, KEPT.checkpoint(30))


def check(proof: Proof, ask: Ask) -> tuple[int, str]:
    """A proof, and a kept checkpoint of ten leaves."""
    said: list[str] = []
    report = Report(said.append)
    check_proof(proof, [_KEY], [("kept", KEPT.checkpoint(10))], report, ask)
    return report.exit_code, "\n".join(said)


def test_a_proof_is_of_the_kept_log() -> None:
    """Both trees are in one present tree, which may grow between two questions."""
    assert check(KEPT.proof(20), lambda old: KEPT.consistency(old, 30)) == (VERIFIED, "")
    sizes = iter((29, 30, 30, 30))
    grown = check(KEPT.proof(20), lambda old: KEPT.consistency(old, next(sizes)))
    assert grown == (VERIFIED, "")


def test_a_proof_of_a_rewritten_log_is_none() -> None:
    """Though each of the two trees is in some signed one."""

    def two_logs(old: int) -> Consistency:
        return (KEPT if old == 10 else REWRITTEN).consistency(old, 30)

    code, said = check(REWRITTEN.proof(20), two_logs)
    assert (code, "two trees of 30 leaves" in said) == (TAMPERED, True)

    def never_one(old: int) -> Consistency:
        tree, size = (KEPT, 30) if old == 10 else (REWRITTEN, 31)
        return tree.consistency(old, size)

    code, said = check(REWRITTEN.proof(20), never_one)
    assert (code, "try again" in said) == (NOT_CHECKED, True)

    def unsigned(old: int) -> Consistency:
        return KEPT.consistency(old, 30, forged=True)

    code, said = check(KEPT.proof(20), unsigned)
    assert (code, "is forged" in said) == (TAMPERED, True)
