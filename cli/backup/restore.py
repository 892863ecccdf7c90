"""Puts an archive into a database, in one transaction: afterwards it is all there, or nothing is.

The schema is made as it was when the backup was made, and filled. Then an upgrade brings it to this
release; its services wait for that. What only made sense on the old server is made
anew (`catalog`), and what must be different after going back in time is changed (`aftermath`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from cli.backup import aftermath, catalog
from cli.backup.aftermath import Outcome
from cli.backup.archive import Header, Table, reading
from cli.backup.catalog import quoted
from cli.backup.crypt import Key
from cli.backup.facts import Facts
from cli.backup.keys import MASTER_KEY, SealedKeys
from cli.errors import CliError
from servicekit.data import migrate
from servicekit.data.backup import Connection
from services.identity import restore as identity

_UNFINISHED: Final = "being restored from backup {}"
_FINISHED: Final = "restored by {}"


class NotEmptyError(CliError):
    """There is an installation where the backup should go."""


async def require_empty(connection: Connection) -> None:
    """Refuses a database that is in use.

    Raises:
        NotEmptyError: it holds an installation.
    """
    async with connection.transaction(readonly=True):
        if await catalog.is_used(connection):
            raise NotEmptyError(
                "the database holds an installation; restore into an empty one, or say --replace"
            )


async def is_unfinished(connection: Connection, archive_id: str) -> bool:
    """Whether a restore of this archive filled the database and was then cut short.

    Not any more when services have started on it: what happened since must not be lost.
    """
    async with connection.transaction(readonly=True):
        await catalog.see_everything(connection)
        if await _noted(connection) != _UNFINISHED.format(archive_id):
            return False
        return not await identity.has_started(connection)


async def finish(connection: Connection, run: str = "") -> None:
    """Notes that nothing is left to do: schema, keys and rows belong together.

    Args:
        connection: of the role that owns the schemas.
        run: what names the run of a program that goes on when it is started again.
    """
    await _note(connection, _FINISHED.format(run) if run else None)


async def is_finished(connection: Connection, run: str) -> bool:
    """Whether this run has restored the database."""
    async with connection.transaction(readonly=True):
        return await _noted(connection) == _FINISHED.format(run)


async def is_under_way(connection: Connection) -> bool:
    """Whether a restore has filled the database and is not finished, whichever archive's it is."""
    async with connection.transaction(readonly=True):
        await catalog.see_everything(connection)
        noted = await _noted(connection) or ""
        return noted.startswith(_UNFINISHED.format("")) and not await identity.has_started(
            connection
        )


async def _noted(connection: Connection) -> str | None:
    noted: str | None = await connection.fetchval(
        "SELECT obj_description(to_regnamespace($1), 'pg_namespace')", migrate.SHARED
    )
    return noted


async def _note(connection: Connection, text: str | None) -> None:
    """Notes it in the database itself, so that it holds exactly as long as the rows do."""
    await connection.execute(
        await connection.fetchval(
            "SELECT format('COMMENT ON SCHEMA %I IS %L', $1::text, $2::text)", migrate.SHARED, text
        )
    )


async def restore(
    connection: Connection, path: Path, key: Key, facts: Facts, own: SealedKeys, *, replace: bool
) -> Outcome:
    """Fills the database from an archive that was verified; its schema is the archive's then.

    It counts as unfinished until `finish`. Private keys are sealed anew where the installation has
    another master key than the archive: then the one transaction is all that changes, and no moment
    has rows and a master key that do not belong together.

    Args:
        connection: of the role that owns the schemas.
        path: the archive.
        key: what opens it.
        facts: what was decided since.
        own: the installation's master key.
        replace: whether what is in the database may go.

    Raises:
        CliError: the database is in use, or the archive cannot be read after all.
    """
    async with connection.transaction():
        await catalog.see_everything(connection)
        if not replace and await catalog.is_used(connection):
            raise NotEmptyError("the database holds an installation")
        for schema in catalog.SCHEMAS:
            await connection.execute(f"DROP SCHEMA IF EXISTS {quoted(schema)} CASCADE")
        with reading(path, key) as archive:
            header, sealed = archive.header, SealedKeys(archive.files.get(MASTER_KEY))
            await migrate.make(connection, _made_by(header))
            for table, pieces in archive.tables():
                # A release that did not know a table yet, after a rollback, has kept it.
                if catalog.is_kept(table.name):
                    await _fill(connection, table, pieces)
        if sealed.master_key != own.master_key:
            await _seal_anew(connection, sealed, own)
        for sequence in header.sequences:
            if sequence.value is not None:
                await connection.execute(
                    "SELECT setval($1::text::regclass, $2)", quoted(sequence.name), sequence.value
                )
        outcome = await aftermath.apply(connection, header, facts)
        await _note(connection, _UNFINISHED.format(header.id))
        return outcome


