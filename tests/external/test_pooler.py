"""PgBouncer before PostgreSQL: sessions work from end to end, other modes are refused."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from cli.doctor import database as doctor
from cli.doctor.finding import findings as all_findings
from cli.options import MIGRATE_URL
from deploy.certificates import now
from deploy.launcher import tls
from deploy.launcher.home import password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from servicekit.data import pooler as checked
from servicekit.data.postgres import Database
from tests.conftest import MakeKit, ServeService
from tests.external import pgbouncer
from tests.external.pgbouncer import Pooler
from tests.support import telemetry
from tests.support.servers import Servers, TestDatabase
from tests.support.telemetry import SISTER, Admin, event, eventually

PATIENCE = 60.0


def evergreen(pooler: Pooler, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the migrations' role through the pooler."""
    home = pooler.database.servers.home
    return subprocess.run(
        [Path(sys.executable).with_name("evergreen"), *arguments],
        env={
            "PATH": os.environ["PATH"],
            "EVERGREEN_MIGRATE_DATABASE_URL": pooler.dsn(roles.MIGRATOR),
            "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(
                home.secret_file(MIGRATOR_SECRET, password)
            ),
            **more,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE * 2,
    )


async def findings(pooler: Pooler) -> list[str]:
    """What the doctor finds for the roles of the migrations and of a service."""
    home = pooler.database.servers.home
    logins = [
        doctor.Login(pooler.dsn(role), home.secret(secret, password), context)
        for role, secret, context in (
            (roles.MIGRATOR, MIGRATOR_SECRET, ""),
            (roles.service_role("telemetry"), "postgres_telemetry", "telemetry"),
        )
    ]
    return [f.code for login in logins for f in all_findings(await doctor.checks(login))]


