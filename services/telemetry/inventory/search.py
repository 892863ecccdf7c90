"""Finds rare devices in a large fleet by indexes of what is looked for, not in the list's order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from services.telemetry.inventory.domain import DeviceFilter, NamePosition
from services.telemetry.inventory.query import DeviceQuery
from services.telemetry.where import Where, containing

_HAS_TRIGRAM: Final = re.compile(r"[0-9A-Za-z]{3}")
"""Without three letters or digits in a row there is nothing that the index could look up."""
_FREQUENT: Final = 20
"""To put devices in order costs so much less than to read them."""
_BEFORE_ALL: Final = NamePosition("", UUID(int=0))


@dataclass(frozen=True, slots=True)
class Found:
    """The next devices that may be wanted; `last` is the last of them unless there are no more."""

    ids: list[UUID]
    last: NamePosition | None


def is_indexed(wanted: DeviceFilter) -> bool:
    """Whether an index knows what is looked for."""
    return wanted.seen_before is not None or _HAS_TRIGRAM.search(wanted.search) is not None


async def find(connection: Connection, query: DeviceQuery, most: int) -> Found | None:
    """The next devices that may be wanted; `None` if there are too many.

    In a transaction that is bound to the scope. An index of texts answers `most` at a time.
    """
    if query.wanted.seen_before is not None:
        found = await _silent(connection, query)
        if found is not None:
            return found
    if _HAS_TRIGRAM.search(query.wanted.search):
        return await _with_text(connection, query, most)
    return None


async def _silent(connection: Connection, query: DeviceQuery) -> Found | None:
    """All devices that may not have called since a time, unless they are more than may be read."""
    where = Where(query.scope)
    where.add("seen_day <= (?::timestamptz AT TIME ZONE 'UTC')::date", query.wanted.seen_before)
    rows = await connection.fetch(
        f"SELECT id FROM telemetry.device {where.sql} LIMIT {where.parameter(query.scan + 1)}",
        *where.parameters,
    )
    return Found([row["id"] for row in rows], None) if len(rows) <= query.scan else None


async def _with_text(connection: Connection, query: DeviceQuery, most: int) -> Found | None:
    """The next devices that have a text, unless very many have it."""
    after = query.after or _BEFORE_ALL
    rows = await connection.fetch(
        "SELECT id, name FROM telemetry.devices_with($1, $2, $3, $4, $5)",
        containing(query.wanted.search),
        after.name,
        after.id,
        most,
        query.scan * _FREQUENT,
    )
    if rows and rows[0]["id"] is None:
        return None
    last = rows[-1] if len(rows) == most else None
    return Found(
        [row["id"] for row in rows], NamePosition(last["name"], last["id"]) if last else None
    )
