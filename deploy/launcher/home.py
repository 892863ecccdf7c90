"""The launcher's state on disk, `$EVERGREEN_HOME`: where what lies, and who may read it."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from deploy.launcher.errors import LauncherError
from deploy.private_files import private_directory, write_private
from servicekit.security.digests import sha256_hex

# sun_path of a Unix socket holds 108 bytes with the final NUL; this is the longest name below run/.
_SOCKET_PATH_LIMIT = 107
_LONGEST_SOCKET = "/postgres/.s.PGSQL.5432"
_LOCK: Final = "launcher.lock"


MASTER_KEY: Final = "master_key"
"""The secret that seals private keys in the database."""


@dataclass(frozen=True, slots=True)
class Home:
    """The layout of one installation's directory. All paths are absolute."""

    root: Path

    @property
    def secrets(self) -> Path:
        """One secret a file, mode 0600."""
        return self.root / "secrets"

    @property
    def tls(self) -> Path:
        """The local CA and the gateway's certificate."""
        return self.root / "tls"

    @property
    def logs(self) -> Path:
        """What every process printed, rotated."""
        return self.root / "logs"

    @property
    def postgres(self) -> Path:
        """PostgreSQL's data directory."""
        return self.root / "postgres"

    @property
    def nats(self) -> Path:
        """The NATS configuration and JetStream's store."""
        return self.root / "nats"

    @property
    def gateway(self) -> Path:
        """The rendered configuration of Envoy."""
        return self.root / "gateway"

    @property
    def bootstrap_file(self) -> Path:
        """What the first start made, for the administrator."""
        return self.root / "bootstrap.json"

    @property
    def policy_public_key_file(self) -> Path:
        """The public key that devices check policies with."""
        return self.root / "policy_public_key.pem"

    @property
    def restore_mark(self) -> Path:
        """What `evergreen backup restore` leaves here until it has ended."""
        return self.root / "restore-under-way.json"

    @property
    def postgres_upgrade_mark(self) -> Path:
        """What `evergreen postgres upgrade` leaves here until it has ended."""
        return self.root / "postgres-upgrade.json"

    def require_whole(self) -> None:
        """Refuses what a restore left that was cut short: it would become an installation.

        Raises:
            LauncherError: there is such a one.
        """
        if self.restore_mark.exists():
            raise LauncherError(
                f"A restore into {self.root} was cut short.",
                advice="Run `evergreen backup restore` again with the same words. It puts back what"
                " was here, and restores anew.",
            )

    def prepare(self) -> None:
        """Makes the directories.

        Raises:
            LauncherError: the directory cannot be made or written.
        """
        try:
            for path in (self.root, self.secrets, self.tls, self.logs, self.nats, self.gateway):
                private_directory(path)
        except OSError as error:
            raise LauncherError(
                f"The directory {self.root} cannot be used: {error.strerror}.",
                advice="Set EVERGREEN_HOME to a directory that you can write.",
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the installation for this process; the kernel lets go of it with the process.

        Raises:
            LauncherError: another launcher runs on the same directory.
        """
        # No link: root locks homes that are others', who would choose what it empties.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        descriptor = os.open(self.root / _LOCK, flags, 0o600)
        with os.fdopen(descriptor, "a+", encoding="utf-8") as file:
            self._take(file)
            os.fchmod(descriptor, 0o600)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def require_free(self) -> None:
        """Refuses a home that a launcher runs on; makes and changes nothing in it.

        Raises:
            LauncherError: one does.
        """
        try:
            descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        with os.fdopen(descriptor, encoding="utf-8") as file:
            self._take(file)

    def _take(self, file: TextIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise LauncherError(
                f"Evergreen already runs on {self.root}"
                + (f" (process {holder})." if holder else "."),
                advice="Stop it first (Ctrl-C in its terminal"
                + (f", or: kill {holder}" if holder else "")
                + "), or start a second copy with another EVERGREEN_HOME and EVERGREEN_PORT.",
            ) from None

    def holder(self) -> int | None:
        """The process of the launcher that runs on this installation, if one does.

        Asked without taking the lock, so that a start at the same moment is not refused.
        """
        lock = self.root / _LOCK
        try:
            pid = int(lock.read_text(encoding="utf-8"))
            held = any(file.readlink() == lock for file in Path(f"/proc/{pid}/fd").iterdir())
        except (OSError, ValueError):
            return None
        return pid if held else None

    def secret(self, name: str, make: Callable[[], str]) -> str:
        """The secret `name`, made on first use.

        Raises:
            LauncherError: its file is empty. A new secret would not be the one that is in use.
        """
        path = self.secrets / name
        try:
            text = path.read_text(encoding="utf-8").rstrip("\r\n")
        except FileNotFoundError:
            text = make()
            write_private(path, text + "\n")
        if not text.strip():
            raise LauncherError(
                f"{path} is empty.",
                advice="Put the secret back into it, from a backup; nothing is made in its place.",
            )
        return text

    def secret_file(self, name: str, make: Callable[[], str]) -> Path:
        """The file of the secret `name`, made on first use."""
        self.secret(name, make)
        return self.secrets / name

    def remembered(self) -> dict[str, Any]:
        """What the launcher noted at an earlier start; empty when there is nothing readable."""
        try:
            noted = json.loads((self.root / "launcher.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def remember(self, **facts: Any) -> None:
        """Notes facts for the next start, beside those already noted."""
        noted = {**self.remembered(), **facts}
        write_private(self.root / "launcher.json", json.dumps(noted, indent=2) + "\n")

    @property
    def has_room_for_sockets(self) -> bool:
        """Whether the path is short enough for sockets below it."""
        inside = self.root / "run"
        return len(os.fsencode(inside)) + len(_LONGEST_SOCKET) <= _SOCKET_PATH_LIMIT

    def run_directory(self) -> Path:
        """The directory of the sockets: below the home, or a short private one.

        The kernel limits a socket's path to 107 bytes, which a deep home exceeds.

        Raises:
            LauncherError: somebody else owns the short directory.
        """
        inside = self.root / "run"
        if self.has_room_for_sockets:
            return private_directory(inside)
        digest = sha256_hex(os.fsencode(self.root))[:12]
        # Not private_directory(): somebody else may have made it, and the owner is checked.
        short = Path(f"/tmp/evergreen-{os.getuid()}-{digest}")  # noqa: S108
        short.mkdir(mode=0o700, exist_ok=True)
        found = short.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise LauncherError(
                f"The directory {short} for the sockets belongs to somebody else.",
                advice="Remove it, or set EVERGREEN_HOME to a shorter path.",
            )
        short.chmod(0o700)
        return short


def password() -> str:
    """A new random password: 256 bits, safe in a URL and in a shell."""
    return secrets.token_urlsafe(32)


def master_key() -> str:
    """A new key that seals private keys: 32 random bytes in base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()
