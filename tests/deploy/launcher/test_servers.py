"""PostgreSQL and NATS as the launcher configures them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from contract.contexts import CONTEXTS
from deploy.launcher import nats as nats_launcher
from deploy.launcher.home import Home, password
from deploy.launcher.postgres import SUPERUSER_SECRET, Postgres
from deploy.postgres import roles
from servicekit.data import migrate
from tests.support import servers as test_servers
from tests.support.servers import Servers

TENANT = "01a20c56-388e-7575-b476-cc283ec789a1"


@asynccontextmanager
async def connected(servers: Servers, user: str, denied: list[str]) -> AsyncIterator[Client]:
    async def note(error: Exception) -> None:
        denied.append(str(error).lower())

    client = await nats.connect(
        servers.nats_url,
        user=user,
        password=servers.home.secret(f"nats_{user}", password),
        error_cb=note,
        allow_reconnect=False,
    )
    try:
        yield client
    finally:
        await client.close()


async def may_publish(servers: Servers, user: str, subject: str) -> bool:
    denied: list[str] = []
    async with connected(servers, user, denied) as client:
        await client.publish(subject, b"{}")
        await client.flush()
        await asyncio.sleep(0.05)
    return not any("permissions violation for publish" in text for text in denied)


async def may_subscribe(servers: Servers, user: str, subject: str) -> bool:
    denied: list[str] = []
    async with connected(servers, user, denied) as client:
        await client.subscribe(subject)
        await client.flush()
        await asyncio.sleep(0.05)
    return not any("permissions violation for subscription" in text for text in denied)


@pytest.mark.parametrize("context", CONTEXTS)
async def test_a_service_publishes_its_own_events_only(servers: Servers, context: str) -> None:
    """Whichever service is taken over, it cannot speak for another one."""
    for other in CONTEXTS:
        allowed = await may_publish(servers, context, f"evergreen.v1.{TENANT}.{other}.happened")
        assert allowed == (other == context)


async def test_nobody_takes_part_without_a_password(servers: Servers) -> None:
    """Neither anonymous clients nor one service's password for another's user."""
    for credentials in (
        {},
        {"user": "audit", "password": "guess"},
        {"user": "audit", "password": servers.home.secret("nats_policy", password)},
    ):
        # Whoever is not known to NATS is identity's to judge, which is not there.
        with pytest.raises((NatsError, TimeoutError)):
            client = await nats.connect(servers.nats_url, allow_reconnect=False, **credentials)
            # The client may learn of a refusal only now.
            await client.flush()


@pytest.mark.parametrize(
    "subject",
    [
        "$JS.API.STREAM.DELETE.EVERGREEN",
        "$JS.API.STREAM.PURGE.EVERGREEN",
        "$JS.API.STREAM.MSG.DELETE.EVERGREEN",
        "$JS.API.STREAM.MSG.GET.EVERGREEN",
        "$JS.API.STREAM.CREATE.OTHER",
        "$JS.API.DIRECT.GET.EVERGREEN",
        "$SYS.REQ.SERVER.PING",
    ],
)
async def test_no_service_rewrites_the_stream(servers: Servers, subject: str) -> None:
    """What was published stays, and is read through consumers only."""
    for user in ("audit", "policy"):
        assert not await may_publish(servers, user, subject)


async def test_only_audit_marks_the_stream_anew(servers: Servers) -> None:
    """Asking for what the stream lost is the audit log's business alone."""
    for subject in (
        "$JS.API.STREAM.UPDATE.EVERGREEN",
        "$JS.API.CONSUMER.DELETE.EVERGREEN.audit",
    ):
        assert await may_publish(servers, "audit", subject)
        assert not await may_publish(servers, "policy", subject)


