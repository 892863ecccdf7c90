"""Where an installation's database and files are: a home of `make run`, or what is given.

Compose and Kubernetes give the database by `EVERGREEN_MIGRATE_DATABASE_URL` (and a file with its
password), and the keys as a directory of files. In an archive the files have the same names
whichever kind of installation they come from.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import asyncpg

from cli.backup.keys import MASTER_KEY
from cli.errors import CliError
from cli.migrate import Target
from deploy.private_files import private_directory, sync_directory, write_private

if TYPE_CHECKING:
    from deploy.launcher.home import Home

MASTER_KEY_FILE: Final = "master_key"
SECRETS: Final = (MASTER_KEY_FILE, "admin_password", "enrollment_secret")
"""Passwords of the database and of NATS are not kept: every installation makes its own."""
TLS: Final = ("ca.crt", "ca.key", "server.crt", "server.key")
"""What devices trust, and what the gateway shows them."""
BOOTSTRAP: Final = "config/bootstrap.json"
_CUSTOM: Final = "config/postgresql.conf"
_PATIENCE_SECONDS: Final = 120.0


@contextlib.asynccontextmanager
async def connected(target: Target) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection of the role that owns the schemas."""
    connection = await asyncpg.connect(target.dsn, password=target.password, timeout=10)
    try:
        yield connection
    finally:
        # Not a polite close: COPY may have been left in the middle.
        connection.terminate() if connection.is_in_transaction() else await connection.close()


def _read(files: Mapping[str, Path]) -> dict[str, bytes]:
    """Those of the files that are there."""
    found = {}
    for name, path in files.items():
        try:
            found[name] = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CliError(f"{path} cannot be read: {error.strerror}") from error
    return found


@dataclass(frozen=True, slots=True)
class Staged:
    """Files that lie beside those that they will replace."""

    files: dict[Path, Path]
    """Where each lies → where it belongs, in the order in which they are put there."""
    left: list[str]
    """The names of what has no place here."""
    superseded: list[Path]
    """What does not belong to the new files."""

    def put(self) -> None:
        """Puts each into its place."""
        for path in self.superseded:
            path.unlink(missing_ok=True)
        for staged, path in self.files.items():
            staged.replace(path)
        for directory in {path.parent for path in self.files.values()}:
            sync_directory(directory)

    def discard(self) -> None:
        """Removes them; what was there stays."""
        for staged in self.files:
            staged.unlink(missing_ok=True)


class Stage(Protocol):
    """Files of an archive that wait for the rows that they belong to."""

    @property
    def left(self) -> list[str]:
        """The names of what has no place here."""

    def put(self) -> None:
        """Puts each into its place."""

    def discard(self) -> None:
        """Removes them; what was there stays."""


class Place(Protocol):
    """Where the keys and certificates of an installation are that is not a home."""

    def master_key(self, archived: bytes) -> AbstractContextManager[bytes]:
        """The installation's master key, which seals the private keys that are restored."""

    def stage(self, files: Mapping[str, bytes]) -> Stage:
        """Prepares what else an archive has."""


