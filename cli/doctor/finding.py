"""What a check answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    `code` is stable, for programs; `what` says what is wrong and `fix` what to do about it.
    """

    code: str
    what: str
    fix: str
    severity: Severity = Severity.ERROR


def warning(code: str, what: str, fix: str) -> Finding:
    """Something that is going to be wrong."""
    return Finding(code, what, fix, Severity.WARNING)