async def test_only_audit_reads_the_events_of_all(servers: Servers) -> None:
    """Audit may have its consumer; nobody else may, and nobody listens in."""
    consumer = "$JS.API.CONSUMER.DURABLE.CREATE.EVERGREEN.audit"
    assert await may_publish(servers, "audit", consumer)
    assert not await may_publish(servers, "policy", consumer)
    assert not await may_publish(servers, "policy", "$JS.API.CONSUMER.CREATE.EVERGREEN.policy")
    assert not await may_publish(servers, "audit", "$JS.API.CONSUMER.CREATE.EVERGREEN.other")
    for user in ("audit", "policy"):
        assert not await may_subscribe(servers, user, "evergreen.v1.>")
        assert not await may_subscribe(servers, user, ">")


async def test_nats_is_durable_and_private(servers: Servers) -> None:
    """Acknowledged means on the disk; the file with the passwords is the owner's alone."""
    path = servers.home.nats / "nats.conf"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert '"sync_interval": "always"' in path.read_text()
    assert f'"listen": "127.0.0.1:{servers.ports["nats"]}"' in path.read_text()


def test_nats_starts_on_a_store_from_before_it_had_accounts(tmp_path: Path) -> None:
    """A stream that belongs to no account would keep the server unhealthy for ever."""
    home = Home(tmp_path / "home")
    home.prepare()
    stream = home.nats / "store" / "jetstream" / "$G" / "streams" / "EVERGREEN"
    kept = home.nats / "store" / "jetstream" / "EVERGREEN" / "streams" / "EVERGREEN"
    for path in (stream, kept):
        path.mkdir(parents=True)
    nats_launcher.process(home, CONTEXTS, {"nats": 1, "nats_monitor": 2})
    assert not stream.exists()
    assert kept.exists()


async def setting(connection: asyncpg.Connection[asyncpg.Record], name: str) -> str:
    return str(await connection.fetchval("SELECT current_setting($1)", name))


async def test_postgres_is_durable_and_local(servers: Servers) -> None:
    """What was acknowledged is on the disk, and there is no way in but the socket."""
    connection = await servers.postgres.connect()
    assert connection is not None
    try:
        for name in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
            assert await setting(connection, name) == "on"
        assert await setting(connection, "listen_addresses") == ""
        assert await setting(connection, "password_encryption") == "scram-sha-256"
    finally:
        await connection.close()


