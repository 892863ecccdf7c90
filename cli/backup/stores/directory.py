"""Backups in a directory: of this machine, or one that is mounted from another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cli.backup.stores.store import PART, Stored, StoreError, stored, unfinished


class DirectoryStore:
    """A directory, which must be there: where a mount is missing, a new one would fill the disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def where(self) -> str:
        """The store as a person knows it."""
        return str(self._root)

    def staging(self, otherwise: Path) -> Path:
        """The directory itself: a backup is then renamed, and needs its room once."""
        return self._root

    def all(self) -> list[Stored]:
        """The backups in the directory, the oldest first."""
        return sorted(
            (
                found
                for path in self._paths()
                if (found := stored(path.name, path.stat().st_size)) is not None
            ),
            key=lambda one: (one.at, one.name),
        )

    def _paths(self) -> list[Path]:
        try:
            return [path for path in self._root.iterdir() if path.is_file()]
        except FileNotFoundError as error:
            raise StoreError(
                f"the directory {self._root} is not there; is its disk mounted? If so, make it"
            ) from error
        except OSError as error:
            raise StoreError(f"{self._root} cannot be read: {error.strerror}") from error

    def put(self, path: Path, name: str) -> None:
        """Stores a file; one that lies in the directory already is renamed."""
        target = self._root / name
        part = self._root / f".{name}{PART}"
        try:
            if target.exists():
                raise StoreError(f"{target} is there already; it is not replaced")
            if path != part:
                shutil.copyfile(path, part)
                part.chmod(0o600)
            with part.open("rb") as file:
                os.fsync(file.fileno())
                if os.fstat(file.fileno()).st_size != path.stat().st_size:
                    raise StoreError(f"{target} was not written as a whole")
            part.rename(target)
            _sync(self._root)
        except OSError as error:
            raise StoreError(f"{target} cannot be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    def get(self, name: str, path: Path) -> None:
        """Copies a backup."""
        part = path.with_name(path.name + PART)
        try:
            shutil.copyfile(self._root / name, part)
            part.chmod(0o600)
            part.rename(path)
        except OSError as error:
            raise StoreError(
                f"{self._root / name} cannot be copied to {path}: {error.strerror}"
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Removes a backup."""
        try:
            (self._root / name).unlink()
        except OSError as error:
            raise StoreError(f"{self._root / name} cannot be removed: {error.strerror}") from error

    def tidy(self, tag: str) -> None:
        """Removes what interrupted backups left."""
        for path in self._paths():
            if unfinished(path.name, tag) or unfinished(path.name.removesuffix(PART), tag):
                path.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems cannot; they write through.
        pass
    finally:
        os.close(descriptor)
