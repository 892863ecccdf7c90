"""What of the database is kept, as its own catalogue says: a new table is kept without further ado.

Some things are not. Columns of type `xid8` hold transaction numbers of one server, which mean
nothing on another; their defaults make new ones. Tables that only say how far something was read
(`POSITIONS`), or what was left out then, would make readers skip what the restored server changes.
What else a context makes anew or derives, `services/<context>/restore.py` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from cli.backup.archive import Sequence, Table
from contract.contexts import CONTEXTS
from servicekit.data import key_check
from servicekit.data.backup import Connection, Tables
from servicekit.data.migrate import SHARED
from services.attestation import restore as attestation
from services.audit import restore as audit
from services.enrollment import restore as enrollment
from services.identity import restore as identity
from services.policy import restore as policy
from services.telemetry import restore as telemetry

T = TypeVar("T")

TABLES: Final[Mapping[str, Tables]] = {
    "attestation": attestation.TABLES,
    "audit": audit.TABLES,
    "enrollment": enrollment.TABLES,
    "identity": identity.TABLES,
    "policy": policy.TABLES,
    "telemetry": telemetry.TABLES,
}
"""What each context says of its schema."""


def _named(kind: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """Context → table → T becomes `context.table` → T."""
    return {
        f"{context}.{table}": value
        for context, tables in kind.items()
        for table, value in tables.items()
    }


SCHEMAS: Final = (SHARED, *CONTEXTS)
MIGRATIONS: Final = f"{SHARED}.schema_migrations"
"""Kept as versions in the header: a restore applies them."""
POSITIONS: Final = re.compile(r".+\.(outbox_stream|\w+_cursor|quarantined_row)")
"""The names are the same in every schema (`servicekit`)."""
DERIVED: Final = _named({context: said.derived for context, said in TABLES.items()})
"""Columns whose values an installation derives from others, in a way of its own."""
SEALED: Final = _named({context: said.sealed for context, said in TABLES.items()})
"""The tables with sealed keys, and the purpose that each is sealed for."""
SECRETS: Final = _named({context: said.secrets for context, said in TABLES.items()})
"""The tables with other secrets, and the purpose that each is sealed for."""
PASSING: Final = _named({context: said.passing for context, said in TABLES.items()})
"""The tables with secrets that no backup has, and the purpose that each is sealed for."""
_ORDERED: Final = _named({context: said.ordered for context, said in TABLES.items()})
_MADE_ANEW: Final = {MIGRATIONS, key_check.TABLE, key_check.APPROVED_TABLE}.union(
    *({f"{context}.{table}" for table in said.made_anew} for context, said in TABLES.items())
)
_SIGNS_OF_USE: Final = sorted(
    f"{context}.{table}" for context, said in TABLES.items() for table in said.signs_of_use
)
_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}(\.[a-z_][a-z0-9_]{0,62})?")


def quoted(name: str) -> str:
    """A name of the catalogue or an archive, checked to be a plain one, as SQL.

    Raises:
        ValueError: it is no name that a migration of ours gives.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not the name of a table")
    return ".".join(f'"{part}"' for part in name.split("."))


def is_kept(table: str) -> bool:
    """Whether the rows of a table are kept."""
    return table not in _MADE_ANEW and POSITIONS.fullmatch(table) is None


async def tables(connection: Connection) -> tuple[Table, ...]:
    """All tables with their columns; a table stands behind those that its rows refer to."""
    rows = await connection.fetch(
        "SELECT n.nspname || '.' || c.relname AS name,"
        " array_agg(a.attname::text ORDER BY a.attnum) AS columns"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname = ANY ($1)"
        " AND a.attgenerated = '' AND a.atttypid <> 'xid8'::regtype"
        " GROUP BY 1 ORDER BY 1",
        SCHEMAS,
    )
    references = await connection.fetch(
        "SELECT DISTINCT conrelid::regclass::text AS child, confrelid::regclass::text AS parent"
        " FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND conrelid <> confrelid"
    )
    found = {
        row["name"]: Table(
            row["name"],
            tuple(c for c in row["columns"] if c not in DERIVED.get(row["name"], {})),
            _ORDERED.get(row["name"], ()),
        )
        for row in rows
        if is_kept(row["name"])
    }
    parents: dict[str, set[str]] = {name: set() for name in found}
    for row in references:
        if row["child"] in found and row["parent"] in found:
            parents[row["child"]].add(row["parent"])
    ordered: list[Table] = []
    while parents:
        ready = sorted(name for name, waits_for in parents.items() if not waits_for & set(parents))
        if not ready:
            raise ValueError(f"tables refer to each other: {', '.join(sorted(parents))}")
        ordered += [found[name] for name in ready]
        for name in ready:
            del parents[name]
    return tuple(ordered)


async def sequences(connection: Connection) -> tuple[Sequence, ...]:
    """The sequences and where they stand."""
    rows = await connection.fetch(
        "SELECT schemaname || '.' || sequencename AS name, last_value FROM pg_sequences"
        " WHERE schemaname = ANY ($1) ORDER BY 1",
        SCHEMAS,
    )
    return tuple(Sequence(row["name"], row["last_value"]) for row in rows)


async def migrations(connection: Connection) -> dict[str, dict[str, str]]:
    """Schema → version → SHA-256 of each migration that is applied; empty for no schema at all."""
    if await connection.fetchval("SELECT to_regclass($1)", MIGRATIONS) is None:
        return {}
    found: dict[str, dict[str, str]] = {}
    for row in await connection.fetch(
        "SELECT schema_name, version, checksum FROM evergreen.schema_migrations ORDER BY 1, 2"
    ):
        found.setdefault(row["schema_name"], {})[str(row["version"])] = row["checksum"]
    return found


async def is_used(connection: Connection) -> bool:
    """Whether an installation lives in the database."""
    if not await migrations(connection):
        return False
    await see_everything(connection)
    for table in _SIGNS_OF_USE:
        exists = await connection.fetchval("SELECT to_regclass($1)", table)
        if exists and await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):
            return True
    return False


async def see_everything(connection: Connection) -> None:
    """Lets the transaction see the rows of all tenants, in forms that any server reads."""
    for name, value in {
        "evergreen.scope": "*",
        "datestyle": "ISO",
        "intervalstyle": "iso_8601",
        "timezone": "UTC",
        "extra_float_digits": "1",
        "bytea_output": "hex",
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
    }.items():
        await connection.execute("SELECT set_config($1, $2, true)", name, value)


def copy_out(table: Table) -> str:
    """The query that answers what is kept of a table."""
    columns = ", ".join(map(quoted, table.columns))
    order = f" ORDER BY {', '.join(map(quoted, table.order))}" if table.order else ""
    return f"SELECT {columns} FROM {quoted(table.name)}{order}"


def text_of(value: Any) -> str:
    """A value of COPY's text form, unescaped."""
    return _ESCAPE.sub(lambda match: _PLAIN.get(match[1], match[1]), value)


_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_PLAIN: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def rows_of(table: Table, piece: bytes) -> list[dict[str, str | None]]:
    """The rows in a piece of COPY's text form: column → text, `None` for NULL."""
    return [
        {
            column: None if value == "\\N" else text_of(value)
            for column, value in zip(table.columns, line.split("\t"), strict=True)
        }
        for line in piece.decode().split("\n")[:-1]
    ]
