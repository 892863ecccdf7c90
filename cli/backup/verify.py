"""Checks an archive from its beginning to its end, without any server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cli.backup import catalog
from cli.backup.archive import Header, Table, reading
from cli.backup.crypt import ArchiveError, Key
from cli.backup.keys import MASTER_KEY, PURPOSES, SealedKeys
from cli.errors import CliError
from servicekit.auditchain import Columns, Head
from servicekit.auditverify import Entry, Verifier
from servicekit.migrate import all_migrations

_MOST_TOLD = 5


@dataclass(slots=True)
class Verified:
    """What was found in a good archive."""

    header: Header
    files: dict[str, bytes] = field(repr=False)
    rows: dict[str, int] = field(default_factory=dict)
    keys: int = 0
    entries: int = 0
    chains: int = 0
    heads: dict[str, int] = field(default_factory=dict)
    """Tenant → the last entry of its audit chain."""


class UnknownSchemaError(CliError):
    """The archive's schema is none that this release knows."""


def check_schema(header: Header) -> None:
    """Refuses an archive whose migrations this release does not have, word for word.

    Raises:
        UnknownSchemaError: it was made by a newer release, or by a changed one.
    """
    known = {(m.schema, str(m.version)): m.checksum for m in all_migrations()}
    for schema, versions in header.migrations.items():
        for version, checksum in versions.items():
            if (schema, version) not in known:
                raise UnknownSchemaError(
                    f"the archive was made by a newer release ({header.release}): its schema"
                    f" {schema} has the migration {version}; restore it with that release"
                )
            if known[schema, version] != checksum:
                raise UnknownSchemaError(
                    f"migration {version} of {schema} is another one in this release than in"
                    f" {header.release}, which made the archive"
                )


def verify(path: Path, key: Key) -> Verified:
    """Reads all of an archive.

    Raises:
        CliError: it does not open, is damaged or incomplete, its schema is unknown, its master key
            does not open the keys, or its audit log was changed.
    """
    with reading(path, key) as archive:
        header = archive.header
        check_schema(header)
        missing = set(header.files) - archive.files.keys()
        if missing:
            raise ArchiveError(f"the archive lacks {', '.join(sorted(missing))}")
        found = Verified(header, archive.files)
        sealed = SealedKeys(archive.files.get(MASTER_KEY))
        audit = _AuditLog()
        for table, pieces in archive.tables():
            found.rows[table.name] = 0
            for piece in pieces:
                found.rows[table.name] += piece.count(b"\n")
                if table.name in PURPOSES:
                    for row in catalog.rows_of(table, piece):
                        sealed.check(
                            table.name, _bytes(row["public_key"]), _bytes(row["sealed_seed"])
                        )
                audit.take(table, piece)
        audit.finish()
        found.keys, found.entries, found.chains = sealed.opened, audit.entries, audit.chains
        found.heads = audit.heads
        return found


class _AuditLog:
    """Verifies the audit log's chains against where the log itself says that they end."""

    def __init__(self) -> None:
        self._heads: list[Head] = []
        self._verifier = Verifier()
        self._ends: dict[str, tuple[int, str]] = {}
        self._findings: list[str] = []

    @property
    def heads(self) -> dict[str, int]:
        return {head.tenant_id: head.sequence for head in self._heads}

    @property
    def entries(self) -> int:
        return self._verifier.entries

    @property
    def chains(self) -> int:
        return self._verifier.chains

    def take(self, table: Table, piece: bytes) -> None:
        if table.name == "audit.chain_head":
            for row in catalog.rows_of(table, piece):
                tenant, sequence = _text(row["tenant_id"]), int(_text(row["sequence"]))
                self._heads.append(Head(tenant, sequence, _bytes(row["hash"]).hex()))
        elif table.name == "audit.entry":
            for entry in _entries(table, piece):
                self._ends[entry.tenant_id] = (entry.sequence, entry.hash)
                self._note(finding.message for finding in self._verifier.entry(entry))

    def finish(self) -> None:
        """Raises:
        ArchiveError: the log was changed, before the backup was made.
        """
        self._note(finding.message for finding in self._verifier.finish())
        for head in self._heads:
            if self._ends.get(head.tenant_id, (0, head.hash)) != (head.sequence, head.hash):
                self._note(iter([f"the chain of {head.tenant_id} does not end where it should"]))
        if self._findings:
            raise ArchiveError(
                "the audit log in the archive was changed before the backup was made: "
                + "; ".join(self._findings[:_MOST_TOLD])
            )

    def _note(self, messages: Iterator[str]) -> None:
        self._findings += messages


def _entries(table: Table, piece: bytes) -> Iterator[Entry]:
    for row in catalog.rows_of(table, piece):
        text = {name: _text(value) for name, value in row.items()}
        yield Entry(
            tenant_id=text["tenant_id"],
            sequence=int(text["sequence"]),
            previous_hash=_bytes(text["previous_hash"]).hex(),
            hash=_bytes(text["hash"]).hex(),
            record=text["record"],
            columns=Columns(
                id=text["id"],
                tenant_id=text["tenant_id"],
                occurred_at=datetime.fromisoformat(text["occurred_at"]),
                actor=text["actor"],
                actor_id=text["actor_id"],
                action=text["action"],
                resource=text["resource"],
            ),
        )


def _text(value: str | None) -> str:
    return value or ""


def _bytes(value: str | None) -> bytes:
    return bytes.fromhex((value or "").removeprefix("\\x"))