async def test_a_service_works_in_sessions(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> None:
    """States and events are stored, lists are right, and walls between tenants stand."""
    with pgbouncer.running(tmp_path / "pooler", database) as pooler:
        url = pooler.dsn(roles.service_role("telemetry"))
        async with telemetry.running(make_kit, serve, database, database_url=url) as world:
            device = world.device()
            assert (await device.state()).status_code == 200
            assert (await device.events([event(1), event(2)])).status_code == 200

            async def stored() -> bool:
                return await world.count() == 2 and await world.count("device") == 1

            await eventually(stored, PATIENCE)
            world.registry.tell(device.id)

            async def listed() -> bool:
                return [found.id for found in (await world.admin.devices()).devices] == [
                    str(device.id)
                ]

            await eventually(listed, PATIENCE)
            assert len((await world.admin.events()).events) == 2
            sister = Admin(world.channel, SISTER.id)
            assert list((await sister.devices()).devices) == []
            assert list((await sister.events()).events) == []
        assert await findings(pooler) == []


async def test_scope_and_notices_stay_with_their_session(
    make_kit: MakeKit, database: TestDatabase, tmp_path: Path
) -> None:
    """Even where the pooler resets nothing when a session ends and gives its server to another."""
    more = {"server_reset_query": "", "default_pool_size": "3"}
    with pgbouncer.running(tmp_path / "pooler", database, more) as pooler:
        url = pooler.dsn(roles.service_role("identity"))
        first = (await make_kit("identity", database_url=url)).database
        await first.require_sessions()
        lane = first.system_lane("a test works on all rows")
        ((server, sees),) = await lane.fetch("SELECT pg_backend_pid(), evergreen.system_scope()")
        assert sees
        await lane.close()
        second = (await make_kit("identity", database_url=url, database_pool_size=3)).database
        heard = asyncio.Event()
        async with AsyncExitStack() as held:
            one, two, three = [await held.enter_async_context(second.dedicated()) for _ in range(3)]
            servers = {}
            for connection in (one, two, three):
                number = await connection.fetchval("SELECT pg_backend_pid()")
                servers[number] = await connection.fetchval("SELECT evergreen.system_scope()")
            assert servers[server] is False
            assert not any(servers.values())

            def hear(*_: object) -> None:
                heard.set()

            await one.add_listener("test_pooler", hear)
            await two.execute("NOTIFY test_pooler")
            await asyncio.wait_for(heard.wait(), PATIENCE)
            # All of the pooler's connections are taken: that is no wrong mode, and may pass.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(first.require_sessions(), PATIENCE)
            await one.remove_listener("test_pooler", hear)


@pytest_asyncio.fixture
async def empty(servers: Servers) -> AsyncIterator[TestDatabase]:
    """A database without a schema, of the migrations' role."""
    name = f"test_{uuid4().hex[:12]}"
    admin = await servers.postgres.connect()
    assert admin is not None
    await admin.execute(f"CREATE DATABASE {name} OWNER {roles.MIGRATOR}")
    try:
        yield TestDatabase(servers, name)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def test_migrations_take_turns_in_sessions(empty: TestDatabase, tmp_path: Path) -> None:
    """Two at the same time through the pooler: each migration is applied once."""
    with pgbouncer.running(tmp_path / "pooler", empty) as pooler:
        done = await asyncio.gather(
            *(asyncio.to_thread(evergreen, pooler, "migrate", "up") for _ in range(2))
        )
        assert [found.returncode for found in done] == [0, 0], done
        assert sorted("up to date" in found.stdout for found in done) == [False, True]
        assert evergreen(pooler, "migrate", "status", "--check").returncode == 0


@pytest.mark.parametrize(
    "more",
    [
        {"pool_mode": "transaction"},
        {"pool_mode": "transaction", "server_round_robin": "1"},
        {"pool_mode": "statement"},
    ],
    ids=["transaction", "round-robin", "statement"],
)
async def test_other_modes_are_refused_at_the_start(
    database: TestDatabase, tmp_path: Path, more: dict[str, str]
) -> None:
    """By services, migrations and the doctor, with the reason in one line."""
    reason = f"pools {more['pool_mode']}s, and Evergreen needs sessions: set pool_mode = session"
    with pgbouncer.running(tmp_path / "pooler", database, more) as pooler:
        servers = database.servers
        settings = servers.settings(
            telemetry.TelemetrySettings,
            "telemetry",
            database,
            database_url=pooler.dsn(roles.service_role("telemetry")),
        )
        values = {
            f"EVERGREEN_{name.upper()}": str(value)
            for name, value in settings.model_dump(exclude_defaults=True).items()
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.telemetry",
            env={"PATH": os.environ["PATH"], **values},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert process.returncode == 1, output
        (line,) = [line for line in output.decode().splitlines() if "start refused" in line]
        assert reason in line
        assert "Traceback" not in output.decode()
        done = await asyncio.to_thread(evergreen, pooler, "migrate", "up")
        assert (done.returncode, done.stdout) == (1, "")
        assert reason in done.stderr
        assert await findings(pooler) == ["DATABASE_POOLER_MODE"] * 2


async def test_a_mode_that_changes_later_is_noticed(
    make_kit: MakeKit, database: TestDatabase, tmp_path: Path
) -> None:
    """The database counts as missing, so that /readyz says so."""
    more = {"pool_mode": "transaction", "server_round_robin": "1"}
    with pgbouncer.running(tmp_path / "pooler", database, more) as pooler:
        url = pooler.dsn(roles.service_role("identity"))
        found: Database = (await make_kit("identity", database_url=url)).database
        other = await asyncpg.connect(
            url,
            password=database.servers.home.secret("postgres_identity", password),
            statement_cache_size=0,
        )
        with pytest.raises((checked.PoolerError, asyncpg.PostgresError)):
            for _ in range(100):
                await found.ping()
                async with other.transaction():
                    await other.execute("SELECT 1")
                    await found.ping()
        other.terminate()


async def test_tls_is_verified(make_kit: MakeKit, database: TestDatabase, tmp_path: Path) -> None:
    """sslmode and sslrootcert count for services, commands and the doctor."""
    directory, other = tmp_path / "pooler", tmp_path / "other"
    tls.ensure(other, ["localhost"], now())
    with pgbouncer.running(directory, database, with_tls=True) as pooler:

        async def migrates(host: str, ca: Path, mode: str) -> subprocess.CompletedProcess[str]:
            url = pooler.dsn(roles.MIGRATOR, host, sslmode=mode, sslrootcert=str(ca / "ca.crt"))
            return await asyncio.to_thread(evergreen, pooler, "migrate", "up", **{MIGRATE_URL: url})

        assert (await migrates("localhost", directory, "verify-full")).returncode == 0
        assert (await migrates("127.0.0.1", directory, "verify-ca")).returncode == 0
        for host, ca, mode, reason in (
            ("localhost", other, "verify-full", "certificate verify failed"),
            ("localhost", other, "verify-ca", "certificate verify failed"),
            ("127.0.0.1", directory, "verify-full", "certificate is not valid for '127.0.0.1'"),
            ("localhost", directory, "disable", "SSL required"),
        ):
            done = await migrates(host, ca, mode)
            assert done.returncode == 1
            assert reason in done.stderr, (host, mode, done.stderr)
            assert "Traceback" not in done.stderr
        role = roles.service_role("identity")
        ca_file = str(directory / "ca.crt")
        url = pooler.dsn(role, "localhost", sslmode="verify-full", sslrootcert=ca_file)
        found = (await make_kit("identity", database_url=url)).database
        await found.ping()
        await found.require_sessions()
        secret = database.servers.home.secret("postgres_identity", password)
        login = doctor.Login(url, secret, "identity")
        assert all_findings(await doctor.checks(login)) == []
