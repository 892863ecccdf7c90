"""Checks of the tree over all entries: single entries are in it, and it only grew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from auditlog.keys import CheckpointKey
from auditlog.notes import Consistency, NoteError, Proof, TreeCheckpoint
from auditlog.tree import ProofError, check_consistency
from cli.audit_report import Report, trusted
from cli.client import Api
from cli.errors import CliError

_ATTEMPTS: Final = 5


def consistency(api: Api, size: int) -> Consistency:
    """The proof that a tree of so many leaves is in the present one.

    Raises:
        CliError: there is none, as when the present tree has fewer.
    """
    try:
        return Consistency.of(api.get("/api/audit/log/consistency", **{"from": str(size)}))
    except NoteError as broken:
        raise CliError(f"the installation answered: {broken}") from broken


def continues(
    newest: TreeCheckpoint,
    keys: Sequence[CheckpointKey],
    kept: Iterable[tuple[str, TreeCheckpoint]],
    report: Report,
    ask: Callable[[int], Consistency],
) -> TreeCheckpoint:
    """Checks that a tree holds those that were kept, as they were.

    Answers the checkpoint that may be kept in their place: that with which the proof ends.
    """
    if not trusted([("of now", newest)], keys, report):
        return newest
    for name, checkpoint in kept:
        if not trusted([(name, checkpoint)], keys, report):
            continue
        if checkpoint.origin == newest.origin and checkpoint.size != newest.size:
            newest = _continued(name, checkpoint, newest, keys, report, ask)
        else:
            same_tree(name, checkpoint, newest, keys, report, ask)
    return newest


def _continued(
    name: str,
    kept: TreeCheckpoint,
    newest: TreeCheckpoint,
    keys: Sequence[CheckpointKey],
    report: Report,
    ask: Callable[[int], Consistency],
) -> TreeCheckpoint:
    """The checkpoint of which one signed answer proves that it continues a kept one."""
    if kept.size > newest.size:
        report.found(f"the tree became shorter: it had {kept.size} leaves, and has {newest.size}")
        return newest
    answer = ask(kept.size)
    now = answer.checkpoint
    if not _is_of(newest.origin, now, keys, report):
        return newest
    if now.size < newest.size:
        report.found(f"the tree became shorter: it had {newest.size} leaves, and has {now.size}")
    elif now.size == newest.size and now.root != newest.root:
        report.found(f"the installation signed two trees of {now.size} leaves")
    else:
        _contains(name, kept, answer, report)
    return now


def check_proof(
    proof: Proof,
    keys: Sequence[CheckpointKey],
    kept: Iterable[tuple[str, TreeCheckpoint]],
    report: Report,
    ask: Callable[[int], Consistency] | None = None,
) -> None:
    """Checks a proof, and that its checkpoint and those that were kept are of one tree.

    Args:
        proof: of an entry.
        keys: that are trusted.
        kept: checkpoints of the tree.
        report: takes the findings.
        ask: answers the proof that an older tree is in the present one, when there is a
            connection.
    """
    if not trusted([("in the proof", proof.checkpoint)], keys, report):
        return
    try:
        proof.check()
    except ProofError as wrong:
        report.found(str(wrong))
        return
    for name, checkpoint in kept:
        if trusted([(name, checkpoint)], keys, report):
            same_tree(name, checkpoint, proof.checkpoint, keys, report, ask)


def told_of(proof: Proof, report: Report) -> list[str]:
    """What the end of the output says of a proof."""
    if report.tampered:
        return ["Nothing is proved."]
    if report.unchecked:
        return ["Not everything could be checked."]
    entry = proof.entry
    checkpoint = proof.checkpoint
    at = entry.columns.occurred_at.isoformat().replace("+00:00", "Z")
    return [
        f"Proved: entry {entry.sequence} of tenant {entry.tenant_id} is leaf {proof.index} of"
        f" {checkpoint.size:,} of the log {checkpoint.origin}.",
        f"It says: {at} {entry.columns.actor}: {entry.columns.action} {entry.columns.resource}",
    ]


def same_tree(
    name: str,
    kept: TreeCheckpoint,
    other: TreeCheckpoint,
    keys: Sequence[CheckpointKey],
    report: Report,
    ask: Callable[[int], Consistency] | None,
) -> None:
    """Checks that a kept checkpoint and another one are of one tree; of both orders of size."""
    if kept.origin != other.origin:
        report.could_not(f"the checkpoint {name}: it is of another log, {kept.origin}")
    elif kept.size == other.size:
        if kept.root != other.root:
            report.found(f"the checkpoint {name} is of another tree with as many leaves")
    elif ask is None:
        report.could_not(f"the checkpoint {name}: that needs a connection")
    else:
        _both_in_one(name, kept, other, keys, report, ask)


def _both_in_one(
    name: str,
    kept: TreeCheckpoint,
    other: TreeCheckpoint,
    keys: Sequence[CheckpointKey],
    report: Report,
    ask: Callable[[int], Consistency],
) -> None:
    """Checks that two trees are in one and the same present tree."""
    for _ in range(_ATTEMPTS):
        answers = [ask(one.size) for one in (kept, other)]
        first, second = (answer.checkpoint for answer in answers)
        if first.size == second.size:
            break
    else:
        # The log grows between the two answers, or does not want to be compared.
        report.could_not(f"the checkpoint {name}: the tree grew meanwhile; try again")
        return
    if not all(_is_of(kept.origin, now, keys, report) for now in (first, second)):
        return
    if first.root != second.root:
        report.found(f"the installation signed two trees of {first.size} leaves")
        return
    for one, answer in zip((kept, other), answers, strict=True):
        if not _contains(name, one, answer, report):
            return


def _is_of(origin: str, now: TreeCheckpoint, keys: Sequence[CheckpointKey], report: Report) -> bool:
    """Whether the checkpoint of an answer is signed, and of this log."""
    if not trusted([("in the answer", now)], keys, report):
        return False
    if now.origin != origin:
        report.could_not(f"the tree: the answer is of another log, {now.origin}; try again")
        return False
    return True


def _contains(name: str, one: TreeCheckpoint, answer: Consistency, report: Report) -> bool:
    """Whether the tree of an answer holds all that a checkpoint knows."""
    now = answer.checkpoint
    try:
        check_consistency(one.size, one.root, now.size, now.root, answer.hashes)
    except ProofError as wrong:
        report.found(f"what the checkpoint {name} knows: {wrong}")
        return False
    return True
