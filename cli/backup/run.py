"""One scheduled backup: create, verify, upload, prune, note.

Whatever fails, the backups in the store stay as they are: a new one appears there whole or not at
all, and the oldest ones go only after it. What is made for public keys is verified with a key of
its own that is thrown away afterwards.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cli.backup import runs
from cli.backup.create import create
from cli.backup.crypt import Lock, verifiable
from cli.backup.keep import Keep
from cli.backup.places import Directories, LocalHome, connected
from cli.backup.stores.directory import DirectoryStore
from cli.backup.stores.store import PART, Store, Stored, StoreError, name_of
from cli.backup.verify import Verified, verify
from cli.errors import CliError
from cli.migrate import Target
from servicekit.data.backup import Connection
from servicekit.ids import now

_RESERVE_BYTES: Final = 256 << 20
"""What a backup leaves free on a disk."""
_SHARE: Final = 2
"""An archive has at most this part of the database's size: rows shrink to a fifth or so."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a scheduled backup is to do."""

    store: Store
    lock: Lock
    keep: Keep
    release: str
    staging: Path
    """Where the archive is made, if not in the store itself."""
    every: timedelta | None = None
    """The interval of the schedule, if it is known."""
    tell: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Done:
    """What a backup came to."""

    stored: Stored
    verified: Verified
    pruned: tuple[str, ...]
    not_pruned: str
    """Why old backups could not be removed; empty when they could."""


async def back_up(job: Job, place: LocalHome | Directories, target: Target) -> Done:
    """Makes a backup, and notes how it ended.

    Raises:
        CliError: it failed; the store has what it had.
    """
    files = place.read()
    async with connected(target) as connection, runs.alone(connection):
        began = now()
        try:
            done = await _back_up(job, connection, files)
        except CliError as error:
            await _note_failure(job, target, began, str(error))
            raise
        except OSError as error:
            reason = f"the backup cannot be written: {error.strerror or error}"
            await _note_failure(job, target, began, reason)
            raise CliError(reason) from error
    async with connected(target) as connection:
        await runs.note(
            connection,
            "backup",
            done.verified.header.point,
            succeeded=True,
            target=job.store.where,
            name=done.stored.name,
            size=done.stored.bytes,
            may_become=runs.max_age(job.every),
            detail=done.not_pruned,
        )
    return done


async def _note_failure(job: Job, target: Target, began: datetime, reason: str) -> None:
    async with connected(target) as connection:
        await runs.note(
            connection,
            "backup",
            began,
            succeeded=False,
            target=job.store.where,
            may_become=runs.max_age(job.every),
            detail=reason,
        )


async def _back_up(job: Job, connection: Connection, files: dict[str, bytes]) -> Done:
    store, began = job.store, now()
    tag = await runs.installation_tag(connection)
    # First of all: a store that cannot be reached is known before the work is done.
    before = store.all()
    store.tidy(tag)
    name = name_of(tag, began)
    staging = store.staging(job.staging)
    with _staged(staging, name, tag) as archive:
        await _require_room(connection, staging)
        lock, key = verifiable(job.lock)
        job.tell("Writing the archive ...")
        await create(connection, files, archive, lock, job.release)
        job.tell("Verifying it ...")
        found, size = verify(archive, key), archive.stat().st_size
        if size == 0 or sum(found.rows.values()) == 0:
            raise CliError("the archive is empty; nothing was stored")
        job.tell(f"Storing {size:,} bytes in {store.where} ...")
        store.put(archive, name)
    there = {one.name: one for one in store.all()}
    if name not in there or there[name].bytes != size:
        raise StoreError(f"{store.where} does not show {name} with its {size:,} bytes")
    own = [one for one in there.values() if one.tag == tag]
    lost = [one.name for one in before if one.tag == tag and one.name not in there]
    if lost:
        job.tell(f"Gone from the store meanwhile: {', '.join(lost)}")
    return _pruned(job, own, Done(there[name], found, (), ""))


def _pruned(job: Job, own: list[Stored], done: Done) -> Done:
    """Removes what is not to be kept; a store that refuses has the backup all the same.

    The one just made stays, also beside others whose names say that they are of a later time: a
    clock may have been wrong, and every writer of a store can choose such a name.
    """
    pruned: list[str] = []
    for old in job.keep.superfluous(own):
        if old.name == done.stored.name:
            continue
        try:
            job.store.remove(old.name)
        except StoreError as error:
            return replace(done, pruned=tuple(pruned), not_pruned=str(error))
        pruned.append(old.name)
    return replace(done, pruned=tuple(pruned))


@contextmanager
def _staged(directory: Path, name: str, tag: str) -> Iterator[Path]:
    """A path for the archive until it is stored; what was left there by others is removed.

    Raises:
        CliError: the directory cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CliError(f"{directory} cannot be made: {error.strerror}") from error
    DirectoryStore(directory).tidy(tag)
    path = directory / f".{name}{PART}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


async def _require_room(connection: Connection, directory: Path) -> None:
    """Refuses a disk that the archive might fill.

    Raises:
        CliError: there is too little room.
    """
    size: int = await connection.fetchval("SELECT pg_database_size(current_database())")
    newest = (await runs.newest_runs(connection)).backup
    wanted = (newest.bytes * 3 // 2 if newest else size // _SHARE) + _RESERVE_BYTES
    free = shutil.disk_usage(directory).free
    if free < wanted:
        raise CliError(
            f"{directory} has {free >> 20:,} MiB left, and the backup may need {wanted >> 20:,};"
            " make room, or keep fewer backups (EVERGREEN_BACKUP_KEEP)"
        )
