"""The SQL of how a forwarder does, and of which process sends for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from servicekit.data.postgres import Connection
from services.audit.forward.domain import Disabled, Forwarder
from services.audit.forward.store import QUALIFIED, STATE, read_forwarder, read_state


@dataclass(frozen=True, slots=True)
class Due:
    """What a worker has to know of a forwarder."""

    forwarder: Forwarder
    is_mine: bool
    is_free: bool
    """Whether no living process sends for it."""
    held_until: datetime | None
    """When the first message that was refused is tried again."""


async def delivered(
    connection: Connection, forwarder_id: UUID, count: int, at: datetime
) -> tuple[bool, str]:
    """Notes a success; answers whether the log says that the forwarder fails, and since when."""
    row = await connection.fetchrow(
        "WITH before AS (SELECT told, last_error FROM audit.forwarder_state"
        " WHERE forwarder_id = $1)"
        " UPDATE audit.forwarder_state s SET failing_since = NULL, told = false, attempts = 0,"
        " next_attempt_at = NULL, last_error = '', last_success_at = $3, delivered = delivered + $2"
        " FROM before WHERE forwarder_id = $1 RETURNING before.told, before.last_error",
        forwarder_id,
        count,
        at,
    )
    return (row["told"], row["last_error"]) if row else (False, "")


async def checkpoint_at(connection: Connection, forwarder_id: UUID) -> datetime | None:
    """When a forwarder was sent a checkpoint; `None` for never."""
    found: datetime | None = await connection.fetchval(
        "SELECT checkpoint_at FROM audit.forwarder_state WHERE forwarder_id = $1", forwarder_id
    )
    return found


async def note_checkpoint(connection: Connection, forwarder_id: UUID, at: datetime) -> None:
    """Notes that a forwarder was sent a checkpoint."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET checkpoint_at = $2 WHERE forwarder_id = $1",
        forwarder_id,
        at,
    )


async def attempts(connection: Connection, forwarder_id: UUID) -> int:
    """How often a forwarder has tried since it fails."""
    found: int | None = await connection.fetchval(
        "SELECT attempts FROM audit.forwarder_state WHERE forwarder_id = $1 FOR UPDATE",
        forwarder_id,
    )
    return found or 0


async def failed(
    connection: Connection,
    forwarder_id: UUID,
    reason: str,
    at: datetime,
    attempts: int,
    next_attempt_at: datetime,
) -> None:
    """Notes a failure, and when it is tried again."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET failing_since = coalesce(failing_since, $3),"
        " attempts = $4, next_attempt_at = $5, last_error = $2, last_error_at = $3"
        " WHERE forwarder_id = $1",
        forwarder_id,
        reason,
        at,
        attempts,
        next_attempt_at,
    )


async def note_error(connection: Connection, forwarder_id: UUID, reason: str, at: datetime) -> None:
    """Notes what went wrong with one message."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET last_error = $2, last_error_at = $3"
        " WHERE forwarder_id = $1",
        forwarder_id,
        reason,
        at,
    )


async def try_now(connection: Connection, forwarder_id: UUID) -> None:
    """Has a forwarder try at once, whatever failed before."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET attempts = 0, next_attempt_at = NULL"
        " WHERE forwarder_id = $1",
        forwarder_id,
    )
    await connection.execute(
        "UPDATE audit.forwarder_position SET attempts = 0, next_attempt_at = NULL"
        " WHERE forwarder_id = $1 AND (attempts > 0 OR next_attempt_at IS NOT NULL)",
        forwarder_id,
    )


async def begin_anew(connection: Connection, forwarder_id: UUID) -> None:
    """Forgets since when a forwarder fails, which was disabled since."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET failing_since = NULL WHERE forwarder_id = $1",
        forwarder_id,
    )


async def failing_untold(connection: Connection, before: datetime) -> list[Forwarder]:
    """Marks forwarders that have failed since before a time as told, and answers them."""
    rows = await connection.fetch(
        "UPDATE audit.forwarder_state s SET told = true FROM audit.forwarder f"
        " WHERE f.id = s.forwarder_id AND f.enabled AND NOT s.told AND s.failing_since <= $1"
        f" RETURNING {QUALIFIED}, {STATE}",
        before,
    )
    return [read_forwarder(row) for row in rows]


