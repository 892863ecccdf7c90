"""Restoring step by step: check everything, then write, and undo what fails.

Whatever cuts it short, at whatever moment: running it again repairs it. A home notes what it had,
and gets that back first. A database is filled in one transaction, with private keys that open with
the master key that the installation has, and notes that it was; what else there is to do comes
after that transaction.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass, replace
from pathlib import Path

from cli.backup import catalog
from cli.backup.aftermath import Outcome
from cli.backup.crypt import Key
from cli.backup.facts import Facts, read_audit_export, read_database
from cli.backup.keys import MASTER_KEY, SealedKeys
from cli.backup.places import LocalHome, Place, connected
from cli.backup.restore import NotEmptyError, finish, is_unfinished, require_empty, restore
from cli.backup.verify import Verified, verify
from cli.errors import CliError
from cli.migrate import Target
from servicekit.data import key_check, migrate
from servicekit.data.backup import Connection
from services.audit.restore import redact_what_waits


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
    run: str = ""
    """What names the run of a program that goes on when it is started again."""

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
                own = SealedKeys(files[MASTER_KEY])
                outcome = await restore(
                    connection, wanted.archive, wanted.key, wanted.facts, own, replace=False
                )
                await _upgrade(connection, target, own)
                outcome = await _redact(connection, outcome)
                await finish(connection)
            place.write(files, outcome.logins.default_tenant)
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
    wanted: Wanted, place: Place, target: Target, verified: Verified | None = None
) -> tuple[Outcome, list[str]]:
    """Restores into a database; answers which files of the archive have no place there.

    Args:
        wanted: what is restored.
        place: where the keys are.
        target: the database.
        verified: what was found in the archive, if it was checked already.

    Raises:
        CliError: and nothing was changed, or the restore has to be run again.
    """
    verified = verified or wanted.check()
    async with connected(target) as connection:
        replace = wanted.replace or await is_unfinished(connection, verified.header.id)
        if not replace:
            await require_empty(connection)
        await require_unused(connection)
        if replace and wanted.carry:
            await _learn(target, wanted.facts)
        staged = place.stage(verified.files)
        try:
            with place.master_key(verified.files[MASTER_KEY]) as key:
                own = SealedKeys(key)
                outcome = await restore(
                    connection, wanted.archive, wanted.key, wanted.facts, own, replace=replace
                )
        except BaseException:
            staged.discard()
            raise
        await _upgrade(connection, target, own)
        outcome = await _redact(connection, outcome)
        staged.put()
        await finish(connection, wanted.run)
    return outcome, staged.left


async def _upgrade(connection: Connection, target: Target, own: SealedKeys) -> None:
    """Brings the schema to this release, for which its services wait, and counts the rows."""
    await migrate.up(target.dsn, target.password)
    await key_check.note(connection, own.master_key)
    await connection.execute("ANALYZE")


async def _redact(connection: Connection, outcome: Outcome) -> Outcome:
    """Takes out of the audit log what had been redacted, and came back with the backup."""
    return replace(outcome, redactions=await redact_what_waits(connection, getpass.getuser()))


async def _learn(target: Target, facts: Facts) -> None:
    async with connected(target) as connection, connection.transaction(readonly=True):
        if await catalog.is_used(connection):
            await read_database(connection, facts)


async def require_unused(connection: Connection) -> None:
    """Refuses a database that services use: they would go on with what they know of the old one.

    Raises:
        CliError: some are connected.
    """
    busy = await connection.fetch(
        "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'evergreen' AND pid <> pg_backend_pid()"
    )
    if busy:
        raise CliError(
            "services are connected to the database"
            f" ({', '.join(sorted(row['usename'] for row in busy))}); stop them first"
        )
