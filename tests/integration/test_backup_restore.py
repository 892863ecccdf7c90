"""Backup and restore of databases: what is kept, what is made anew, what has to change."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import SIGKILL
from uuid import UUID, uuid4

import asyncpg
import pyrage
import pytest
import pytest_asyncio

from cli.backup import catalog
from cli.backup.create import create
from cli.backup.crypt import Key, Lock
from cli.backup.facts import Facts
from cli.backup.keys import MASTER_KEY, PURPOSES, MissingKeyError
from cli.backup.places import Directories, LocalHome, connected
from cli.backup.procedure import Wanted, into_database
from cli.backup.restore import NotEmptyError
from cli.backup.verify import verify
from cli.errors import CliError
from cli.migrate import Target
from deploy.launcher.home import master_key, password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from servicekit import migrate
from servicekit.access import CONTEXTS
from servicekit.auditexport import EXPORT_FORMAT
from servicekit.keys import Signer
from servicekit.sealing import Sealer
from services.audit import store as audit_store
from services.audit.domain import read_event
from tests.servers import Servers, TestDatabase
from tests.stack import free_port

IDENTITY = pyrage.x25519.Identity.generate()
LOCK, KEY = Lock(recipients=(str(IDENTITY.to_public()),)), Key(identity=str(IDENTITY))
ROOT, ORG, STAYS, LEAVES = (UUID(int=n) for n in (1, 2, 11, 12))
AT = datetime(2026, 11, 1, tzinfo=UTC)
EVENTS = 25

SEED = f"""
    INSERT INTO identity.tenant (id, parent_id, kind, name, code, created_at, updated_at) VALUES
        ('{ROOT}', NULL, 'root', 'Root', 'root', now(), now()),
        ('{ORG}', '{ROOT}', 'org', E'Tab\\tline\\nback\\\\slash Ü', 'default', now(), now());
    INSERT INTO identity.account (id, tenant_id, email, role, status, created_at, updated_at)
        VALUES ('{STAYS}', '{ORG}', 'a@school.example', 'Admin', 'active', now(), now());
    INSERT INTO identity.session (id, account_id, tenant_id, created_at, expires_at)
        VALUES ('{UUID(int=21)}', '{STAYS}', '{ORG}', now(), now() + interval '1 day');
    INSERT INTO enrollment.token (id, tenant_id, name, secret_hash, created_at, expires_at,
        max_uses, serial_count, require_approval)
        VALUES ('{UUID(int=31)}', '{ORG}', 'T', sha256('x'), now(), now(), 0, 0, false);
    INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,
        total_ram_bytes, has_tpm, status, token_version, enrollment_token_id, created_at)
        SELECT id, '{ORG}', 'SN-' || id, 'M', '', 4, 18446744073709551615, true, 'active', 1,
        '{UUID(int=31)}', now() FROM unnest(ARRAY['{STAYS}', '{LEAVES}']::uuid[]) AS id;
    INSERT INTO policy.version_counters VALUES ('{ORG}', 7);
    INSERT INTO policy.device_access VALUES ('{LEAVES}', false, 1);
    INSERT INTO policy.device_access_cursor (cursor) VALUES ('1:{UUID(int=0)}:0');
    INSERT INTO policy.outbox_stream (incarnation) VALUES ('old');
