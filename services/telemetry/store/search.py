"""Finds rare devices in a large fleet by indexes of what is searched, not by the list's order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from servicekit.postgres import Connection
from services.telemetry.domain.views import DeviceFilter, NamePosition
from services.telemetry.store.where import containing

_HAS_TRIGRAM: Final = re.compile(r"[0-9A-Za-z]{3}")
"""Without three letters or digits in a row there is nothing that the index could look up."""
_FREQUENT: Final = 20
"""To put devices in order costs so much less than to read them."""


@dataclass(frozen=True, slots=True)
class Found:
    """The next devices that may be wanted; `last` is the last of them unless there are no more."""

    ids: list[UUID]
    last: NamePosition | None


def is_indexed(wanted: DeviceFilter) -> bool:
    """Whether an index knows what is looked for."""
    return _HAS_TRIGRAM.search(wanted.search) is not None


async def find(
    connection: Connection, wanted: DeviceFilter, after: NamePosition, most: int, scan: int
) -> Found | None:
    """The next devices of the transaction's scope with the text; `None` if it is a frequent one.

    A text is frequent when twenty times more devices have it than `scan`.
    """
    rows = await connection.fetch(
        "SELECT id, name FROM telemetry.devices_with($1, $2, $3, $4, $5)",
        containing(wanted.search),
        after.name,
        after.id,
        most,
        scan * _FREQUENT,
    )
    if rows and rows[0]["id"] is None:
        return None
    last = rows[-1] if len(rows) == most else None
    return Found(
        [row["id"] for row in rows], NamePosition(last["name"], last["id"]) if last else None
    )
