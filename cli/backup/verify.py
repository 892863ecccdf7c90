"""Checks an archive from its beginning to its end, without any server."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cli.backup import catalog
from cli.backup.archive import Header, reading
from cli.backup.crypt import ArchiveError, Key
from cli.backup.keys import MASTER_KEY, SealedKeys
from cli.errors import CliError
from servicekit.data.migrate import all_migrations
from services.audit.restore import ArchivedLog

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
        log = ArchivedLog()
        for table, pieces in archive.tables():
            found.rows[table.name] = 0
            context, _, bare = table.name.partition(".")
            for piece in pieces:
                found.rows[table.name] += piece.count(b"\n")
                if table.name in catalog.SEALED:
                    for row in catalog.rows_of(table, piece):
                        # Of a retired key for policies nothing is left that signs.
                        if row["sealed_seed"] is None:
                            continue
                        sealed.check(
                            table.name, _bytes(row["public_key"]), _bytes(row["sealed_seed"])
                        )
                if context == "audit" and log.wants(bare):
                    log.take(bare, catalog.rows_of(table, piece))
        _check_log(log)
        found.keys, found.entries, found.chains = sealed.opened, log.entries, log.chains
        found.heads = log.heads
        return found


def _check_log(log: ArchivedLog) -> None:
    """Raises:
    ArchiveError: the log was changed, before the backup was made.
    """
    if findings := log.finish():
        raise ArchiveError(
            "the audit log in the archive was changed before the backup was made: "
            + "; ".join(findings[:_MOST_TOLD])
        )


def _bytes(value: str | None) -> bytes:
    return bytes.fromhex((value or "").removeprefix("\\x"))