"""


def event(number: int) -> tuple[str, bytes]:
    """A message of the stream."""
    name = "policy.updated"
    return (
        f"evergreen.v1.{ORG}.{name}",
        json.dumps(
            {
                "specversion": "1.0",
                "id": str(uuid4()),
                "source": "/evergreen/policy",
                "type": f"evergreen.v1.{name}",
                "subject": "policies/1",
                "time": (AT + timedelta(seconds=number, microseconds=number * 1000)).isoformat(),
                "datacontenttype": "application/json",
                "tenantid": str(ORG),
                "data": {
                    "action": name,
                    "resource": "policies/1",
                    "actor": "a\tb\n\\",
                    "actorId": "1",
                    "after": {"n": number, "text": "line\nÜ\\N"},
                },
            }
        ).encode(),
    )


async def owner(database: TestDatabase) -> asyncpg.Connection[asyncpg.Record]:
    found = target(database)
    return await asyncpg.connect(found.dsn, password=found.password)


def target(database: TestDatabase) -> Target:
    servers = database.servers
    return Target(
        servers.postgres.dsn(roles.MIGRATOR, database.name),
        servers.home.secret(MIGRATOR_SECRET, password),
    )


async def seed(database: TestDatabase) -> None:
    """An installation with something in each corner."""
    connection = await database.superuser()
    key_file = database.servers.home.secret_file("master_key", master_key)
    try:
        await connection.execute("SET evergreen.scope = '*'")
        await connection.execute(SEED)
        for table, purpose in PURPOSES.items():
            uses = ("users", "devices") if purpose == "identity-keys" else ("",)
            for number, use in enumerate(uses):
                secret = bytes([number]) * 32
                public = Signer(secret).public
                sealed = Sealer.from_file(key_file, purpose).seal(secret)
                columns, values = {
                    "identity.signing_key": ("key_id, purpose", f"$1, '{use}'"),
                    "policy.signing_keys": ("id, signs", "$1, true"),
                    "audit.signing_key": ("key_id", "$1"),
                }[table]
                await connection.execute(
                    f"INSERT INTO {table} ({columns}, public_key, sealed_seed, created_at)"
                    f" VALUES ({values}, $2, $3, now())",
                    public.id,
                    public.raw,
                    sealed,
                )
        async with connection.transaction():
            await audit_store.append(connection, [read_event(*event(n)) for n in range(9)])
        await report(connection)
    finally:
        await connection.close()


async def report(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Events of many weeks, as their service would store them."""
    dated = await connection.fetchval(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'telemetry.event'::regclass"
        " AND attname = 'id_day'"
    )
    day = (", id_day", ", telemetry.event_day($1)") if dated else ("", "")
    for number in range(EVENTS):
        at = datetime.now(UTC) - timedelta(days=7 * number)
        await connection.execute(
            "INSERT INTO telemetry.event (event_id, device_id, id, tenant_id, type, severity,"
            f" message, payload, occurred_at, received_at{day[0]}) VALUES ($1, $2, $3, $4, 't',"
            f" 'info', 'm', $5, $6, $6{day[1]})",
            f"{int(at.timestamp())}{number:09d}",
            STAYS,
            uuid4(),
            ORG,
            '{"b": 1,  "a": 12345678901234567890}',
            at,
        )


@dataclass
class World:
    """A seeded database, and another, empty one."""

    servers: Servers
    first: TestDatabase
    second: TestDatabase
    directory: Path

    @property
    def archive(self) -> Path:
        return self.directory / "one.backup"

    @property
    def keys(self) -> Directories:
        """The first installation's keys."""
        return Directories(self.servers.home.secrets)

    @property
    def place(self) -> Directories:
        """The second one's."""
        return Directories(self.directory / "keys", self.directory / "tls")

    async def back_up(self) -> None:
        connection = await owner(self.first)
        try:
            await create(connection, self.keys.read(), self.archive, LOCK, "0.1.0")
        finally:
            await connection.close()

    def wanted(self, *, replace: bool = False, carry: bool = True, key: Key = KEY) -> Wanted:
        return Wanted(self.archive, key, Facts(), replace=replace, carry=carry)

    async def restore(self) -> None:
        await into_database(self.wanted(), self.place, target(self.second))


@asynccontextmanager
async def superuser(
    database: TestDatabase,
) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await database.superuser()
    try:
        yield connection
    finally:
        await connection.close()


async def contents(database: TestDatabase, table: str, *without: str) -> list[str]:
    """All rows of a table as texts, in an order of their own."""
    async with superuser(database) as connection:
        rows = await connection.fetch(
            f"SELECT (to_jsonb(t) - $1::text[])::text AS row FROM {table} AS t ORDER BY 1",
            list(without),
        )
    return [row["row"] for row in rows]


