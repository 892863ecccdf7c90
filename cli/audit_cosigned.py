"""Checks that witnesses signed checkpoints of the tree, as a policy of the verifier asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from auditlog.keys import CheckpointKey
from auditlog.notes import NoteError, TreeCheckpoint
from auditlog.witnesses import Policy
from cli import audit_report, audit_tree
from cli.client import Api, read_text
from cli.errors import CliError


def read_policy(path: Path) -> Policy:
    """A file that says which witnesses are needed.

    Raises:
        CliError: it is none.
    """
    try:
        return Policy.read(read_text(path))
    except NoteError as broken:
        raise CliError(f"{path} is no policy of witnesses: {broken}") from broken


def require(
    checkpoints: Iterable[tuple[str, TreeCheckpoint]],
    path: Path | None,
    report: audit_report.Report,
) -> None:
    """Reports checkpoints that not enough witnesses signed, and says who signed the others.

    Args:
        checkpoints: of the tree, with their names.
        path: of the policy; `None` where none is asked for.
        report: takes the findings.

    Raises:
        CliError: the policy is none.
    """
    if path is None:
        return
    policy = read_policy(path)
    for name, checkpoint in checkpoints:
        try:
            signed = policy.signed(checkpoint)
        except NoteError as forged:
            report.found(f"the checkpoint {name}: {forged}")
            continue
        said = ", ".join(f"{one} at {_moment(at)} UTC" for one, at in sorted(signed.items()))
        if policy.is_met(signed):
            report.say(f"WITNESSED the checkpoint {name}: {said or 'nobody has to have signed it'}")
        else:
            report.could_not(
                f"the checkpoint {name}: not enough witnesses signed it ({said or 'none did'})"
            )


def follow_witnessed(
    api: Api,
    keys: Sequence[CheckpointKey],
    kept: Iterable[tuple[str, TreeCheckpoint]],
    policy: Path,
    report: audit_report.Report,
) -> TreeCheckpoint:
    """Checks that the newest checkpoint that witnesses signed is of one tree with those kept.

    Answers the checkpoint that may be kept in their place: of two that witnesses signed, the
    larger one. A process of the installation may not know the newest one of another.

    Raises:
        CliError: there is no such checkpoint.
    """
    name = "of now"
    text = api.get_text("/api/audit/log/checkpoint", witnessed="true")
    try:
        newest = TreeCheckpoint.read(text)
    except NoteError as broken:
        raise CliError(f"the installation answered no checkpoint: {broken}") from broken
    if not audit_report.trusted([(name, newest)], keys, report):
        return newest
    require([(name, newest)], policy, report)
    answer = newest
    for file, checkpoint in kept:
        if audit_report.trusted([(file, checkpoint)], keys, report):
            ask = partial(audit_tree.consistency, api)
            audit_tree.same_tree(file, checkpoint, newest, keys, report, ask)
            if checkpoint.size > newest.size:
                answer = checkpoint
    return answer


def _moment(at: int) -> str:
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return "an impossible time"
