"""The launcher's state on disk, `$EVERGREEN_HOME`: where what lies, and who may read it."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.launcher.errors import LauncherError

# sun_path of a Unix socket holds 108 bytes with the final NUL; this is the longest name below run/.
_SOCKET_PATH_LIMIT = 107
_LONGEST_SOCKET = "/attestation.http.sock"


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read; a reader sees the old text or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def private_directory(path: Path) -> Path:
    """Makes a directory that only its owner can enter, and tightens an older one."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


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
        path = self.root / "launcher.lock"
        with path.open("a+", encoding="utf-8") as file:
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
            path.chmod(0o600)
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def secret(self, name: str, make: Callable[[], str]) -> str:
        """The secret `name`, made on first use."""
        path = self.secrets / name
        try:
            text = path.read_text(encoding="utf-8").rstrip("\r\n")
        except FileNotFoundError:
            text = make()
            write_private(path, text + "\n")
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

    def run_directory(self) -> Path:
        """The directory of the sockets: below the home, or a short private one.

        The kernel limits a socket's path to 107 bytes, which a deep home exceeds.

        Raises:
            LauncherError: somebody else owns the short directory.
        """
        inside = self.root / "run"
        if len(os.fsencode(inside)) + len(_LONGEST_SOCKET) <= _SOCKET_PATH_LIMIT:
            return private_directory(inside)
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
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