@pytest_asyncio.fixture
async def world(servers: Servers, database: TestDatabase, tmp_path: Path) -> AsyncIterator[World]:
    async with servers.database() as second:
        yield World(servers, database, second, tmp_path)


CHANGED = {
    "identity.session": ("ended_at", "changed_xid"),
    "policy.version_counters": ("last_version",),
    "telemetry.event": ("xid", "id_day"),
}


async def test_all_rows_come_back(world: World) -> None:
    """But for what a restore has to change; into a database of another server, as it were."""
    await seed(world.first)
    await world.back_up()
    found = verify(world.archive, KEY)
    assert (found.keys, found.entries, found.chains) == (4, 9, 1)
    await world.restore()
    for name, rows in found.rows.items():
        if name in {"identity.signing_key", "audit.outbox"}:
            continue
        without = CHANGED.get(name, ("changed_xid",))
        before = await contents(world.first, name, *without)
        assert await contents(world.second, name, *without) == before, name
        assert len(before) == rows
    async with superuser(world.second) as connection:
        assert await connection.fetchval("SELECT last_version FROM policy.version_counters") == 1007
        assert await connection.fetchval("SELECT ended_at FROM identity.session") is not None
        purposes = await connection.fetch("SELECT purpose FROM identity.signing_key")
        assert [row["purpose"] for row in purposes] == ["devices"]
        for position in ("policy.device_access_cursor", "policy.outbox_stream"):
            assert await connection.fetchval(f"SELECT count(*) FROM {position}") == 0
        # What feeds and relays go by is of this server, and over for every reader.
        for column in ("enrollment.device.changed_xid", "telemetry.event.xid"):
            table, name = column.rsplit(".", 1)
            assert await connection.fetchval(
                f"SELECT count(DISTINCT {name}) = 1"
                f" AND bool_and({name} < pg_snapshot_xmin(pg_current_snapshot())) FROM {table}"
            )
        assert await connection.fetchval(
            "SELECT bool_and(id_day = telemetry.event_day(event_id)) FROM telemetry.event"
        )
        (told,) = await connection.fetch("SELECT payload FROM audit.outbox")
        forced = await connection.fetchval(
            "SELECT bool_and(relforcerowsecurity) FROM pg_class WHERE relname = ANY ($1)",
            ["tenant", "policies", "entry"],
        )
        assert forced
    data = json.loads(told["payload"])["data"]
    assert data["action"] == "audit.restored"
    assert data["after"]["sequence"] == 9
    secret = world.place.secrets / "master_key"
    assert secret.read_bytes() == (world.keys.secrets / "master_key").read_bytes()
    assert secret.stat().st_mode & 0o777 == 0o600


async def test_restored_services_may_do_what_they_could(world: World) -> None:
    """Rights and walls are those of a new installation."""
    await seed(world.first)
    await world.back_up()
    await world.restore()
    rights = (
        "SELECT table_schema, table_name, grantee, privilege_type"
        " FROM information_schema.role_table_grants WHERE table_schema = ANY ($1)"
        " AND grantee LIKE 'evergreen%' AND table_name NOT LIKE 'event\\_2%' ORDER BY 1, 2, 3, 4"
    )
    found = []
    for database in (world.first, world.second):
        async with superuser(database) as connection:
            found.append(await connection.fetch(rights, list(CONTEXTS)))
    assert found[0] == found[1]
    assert found[0]


