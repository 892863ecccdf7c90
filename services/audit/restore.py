"""What a backup and a restore have to know of audit's schema.

An archive's audit log is verified without a server. After a restore, every chain of the log says
that it was restored, up to which entry, and from what.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from auditlog.chain import Columns, Head
from auditlog.entries import Entry, withheld
from auditlog.findings import Finding
from auditlog.verify import Verifier
from servicekit.data.backup import Connection, Tables
from servicekit.ids import now
from servicekit.times import from_text
from services.audit.backups import store as runs
from services.audit.backups.domain import Kind, Newest, Run
from services.audit.forward.domain import SEALED_FOR as FORWARD_SEALED_FOR
from services.audit.log.domain import SEALED_FOR
from services.audit.redaction.again import Again, Known, have_wait, redact_what_waits
from services.audit.tree import store as trees
from services.audit.tree.restores import End, Restore

__all__ = ["Again", "Kind", "Known", "Newest", "Run", "redact_what_waits"]

_ENTRY: Final = "entry"
_HEAD: Final = "chain_head"
_BASE: Final = "chain_base"

TABLES: Final = Tables(
    # How far the stream was read, and what the tree over all entries is made of: it begins anew.
    # Mails that waited are not sent, and no process looks.
    made_anew=frozenset({"stream_position", "tree_leaf", "tree_node", "notice", "alert_lead"}),
    # So that the chains can be verified while they are read.
    ordered={_ENTRY: ("tenant_id", "sequence")},
    sealed={"signing_key": SEALED_FOR},
    secrets={"forwarder": FORWARD_SEALED_FOR},
    signs_of_use=frozenset({_ENTRY}),
)

Row = Mapping[str, str | None]
"""Column → text, as PostgreSQL writes it."""


@dataclass(frozen=True, slots=True)
class RestoredFrom:
    """What the log is told of a restore."""

    backup_id: UUID
    point: datetime
    release: str
    operator: str
    """The account of the machine that ran the command."""


async def repair(connection: Connection, known: Known, restored: RestoredFrom) -> None:
    """Begins another log of the tree, and puts the restore into every chain.

    Entries come there through the outbox, as all do. What was redacted waits for the schema of this
    release, and `redact_what_waits`.
    """
    await have_wait(connection, known)
    ended, begun = await _begin_log(connection)
    restore = Restore(
        restored.backup_id,
        restored.release,
        ended,
        begun,
        actor="evergreen backup restore",
        actor_id=restored.operator,
    )
    events = [
        restore.event(End(row["tenant_id"], row["sequence"], row["hash"], restored.point))
        for row in await connection.fetch(
            "SELECT tenant_id, sequence, hash FROM audit.chain_head ORDER BY tenant_id"
        )
    ]
    await connection.executemany(
        "INSERT INTO audit.outbox (id, subject, payload) VALUES ($1, $2, $3)",
        [(event.id, event.subject, event.payload()) for event in events],
    )


async def _begin_log(connection: Connection) -> tuple[str, str]:
    """Begins another log of the tree; answers the origins of the log before and of this one.

    A signed tree must not become shorter. Both are empty for a backup without a tree.
    """
    if await connection.fetchval("SELECT to_regclass('audit.tree_log')") is None:
        return "", ""
    ended = await trees.newest(connection)
    if ended is None:
        return "", ""
    return ended.origin, (await trees.begin_behind(connection, ended, now())).origin


async def note_run(connection: Connection, run: Run) -> None:
    """Notes a backup or a rehearsal that has ended, unless the schema has no place for it yet."""
    if await _has_runs(connection):
        async with connection.transaction():
            await runs.note(connection, run)


async def newest_runs(connection: Connection) -> Newest:
    """The newest backups and rehearsals."""
    return await runs.newest(connection) if await _has_runs(connection) else Newest()


async def _has_runs(connection: Connection) -> bool:
    found = await connection.fetchval("SELECT to_regclass('audit.backup_run')")
    return found is not None


class ArchivedLog:
    """Verifies an archive's audit chains against where the log itself says that they end."""

    def __init__(self) -> None:
        self._heads: list[Head] = []
        self._verifier = Verifier()
        self._bases: dict[str, tuple[Head, Head]] = {}
        """Up to where chains were pruned, and are to be, of those whose entries are to come."""
        self._ends: dict[str, tuple[int, str]] = {}
        self._findings: list[str] = []

    @property
    def heads(self) -> dict[str, int]:
        """Tenant → the last entry of its chain."""
        return {head.tenant_id: head.sequence for head in self._heads}

    @property
    def entries(self) -> int:
        """How many entries were verified,"""
        return self._verifier.entries

    @property
    def chains(self) -> int:
        """in how many chains."""
        return self._verifier.chains

    @staticmethod
    def wants(table: str) -> bool:
        """Whether the rows of a table of the schema are needed."""
        return table in {_BASE, _HEAD, _ENTRY}

    def take(self, table: str, rows: Iterable[Row]) -> None:
        """Takes rows of a table in the order of the archive."""
        if table == _HEAD:
            for row in rows:
                tenant, sequence = _text(row["tenant_id"]), int(_text(row["sequence"]))
                self._heads.append(Head(tenant, sequence, _hexadecimal(row["hash"])))
        elif table == _BASE:
            for row in rows:
                tenant, until = _text(row["chain_id"]), int(_text(row["until_sequence"]))
                self._bases[tenant] = (
                    Head(tenant, int(_text(row["sequence"])), _hexadecimal(row["hash"])),
                    Head(tenant, until, _hexadecimal(row["until_hash"])),
                )
        elif table == _ENTRY:
            for entry in _entries(rows):
                if (base := self._bases.pop(entry.tenant_id, None)) is not None:
                    self._note(self._verifier.pruned_up_to(*base))
                self._ends[entry.tenant_id] = (entry.sequence, entry.hash)
                found = (
                    self._verifier.withheld(withheld(entry))
                    if entry.redacted
                    else self._verifier.entry(entry)
                )
                self._note(found)

    def _note(self, found: Iterable[Finding]) -> None:
        self._findings += [finding.message for finding in found]

    def finish(self) -> list[str]:
        """What was changed, a sentence each; nothing for a good log."""
        self._note(self._verifier.finish())
        self._findings += [
            f"the chain of {head.tenant_id} does not end where it should"
            for head in self._heads
            if self._ends.get(head.tenant_id, (0, head.hash)) != (head.sequence, head.hash)
        ]
        return self._findings


def _entries(rows: Iterable[Row]) -> Iterator[Entry]:
    for row in rows:
        text = {name: _text(value) for name, value in row.items()}
        yield Entry(
            tenant_id=text["tenant_id"],
            sequence=int(text["sequence"]),
            previous_hash=_hexadecimal(row["previous_hash"]),
            hash=_hexadecimal(row["hash"]),
            record=text["record"],
            columns=Columns(
                id=text["id"],
                tenant_id=text["tenant_id"],
                occurred_at=from_text(text["occurred_at"]),
                actor=text["actor"],
                actor_id=text["actor_id"],
                action=text["action"],
                resource=text["resource"],
            ),
            salt=_hexadecimal(row.get("salt")),
            redacted=row.get("redacted") == "t",
            digest=_hexadecimal(row.get("record_digest")),
        )


def _text(value: str | None) -> str:
    return value or ""


def _hexadecimal(value: str | None) -> str:
    """A `bytea` as PostgreSQL writes it (`\\x…`), without the sign before it."""
    return bytes.fromhex(_text(value).removeprefix("\\x")).hex()
