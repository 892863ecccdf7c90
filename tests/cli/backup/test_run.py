"""`evergreen backup run` on a schedule: nothing that goes wrong costs a backup that is there."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from prometheus_client import REGISTRY

from cli.backup.crypt import Key
from cli.backup.scheduler import Work
from cli.backup.stores.store import name_of
from cli.backup.verify import verify
from cli.doctor import backups as doctor
from deploy.schedule import Schedule
from servicekit.data.postgres import Database
from services.audit.backups.service import Backups
from services.audit.settings import AuditSettings
from tests.cli.backup.test_killed import DIES
from tests.support.backups import IDENTITY, KEY, World, seed, superuser, target, world
from tests.support.backups import ROOT as ROOT_TENANT
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, until
from tests.support.stores import S3, s3

__all__ = ["world"]

pytestmark = pytest.mark.servers

TAG = ROOT_TENANT.hex[-12:]
PASSPHRASE = "correct horse battery"
OLD = [name_of(TAG, datetime(2026, 1, day, tzinfo=UTC)) for day in range(1, 5)]
FOREIGN = [
    "monday.backup",
    "notes.txt",
    name_of("ffffffffffff", datetime(2025, 1, 1, tzinfo=UTC)),
]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3(tmp_path_factory.mktemp("s3")) as found:
        yield found


class Machine:
    """The command with what an administrator has set, on a seeded installation."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.directory / "store"
        self.work = world.directory / "work"
        self.store.mkdir()
        for name in (*OLD, *FOREIGN):
            (self.store / name).write_text("before")
        passphrase, password = world.directory / "passphrase", world.directory / "password"
        recipients = world.directory / "recipients"
        to = target(world.first)
        for path, text in (
            (passphrase, PASSPHRASE),
            (password, to.password or ""),
            (recipients, f"# the safe\n{IDENTITY.to_public()}"),
        ):
            path.write_text(text + "\n")
            path.chmod(0o600)
        self.with_passphrase = {
            "EVERGREEN_BACKUP_RECIPIENT_FILE": "",
            "EVERGREEN_BACKUP_PASSPHRASE_FILE": str(passphrase),
        }
        """In the place of the public key: each use takes seconds."""
        self.environment = {
            "EVERGREEN_MIGRATE_DATABASE_URL": to.dsn,
            "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(password),
            "EVERGREEN_BACKUP_TARGET": str(self.store),
            "EVERGREEN_BACKUP_RECIPIENT_FILE": str(recipients),
            "EVERGREEN_BACKUP_WORK_DIRECTORY": str(self.work),
            "EVERGREEN_HOME": str(world.servers.home.root),
        }

    def full(self, changes: dict[str, str]) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("EVERGREEN_")}
        return kept | self.environment | changes

    def evergreen(
        self,
        *words: str | Path,
        cut: str = "",
        before: Callable[[], None] | None = None,
        **changes: str,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", DIES.format(cut=cut), "backup", *map(str, words)],
            env=self.full(changes),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=before,
        )

    async def run(self, *words: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self.evergreen, "run", *words, **how)

    async def status(self) -> dict[str, Any]:
        done = await asyncio.to_thread(self.evergreen, "status", "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        assert (done.returncode == 1) is found["late"]
        return found

    def files(self) -> set[str]:
        return {path.name for path in self.store.iterdir()}

    def is_clean(self) -> bool:
        """Whether nothing lies about that is no backup."""
        return not [*self.store.glob(".*"), *(self.work.iterdir() if self.work.exists() else ())]


@pytest.fixture
async def machine(world: World) -> Machine:
    await seed(world.first)
    return Machine(world)


async def test_a_backup_is_verified_stored_and_noted(machine: Machine) -> None:
    """Old ones of this installation go, and nothing else; the newest can be restored."""
    assert (await machine.status())["lastSuccess"] is None
    done = await machine.run("--keep", "3", **machine.with_passphrase)
    assert done.returncode == 0, done.stderr
    (new,) = machine.files() - {*OLD, *FOREIGN}
    assert machine.files() == {new, *OLD[2:], *FOREIGN}
    assert machine.is_clean()
    assert (machine.store / new).stat().st_mode & 0o777 == 0o600
    found = verify(machine.store / new, Key(passphrase=PASSPHRASE))
    assert found.entries == 9
    known = await machine.status()
    assert not known["late"]
    assert known["name"] == new
    assert known["bytes"] == (machine.store / new).stat().st_size
    assert datetime.fromisoformat(known["lastSuccess"]) == found.header.point
    listed = await asyncio.to_thread(machine.evergreen, "list", "--json")
    assert new in {one["name"] for one in json.loads(listed.stdout)["backups"]}


async def test_what_was_just_made_stays_beside_names_of_the_future(machine: Machine) -> None:
    """A clock that was wrong once, or who may write to the store, costs no new backup."""
    later = name_of(TAG, datetime(2199, 1, 1, tzinfo=UTC))
    (machine.store / later).write_text("before")
    done = await machine.run("--keep", "1")
    assert done.returncode == 0, done.stderr
    (made,) = machine.files() - {*FOREIGN, later}
    assert verify(machine.store / made, KEY).rows


async def test_s3_has_it_and_a_restore_fetches_it(machine: Machine, bucket: S3) -> None:
    """With public keys, of which this machine has no private one: it is verified all the same."""
    bucket.clear()
    key = machine.world.directory / "key"
    key.write_text(str(IDENTITY))
    settings = bucket.environment
    assert (await machine.run(**settings)).returncode == 0
    assert (await machine.run("--keep", "1", **settings)).returncode == 0
    (name,) = bucket.objects()
    assert machine.is_clean()
    assert (await machine.status())["target"].startswith(bucket.target)
    to = target(machine.world.second)
    password = machine.world.directory / "other"
    password.write_text(to.password or "")
    place = machine.world.directory / "k"
    words = ("restore", bucket.target, "--identity", key, "--secrets", place)
    done = await asyncio.to_thread(
        machine.evergreen,
        *words,
        **bucket.environment
        | {
            "EVERGREEN_MIGRATE_DATABASE_URL": to.dsn,
            "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(password),
        },
    )
    assert done.returncode == 0, done.stderr
    assert name.rpartition("/")[2] in done.stdout
    assert (place / "master_key").exists()
    assert machine.is_clean()


def no_large_files() -> None:
    """As on a full disk: no file grows over some kilobytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))


FAILURES: dict[str, tuple[dict[str, str], str]] = {
    "target": ({"EVERGREEN_BACKUP_TARGET": "/nowhere/at/all"}, "mounted"),
    "bucket": ({"EVERGREEN_BACKUP_TARGET": "s3://nobody/x"}, "NoSuchBucket"),
    "disk": ({}, "File too large"),
    "keys": ({"EVERGREEN_HOME": "{elsewhere}"}, "master key"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_what_fails_is_told_and_costs_nothing(
    machine: Machine, bucket: S3, failure: str
) -> None:
    """The exit code, the status, the metrics and the doctor tell; old backups stay, all of them."""
    changes, reason = FAILURES[failure]
    elsewhere = machine.world.directory / "elsewhere"
    (elsewhere / "secrets").mkdir(parents=True)
    (elsewhere / "secrets" / "master_key").write_bytes(b"A" * 43 + b"=")
    settings = {"EVERGREEN_BACKUP_S3_ENDPOINT": bucket.endpoint} | {
        "EVERGREEN_BACKUP_S3_CREDENTIALS_FILE": str(bucket.credentials)
    }
    settings |= {k: v.format(elsewhere=elsewhere) for k, v in changes.items()}
    done = await machine.run(
        "--keep", "1", before=no_large_files if failure == "disk" else None, **settings
    )
    assert done.returncode == 1
    assert reason in done.stderr
    assert machine.files() == {*OLD, *FOREIGN}
    assert machine.is_clean()
    known = await machine.status()
    assert known["late"]
    assert reason in known["failure"]
    assert {finding.code for finding in await examined(machine)} == {"BACKUP_NONE", "BACKUP_FAILED"}


async def examined(machine: Machine) -> list[Any]:
    to = target(machine.world.first)
    connection = await asyncpg.connect(to.dsn, password=to.password)
    try:
        return [finding async for finding in doctor.check(connection, datetime.now(UTC))]
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"EVERGREEN_BACKUP_RECIPIENT_FILE": ""}, "always encrypted"),
        ({"EVERGREEN_BACKUP_TARGET": ""}, "EVERGREEN_BACKUP_TARGET"),
        ({"EVERGREEN_BACKUP_KEEP": "some"}, "EVERGREEN_BACKUP_KEEP"),
        ({"EVERGREEN_BACKUP_SCHEDULE": "at night"}, "EVERGREEN_BACKUP_SCHEDULE"),
        ({"EVERGREEN_BACKUP_TARGET": "sftp://u:hunter2@host/p"}, "password in it"),
    ],
)
async def test_settings_that_are_wrong(
    machine: Machine, wrong: dict[str, str], reason: str
) -> None:
    done = await machine.run(**wrong)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "hunter2" not in done.stderr


async def test_a_secret_that_others_may_read_is_refused(machine: Machine) -> None:
    (machine.world.directory / "passphrase").chmod(0o644)
    done = await machine.run(**machine.with_passphrase)
    assert done.returncode == 1
    assert "chmod 600" in done.stderr


CUTS = {
    "while it is made": "from cli.backup.archive import Writer as m; m.end_table = die",
    "before it is stored": "from cli.backup.stores import directory as m;"
    " m.DirectoryStore.put = die",
    "before old ones go": "from cli.backup import run as m; m._pruned = die",
}


@pytest.mark.parametrize("cut", CUTS)
async def test_a_backup_that_was_killed_leaves_nothing_for_long(machine: Machine, cut: str) -> None:
    """Old backups stay; what it left is removed by the next one, whose lock is free."""
    dead = await machine.run("--keep", "1", cut=CUTS[cut])
    assert dead.returncode == -signal.SIGKILL
    assert {*OLD, *FOREIGN} <= machine.files()
    # Names of backups have whole seconds.
    await asyncio.sleep(1)
    done = await machine.run("--keep", "1")
    assert done.returncode == 0, done.stderr
    (new,) = machine.files() - set(FOREIGN)
    assert new not in OLD
    assert not list(machine.store.glob(".*"))


async def test_one_at_a_time(machine: Machine) -> None:
    """A backup by hand and the scheduled one do not meet, nor remove each other's half archive."""
    go_on = machine.world.directory / "go on"
    slow = f"""
import pathlib, time
from cli.backup import run as m
v = m.verify
def waits(*a):
    while not pathlib.Path({str(go_on)!r}).exists():
        time.sleep(0.05)
    return v(*a)
m.verify = waits
"""
    first = asyncio.create_task(machine.run(cut=slow))
    await asyncio.to_thread(
        until, lambda: any(machine.store.glob(".*")), PATIENCE, "no backup is made"
    )
    second = await machine.run()
    assert second.returncode == 1
    assert "another backup" in second.stderr
    go_on.touch()
    assert (await first).returncode == 0


async def test_a_backup_that_is_told_to_stop_cleans_up(machine: Machine) -> None:
    """A unit that is stopped, a pod that is evicted."""
    slow = "from cli.backup import run as m; import time; m.verify = lambda *a: time.sleep(60)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DIES.format(cut=slow), "backup", "run"),
        env=machine.full({}),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    archive = f".evergreen-{TAG}-*.part"
    await asyncio.to_thread(
        until,
        lambda: any(not path.name.endswith(".part.part") for path in machine.store.glob(archive)),
        PATIENCE,
        "no backup is made",
    )
    process.terminate()
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 143
    assert machine.is_clean()
    assert machine.files() == {*OLD, *FOREIGN}


async def test_metrics_and_doctor_know_the_age(machine: Machine) -> None:
    """By the row that the command leaves, in whatever kind of installation."""
    assert [f.code for f in await examined(machine)] == ["BACKUP_NONE"]
    assert (await machine.run(EVERGREEN_BACKUP_SCHEDULE="6h")).returncode == 0
    assert await examined(machine) == []
    servers = machine.world.servers
    settings = servers.settings(AuditSettings, "audit", machine.world.first)
    database = await Database.open(settings)
    show = Backups(database).show
    await show()
    began = REGISTRY.get_sample_value("evergreen_backup_last_success_timestamp_seconds")
    assert began is not None
    assert time.time() - 60 < began < time.time()
    assert REGISTRY.get_sample_value("evergreen_backup_max_age_seconds") == 8 * 3600
    assert REGISTRY.get_sample_value("evergreen_backup_last_failure_timestamp_seconds") == 0
    async with superuser(machine.world.first) as connection:
        await connection.execute(
            "UPDATE audit.backup_run SET started_at = now() - interval '8 hours 1 minute'"
        )
    (late,) = await examined(machine)
    assert (late.code, late.severity) == ("BACKUP_TOO_OLD", "error")
    assert (await machine.status())["late"]
    shutil.rmtree(machine.store)
    assert (await machine.run()).returncode == 1
    await show()
    failed = REGISTRY.get_sample_value("evergreen_backup_last_failure_timestamp_seconds")
    assert failed is not None
    assert failed > began
    await database.close()


async def test_a_scheduler_runs_what_is_due(machine: Machine) -> None:
    """At once what was missed, as a process of its own; stopped, it stops that, too."""
    soon = (
        "import datetime; from cli.backup import scheduler as m;"
        " m._BEFORE_THE_FIRST = datetime.timedelta(0)"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DIES.format(cut=soon), "backup", "schedule"),
        env=machine.full({"EVERGREEN_BACKUP_SCHEDULE": "02:30", "EVERGREEN_BACKUP_KEEP": "2"}),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    said = [json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE))]
    said.append(json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE)))
    assert [line["event"] for line in said] == ["backups are scheduled", "backup done"]
    assert len(machine.files()) == 2 + len(FOREIGN)
    process.terminate()
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 0


