"""Makes an archive of a database that is in use, in one transaction that sees one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cli.backup import catalog
from cli.backup.archive import Header, Table, Writer, writing
from cli.backup.crypt import Lock
from cli.backup.keys import MASTER_KEY, SealedKeys
from cli.errors import CliError
from servicekit.data.backup import Connection
from servicekit.ids import new_id, now


@dataclass(frozen=True, slots=True)
class Created:
    """What was written."""

    path: Path
    id: str
    point: datetime
    rows: int


async def create(
    connection: Connection, files: Mapping[str, bytes], path: Path, lock: Lock, release: str
) -> Created:
    """Writes the whole database, as of now, and the files given.

    Args:
        connection: of the role that owns the schemas.
        files: the master key at `MASTER_KEY`, further secrets, certificates, configuration.
        path: the archive; it must not be there yet.
        lock: what closes it.
        release: the version of this program.

    Raises:
        CliError: there is no installation in the database, or the master key is not its own.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await catalog.see_everything(connection)
        # The beginning of the transaction, which its snapshot follows.
        point = await connection.fetchval("SELECT now()")
        migrations = await catalog.migrations(connection)
        if not migrations:
            raise CliError("there is no installation in this database")
        await _check_keys(connection, files)
        header = Header(
            id=str(new_id()),
            created_at=now(),
            point=point,
            release=release,
            server=await connection.fetchval("SHOW server_version"),
            migrations=migrations,
            tables=await catalog.tables(connection),
            sequences=await catalog.sequences(connection),
            files=tuple(files),
        )
        rows = 0
        with writing(path, lock, header) as archive:
            for name, content in files.items():
                archive.file(name, content)
            for table in header.tables:
                rows += await _copy(connection, archive, table)
    return Created(path, header.id, point, rows)


async def _copy(connection: Connection, archive: Writer, table: Table) -> int:
    archive.start_table(table.name)

    async def take(part: bytes) -> None:
        archive.rows(part)

    done: str = await connection.copy_from_query(
        catalog.copy_out(table), output=take, format="text", encoding="utf8"
    )
    count = int(done.rsplit(" ", 1)[1])
    archive.end_table(count)
    return count


async def _check_keys(connection: Connection, files: Mapping[str, bytes]) -> None:
    """A backup whose keys do not open is none; better to hear of it now."""
    sealed = SealedKeys(files.get(MASTER_KEY))
    for table in catalog.SEALED:
        for row in await connection.fetch(
            f"SELECT public_key, sealed_seed FROM {table} WHERE sealed_seed IS NOT NULL"
        ):
            sealed.check(table, row["public_key"], row["sealed_seed"])