async def test_an_older_schema_is_restored_and_upgraded(world: World) -> None:
    """Events from before they had partitions land in those of the new installation."""
    old = [m for m in migrate.all_migrations() if m.schema != "telemetry" or m.version <= 2]
    async with superuser(world.first) as connection:
        await connection.execute(f"SET ROLE {roles.MIGRATOR}")
        async with connection.transaction():
            for schema in catalog.SCHEMAS:
                await connection.execute(f"DROP SCHEMA {schema} CASCADE")
            await migrate.make(connection, old)
    await seed(world.first)
    await world.back_up()
    header = verify(world.archive, KEY).header
    assert header.migrations["telemetry"].keys() == {"1", "2"}
    await world.restore()
    status = await migrate.status(target(world.second).dsn, target(world.second).password)
    assert all(item.applied_at for item in status)
    without = ("xid", "id_day")
    assert len(await contents(world.second, "telemetry.event", *without)) == EVENTS
    assert await contents(world.second, "telemetry.event", *without) == await contents(
        world.first, "telemetry.event", *without
    )


async def test_what_was_decided_since_holds(world: World) -> None:
    """The replaced database still knows who was retired, who came, and how far versions went."""
    await seed(world.first)
    await world.back_up()
    comes = uuid4()
    async with superuser(world.first) as connection:
        await connection.execute("SET evergreen.scope = '*'")
        await connection.execute(
            f"UPDATE enrollment.device SET status = 'decommissioned' WHERE id = '{LEAVES}';"
            f"INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
            f" total_ram_bytes, has_tpm, status, token_version, created_at) VALUES ('{comes}',"
            f" '{ORG}', 'NEW', 'M', '', 4, 1, true, 'active', 2, now());"
            "UPDATE policy.version_counters SET last_version = 5000;"
            "UPDATE identity.account SET status = 'disabled';"
            "UPDATE enrollment.token SET revoked_at = now()"
        )
    with pytest.raises(NotEmptyError):
        await into_database(world.wanted(), world.keys, target(world.first))
    outcome, _ = await into_database(
        world.wanted(replace=True), Directories(world.directory), target(world.first)
    )
    assert (outcome.carried, outcome.retired) == (2, 1)
    async with superuser(world.first) as connection:
        rows = await connection.fetch(
            "SELECT id, status, token_version FROM enrollment.device ORDER BY id"
        )
        found = {row["id"]: (row["status"], row["token_version"]) for row in rows}
        assert found == {
            STAYS: ("active", 1),
            LEAVES: ("decommissioned", 1),
            comes: ("active", 2),
        }
        assert await connection.fetchval("SELECT last_version FROM policy.version_counters") == 6000
        assert await connection.fetchval("SELECT status FROM identity.account") == "disabled"
        assert await connection.fetchval("SELECT revoked_at FROM enrollment.token") is not None
    # Unless it is wanted gone.
    outcome, _ = await into_database(
        world.wanted(replace=True, carry=False), Directories(world.directory), target(world.first)
    )
    assert outcome.carried == 0


@pytest.mark.parametrize("carry", [True, False])
async def test_an_organisation_that_had_published_nothing(world: World, carry: bool) -> None:
    """What it published since the backup has versions too, which must not come again."""
    await seed(world.first)
    async with superuser(world.first) as connection:
        await connection.execute("DELETE FROM policy.version_counters")
    await world.back_up()
    async with superuser(world.first) as connection:
        await connection.execute(f"INSERT INTO policy.version_counters VALUES ('{ORG}', 3)")
    await into_database(
        world.wanted(replace=True, carry=carry), Directories(world.directory), target(world.first)
    )
    async with superuser(world.first) as connection:
        rows = await connection.fetch("SELECT tenant_id, last_version FROM policy.version_counters")
    assert [tuple(row) for row in rows] == [(ORG, 1003 if carry else 1000)]


ACCOUNT = "SELECT role, status, password_hash, invitation_hash FROM identity.account WHERE id = $1"