@pytest.mark.parametrize(
    "settings",
    [{"EVERGREEN_BACKUP_SCHEDULE": "25:00"}, {}, {"EVERGREEN_BACKUP_REHEARSE_SCHEDULE": "1m"}],
)
def test_a_scheduler_refuses_what_it_does_not_understand(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.entry", "backup", "schedule"],
        env=os.environ | {"EVERGREEN_BACKUP_TARGET": str(tmp_path)} | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["level"] == "error"


def test_when_it_is_due() -> None:
    """Daily or by interval; missed times are made up for, failures tried again, later each time."""
    at = datetime(2026, 11, 29, 12, tzinfo=UTC)
    daily, hourly = Schedule.read("02:30"), Schedule.read("6h")
    today = at.replace(hour=2, minute=30)
    assert daily.due(at, None) == at
    assert daily.due(at, today + timedelta(minutes=1)) == today + timedelta(days=1)
    assert daily.due(at, today - timedelta(minutes=1)) == at
    assert daily.due(at.replace(hour=1), today - timedelta(hours=23)) == today
    assert hourly.due(at, at - timedelta(hours=2)) == at + timedelta(hours=4)
    assert hourly.due(at, at - timedelta(days=2)) == at
    work = Work("backup", daily, (), today - timedelta(days=2), at)
    assert work.due(at) == at
    work.ended(at, at, well=False)
    assert work.due(at) == at + timedelta(minutes=15)
    work.ended(at, at, well=False)
    assert work.due(at) == at + timedelta(minutes=30)
    for _ in range(9):
        work.ended(at, at, well=False)
    assert work.due(at) == at + timedelta(hours=6)
    work.ended(at, at, well=True)
    assert work.due(at) == today + timedelta(days=1)
    for wrong in ("", "2:60", "24:00", "1m", "0h", "daily", "1y"):
        with pytest.raises(ValueError, match=r"such as|five minutes"):
            Schedule.read(wrong)
