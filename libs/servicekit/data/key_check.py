"""Whether a master key is the one of a database (`evergreen.key_check`)."""

from __future__ import annotations

from typing import Any, Final, Protocol

from servicekit.security.sealing import check_value

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
    found = await connection.fetchval(f"SELECT check_value FROM {TABLE}")
    if found is not None and found != check_value(master_key):
        raise OtherKeyError
    return found is not None


async def note(connection: Runs, master_key: bytes) -> None:
    """Lets the database know its master key; nothing is changed when it knows one.

    Raises:
        OtherKeyError: it knows another one.
    """
    await connection.execute(
        f"INSERT INTO {TABLE} (check_value) VALUES ($1) ON CONFLICT DO NOTHING",
        check_value(master_key),
    )
    await is_noted(connection, master_key)
