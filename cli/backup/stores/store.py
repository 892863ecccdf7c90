"""What every store of backups does, and the names that backups have in it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from cli.errors import CliError

PART: Final = ".part"
"""How the name of a file ends that is not whole yet. It begins with a dot, too."""
_NAME: Final = re.compile(r"evergreen-(?P<tag>[0-9a-f]{12})-(?P<at>\d{8}T\d{6})Z\.backup")
_TIME: Final = "%Y%m%dT%H%M%S"


class StoreError(CliError):
    """A store cannot be reached, refuses the login, or does not hold what it should."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A backup in a store."""

    name: str
    bytes: int
    tag: str
    """The installation that made it."""
    at: datetime
    """When it was begun."""


def name_of(tag: str, at: datetime) -> str:
    """The name of a backup that an installation begins at this moment."""
    return f"evergreen-{tag}-{at.astimezone(UTC):{_TIME}}Z.backup"


def stored(name: str, size: int) -> Stored | None:
    """The backup of this name, `None` for a file that `evergreen backup run` did not make."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    try:
        at = datetime.strptime(found["at"], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None
    return Stored(name, size, found["tag"], at)


def unfinished(name: str, tag: str) -> bool:
    """Whether a file is what an interrupted backup of this installation left."""
    whole = name.removeprefix(".").removesuffix(PART)
    found = _NAME.fullmatch(whole)
    return name == f".{whole}{PART}" and found is not None and found["tag"] == tag


class Store(Protocol):
    """A place for backups. No method leaves half a backup under a backup's name."""

    @property
    def where(self) -> str:
        """The store as a person knows it, without a secret."""
        ...

    def staging(self, otherwise: Path) -> Path:
        """The directory in which a new backup is made; what is given, where the store has none."""
        ...

    def all(self) -> list[Stored]:
        """The backups in the store, the oldest first; other files are left out.

        Raises:
            StoreError: the store cannot be read.
        """
        ...

    def put(self, path: Path, name: str) -> None:
        """Stores a file under a name that nothing has, and makes sure that all of it is there.

        Raises:
            StoreError: it cannot be stored; the store is as it was.
        """
        ...

    def get(self, name: str, path: Path) -> None:
        """Fetches a backup into a new file, which appears when it is whole.

        Raises:
            StoreError: it is not there, or cannot be fetched.
        """
        ...

    def remove(self, name: str) -> None:
        """Removes a backup.

        Raises:
            StoreError: it cannot be removed.
        """
        ...

    def tidy(self, tag: str) -> None:
        """Removes what interrupted backups of this installation left.

        Raises:
            StoreError: the store cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """What a store is reached with."""

    s3_endpoint: str = ""
    s3_region: str = "us-east-1"
    s3_credentials: Path | None = None
    s3_ca: Path | None = None
    sftp_key: Path | None = None
    sftp_known_hosts: Path | None = None

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Access:
        """What `EVERGREEN_BACKUP_…` says; files also come from `EVERGREEN_BACKUP_SECRETS`.

        Raises:
            CliError: a file is named that is not there, or others may read it.
        """

        def text(name: str) -> str:
            return environment.get(f"EVERGREEN_BACKUP_{name}", "").strip()

        return cls(
            s3_endpoint=text("S3_ENDPOINT").rstrip("/"),
            s3_region=text("S3_REGION") or environment.get("AWS_REGION", "") or "us-east-1",
            s3_credentials=secret_file("S3_CREDENTIALS_FILE", environment),
            s3_ca=secret_file("S3_CA_FILE", environment, private=False),
            sftp_key=secret_file("SFTP_KEY_FILE", environment),
            sftp_known_hosts=secret_file("SFTP_KNOWN_HOSTS_FILE", environment, private=False),
        )


_USUAL: Final = {
    "RECIPIENT_FILE": "recipients",
    "PASSPHRASE_FILE": "passphrase",
    "IDENTITY_FILE": "identity",
    "S3_CREDENTIALS_FILE": "s3-credentials",
    "S3_CA_FILE": "s3-ca.crt",
    "SFTP_KEY_FILE": "sftp-key",
    "SFTP_KNOWN_HOSTS_FILE": "sftp-known-hosts",
}
"""The names of the files in the directory `EVERGREEN_BACKUP_SECRETS`."""


def secret_file(
    name: str, environment: Mapping[str, str] = os.environ, *, private: bool = True
) -> Path | None:
    """The file that `EVERGREEN_BACKUP_<name>` names, or the one of the directory of secrets.

    Raises:
        CliError: it is named and not there; or it holds a secret, is ours, and others may read it.
    """
    given = environment.get(f"EVERGREEN_BACKUP_{name}", "").strip()
    directory = environment.get("EVERGREEN_BACKUP_SECRETS", "").strip()
    if given:
        path = Path(given)
        if not path.exists():
            raise CliError(f"EVERGREEN_BACKUP_{name} names {path}, which is not there")
    elif directory and (Path(directory) / _USUAL[name]).exists():
        path = Path(directory) / _USUAL[name]
    else:
        return None
    if private:
        require_private(path)
    return path


def require_private(path: Path) -> None:
    """Refuses a secret that its owner lets others read. A mounted one belongs to somebody else.

    Raises:
        CliError: others may read it.
    """
    found = path.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        raise CliError(f"{path} holds a secret and others may read it; run: chmod 600 {path}")
