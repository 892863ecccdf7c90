"""Backups on an SFTP server, by the system's own `sftp` of OpenSSH."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.backup.stores.store import PART, Access, Stored, StoreError, stored, unfinished

_LINE: Final = re.compile(
    r"-\S*\s+\S+\s+\S+\s+\S+\s+(?P<bytes>\d+)\s+\S+\s+\S+\s+\S+\s(?P<name>.+)"
)
"""A file in the output of `ls -lna`."""
_HOURS: Final = 12
_ALIVE: Final = (
    ("BatchMode", "yes"),
    ("StrictHostKeyChecking", "yes"),
    ("ConnectTimeout", "20"),
    ("ServerAliveInterval", "15"),
    ("ServerAliveCountMax", "4"),
)
"""Nothing is asked, an unknown server is refused, and a connection that hangs ends in a minute."""
_HINTS: Final = {
    "Host key verification failed": " Put the server's key into the file that"
    " EVERGREEN_BACKUP_SFTP_KNOWN_HOSTS_FILE names (ssh-keyscan shows it; compare it with the"
    " server's).",
    "Permission denied (": " Does the server know the public key that belongs to"
    " EVERGREEN_BACKUP_SFTP_KEY_FILE?",
    "Bad permissions": " Run chmod 600 on it.",
}


@dataclass(frozen=True, slots=True)
class SftpStore:
    """A directory of an SFTP server; it must be there."""

    user: str
    host: str
    port: int | None
    path: str
    access: Access

    @property
    def where(self) -> str:
        """The store as a person knows it."""
        port = f":{self.port}" if self.port else ""
        return f"sftp://{self.user}{'@' if self.user else ''}{self.host}{port}{self.path}"

    def staging(self, otherwise: Path) -> Path:
        """A directory of this machine."""
        return otherwise

    def all(self) -> list[Stored]:
        """The backups in the directory, the oldest first."""
        found = [stored(name, size) for name, size in self._files().items()]
        return sorted((one for one in found if one), key=lambda one: (one.at, one.name))

    def put(self, path: Path, name: str) -> None:
        """Uploads under another name, looks at the size, and renames."""
        if name in self._files():
            raise StoreError(f"{self.where}/{name} is there already; it is not replaced")
        part = f".{name}{PART}"
        try:
            # -f: the server writes it to its disk, if it can be asked to.
            # "-": the batch goes on where a server knows no modes.
            self._run(f"put -f {_quoted(str(path))} {_quoted(part)}\n-chmod 600 {_quoted(part)}")
            size = self._files().get(part, 0)
            if size != path.stat().st_size:
                raise StoreError(
                    f"{self.where}/{name} was not stored as a whole: {size:,} of"
                    f" {path.stat().st_size:,} bytes"
                )
            self._run(f"rename {_quoted(part)} {_quoted(name)}")
        except StoreError:
            self._attempt(f"-rm {_quoted(part)}")
            raise

    def get(self, name: str, path: Path) -> None:
        """Downloads a backup."""
        part = path.with_name(path.name + PART)
        try:
            self._run(f"get {_quoted(name)} {_quoted(str(part))}")
            part.chmod(0o600)
            part.rename(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Removes a backup."""
        self._run(f"rm {_quoted(name)}")

    def tidy(self, tag: str) -> None:
        """Removes what interrupted backups left."""
        for name in self._files():
            if unfinished(name, tag):
                self._run(f"rm {_quoted(name)}")

    def _files(self) -> dict[str, int]:
        """The files in the directory and their sizes."""
        lines = self._run("ls -lna").splitlines()
        found = [match for line in lines if (match := _LINE.match(line))]
        return {match["name"]: int(match["bytes"]) for match in found}

    def _attempt(self, command: str) -> None:
        try:
            self._run(command)
        except StoreError:
            return

    def _run(self, command: str) -> str:
        """The output of a command in the store's directory."""
        program = shutil.which("sftp")
        if program is None:
            raise StoreError("the program sftp is missing; install OpenSSH's client")
        options = dict(_ALIVE)
        if self.access.sftp_known_hosts is not None:
            options["UserKnownHostsFile"] = f'"{self.access.sftp_known_hosts.absolute()}"'
        if self.access.sftp_key is not None:
            options["IdentityFile"] = f'"{self.access.sftp_key.absolute()}"'
            options["IdentitiesOnly"] = "yes"
        address = f"{self.user}@{self.host}" if self.user else self.host
        arguments = [program, "-b", "-"]
        for key, value in options.items():
            arguments += ["-o", f"{key}={value}"]
        if self.port:
            arguments += ["-P", str(self.port)]
        # The directory is relative to where a login begins for `sftp://host/~/…`.
        directory = f"{self.path}/".removeprefix("/~/") or "."
        try:
            done = subprocess.run(  # noqa: S603 - no shell
                [*arguments, "--", address],
                input=f"cd {_quoted(directory)}\n{command}\n",
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                timeout=_HOURS * 3600,
            )
        except subprocess.TimeoutExpired as error:
            raise StoreError(f"{self.where}: no end within {_HOURS} hours") from error
        if done.returncode != 0:
            raise StoreError(f"{self.where}: {_reason(done.stderr)}")
        return done.stdout


def _reason(errors: str) -> str:
    """The line that says it, and what to do."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Connection closed", "Connected to"))]
    hint = next((advice for text, advice in _HINTS.items() if text in errors), "")
    said = next((line for line in lines if any(text in line for text in _HINTS)), None)
    return (said or (lines[-1] if lines else "sftp ended without a word")).rstrip(".") + "." + hint


def _quoted(text: str) -> str:
    """A word of sftp's batch language; inside quotes, nothing is a pattern.

    Raises:
        StoreError: it has a line break.
    """
    if "\n" in text or "\r" in text:
        raise StoreError("a path has a line break")
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
