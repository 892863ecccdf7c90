"""`evergreen audit verify`: the check itself is `auditlog.verify`, this finds its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from auditlog.chain import Checkpoint, CheckpointError
from auditlog.export import ExportError, verify
from auditlog.keys import CheckpointKey
from auditlog.keys import read_keys as read_pem
from auditlog.verify import Kind, Verifier
from cli.client import read_text
from cli.errors import CliError

_MOST_SHOWN: Final = 100
VERIFIED: Final = 0
TAMPERED: Final = 1
NOT_CHECKED: Final = 2


@dataclass(slots=True)
class Report:
    """What a person is told, and the exit code."""

    say: Callable[[str], None]
    tampered: int = 0
    unchecked: list[str] = field(default_factory=list)

    def found(self, text: str) -> None:
        """Something was tampered with."""
        self.tampered += 1
        if self.tampered <= _MOST_SHOWN:
            self.say(f"TAMPERED  {text}")

    def could_not(self, text: str) -> None:
        """Something could not be checked."""
        self.unchecked.append(text)
        self.say(f"UNCHECKED {text}")

    def lost(self, text: str) -> None:
        """Something is missing that the log itself says was lost by a restore."""
        self.unchecked.append(text)
        self.say(f"RESTORED  {text}")

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


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint that was kept.

    Raises:
        CliError: it is none.
    """
    try:
        return Checkpoint.read(read_text(path))
    except CheckpointError as broken:
        raise CliError(f"{path} is no checkpoint: {broken}") from broken


def trusted(
    checkpoints: Iterable[tuple[str, Checkpoint]], keys: Sequence[CheckpointKey], report: Report
) -> list[Checkpoint]:
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


def run(
    export: Iterable[str], checkpoints: Sequence[Checkpoint], org_id: str, report: Report
) -> Verifier:
    """Checks an export and reports all that is found."""
    verifier = Verifier(checkpoints, only=org_id)
    try:
        for finding in verify(export, verifier):
            text = f"tenant {finding.tenant_id}: {finding.kind.value}: {finding.message}"
            if finding.kind is Kind.RESTORED:
                report.lost(text)
            else:
                report.found(text)
    except ExportError as broken:
        report.could_not(f"the export: {broken}")
    return verifier


def read_lines(path: Path) -> Iterator[str]:
    """The lines of an exported file; only a line feed ends one.

    Raises:
        CliError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from file
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CliError(f"{path} is not UTF-8") from error


def summary(
    report: Report, verifier: Verifier, checkpoints: Sequence[Checkpoint], *, kept: bool
) -> list[str]:
    """What the end of the output says."""
    entries, chains = _count(verifier.entries, "entry"), _count(verifier.chains, "chain")
    size = f"{entries} in {chains}"
    if report.tampered:
        more = report.tampered - _MOST_SHOWN
        return [
            *([f"… and {more:,} findings more."] if more > 0 else []),
            f"The audit log was tampered with: {_count(report.tampered, 'finding')} in {size}.",
        ]
    if report.unchecked:
        return [f"The audit log was not fully checked; in {size} nothing is wrong so far."]
    text = [f"Verified: {size}, {_count(len(checkpoints), 'checkpoint')}. Nothing was changed."]
    if not kept:
        text.append(
            "No earlier checkpoint was given: had the whole log been written anew, this would not"
            " show it. Keep the output of `evergreen audit checkpoint` somewhere else, and give it"
            " with --checkpoint."
        )
    return text


def _count(number: int, what: str) -> str:
    plural = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{number:,} {what if number == 1 else plural}"
