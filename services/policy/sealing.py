"""Seals the policies and documents with secrets that are stored open, or opens all of them again.

Rows are done some at a time while the service runs, each batch in a transaction of its own. What is
done stays when a later batch fails, and a second run goes on with the rest.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from servicekit.data.backup import Connection
from servicekit.security.digests import sha256
from services.policy.vault import SEALED, SECRETS, Vault, of_document, of_policy, of_version

AT_ONCE: Final = 50
"""Rows of a transaction; one can be two megabytes."""
_LOCK_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class _Table:
    """A table with rows that may be sealed."""

    name: str
    key: Mapping[str, str]
    """The columns of the primary key, with their types."""
    sealed: tuple[str, ...]
    """The columns that are sealed; the first one is never empty."""
    place: Callable[[Any], str]
    """Names a row."""
    more: tuple[str, ...] = ()
    """Columns that depend on whether a row is sealed."""

    @property
    def is_open(self) -> str:
        """Which rows are to be sealed, as SQL."""
        first = self.sealed[0]
        some = " OR ".join(f"{_text(one)} ~ '{SECRETS}'" for one in self.sealed)
        # The release before may have written into a sealed row.
        return f"({SEALED} IS NULL OR {first} <> '') AND ({some})"


def _text(column: str) -> str:
    return f"convert_from({column}, 'UTF8')" if column in {"document", "body"} else column


_TABLES: Final = (
    _Table(
        "policy.policies",
        {"id": "uuid"},
        ("authored", "form_extra"),
        lambda row: of_policy(row["tenant_id"], row["id"]),
    ),
    _Table(
        "policy.versions",
        {"tenant_id": "uuid", "version": "bigint"},
        ("authored", "form_extra", "layer", "document"),
        lambda row: of_version(row["tenant_id"], row["version"]),
        ("statement_payload", "document_digest"),
    ),
    _Table(
        "policy.documents",
        {"tenant_id": "uuid", "digest": "bytea"},
        ("body",),
        lambda row: of_document(row["tenant_id"], row["digest"]),
    ),
)


@dataclass(frozen=True, slots=True)
class Progress:
    """Rows of a table that were done so far, of so many."""

    table: str
    done: int
    of: int


async def waiting(connection: Connection, *, to_open: bool = False) -> dict[str, int]:
    """How many rows of each table are open and hold secrets, or with `to_open` are sealed."""
    found = {}
    async with _seeing_all(connection):
        for table in _TABLES:
            which = f"{SEALED} IS NOT NULL" if to_open else table.is_open
            found[table.name] = await connection.fetchval(
                f"SELECT count(*) FROM {table.name} WHERE {which}"
            )
    return found


async def run(
    connection: Connection, vault: Vault, *, to_open: bool = False
) -> AsyncGenerator[Progress]:
    """Stores all rows as the vault does it now; tells of each batch.

    Args:
        connection: of the role that owns the tables, outside of a transaction.
        vault: seals, or with `to_open` does not.
        to_open: opens what is sealed.

    Raises:
        SealingError: a row does not open.
    """
    counts = await waiting(connection, to_open=to_open)
    for table in _TABLES:
        which = f"{SEALED} IS NOT NULL" if to_open else table.is_open
        done, after = 0, None
        while True:
            async with _seeing_all(connection):
                rows = await _batch(connection, table, which, after)
                for row in rows:
                    await _store(connection, vault, table, row)
            if not rows:
                break
            done += len(rows)
            after = [rows[-1][name] for name in table.key]
            yield Progress(table.name, done, max(done, counts[table.name]))


async def _batch(
    connection: Connection, table: _Table, which: str, after: list[Any] | None
) -> list[asyncpg.Record]:
    key = ", ".join(table.key)
    behind = ", ".join(f"${at}::{kind}" for at, kind in enumerate(table.key.values(), 1))
    columns = dict.fromkeys(("tenant_id", *table.key, *table.sealed, *table.more, SEALED))
    further = f" AND ({key}) > ({behind})" if after else ""
    rows: list[asyncpg.Record] = await connection.fetch(
        f"SELECT {', '.join(columns)} FROM {table.name} WHERE {which}{further}"
        f" ORDER BY {key} LIMIT {AT_ONCE} FOR UPDATE",
        *(after or ()),
    )
    return rows


async def _store(connection: Connection, vault: Vault, table: _Table, row: asyncpg.Record) -> None:
    opened = vault.opened(table.place(row), row, *table.sealed)
    stored = vault.stored(table.place(row), opened)
    if "document" in opened:
        document, payload = opened["document"], row["statement_payload"]
        head = payload if row[SEALED] is not None else payload[: -len(document) - 1]
        is_sealed = stored[SEALED] is not None
        stored["statement_payload"] = head if is_sealed else head + document + b"}"
        stored["document_digest"] = sha256(document) if is_sealed else None
    values = {**stored, **{name: row[name] for name in table.key}}
    at = {name: f"${number}" for number, name in enumerate(values, 1)}
    await connection.execute(
        f"UPDATE {table.name} SET {', '.join(f'{name} = {at[name]}' for name in stored)}"
        f" WHERE {' AND '.join(f'{name} = {at[name]}' for name in table.key)}",
        *values.values(),
    )


@asynccontextmanager
async def _seeing_all(connection: Connection) -> AsyncIterator[None]:
    """A transaction that sees all rows, and waits for no lock for long."""
    async with connection.transaction():
        await connection.execute(
            "SELECT set_config('evergreen.scope', '*', true),"
            f" set_config('lock_timeout', '{_LOCK_SECONDS}s', true)"
        )
        yield
