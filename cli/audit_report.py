"""What a check of the audit log says, and what it is given: keys, and kept checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

from auditlog.chain import Checkpoint, CheckpointError
from auditlog.keys import CheckpointKey
from auditlog.keys import read_keys as read_pem
from auditlog.notes import NoteError, TreeCheckpoint, is_tree_checkpoint
from cli.client import read_text
from cli.errors import CliError

MOST_SHOWN: Final = 100
"""Findings, and lines about entries, that are said each."""
VERIFIED: Final = 0
TAMPERED: Final = 1
NOT_CHECKED: Final = 2


@dataclass(slots=True)
class Report:
    """What a person is told, and the exit code."""

    say: Callable[[str], None]
    tampered: int = 0
    unchecked: list[str] = field(default_factory=list)
    elsewhere: int = 0
    """How many of these cannot be checked without the rest of the log."""

    def found(self, text: str) -> None:
        """Something was tampered with."""
        self.tampered += 1
        if self.tampered <= MOST_SHOWN:
            self.say(f"TAMPERED  {text}")

    def could_not(self, text: str, *, elsewhere: bool = False) -> None:
        """Something could not be checked."""
        self.unchecked.append(text)
        self.elsewhere += elsewhere
        self.say(f"UNCHECKED {text}")

    def lost(self, text: str) -> None:
        """Something is missing that the log itself says was lost by a restore."""
        self.unchecked.append(text)
        self.say(f"RESTORED  {text}")

    @property
    def is_good(self) -> bool:
        """Whether all is verified that can be verified of a part of the log."""
        return not self.tampered and len(self.unchecked) == self.elsewhere

    @property
    def exit_code(self) -> int:
        """0: verified, 1: tampering was found, 2: something could not be checked."""
        if self.tampered:
            return TAMPERED
        return NOT_CHECKED if self.unchecked else VERIFIED


@contextmanager
def never_mistaken() -> Iterator[None]:
    """A defect of this program ends with another code than tampering does.

    Raises:
        CliError: in place of everything that nobody expected.
    """
    try:
        yield
    except (CliError, BrokenPipeError):
        raise
    except Exception as error:
        raise CliError(f"the check failed: {type(error).__name__}: {error}") from error


def read_keys(path: Path) -> list[CheckpointKey]:
    """The public keys in a PEM file.

    Raises:
        CliError: there are none.
    """
    try:
        return read_pem(read_text(path))
    except ValueError as broken:
        raise CliError(f"{path} is no file of public keys: {broken}") from broken


@dataclass(frozen=True, slots=True)
class Kept:
    """Checkpoints that were kept, with the names of their files."""

    heads: Sequence[tuple[str, Checkpoint]] = ()
    """Of the chains,"""
    trees: Sequence[tuple[str, TreeCheckpoint]] = ()
    """and of the tree over all entries."""

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Kept:
        """Reads files of both kinds.

        Raises:
            CliError: one of them is no checkpoint.
        """
        heads, trees = [], []
        for path in paths:
            text = read_text(path)
            try:
                if is_tree_checkpoint(text):
                    trees.append((str(path), TreeCheckpoint.read(text)))
                else:
                    heads.append((str(path), Checkpoint.read(text)))
            except (CheckpointError, NoteError) as broken:
                raise CliError(f"{path} is no checkpoint: {broken}") from broken
        return cls(heads, trees)


class Signed(Protocol):
    """A checkpoint of either kind."""

    @property
    def key_id(self) -> str:
        """The key that it names."""

    def signed_by(self, keys: Iterable[CheckpointKey]) -> bool | None:
        """Whether the signature is good; `None` when none of the keys is the one it names."""


S = TypeVar("S", bound=Signed)


def trusted(
    checkpoints: Iterable[tuple[str, S]], keys: Sequence[CheckpointKey], report: Report
) -> list[S]:
    """The checkpoints whose signature is good, or cannot be judged; forged ones are reported."""
    result = []
    for name, checkpoint in checkpoints:
        signed = checkpoint.signed_by(keys)
        if signed is False:
            report.found(f"the checkpoint {name} is forged: its signature does not fit its text")
            continue
        if signed is None:
            report.could_not(
                f"the signature of the checkpoint {name}: its key {checkpoint.key_id} is not"
                " among the public keys; give the right ones with --public-key"
            )
        result.append(checkpoint)
    return result
