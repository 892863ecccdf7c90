"""An archive as a file of this machine, wherever it is kept."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

from cli.backup.stores.address import is_address, open_store, split
from cli.backup.stores.store import Access, Store, Stored, StoreError
from cli.errors import CliError
from servicekit.ids import now

WORK_DIRECTORY: Final = "EVERGREEN_BACKUP_WORK_DIRECTORY"


_PREFIX: Final = "evergreen-backup-"
_YOUNG_SECONDS: Final = 60.0
_CLOCKS_DIFFER: Final = timedelta(hours=1)


@contextmanager
def working(beside: Path | None) -> Iterator[Path]:
    """A private directory on a disk with room, and removed afterwards.

    It is below `EVERGREEN_BACKUP_WORK_DIRECTORY`, else below what is given, else where the system
    has temporary files. What a killed process left there is removed first: it may hold a decrypted
    backup.

    Raises:
        CliError: it cannot be made.
    """
    given = os.environ.get(WORK_DIRECTORY, "").strip()
    parent = Path(given) if given else beside
    try:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_abandoned(parent or Path(tempfile.gettempdir()))
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        held = _lock(directory)
    except OSError as error:
        raise CliError(f"no working directory can be made: {error}") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)


def _lock(directory: Path) -> int:
    """Holds a directory until the descriptor is closed, or the process has ended.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_abandoned(parent: Path) -> None:
    for directory in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            # One that was made just now may not be held yet.
            found = directory.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _YOUNG_SECONDS:
                continue
            held = _lock(directory)
            shutil.rmtree(directory, ignore_errors=True)
            os.close(held)


@contextmanager
def fetched(address: str, beside: Path | None, tell: Callable[[str], None]) -> Iterator[Path]:
    """The archive as a file; one from another machine is removed after the block.

    Args:
        address: a file, a directory with backups, or what `EVERGREEN_BACKUP_TARGET` may be, with
            or without the name of a backup behind it.
        beside: a directory with room.
        tell: is told the name of what is fetched.

    Raises:
        CliError: it is not there, or it is not clear which one is meant.
    """
    path = Path(address)
    if not is_address(address):
        if path.is_dir():
            store = open_store(str(path.absolute()), Access())
            found = newest(store)
            tell(found.name)
            yield path / found.name
            return
        yield path
        return
    target, name = split(address)
    store = open_store(target, Access.of_environment())
    one = named(store, name) if name else newest(store)
    with working(beside) as directory:
        if shutil.disk_usage(directory).free < one.bytes:
            raise CliError(
                f"{directory} has no room for {one.bytes >> 20:,} MiB; name another disk by"
                f" {WORK_DIRECTORY}"
            )
        store.get(one.name, directory / one.name)
        tell(one.name)
        yield directory / one.name


def named(store: Store, name: str) -> Stored:
    """The backup of this name.

    Raises:
        StoreError: it is not there.
    """
    found = next((one for one in store.all() if one.name == name), None)
    if found is None:
        raise StoreError(f"{store.where} has no {name}; evergreen backup list shows what it has")
    return found


def newest(store: Store, tag: str = "") -> Stored:
    """The newest backup, of an installation if one is named.

    Raises:
        StoreError: there is none, or there are some of several installations.
    """
    found = [one for one in store.all() if tag in {"", one.tag}]
    if not found:
        raise StoreError(f"there is no backup in {store.where}")
    if len({one.tag for one in found}) > 1:
        raise StoreError(
            f"{store.where} has backups of several installations; name the archive:"
            f" evergreen backup list --target {store.where.split(' ')[0]}"
        )
    # A name can say any time: one in the future would hide each backup made after it.
    latest = now() + _CLOCKS_DIFFER
    return max(found, key=lambda one: (one.at <= latest, one.at))
