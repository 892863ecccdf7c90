"""What was decided after the moment to which a restore goes back, as far as something still knows.

A device that was retired yesterday must stay retired when last week's backup is restored, and an
Owner who became an Auditor must not be an Owner again. Sources are the database that is replaced,
exports of the audit log, and plain lists of devices and of redacted entries.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from auditlog.export import EXPORT_FORMAT
from cli.backup import catalog
from cli.errors import CliError
from servicekit.data.backup import Connection, Learns, Recorded
from services.attestation import restore as attestation
from services.audit import restore as audit
from services.enrollment import restore as enrollment
from services.identity import restore as identity
from services.policy import restore as policy


@dataclass(slots=True)
class Facts:
    """What is carried over into the restored database, by the context that it concerns."""

    identity: identity.Known = field(default_factory=identity.Known)
    enrollment: enrollment.Known = field(default_factory=enrollment.Known)
    policy: policy.Known = field(default_factory=policy.Known)
    attestation: attestation.Known = field(default_factory=attestation.Known)
    audit: audit.Known = field(default_factory=audit.Known)
    unknown: Counter[str] = field(default_factory=Counter)
    """Tenant → entries behind the backup's of which an export has no content: they were redacted.
    What they decided is not carried over."""

    @property
    def all(self) -> tuple[Learns, ...]:
        """What collects them."""
        return (self.identity, self.enrollment, self.policy, self.attestation, self.audit)


async def read_database(connection: Connection, facts: Facts) -> None:
    """Takes what a database knows that is about to be replaced."""
    await catalog.see_everything(connection)
    for known in facts.all:
        await known.read(connection)


def read_retired(path: Path, facts: Facts) -> None:
    """Takes a list of devices that are retired.

    Raises:
        CliError: a line is no device id.
    """
    facts.enrollment.retired.update(_listed(path, "device id"))


def read_redacted(path: Path, facts: Facts) -> None:
    """Takes a list of entries of the audit log that were redacted.

    Raises:
        CliError: a line is no entry's id.
    """
    for entry_id in _listed(path, "entry's id"):
        facts.audit.listed(entry_id)


def _listed(path: Path, what: str) -> Iterator[UUID]:
    """The ids of a list: one a line, `#` for remarks."""
    for number, line in enumerate(_lines(path), start=1):
        text = line.partition("#")[0].strip()
        if text:
            try:
                yield UUID(text)
            except ValueError as error:
                raise CliError(f"{path}, line {number}: {text[:60]} is no {what}") from error


def read_audit_export(path: Path, heads: dict[str, int], facts: Facts) -> None:
    """Takes what an export of the audit log tells that the backup does not know.

    Args:
        path: what `evergreen audit export` wrote.
        heads: tenant → the last entry that the backup has.
        facts: takes it.

    Raises:
        CliError: it is no such export.
    """
    try:
        lines = iter(_lines(path))
        if json.loads(next(lines, "")).get("format") != EXPORT_FORMAT:
            raise ValueError("another format")
        for line in lines:
            value = json.loads(line)
            entry, blank = value.get("entry"), value.get("withheld")
            if blank and blank["sequence"] > heads.get(blank["tenantId"], 0):
                facts.unknown[str(blank["tenantId"])] += 1
            if entry and entry["sequence"] > heads.get(entry["tenantId"], 0):
                recorded = _recorded(json.loads(entry["record"]))
                for known in facts.all:
                    known.learn(recorded)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CliError(f"{path} is no export of the audit log: {error}") from error


def _recorded(event: dict[str, Any]) -> Recorded:
    """An entry's record, which is an event, as contexts read it."""
    data = event["data"]
    kind, _, name = str(data["resource"]).partition("/")
    return Recorded(
        UUID(event["tenantid"]),
        datetime.fromisoformat(event["time"]),
        str(data["action"]),
        kind,
        name,
        data.get("after") or {},
    )


def _lines(path: Path) -> Iterable[str]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path} cannot be read: {error}") from error