def _made_by(header: Header) -> list[migrate.Migration]:
    return [
        migration
        for migration in migrate.all_migrations()
        if str(migration.version) in header.migrations.get(migration.schema, {})
    ]


async def _fill(connection: Connection, table: Table, pieces: Iterator[bytes]) -> None:
    name = quoted(table.name)
    # What a migration wrote is in the archive too, as it became.
    if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {name})"):
        await connection.execute(f"DELETE FROM {name}")
    derived = await _derived(connection, table)
    if derived:
        await _insert(connection, table, pieces, derived)
        return
    # PostgreSQL copies into no table whose row security binds the role that copies.
    forced = await connection.fetchval(
        "SELECT relforcerowsecurity FROM pg_class WHERE oid = $1::text::regclass", name
    )
    if forced:
        await connection.execute(f"ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY")
    schema, _, bare = table.name.partition(".")
    await _copy(connection, schema, bare, table, pieces)
    if forced:
        await connection.execute(f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY")


async def _seal_anew(connection: Connection, sealed: SealedKeys, own: SealedKeys) -> None:
    for table in catalog.SEALED:
        for row in await connection.fetch(
            f"SELECT sealed_seed FROM {table} WHERE sealed_seed IS NOT NULL"
        ):
            await connection.execute(
                f"UPDATE {table} SET sealed_seed = $2 WHERE sealed_seed = $1",
                row["sealed_seed"],
                sealed.seal_anew(table, row["sealed_seed"], own),
            )
    for table in catalog.SECRETS:
        # The archive may be from before there was such a table or column.
        if not await connection.fetchval(
            "SELECT count(*) > 0 FROM pg_attribute WHERE attrelid = to_regclass($1)"
            " AND attname = 'sealed_secrets'",
            table,
        ):
            continue
        # Nobody else is there, and each row changes once: its place names it.
        async for row in connection.cursor(
            f"SELECT ctid, sealed_secrets FROM {table} WHERE sealed_secrets IS NOT NULL"
        ):
            await connection.execute(
                f"UPDATE {table} SET sealed_secrets = $2 WHERE ctid = $1",
                row["ctid"],
                sealed.secrets_anew(table, row["sealed_secrets"], own),
            )


async def _derived(connection: Connection, table: Table) -> dict[str, str]:
    """The columns to derive; the schema of the archive may be from before it had them."""
    rows = await connection.fetch(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass", quoted(table.name)
    )
    present = {row["attname"] for row in rows}
    wanted = catalog.DERIVED.get(table.name, {})
    return {column: how for column, how in wanted.items() if column in present}


async def _insert(
    connection: Connection, table: Table, pieces: Iterator[bytes], derived: dict[str, str]
) -> None:
    """Fills a table by way of another one, from which columns are derived."""
    columns = ", ".join(map(quoted, table.columns))
    schema = table.name.partition(".")[0]
    arriving = quoted(f"{schema}.restored_rows")
    await connection.execute(
        f"CREATE TABLE {arriving} AS SELECT {columns} FROM {quoted(table.name)} WITH NO DATA"
    )
    for piece in pieces:
        await _copy(connection, schema, "restored_rows", table, iter([piece]))
        await connection.execute(
            f"INSERT INTO {quoted(table.name)} ({columns}, {', '.join(map(quoted, derived))})"
            f" SELECT {columns}, {', '.join(derived.values())} FROM {arriving}"
        )
        await connection.execute(f"TRUNCATE {arriving}")
    await connection.execute(f"DROP TABLE {arriving}")


async def _copy(
    connection: Connection, schema: str, bare: str, table: Table, pieces: Iterator[bytes]
) -> None:
    async def source() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    await connection.copy_to_table(
        bare,
        schema_name=schema,
        columns=list(table.columns),
        source=source(),
        format="text",
        encoding="utf8",
    )
