"""Whether a master key is the one of a database (`evergreen.key_check`, `approved_key_check`)."""

from __future__ import annotations

from typing import Any, Final, Protocol

from servicekit.security import mode
from servicekit.security.sealing import approved_check_value, check_value

TABLE: Final = "evergreen.key_check"
APPROVED_TABLE: Final = "evergreen.approved_key_check"
"""The same by approved algorithms."""


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
    known = False
    for table, value in _values(master_key).items():
        if await connection.fetchval("SELECT to_regclass($1)", table) is None:
            continue
        found = await connection.fetchval(f"SELECT check_value FROM {table}")
        if found is not None and found != value:
            raise OtherKeyError
        known = known or found is not None
    return known


async def note(connection: Runs, master_key: bytes) -> None:
    """Lets the database know its master key, in each way that this process can compute; nothing is
    changed when it knows one.

    Raises:
        OtherKeyError: it knows another one.
    """
    await is_noted(connection, master_key)
    for table, value in _values(master_key).items():
        await connection.execute(
            f"INSERT INTO {table} (check_value) VALUES ($1) ON CONFLICT DO NOTHING", value
        )
    await is_noted(connection, master_key)


def _values(master_key: bytes) -> dict[str, bytes]:
    """What stands for the key, by table."""
    approved = {APPROVED_TABLE: approved_check_value(master_key)}
    return approved if mode.is_required() else {TABLE: check_value(master_key)} | approved