@dataclass(frozen=True, slots=True)
class Directories:
    """The files of an installation that is not a home."""

    secrets: Path
    tls: Path | None = None
    configuration: tuple[Path, ...] = ()

    def read(self) -> dict[str, bytes]:
        """Archive name → content."""
        files = {f"secrets/{name}": self.secrets / name for name in SECRETS}
        if self.tls is not None:
            files |= {f"tls/{name}": self.tls / name for name in TLS}
        files |= {f"config/{path.name}": path for path in self.configuration}
        return _read(files)

    @contextlib.contextmanager
    def master_key(self, archived: bytes) -> Iterator[bytes]:
        """The installation's master key. The archive's becomes it where there is none.

        It is there before the rows that need it, and gone again when the block fails.

        Raises:
            CliError: it cannot be read or written.
        """
        path = self.secrets / MASTER_KEY_FILE
        try:
            if path.exists():
                yield path.read_bytes()
                return
            self.secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, archived)
            sync_directory(path.parent)
        except OSError as error:
            raise CliError(f"{path}: {error.strerror}") from error
        try:
            yield archived
        except BaseException:
            path.unlink()
            raise

    def stage(self, files: Mapping[str, bytes]) -> Staged:
        """Writes secrets and certificates beside those that are there; not the master key."""
        staged = Staged({}, [], [])
        ca_key = self.tls / "ca.key" if self.tls is not None else None
        if ca_key is not None and "tls/ca.crt" in files and "tls/ca.key" not in files:
            # It is another CA's.
            staged.superseded.append(ca_key)
        try:
            for name, content in files.items():
                kind, _, bare = name.partition("/")
                if name == MASTER_KEY:
                    continue
                if kind == "secrets" and bare in SECRETS:
                    path = self.secrets / bare
                elif kind == "tls" and bare in TLS and self.tls is not None:
                    path = self.tls / bare
                else:
                    staged.left.append(name)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                beside = path.with_name(f".{bare}.restoring")
                staged.files[beside] = path
                write_private(beside, content)
        except BaseException:
            staged.discard()
            raise
        return staged


