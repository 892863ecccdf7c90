"""Redactions that a restore must not undo: who knows of them, and how they are made once more.

A backup of before a redaction has the content. The list of what was redacted comes from the
database that is replaced, from exports of the log, and from a file that is kept elsewhere. It waits
in a table of its own until the restored schema is this release's, so that a restore that is cut
short still has it when it is run again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from contract.events.audit import EntryRedacted, Restored
from servicekit.data.backup import Connection, Recorded
from servicekit.data.postgres import SYSTEM
from servicekit.errors import DomainError
from services.audit.log.domain import read_event
from services.audit.log.recorder import new_salt
from services.audit.log.store import append
from services.audit.redaction import copies
from services.audit.redaction.copies import Shows
from services.audit.redaction.entry import redact

_WAITING: Final = "audit.redact_again"
LISTED: Final = "redacted again: the operator's list names the entry"
_ENTRIES: Final = "audit-entries"


@dataclass(slots=True)
class Known:
    """Entries that were redacted, as far as something still knows."""

    reasons: dict[UUID, str] = field(default_factory=dict)
    """Entry → why."""
    logged: set[UUID] = field(default_factory=set)
    """Those of which the log of a database says it."""

    async def read(self, connection: Connection) -> None:
        """Takes what a database knows, as one that is about to be replaced."""
        if await connection.fetchval("SELECT to_regclass($1)", _WAITING) is not None:
            # A restore filled it, and was cut short.
            for row in await connection.fetch(f"SELECT id, reason FROM {_WAITING}"):
                self.reasons[row["id"]] = row["reason"]
        rows = await connection.fetch(
            "SELECT (record::jsonb #>> '{data,resource}') AS resource,"
            " (record::jsonb #>> '{data,after,reason}') AS reason FROM audit.entry"
            " WHERE action = $1",
            EntryRedacted.NAME,
        )
        self.logged |= {self._take(row["resource"], row["reason"]) for row in rows}

    def learn(self, entry: Recorded) -> None:
        """Takes an entry of the audit log."""
        if entry.action == EntryRedacted.NAME:
            self._take(f"{entry.kind}/{entry.name}", str(entry.after["reason"]))

    def _take(self, resource: str, reason: str) -> UUID:
        kind, _, entry_id = resource.partition("/")
        if kind != _ENTRIES:
            raise ValueError(f"{EntryRedacted.NAME} names no entry")
        self.reasons[UUID(entry_id)] = reason
        return UUID(entry_id)

    def listed(self, entry_id: UUID) -> None:
        """Takes an entry of a list that says no reason."""
        self.reasons.setdefault(entry_id, LISTED)


@dataclass(frozen=True, slots=True)
class Again:
    """What came of redacting again."""

    done: int = 0
    """Entries that had their content, and have it no more."""
    absent: tuple[UUID, ...] = ()
    """Entries that the log does not have: the event stream may bring them back."""
    held: tuple[UUID, ...] = ()
    """Entries that a legal hold keeps as they are."""
    reports: tuple[Shows, ...] = ()
    """Kept reports that show one of them."""


async def have_wait(connection: Connection, known: Known) -> None:
    """Has redactions wait for this release's schema, in the transaction of a restore."""
    if known.reasons:
        await connection.execute(
            f"CREATE TABLE {_WAITING} (id uuid PRIMARY KEY, reason text NOT NULL)"
        )
        await connection.executemany(
            f"INSERT INTO {_WAITING} VALUES ($1, $2)", list(known.reasons.items())
        )


async def redact_what_waits(connection: Connection, operator: str) -> Again:
    """Makes the redactions that wait; all of them, or none and they go on waiting."""
    if await connection.fetchval("SELECT to_regclass($1)", _WAITING) is None:
        return Again()
    async with connection.transaction():
        rows = await connection.fetch(f"SELECT id, reason FROM {_WAITING} ORDER BY id")
        again = await redact_again(
            connection,
            {row["id"]: row["reason"] for row in rows},
            operator,
            "operator (evergreen backup restore)",
        )
        await connection.execute(f"DROP TABLE {_WAITING}")
    return again


async def redact_again(
    connection: Connection,
    reasons: Mapping[UUID, str],
    operator: str,
    actor: str,
    *,
    unproven: Collection[UUID] = (),
    is_held: Callable[[UUID], Awaitable[bool]] | None = None,
) -> Again:
    """Takes out what has its content again; what has none is left as it is.

    Args:
        connection: within a transaction, of a role that owns the tables.
        reasons: entry → why it was redacted.
        operator: the account of the machine that asks for it.
        actor: how the log names who does it.
        unproven: those of which nothing but a list says that they were redacted.
        is_held: whether a legal hold keeps a tenant's log; such a list does not undo it.
    """
    await connection.execute("SELECT set_config('evergreen.scope', $1, true)", SYSTEM.setting)
    found = {
        row["id"]: row
        for row in await connection.fetch(
            "SELECT id, tenant_id, redacted FROM audit.entry WHERE id = ANY ($1)", list(reasons)
        )
    }
    # In the order in which the service locks chains.
    wanted = sorted(
        (row for row in found.values() if not row["redacted"]),
        key=lambda row: (row["tenant_id"], row["id"]),
    )
    held = set()
    if is_held is not None:
        for row in wanted:
            if row["id"] in unproven and await is_held(row["tenant_id"]):
                held.add(row["id"])
    wanted = [row for row in wanted if row["id"] not in held]
    await _tell_of_the_restore_first(connection, {row["tenant_id"] for row in wanted})
    done = 0
    for row in wanted:
        try:
            await redact(
                connection, row["id"], reasons[row["id"]], operator, unsalted=True, actor=actor
            )
        except DomainError:
            # One that says what was redacted, or that the log was restored: it names nobody.
            continue
        done += 1
    shown: dict[UUID, Shows] = {}
    for entry_id in reasons.keys() - held:
        # What an outbox of the backup has would be published once more, also of an entry that the
        # log does not have.
        copied = await copies.remove(connection, entry_id, operator, reports_too=False)
        shown |= {one.id: one for one in copied.reports}
    absent = tuple(sorted(set(reasons) - set(found)))
    return Again(done, absent, tuple(sorted(held)), tuple(shown[one] for one in sorted(shown)))


async def _tell_of_the_restore_first(connection: Connection, tenant_ids: set[UUID]) -> None:
    """Records `audit.restored` before anything else behind the end of a backup's chains: receivers
    have other entries of these positions, and learn why."""
    rows = await connection.fetch(
        "SELECT subject, payload FROM audit.outbox WHERE published_at IS NULL"
        " AND subject LIKE '%.' || $1",
        Restored.NAME,
    )
    told = [read_event(row["subject"], row["payload"].encode()) for row in rows]
    await append(connection, [one for one in told if one.tenant_id in tenant_ids], new_salt)