async def test_roles_need_their_own_password_and_can_do_little(servers: Servers) -> None:
    """Every role logs in with its password only, and none is more than a login."""
    dsn = servers.postgres.dsn(roles.service_role("policy"))
    for wrong in ("", "guess", servers.home.secret("postgres_audit", password)):
        with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InterfaceError)):
            await asyncpg.connect(dsn, password=wrong)
    connection = await asyncpg.connect(
        dsn, password=servers.home.secret("postgres_policy", password)
    )
    try:
        for statement in (
            "CREATE ROLE evil",
            "CREATE TABLE public.x ()",
            "CREATE TEMPORARY TABLE x ()",
            "CREATE SCHEMA x",
            "COPY (SELECT 1) TO '/tmp/x'",
            "SELECT 1 FROM audit.outbox",
            "SET ROLE evergreen_migrator",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_roles_are_the_same_at_the_second_start(servers: Servers) -> None:
    """Making the database and the roles again changes nothing; a new password is taken over."""
    connection = await servers.postgres.connect()
    assert connection is not None
    try:
        assert not await roles.ensure(connection, servers.postgres.passwords())
        await roles.ensure(connection, {roles.service_role("policy"): "it's new"})
        renewed = await asyncpg.connect(
            servers.postgres.dsn(roles.service_role("policy")), password="it's new"
        )
        await renewed.close()
        await roles.ensure(connection, servers.postgres.passwords())
    finally:
        await connection.close()


async def test_an_administrator_need_not_be_a_superuser(tmp_path: Path) -> None:
    """As of a hosted PostgreSQL: it may make databases and roles, twice."""
    async with test_servers.running(tmp_path / "home") as own:
        superuser = await own.postgres.connect()
        assert superuser is not None
        passwords = own.postgres.passwords()
        await superuser.execute(f"DROP DATABASE {roles.DATABASE}")
        for role in passwords:
            await superuser.execute(f'DROP ROLE "{role}"')
        await superuser.execute("CREATE ROLE hosted LOGIN CREATEDB CREATEROLE PASSWORD 'hosted'")
        admin = await asyncpg.connect(own.postgres.dsn("hosted", "postgres"), password="hosted")
        assert await roles.ensure(admin, passwords)
        assert not await roles.ensure(admin, passwords | {roles.MIGRATOR: "it's new"})
        await admin.close()
        await migrate.up(own.postgres.dsn(roles.MIGRATOR), "it's new")
        await superuser.close()


async def test_a_killed_server_recovers_with_everything_acknowledged(tmp_path: Path) -> None:
    """kill -9 of PostgreSQL: the supervisor brings it back, with every committed row."""
    async with test_servers.running(tmp_path / "home") as own:
        connection = await own.postgres.connect()
        assert connection is not None
        await connection.execute("CREATE TABLE kept (n int)")
        await connection.executemany("INSERT INTO kept VALUES ($1)", [(n,) for n in range(100)])
        process = own.supervisor["postgres"]
        killed = process.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        connection.terminate()
        async with asyncio.timeout(60):
            while (again := await own.postgres.connect()) is None or process.pid == killed:
                await asyncio.sleep(0.05)
        try:
            assert process.pid is not None
            assert await again.fetchval("SELECT count(*) FROM kept") == 100
        finally:
            await again.close()


async def test_a_server_gets_memory_for_what_it_has_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each start anew, also at that after a crash."""
    monkeypatch.setattr("deploy.postgres.settings.machine_memory", lambda: 24 << 30)
    async with test_servers.running(tmp_path / "home") as own:
        process = own.supervisor["postgres"]

        async def shared() -> str:
            async with asyncio.timeout(60):
                while (connection := await own.postgres.connect()) is None:
                    await asyncio.sleep(0.05)
            try:
                return str(await connection.fetchval("SHOW shared_buffers"))
            finally:
                await connection.close()

        configured = (own.home.postgres / "postgresql.conf").read_text()
        assert "shared_buffers = '256MB'" in configured
        # From now on without what tests need less of.
        (own.home.postgres / "custom.conf").unlink()
        # As large as a table of 200 MB, without its blocks.
        with (own.home.postgres / "base" / "large").open("wb") as file:
            file.truncate(200 << 20)
        killed = process.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(60):
            while process.pid in {killed, None}:
                await asyncio.sleep(0.05)
        megabytes = int((await shared()).removesuffix("MB"))
        assert 400 <= megabytes < 600


async def test_an_unfinished_or_stale_data_directory_is_no_obstacle(tmp_path: Path) -> None:
    """A start that was killed during initdb, a lock file that names somebody else, and a link in
    the place of a file that is written at each start: with root's rights, where root starts it."""
    home = Home(tmp_path / "home")
    home.prepare()
    postgres = Postgres(home, home.run_directory(), ("policy",))
    home.postgres.mkdir()
    (home.postgres / "base").mkdir()
    assert await postgres.prepare()
    assert not await postgres.prepare()
    assert (home.secrets / SUPERUSER_SECRET).exists()
    lock = home.postgres / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n/elsewhere\n")
    others, configured = tmp_path / "others", home.postgres / "pg_hba.conf"
    others.write_text("as it was")
    configured.unlink(missing_ok=True)
    configured.symlink_to(others)
    spec = postgres.process()
    assert spec.prepare is not None
    await spec.prepare()
    assert not lock.exists()
    assert others.read_text() == "as it was"
    assert not configured.is_symlink()
    assert configured.stat().st_uid == home.postgres.stat().st_uid
    for descriptor in spec.pass_fds:
        os.close(descriptor)
    shutil.rmtree(home.root)