class LocalHome:
    """An installation of `make run`."""

    def __init__(self, root: Path) -> None:
        from deploy.launcher.home import Home  # noqa: PLC0415

        self.home: Home = Home(root)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever started here."""
        home = self.home
        made = home.secrets.is_dir() and any(home.secrets.iterdir())
        return not (made or home.bootstrap_file.exists() or home.postgres.exists())

    def read(self) -> dict[str, bytes]:
        """Archive name → content."""
        home = self.home
        return _read(
            {f"secrets/{name}": home.secrets / name for name in SECRETS}
            | {f"tls/{name}": home.tls / name for name in TLS}
            | {BOOTSTRAP: home.bootstrap_file, _CUSTOM: home.postgres / "custom.conf"}
        )

    def write(self, files: Mapping[str, bytes], tenant_id: str) -> None:
        """Writes what an archive has for a home; its first start then has nothing to make."""
        home = self.home
        private_directory(home.secrets)
        private_directory(home.tls)
        for name, content in files.items():
            kind, _, bare = name.partition("/")
            if kind == "secrets" and bare in SECRETS:
                write_private(home.secrets / bare, content)
            elif kind == "tls" and bare in TLS:
                write_private(home.tls / bare, content)
        write_private(home.bootstrap_file, files.get(BOOTSTRAP) or _bootstrap(files, tenant_id))

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[Target]:
        """The home's database: the one that runs, or started for the block."""
        with self._held() as stopped:
            if not stopped:
                from cli.migrate import find_target  # noqa: PLC0415

                yield find_target(self.home.root)
                return
            async with self.started() as target:
                yield target

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the home from being started.

        Raises:
            CliError: it runs.
        """
        self.home.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._held() as stopped:
            if not stopped:
                raise CliError(f"Evergreen runs on {self.home.root}; stop it first")
            yield

    @contextlib.contextmanager
    def _held(self) -> Iterator[bool]:
        from deploy.launcher.errors import LauncherError  # noqa: PLC0415

        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.home.locked())
            except LauncherError:
                yield False
                return
            yield True

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[Target]:
        """PostgreSQL alone, as the launcher would start it; the home must be held."""
        from contract.contexts import CONTEXTS  # noqa: PLC0415
        from deploy.launcher.console import Console  # noqa: PLC0415
        from deploy.launcher.errors import LauncherError  # noqa: PLC0415
        from deploy.launcher.home import password  # noqa: PLC0415
        from deploy.launcher.logs import Logs  # noqa: PLC0415
        from deploy.launcher.postgres import MIGRATOR_SECRET, Postgres  # noqa: PLC0415
        from deploy.launcher.probe import wait_until  # noqa: PLC0415
        from deploy.launcher.supervisor import Supervisor, clear_leftovers  # noqa: PLC0415
        from deploy.postgres import roles  # noqa: PLC0415

        home, run = self.home, self.home.run_directory()
        console = Console(io.StringIO())
        supervisor = Supervisor(Logs(home.logs, console), run)
        postgres = Postgres(home, run, CONTEXTS)
        clear_leftovers(run)
        try:
            await postgres.prepare()
            process = supervisor.start(postgres.process())
            found: list[Any] = []

            async def answers() -> bool:
                found.extend([c] if (c := await postgres.connect()) else [])
                return bool(found)

            await wait_until(answers, process, _PATIENCE_SECONDS)
            await roles.ensure(found[0], postgres.passwords())
            await found[0].close()
            yield Target(postgres.dsn(roles.MIGRATOR), home.secret(MIGRATOR_SECRET, password))
        except LauncherError as error:
            raise CliError(f"the home's database does not start: {error}") from error
        finally:
            await supervisor.stop((("postgres",),))
            console.close()

    @property
    def was_cut_short(self) -> bool:
        """Whether a restore ended in the middle, and left the home as it was then."""
        return self.home.restore_mark.exists()

    def _note(self, aside: Path | None, *, moved: bool) -> None:
        """Notes where what was here is, and whether all of it is there by now."""
        noted = {"aside": aside.name if aside else "", "moved": moved}
        write_private(self.home.restore_mark, json.dumps(noted) + "\n")
        sync_directory(self.home.root)

    def put_aside(self) -> Path | None:
        """Moves what is here aside, so that nothing is lost by a restore; answers where to.

        The stream's store stays: events that are newer than the backup come back from it.
        """
        home = self.home
        aside = None
        if not self.is_empty:
            aside = home.root / time.strftime("replaced-%Y%m%d-%H%M%S", time.gmtime())
            self._note(aside, moved=False)
            aside.mkdir(mode=0o700)
            for path in (home.secrets, home.tls, home.postgres, home.bootstrap_file):
                if path.exists():
                    path.rename(aside / path.name)
        self._note(aside, moved=True)
        return aside

    def put_back(self) -> None:
        """Removes what a restore made that did not end, and puts back what was there.

        Raises:
            CliError: it cannot be told what was there.
        """
        from deploy.launcher.supervisor import clear_leftovers  # noqa: PLC0415

        home = self.home
        try:
            noted = json.loads(self.home.restore_mark.read_text(encoding="utf-8"))
            aside = home.root / noted["aside"] if noted["aside"] else None
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            raise CliError(
                f"{self.home.restore_mark} cannot be read; see what lies beside it"
            ) from error
        clear_leftovers(home.run_directory())
        if noted["moved"]:
            for path in (home.secrets, home.tls, home.postgres):
                shutil.rmtree(path, ignore_errors=True)
            home.bootstrap_file.unlink(missing_ok=True)
            # From here on, what is in the home is what was there.
            self._note(aside, moved=False)
        if aside is not None and aside.exists():
            for path in aside.iterdir():
                path.rename(home.root / path.name)
            aside.rmdir()
        self.home.restore_mark.unlink()

    def keep(self) -> None:
        """What the restore made stays."""
        self.home.restore_mark.unlink()


def _bootstrap(files: Mapping[str, bytes], tenant_id: str) -> bytes:
    """What is known of the first start of an installation that was no home."""
    secret = files.get("secrets/enrollment_secret", b"").decode().strip()
    facts = {
        "url": "",
        "ca_file": "",
        "email": "",
        "password": files.get("secrets/admin_password", b"").decode().strip(),
        "tenant_id": tenant_id,
        "tenant_code": "default",
        "enrollment_secret": secret,
        "pre_shared_key": f"default:{secret}",
        "policy_public_key_file": "",
    }
    return json.dumps(facts, indent=2).encode() + b"\n"
