"""Takes out the content of an entry of the log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.audit import EntryRedacted, Pruned, Redaction
from servicekit.data.postgres import SYSTEM, Connection
from servicekit.errors import failed_precondition, not_found
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import write
from services.audit.log.domain import read_event
from services.audit.log.recorder import new_salt
from services.audit.log.store import append

ACTOR: Final = "operator (evergreen audit redact)"


@dataclass(frozen=True, slots=True)
class Redacted:
    """The entry that lost its content."""

    tenant_id: UUID
    sequence: int
    action: str


@dataclass(frozen=True, slots=True)
class Found:
    """What stays of an entry."""

    tenant_id: UUID
    sequence: int
    action: str
    occurred_at: datetime
    redacted: bool
    """Whether its content is gone already."""


async def look(connection: Connection, entry_id: UUID) -> Found:
    """What stays of the entry that is about to be redacted; as `redact`, within a transaction.

    Raises:
        DomainError: NOT_FOUND.
    """
    await connection.execute("SELECT set_config('evergreen.scope', $1, true)", SYSTEM.setting)
    row = await connection.fetchrow(
        "SELECT tenant_id, sequence, action, occurred_at, redacted FROM audit.entry WHERE id = $1",
        entry_id,
    )
    if row is None:
        raise not_found("audit entry", entry_id)
    return Found(**row)


async def redact(
    connection: Connection,
    entry_id: UUID,
    reason: str,
    operator: str,
    *,
    unsalted: bool,
    actor: str = ACTOR,
) -> Redacted:
    """Takes out the record and what the log is searched by; an entry of the chain says so.

    That entry is recorded here, in the same transaction: no moment shows the one without the other.
    It also goes out as an event, which the log then knows already.

    Args:
        connection: within a transaction, of a role that owns the tables.
        entry_id: the entry.
        reason: for the log; it names nobody.
        operator: the account of the machine that asks for it.
        unsalted: whether an entry of format v1 is redacted, whose hash confirms a guess.
        actor: how the log names who does it.

    Raises:
        DomainError: NOT_FOUND; FAILED_PRECONDITION for an entry that was redacted, one that says
            what was, and one of format v1.
    """
    await connection.execute("SELECT set_config('evergreen.scope', $1, true)", SYSTEM.setting)
    row = await connection.fetchrow(
        "SELECT tenant_id, sequence, action, occurred_at, hash, salt, redacted FROM audit.entry"
        " WHERE id = $1 FOR UPDATE",
        entry_id,
    )
    if row is None:
        raise not_found("audit entry", entry_id)
    if row["redacted"]:
        raise failed_precondition("ENTRY_REDACTED", "the entry is redacted already")
    if row["action"] in (EntryRedacted.NAME, Pruned.NAME, "audit.restored"):
        raise failed_precondition(
            "ENTRY_NEEDED", f"an entry of {row['action']} is needed to verify the log"
        )
    if row["salt"] is None and not unsalted:
        raise failed_precondition(
            "ENTRY_UNSALTED",
            "the entry is of format v1: its hash stays, confirms a guess of what it said, and"
            " cannot be verified any more; --unsalted redacts it all the same",
        )
    await connection.execute("SELECT set_config('evergreen.redacts', $1, true)", str(entry_id))
    await connection.execute(
        "UPDATE audit.entry SET redacted = true, record_digest = CASE WHEN salt IS NOT NULL THEN"
        " sha256(convert_to('evergreen audit record v1' || chr(10) || encode(salt, 'hex')"
        " || chr(10) || record, 'UTF8')) END, record = '', salt = NULL, actor = '', actor_id = '',"
        " resource = '' WHERE id = $1",
        entry_id,
    )
    event = EntryRedacted(
        id=entry_id,
        after=Redaction(
            sequence=row["sequence"],
            hash=row["hash"].hex(),
            action=row["action"],
            occurred_at=row["occurred_at"],
            reason=reason,
        ),
    )
    told = CloudEvent(event, row["tenant_id"], actor=actor, actor_id=operator)
    await write(connection, "audit", told)
    arrival = read_event(told.subject, told.payload().encode())
    await append(connection, [arrival], new_salt if row["salt"] is not None else str)
    return Redacted(row["tenant_id"], row["sequence"], row["action"])
