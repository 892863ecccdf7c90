"""Restoring step by step: check everything, then write, and undo what fails.

Whatever cuts it short, at whatever moment: running it again repairs it. A home notes what it had,
and gets that back first. A database notes that it was filled, in the transaction that fills it, and
the old keys are replaced only after that transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cli.backup import catalog
from cli.backup.aftermath import Outcome
from cli.backup.crypt import Key
from cli.backup.facts import Facts, read_audit_export, read_database
from cli.backup.places import Directories, LocalHome, connected
from cli.backup.restore import NotEmptyError, finish, is_unfinished, require_empty, restore
from cli.backup.verify import Verified, verify
from cli.errors import CliError
from cli.migrate import Target
from servicekit import migrate


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be restored, and how."""

    archive: Path
    key: Key
    facts: Facts
    audit_exports: tuple[Path, ...] = ()
    replace: bool = False
    carry: bool = True
    """Whether what a replaced database knows is carried over."""

    def check(self) -> Verified:
        """Verifies the archive and reads the exports.

        Raises:
            CliError: one of them is not good.
        """
        found = verify(self.archive, self.key)
        for export in self.audit_exports:
            read_audit_export(export, found.heads, self.facts)
        return found


async def into_home(wanted: Wanted, place: LocalHome) -> tuple[Outcome, Path | None]:
    """Restores into a home; answers where what was there has been put.

    Raises:
        CliError: and the home is as it was.
    """
    if not place.was_cut_short:
        _refuse_used(place, wanted)
    files = wanted.check().files
    with place.held():
        place.put_back()
        _refuse_used(place, wanted)
        if wanted.carry and place.home.postgres.exists():
            async with place.started() as target:
                await _learn(target, wanted.facts)
        try:
            aside = place.put_aside()
            place.home.prepare()
            async with place.started() as target, connected(target) as connection:
                outcome = await restore(
                    connection, wanted.archive, wanted.key, wanted.facts, replace=False
                )
                await _upgrade(connection, target)
                await finish(connection)
            place.write(files, outcome.default_tenant)
        except BaseException:
            place.put_back()
            raise
        place.keep()
    return outcome, aside


def _refuse_used(place: LocalHome, wanted: Wanted) -> None:
    if not place.is_empty and not wanted.replace:
        raise NotEmptyError(
            f"{place.home.root} holds an installation; restore into another directory, or say"
            " --replace"
        )


async def into_database(
    wanted: Wanted, place: Directories, target: Target
) -> tuple[Outcome, list[str]]:
    """Restores into a database and directories; answers which files have no place there.

    Raises:
        CliError: and nothing was changed, or the restore has to be run again.
    """
    verified = wanted.check()
    if not wanted.replace:
        place.refuse_others(verified.files)
    async with connected(target) as connection:
        replace = wanted.replace or await is_unfinished(connection, verified.header.id)
        if not replace:
            await require_empty(connection)
        await _require_unused(connection)
        if replace and wanted.carry:
            await _learn(target, wanted.facts)
        staged = place.stage(verified.files)
        try:
            outcome = await restore(
                connection, wanted.archive, wanted.key, wanted.facts, replace=replace
            )
        except BaseException:
            staged.discard()
            raise
        await _upgrade(connection, target)
        staged.put()
        await finish(connection)
    return outcome, staged.left


async def _upgrade(connection: catalog.Connection, target: Target) -> None:
    """Brings the schema to this release, for which its services wait, and counts the rows."""
    await migrate.up(target.dsn, target.password)
    await connection.execute("ANALYZE")


async def _learn(target: Target, facts: Facts) -> None:
    async with connected(target) as connection, connection.transaction(readonly=True):
        if await catalog.is_used(connection):
            await read_database(connection, facts)


async def _require_unused(connection: catalog.Connection) -> None:
    """Services that run would go on with what they know of the old database."""
    busy = await connection.fetch(
        "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'evergreen' AND pid <> pg_backend_pid()"
    )
    if busy:
        raise CliError(
            "services are connected to the database"
            f" ({', '.join(sorted(row['usename'] for row in busy))}); stop them first"
        )
