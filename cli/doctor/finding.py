"""What a check answers: that all is well, what is wrong, or why nobody looked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, or that nobody looked at.

    `name` is stable, for programs; `seen` says what was found to be well.
    """

    name: str
    findings: tuple[Finding, ...] = ()
    seen: str = ""
    skipped: str = ""
    """Why nobody looked; empty when somebody did."""

    @property
    def status(self) -> str:
        """`ok`, `warning`, `error` or `skipped`."""
        if self.skipped:
            return "skipped"
        severities = {finding.severity for finding in self.findings}
        for severity in Severity:
            if severity in severities:
                return str(severity)
        return "ok"


def judged(name: str, found: Iterable[Finding], seen: str = "") -> Check:
    """A check that was made; `seen` is for the case that nothing is wrong."""
    findings = tuple(found)
    return Check(name, findings, "" if findings else seen)


def skipped(name: str, why: str) -> Check:
    """A check that was not made."""
    return Check(name, skipped=why)


def findings(checks: Iterable[Check]) -> list[Finding]:
    """All that is wrong."""
    return [finding for check in checks for finding in check.findings]


def completed(names: Sequence[str], checks: Sequence[Check]) -> list[Check]:
    """The checks in the order of `names`; those that were not reached are skipped.

    A check that fails can make those after it pointless, and is then their reason.
    """
    made = {check.name: check for check in checks}
    failed = next((check.name for check in checks if check.status == "error"), "")
    why = f"needs {failed}" if failed else "not reached"
    known = [made.pop(name) if name in made else skipped(name, why) for name in names]
    return [*known, *made.values()]