async def test_users_are_what_they_were_last(world: World) -> None:
    """Who is an Auditor now is no Owner again; old passwords and used tokens open nothing."""
    await seed(world.first)
    async with superuser(world.first) as connection:
        await connection.execute(
            "UPDATE identity.account SET role = 'Owner', password_hash = 'old';"
            "UPDATE enrollment.token SET max_uses = 1"
        )
    await world.back_up()
    async with superuser(world.first) as connection:
        await connection.execute(
            "UPDATE identity.account SET role = 'Auditor', password_hash = 'new';"
            "UPDATE enrollment.token SET uses = 1"
        )
    outcome, _ = await into_database(
        world.wanted(replace=True), Directories(world.directory), target(world.first)
    )
    assert not outcome.has_owner
    async with superuser(world.first) as connection:
        assert tuple(await connection.fetchrow(ACCOUNT, STAYS) or ()) == (
            "Auditor",
            "active",
            "new",
            None,
        )
        assert await connection.fetchval("SELECT uses FROM enrollment.token") == 1


@pytest.mark.parametrize(
    ("later", "account"),
    [
        ({"user_updated": ("Auditor", "active")}, ("Auditor", "active", "old", None)),
        ({"user_deactivated": ("Owner", "disabled")}, ("Owner", "disabled", "old", None)),
        ({"user_invited": ("Owner", "invited")}, ("Owner", "invited", None, None)),
        (
            {
                "user_invited": ("Owner", "invited"),
                "invitation_accepted": None,
                "user_updated": ("Admin", "active"),
            },
            ("Admin", "invited", None, None),
        ),
    ],
)
async def test_an_export_tells_what_users_lost(
    world: World,
    later: dict[str, tuple[str, str] | None],
    account: tuple[str | None, ...],
) -> None:
    """It knows no password: where one was ended since, the user has to be invited again."""
    await seed(world.first)
    async with superuser(world.first) as connection:
        await connection.execute(
            "UPDATE identity.account SET role = 'Owner', password_hash = 'old'"
        )
    await world.back_up()
    export = world.directory / "audit.jsonl"
    lines: list[dict[str, object]] = [{"format": EXPORT_FORMAT}]
    for number, (name, state) in enumerate(later.items(), start=100):
        record = json.loads(event(number)[1])
        record["data"] |= {
            "action": f"identity.{name}",
            "resource": f"users/{STAYS}",
            "after": {"role": state[0], "status": state[1]} if state else {"email": "a"},
        }
        entry = {"tenantId": str(ORG), "sequence": number, "record": json.dumps(record)}
        lines.append({"entry": entry})
    export.write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = Wanted(world.archive, KEY, Facts(), (export,))
    await into_database(wanted, world.place, target(world.second))
    async with superuser(world.second) as connection:
        assert tuple(await connection.fetchrow(ACCOUNT, STAYS) or ()) == account


CUTS = {
    "before the commit": "from cli.backup import restore as m; m._note = die",
    "before the schema is upgraded": "from servicekit import migrate as m; m.up = die",
    "before the keys are there": "from cli.backup.places import Staged as m; m.put = die",
    "before it is noted as finished": "from cli.backup import procedure as m; m.finish = die",
}
DIES = """
import os, signal, sys
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
{cut}
from cli.entry import main
main()
"""


