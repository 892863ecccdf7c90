"""Attempts to enroll with a genuine key that were refused: what administrators see of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from contract.events.enrollment import EnrollmentRefusalSnapshot
from servicekit.data.postgres import Connection, Scope, columns
from servicekit.rpc.pagination import Page, TimePosition
from servicekit.serials import serial_key

MOST_REFUSALS: Final = 1_000
"""Of one organisation; the latest stay."""
TELL_EVERY: Final = timedelta(hours=1)
MOST_TOLD: Final = 20
"""Refusals of an organisation that events tell of in `TELL_EVERY`: serials can be made up."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Attempts of one machine that were refused for one reason."""

    id: UUID
    tenant_id: UUID
    token_id: UUID
    reason: str
    serial: str
    model: str
    source_ip: str
    first_at: datetime
    last_at: datetime
    attempts: int = 1

    @property
    def position(self) -> TimePosition:
        """Where it stands in lists."""
        return TimePosition(self.last_at, self.id)

    def snapshot(self) -> EnrollmentRefusalSnapshot:
        """What events say of it."""
        return EnrollmentRefusalSnapshot(
            serial=self.serial, model=self.model, org_id=self.tenant_id, reason=self.reason
        )


_REFUSAL: Final = (
    "id, tenant_id, token_id, reason, serial, model, source_ip, first_at, last_at, attempts"
)


def _refusal(row: asyncpg.Record) -> Refusal:
    return Refusal(
        id=row["id"],
        tenant_id=row["tenant_id"],
        token_id=row["token_id"],
        reason=row["reason"],
        serial=row["serial"],
        model=row["model"],
        source_ip=row["source_ip"],
        first_at=row["first_at"],
        last_at=row["last_at"],
        attempts=row["attempts"],
    )


async def list_refusals(
    connection: Connection, scope: Scope, serial: str, before: TimePosition | None, limit: int
) -> Page[Refusal, TimePosition]:
    """Refusals of the scope (of a serial number, unless it is empty), the latest first."""
    rows = await connection.fetch(
        f"SELECT {_REFUSAL} FROM enrollment.refusal"
        " WHERE ($1::uuid[] IS NULL OR tenant_id = ANY ($1)) AND ($2 = '' OR serial_key = $2)"
        " AND ($3::timestamptz IS NULL OR (last_at, id) < ($3, $4))"
        " ORDER BY last_at DESC, id DESC LIMIT $5",
        scope.tenant_ids,
        serial_key(serial),
        before.at if before else None,
        before.id if before else None,
        limit + 1,
    )
    return Page.of([_refusal(row) for row in rows], limit, lambda refusal: refusal.position)


async def note_refusals(connection: Connection, refusals: Sequence[Refusal]) -> list[Refusal]:
    """Counts refusals; answers those that an event is to tell of."""
    found = {
        (r.tenant_id, r.token_id, serial_key(r.serial), r.reason): r for r in refusals
    }  # a batch may have one machine twice
    if not found:
        return []
    rows = await connection.fetch(
        f"INSERT INTO enrollment.refusal AS r ({_REFUSAL}, serial_key)"
        " SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[],"
        " $6::text[], $7::text[], $8::timestamptz[], $9::timestamptz[], $10::integer[],"
        " $11::text[])"
        " ON CONFLICT ON CONSTRAINT refusal_of_one DO UPDATE SET"
        " last_at = greatest(r.last_at, excluded.last_at), serial = excluded.serial,"
        " model = excluded.model, source_ip = excluded.source_ip,"
        " attempts = least(r.attempts, 2147483646) + 1"
        f" RETURNING {_REFUSAL}, told_at, attempts = 1 AS is_new",
        *columns(
            [
                (
                    r.id,
                    r.tenant_id,
                    r.token_id,
                    r.reason,
                    r.serial,
                    r.model,
                    r.source_ip,
                    r.first_at,
                    r.last_at,
                    r.attempts,
                    key[2],
                )
                # Two processes that meet wait for each other in one order.
                for key, r in sorted(found.items())
            ]
        ),
    )
    latest = {row["tenant_id"]: row["last_at"] for row in rows if row["is_new"]}
    for tenant_id, at in latest.items():
        await _forget_oldest(connection, tenant_id, at)
    due = [
        _refusal(row)
        for row in rows
        if row["told_at"] is None or row["last_at"] - row["told_at"] >= TELL_EVERY
    ]
    return await _tell(connection, due) if due else []


async def _forget_oldest(connection: Connection, tenant_id: UUID, at: datetime) -> None:
    """Keeps the latest refusals, and those that say how many were told of late."""
    await connection.execute(
        "DELETE FROM enrollment.refusal WHERE tenant_id = $1 AND (last_at, id) <="
        " (SELECT last_at, id FROM enrollment.refusal WHERE tenant_id = $1"
        " ORDER BY last_at DESC, id DESC LIMIT 1 OFFSET $2)"
        " AND (told_at IS NULL OR told_at <= $3)",
        tenant_id,
        MOST_REFUSALS,
        at - TELL_EVERY,
    )


async def _tell(connection: Connection, due: Sequence[Refusal]) -> list[Refusal]:
    """Notes which of these are told now: of each organisation no more than a few."""
    at = max(refusal.last_at for refusal in due)
    rows = await connection.fetch(
        "SELECT tenant_id, count(*) AS told FROM enrollment.refusal"
        " WHERE tenant_id = ANY ($1) AND told_at > $2 GROUP BY tenant_id",
        list({refusal.tenant_id for refusal in due}),
        at - TELL_EVERY,
    )
    told = {row["tenant_id"]: row["told"] for row in rows}
    chosen = []
    for refusal in due:
        so_far = told.get(refusal.tenant_id, 0)
        if so_far < MOST_TOLD:
            told[refusal.tenant_id] = so_far + 1
            chosen.append(refusal)
    if chosen:
        await connection.execute(
            "UPDATE enrollment.refusal SET told_at = last_at WHERE id = ANY ($1)",
            [refusal.id for refusal in chosen],
        )
    return chosen
