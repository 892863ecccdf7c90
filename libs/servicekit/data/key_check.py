"""Whether a master key is the one of a database (`evergreen.key_check`)."""

from __future__ import annotations

import json
from typing import Any, Final, Protocol

from servicekit.security import mode
from servicekit.security.sealing import approved_check_value, check_value

TABLE: Final = "evergreen.key_check"


class OtherKeyError(Exception):
    """The master key is another one than the database's; the message says what to do."""

    def __init__(self) -> None:
        super().__init__(
            "the master key is not the one of this database, whose private keys it cannot open:"
            " put the database's own key back (it is in every backup), or restore a backup"
        )


class Runs(Protocol):
    """A connection."""

    async def fetchval(self, query: str, *args: Any) -> Any:
        """The first value of the first row."""

    async def execute(self, query: str, *args: Any) -> str:
        """Runs a statement."""


async def is_noted(connection: Runs, master_key: bytes) -> bool:
    """Whether the database knows its master key, which is then this one.

    Raises:
        OtherKeyError: it knows another one.
    """
    if await connection.fetchval("SELECT to_regclass($1)", TABLE) is None:
        return False
    # As a document: an older schema has no column for the approved algorithms.
    row = await connection.fetchval(f"SELECT to_jsonb(noted) FROM {TABLE} AS noted")
    found = json.loads(row) if row is not None else {}
    noted = {column: found.get(column) for column in _values(master_key)}
    for column, value in _values(master_key).items():
        if noted[column] not in {None, f"\\x{value.hex()}"}:
            raise OtherKeyError
    return any(noted.values())


async def note(connection: Runs, master_key: bytes) -> None:
    """Lets the database know its master key, in each way that this process can compute; nothing is
    changed when it knows one.

    Raises:
        OtherKeyError: it knows another one.
    """
    await is_noted(connection, master_key)
    for column, value in _values(master_key).items():
        await connection.execute(
            f"INSERT INTO {TABLE} AS noted ({column}) VALUES ($1) ON CONFLICT (only_row)"
            f" DO UPDATE SET {column} = excluded.{column} WHERE noted.{column} IS NULL",
            value,
        )
    await is_noted(connection, master_key)


def _values(master_key: bytes) -> dict[str, bytes]:
    """What stands for the key, by column."""
    approved = {"approved_check_value": approved_check_value(master_key)}
    return approved if mode.is_required() else {"check_value": check_value(master_key)} | approved