def command(arguments: list[str | Path], cut: str, **environment: str) -> int:
    """The exit code of `evergreen`, which dies where a cut says."""
    done = subprocess.run(
        [sys.executable, "-c", DIES.format(cut=cut), *map(str, arguments)],
        env=os.environ | environment,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    return done.returncode


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("replace", [False, True])
async def test_a_restore_that_was_killed_is_run_again(
    world: World, cut: str, replace: bool
) -> None:
    """With the same words, at whatever moment; then the keys open what is in the database."""
    await seed(world.first)
    await world.back_up()
    key = world.directory / "identity"
    key.write_text(str(IDENTITY))
    arguments: list[str | Path] = ["backup", "restore", world.archive, "--identity", key]
    arguments += ["--secrets", world.place.secrets, "--tls", world.directory / "tls"]
    if replace:
        await seed(world.second)
        world.place.secrets.mkdir()
        (world.place.secrets / "master_key").write_text(master_key())
        arguments.append("--replace")
    to = target(world.second)
    password_file = world.directory / "password"
    password_file.write_text(to.password or "")
    environment = {
        "EVERGREEN_MIGRATE_DATABASE_URL": to.dsn,
        "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(password_file),
    }
    before = world.place.read()
    assert await asyncio.to_thread(command, arguments, CUTS[cut], **environment) == -SIGKILL
    if cut != "before it is noted as finished":
        assert world.place.read() == before
    assert await asyncio.to_thread(command, arguments, "", **environment) == 0
    connection = await owner(world.second)
    try:
        # Which it refuses when the keys do not open.
        await create(connection, world.place.read(), world.directory / "again", LOCK, "0.1.0")
    finally:
        await connection.close()
    left = [path for path in world.place.secrets.iterdir() if path.name.startswith(".")]
    assert left == []
    # What is whole is an installation, which is not replaced without a word.
    if not replace:
        assert await asyncio.to_thread(command, arguments, "", **environment) == 1


async def test_what_began_after_a_killed_restore_is_not_replaced(world: World) -> None:
    """Services that have started since make it an installation, finished or not."""
    await seed(world.first)
    await world.back_up()
    await world.restore()
    async with superuser(world.second) as connection:
        id_ = verify(world.archive, KEY).header.id
        await connection.execute(
            f"COMMENT ON SCHEMA evergreen IS 'being restored from backup {id_}'"
        )
    await world.restore()
    async with superuser(world.second) as connection:
        await connection.execute(
            f"COMMENT ON SCHEMA evergreen IS 'being restored from backup {id_}';"
            "INSERT INTO identity.signing_key VALUES ('new', 'users', '', '', now())"
        )
    with pytest.raises(NotEmptyError):
        await world.restore()


@pytest.mark.timeout(300)
async def test_a_home_that_a_killed_restore_left_gets_back_what_it_had(
    world: World, tmp_path: Path
) -> None:
    """And what it knows is carried over by the restore that follows."""
    await seed(world.first)
    await world.back_up()
    key = world.directory / "identity"
    key.write_text(str(IDENTITY))
    home = LocalHome(tmp_path / "home")
    arguments: list[str | Path] = ["backup", "restore", world.archive, "--identity", key]
    arguments += ["--home", home.home.root]
    cut = "from cli.backup import procedure as m; m.restore = die"
    assert await asyncio.to_thread(command, arguments, cut) == -SIGKILL
    assert await asyncio.to_thread(command, arguments, "") == 0
    with home.held():
        async with home.started() as to, connected(to) as connection:
            await connection.execute("SET evergreen.scope = '*'")
            await connection.execute(
                f"UPDATE enrollment.device SET status = 'decommissioned' WHERE id = '{LEAVES}'"
            )
    arguments.append("--replace")
    assert await asyncio.to_thread(command, arguments, cut) == -SIGKILL
    # What is half done does not become an installation.
    up = {"EVERGREEN_HOME": str(home.home.root), "EVERGREEN_PORT": str(free_port())}
    assert await asyncio.to_thread(command, ["up"], "", **up) == 1
    assert await asyncio.to_thread(command, arguments, "") == 0
    with home.held():
        async with home.started() as to, connected(to) as connection:
            await connection.execute("SET evergreen.scope = '*'")
            rows = await connection.fetch(
                "SELECT id FROM enrollment.device WHERE status = $1", "decommissioned"
            )
    assert [row["id"] for row in rows] == [LEAVES]
    assert len(list(home.home.root.glob("replaced-*"))) == 1
    assert not home.was_cut_short


async def test_a_list_retires_devices_that_nothing_is_known_of(world: World) -> None:
    await seed(world.first)
    await world.back_up()
    unknown = uuid4()
    wanted = world.wanted()
    wanted.facts.retired.update({unknown, LEAVES})
    outcome, _ = await into_database(wanted, world.place, target(world.second))
    assert outcome.retired == 2
    async with superuser(world.second) as connection:
        rows = await connection.fetch(
            "SELECT id, status FROM enrollment.device WHERE status <> 'active' ORDER BY id"
        )
    assert {row["id"] for row in rows} == {unknown, LEAVES}
    assert {row["status"] for row in rows} == {"decommissioned"}


async def test_nothing_is_touched_when_something_is_wrong(world: World) -> None:
    """A damaged archive, another key, other keys in the target, services that run."""
    await seed(world.first)
    await world.back_up()
    whole = world.archive.read_bytes()
    changed = bytes([whole[3000] ^ 1])
    for damaged in (whole[:-40], whole[:3000] + changed + whole[3001:]):
        world.archive.write_bytes(damaged)
        with pytest.raises(CliError):
            await world.restore()
    world.archive.write_bytes(whole)
    other = Key(identity=str(pyrage.x25519.Identity.generate()))
    with pytest.raises(CliError, match="another one"):
        await into_database(world.wanted(key=other), world.place, target(world.second))
    world.place.secrets.mkdir()
    (world.place.secrets / "master_key").write_text(master_key())
    with pytest.raises(CliError, match="another key"):
        await world.restore()
    (world.place.secrets / "master_key").unlink()
    servers = world.servers
    service = await asyncpg.connect(
        servers.postgres.dsn(roles.service_role("policy"), world.second.name),
        password=servers.home.secret("postgres_policy", password),
        server_settings={"application_name": "evergreen"},
    )
    try:
        with pytest.raises(CliError, match="evergreen_policy"):
            await world.restore()
    finally:
        await service.close()
    async with superuser(world.second) as connection:
        assert await connection.fetchval("SELECT count(*) FROM identity.tenant") == 0
    assert list(world.place.secrets.iterdir()) == []


async def test_a_backup_without_its_keys_is_not_made(world: World) -> None:
    await seed(world.first)
    connection = await owner(world.first)
    try:
        for files in ({}, {MASTER_KEY: master_key().encode()}):
            with pytest.raises(MissingKeyError):
                await create(connection, files, world.archive, LOCK, "0.1.0")
    finally:
        await connection.close()
    assert not world.archive.exists()


async def test_a_changed_audit_log_is_noticed_without_a_server(world: World) -> None:
    await seed(world.first)
    async with superuser(world.first) as connection:
        await connection.execute(
            "ALTER TABLE audit.entry DISABLE TRIGGER ALL;"
            "UPDATE audit.entry SET record = replace(record, 'line', 'lime') WHERE sequence = 4"
        )
    await world.back_up()
    with pytest.raises(CliError, match=r"entry 4 .* was changed"):
        verify(world.archive, KEY)


async def test_every_table_is_thought_of(world: World) -> None:
    """Transaction numbers, positions and partitions are named in the catalogue, and nothing else
    is left out: whoever adds such a table has to decide."""
    connection = await owner(world.first)
    try:
        kept = {table.name for table in await catalog.tables(connection)}
        rows = await connection.fetch(
            "SELECT n.nspname || '.' || c.relname AS name, c.relkind::text AS kind,"
            " coalesce(array_agg(a.attname::text || CASE WHEN a.atthasdef THEN '' ELSE '!' END)"
            " FILTER (WHERE a.atttypid = 'xid8'::regtype), '{}') AS xids,"
            " bool_or(a.attname IN ('cursor', 'incarnation')) AS position"
            " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
            " WHERE n.nspname = ANY ($1) AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
            " GROUP BY 1, 2",
            catalog.SCHEMAS,
        )
        left_out = {row["name"] for row in rows} - kept
        assert all(not catalog.is_kept(name) for name in left_out)
        for row in rows:
            if row["name"] in kept:
                assert not row["position"], f"{row['name']} says how far something was read"
                assert not [x for x in row["xids"] if x.endswith("!")], row["name"]
                assert row["kind"] == "r" or row["name"] in catalog.DERIVED, row["name"]
    finally:
        await connection.close()