async def disable(
    connection: Connection, forwarder: Forwarder, reason: Disabled, at: datetime
) -> bool:
    """Disables a forwarder by the system; answers whether it was enabled, and unchanged."""
    done = await connection.execute(
        "UPDATE audit.forwarder SET enabled = false, disabled_reason = $3, revision = revision + 1,"
        " updated_at = $4 WHERE id = $1 AND enabled AND revision = $2",
        forwarder.id,
        forwarder.revision,
        reason,
        at,
    )
    if done != "UPDATE 1":
        return False
    await connection.execute(
        "UPDATE audit.forwarder_state SET failing_since = coalesce(failing_since, $2)"
        " WHERE forwarder_id = $1",
        forwarder.id,
        at,
    )
    return True


# Who sends for it.


async def recorded(connection: Connection) -> tuple[str, int]:
    """Changes with everything that the log takes in."""
    row = await connection.fetchrow("SELECT incarnation, sequence FROM audit.stream_position")
    return (row["incarnation"], row["sequence"]) if row else ("", 0)


async def enabled(
    connection: Connection, lease: UUID, known: Mapping[UUID, Forwarder]
) -> tuple[list[Due], bool]:
    """The enabled forwarders that no other process sends for, and whether there are any at all.

    Args:
        known: by id; of these only the state is read, unless they were changed.
    """
    rows = await connection.fetch(
        f"SELECT f.id, f.revision, {STATE}, s.lease = $1 AS is_mine,"
        " s.lease IS NULL OR s.lease_until < now() AS is_free,"
        " (SELECT min(next_attempt_at) FROM audit.forwarder_position p"
        " WHERE p.forwarder_id = f.id AND next_attempt_at IS NOT NULL) AS held_until"
        " FROM audit.forwarder f"
        " JOIN audit.forwarder_state s ON s.forwarder_id = f.id WHERE f.enabled ORDER BY f.id",
        lease,
    )
    kept = {
        row["id"]: replace(known[row["id"]], state=read_state(row))
        for row in rows
        if row["id"] in known and known[row["id"]].revision == row["revision"]
    }
    wanted = [
        row["id"] for row in rows if row["id"] not in kept and (row["is_mine"] or row["is_free"])
    ]
    if wanted:
        read = await connection.fetch(
            f"SELECT {QUALIFIED}, {STATE} FROM audit.forwarder f"
            " JOIN audit.forwarder_state s ON s.forwarder_id = f.id WHERE f.id = ANY ($1)",
            wanted,
        )
        kept |= {row["id"]: read_forwarder(row) for row in read}
    due = [
        Due(
            forwarder=kept[row["id"]],
            is_mine=bool(row["is_mine"]),
            is_free=bool(row["is_free"]),
            held_until=row["held_until"],
        )
        for row in rows
        if row["id"] in kept
    ]
    return due, bool(rows)


async def take(connection: Connection, forwarder_id: UUID, lease: UUID, seconds: float) -> bool:
    """Takes the lease of a forwarder, if nobody else has it."""
    done = await connection.execute(
        "UPDATE audit.forwarder_state SET lease = $2,"
        " lease_until = now() + make_interval(secs => $3) WHERE forwarder_id = $1"
        " AND (lease IS NULL OR lease = $2 OR lease_until < now())",
        forwarder_id,
        lease,
        seconds,
    )
    return bool(done == "UPDATE 1")


async def renew(connection: Connection, lease: UUID, seconds: float) -> set[UUID]:
    """Holds the leases for some time more; answers for which forwarders."""
    rows = await connection.fetch(
        "UPDATE audit.forwarder_state SET lease_until = now() + make_interval(secs => $2)"
        " WHERE lease = $1 RETURNING forwarder_id",
        lease,
        seconds,
    )
    return {row["forwarder_id"] for row in rows}


async def release(connection: Connection, forwarder_id: UUID, lease: UUID) -> None:
    """Gives a lease back."""
    await connection.execute(
        "UPDATE audit.forwarder_state SET lease = NULL, lease_until = NULL"
        " WHERE forwarder_id = $1 AND lease = $2",
        forwarder_id,
        lease,
    )
