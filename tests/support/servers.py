"""The real PostgreSQL and NATS that tests run on, started once per session."""

from __future__ import annotations

import asyncio
import io
import json
import random
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import asyncpg
import nats
from nats.aio.client import Client

from contract.contexts import CONTEXTS
from deploy.launcher import nats as nats_process
from deploy.launcher import ports
from deploy.launcher.console import Console
from deploy.launcher.home import Home, master_key, password
from deploy.launcher.logs import Logs
from deploy.launcher.postgres import MIGRATOR_SECRET, SUPERUSER, SUPERUSER_SECRET, Postgres
from deploy.launcher.supervisor import Supervisor
from deploy.postgres import roles
from servicekit.data import migrate
from servicekit.settings import ServiceSettings

S = TypeVar("S", bound=ServiceSettings)

_STOP = (("nats",), ("postgres",))

_POSTGRES = """\
autovacuum = off
max_wal_size = 256MB
# A database is dropped by looking at every buffer.
shared_buffers = 128MB
# Services connect anew in every test.
scram_iterations = 1
"""


@dataclass(frozen=True, slots=True)
class TestDatabase:
    """A database with all migrations, for one test."""

    __test__ = False

    servers: Servers
    name: str

    def dsn(self, context: str) -> str:
        """The URL for a context's own role, without the password."""
        return self.servers.postgres.dsn(roles.service_role(context), self.name)

    def of_migrator(self) -> tuple[str, str]:
        """The URL for the role that owns the schemas, and its password."""
        return (
            self.servers.postgres.dsn(roles.MIGRATOR, self.name),
            self.servers.home.secret(MIGRATOR_SECRET, password),
        )

    async def superuser(self) -> asyncpg.Connection[asyncpg.Record]:
        """A connection that may do everything, also what the product may not."""
        return await asyncpg.connect(
            self.servers.postgres.dsn(SUPERUSER, self.name),
            password=self.servers.home.secret(SUPERUSER_SECRET, password),
        )


class Servers:
    """PostgreSQL and NATS, and how to reach them."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.run = home.run_directory()
        self._console = Console(io.StringIO())
        self.supervisor = Supervisor(Logs(home.logs, self._console), self.run)
        self.postgres = Postgres(home, self.run, CONTEXTS)
        self.ports: dict[str, int] = {}
        self._admin: asyncpg.Connection[asyncpg.Record] | None = None

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.ports['nats']}"

    async def start(self, *, migrated: bool = True) -> None:
        """Starts both, and applies the migrations to the database that tests are copied from."""
        self.ports = ports.pick(("nats", "nats_monitor"), {}, random.SystemRandom())
        await self.postgres.prepare()
        configuration = self.home.postgres / "custom.conf"
        configuration.write_text(_POSTGRES)
        configuration.chmod(0o644)
        self.supervisor.start(self.postgres.process())
        nats_spec = nats_process.process(self.home, CONTEXTS, self.ports)
        self._add_operator()
        self.supervisor.start(nats_spec)
        while (admin := await self.postgres.connect()) is None:
            await asyncio.sleep(0.05)
        self._admin = admin
        await roles.ensure(admin, self.postgres.passwords())
        if migrated:
            secret = self.home.secret(MIGRATOR_SECRET, password)
            await migrate.up(self.postgres.dsn(roles.MIGRATOR), secret)
        await self.until_nats_answers()

    def _add_operator(self) -> None:
        """Makes the operator a NATS user without limits, to look at the stream and to break it."""
        path = self.home.nats / "nats.conf"
        configuration = json.loads(path.read_text())
        for user in configuration["accounts"]["EVERGREEN"]["users"]:
            if user["user"] == "operator":
                del user["permissions"]
        path.write_text(json.dumps(configuration))

    async def operator(self) -> Client:
        """A connection that may do everything on NATS."""
        return await nats.connect(
            self.nats_url, user="operator", password=self.home.secret("nats_operator", password)
        )

    async def until_nats_answers(self) -> None:
        url = f"http://127.0.0.1:{self.ports['nats_monitor']}/healthz"
        while True:
            try:
                await asyncio.to_thread(urllib.request.urlopen, url, None, 2)
                return
            except OSError:
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self._admin is not None:
            self._admin.terminate()
        await self.supervisor.stop(_STOP)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[TestDatabase]:
        """A fresh copy of the migrated database."""
        assert self._admin is not None
        name = f"test_{uuid4().hex[:12]}"
        users = ", ".join(roles.service_role(context) for context in CONTEXTS)
        await self._admin.execute(
            f"CREATE DATABASE {name} TEMPLATE {roles.DATABASE} STRATEGY FILE_COPY"
        )
        await self._admin.execute(
            f"REVOKE ALL ON DATABASE {name} FROM PUBLIC;"
            f"GRANT CONNECT, CREATE ON DATABASE {name} TO {roles.MIGRATOR};"
            f"GRANT CONNECT ON DATABASE {name} TO {users}"
        )
        try:
            yield TestDatabase(self, name)
        finally:
            await self._admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def settings(self, kind: type[S], context: str, database: TestDatabase, **more: object) -> S:
        """Settings of a service on these servers; sockets lie in the test's own directory."""
        directory = self.run / database.name
        directory.mkdir(mode=0o700, exist_ok=True)
        values: dict[str, object] = {
            "grpc_listen": f"unix:{directory}/{context}.gw",
            "internal_listen": f"unix:{directory}/{context}.int",
            "http_listen": f"unix:{directory}/{context}.http",
            "database_url": database.dsn(context),
            "database_password_file": self.home.secret_file(f"postgres_{context}", password),
            "nats_url": self.nats_url,
            "nats_user": context,
            "nats_password_file": self.home.secret_file(f"nats_{context}", password),
            "master_key_file": self.home.secret_file("master_key", master_key),
            "events_issuer_file": self.home.secrets / nats_process.ISSUER,
            "nats_gatekeeper_password_file": self.home.secrets / "nats_gatekeeper",
            "drain_seconds": 0,
            **{f"{other}_target": f"unix:{directory}/{other}.int" for other in CONTEXTS},
        }
        return kind(**{**values, **more})  # type: ignore[arg-type]  # typed by the class itself


@asynccontextmanager
async def running(directory: Path, *, migrated: bool = True) -> AsyncIterator[Servers]:
    """Starts the servers in a directory, with the schema or without; stops them afterwards."""
    home = Home(directory)
    home.prepare()
    servers = Servers(home)
    try:
        await servers.start(migrated=migrated)
        yield servers
    finally:
        await servers.stop()
