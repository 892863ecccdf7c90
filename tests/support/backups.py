"""A database that is backed up, and another one for what comes back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pyrage
import pytest_asyncio

from cli.backup import catalog
from cli.backup.create import create
from cli.backup.crypt import Key, Lock
from cli.backup.facts import Facts
from cli.backup.places import Directories
from cli.backup.procedure import Wanted, into_database
from cli.migrate import Target
from deploy.launcher.home import master_key, password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from servicekit.data.backup import Connection
from servicekit.security.sealing import Sealer
from servicekit.security.signing import Signer
from services.audit.log import store as audit_store
from services.audit.log.domain import read_event
from tests.support.servers import Servers, TestDatabase

IDENTITY = pyrage.x25519.Identity.generate()
LOCK, KEY = Lock(recipients=(str(IDENTITY.to_public()),)), Key(identity=str(IDENTITY))
ROOT, ORG, STAYS, LEAVES = (UUID(int=n) for n in (1, 2, 11, 12))
DIRECTORY = UUID(int=0x1DA9)
DIRECTORY_PASSWORD = b"the account that searches"
PROVIDER = UUID(int=0x01DC)
CLIENT_SECRET = b"the secret of the client"
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


FORWARDER = UUID(int=0xF0)
FORWARDER_SECRETS = b"what a webhook is told alone"


async def seed(database: TestDatabase, key_file: Path | None = None) -> None:
    """An installation with something in each corner, and the servers' master key or another."""
    connection = await database.superuser()
    key_file = key_file or database.servers.home.secret_file("master_key", master_key)
    try:
        await connection.execute("SET evergreen.scope = '*'")
        await connection.execute(SEED)
        for table, purpose in catalog.SEALED.items():
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
        await _add_forwarder(connection, key_file)
        await _add_directory(connection, key_file)
        await _add_provider(connection, key_file)
        async with connection.transaction():
            await audit_store.append(connection, [read_event(*event(n)) for n in range(9)])
        await report(connection)
    finally:
        await connection.close()


async def _add_forwarder(connection: asyncpg.Connection[asyncpg.Record], key_file: Path) -> None:
    if await connection.fetchval("SELECT to_regclass('audit.forwarder')") is None:
        return
    sealer = Sealer.from_file(key_file, catalog.SECRETS["audit.forwarder"])
    await connection.execute(
        "INSERT INTO audit.forwarder (id, tenant_id, name, kind, enabled, below_too, filter,"
        " config, sealed_secrets, start_at, revision, created_at, created_by, updated_at)"
        " VALUES ($1, $2, 'SIEM', 'webhook', true, true, '{}', '{}', $3, 'now', 1, now(), '',"
        " now())",
        FORWARDER,
        ORG,
        sealer.seal(FORWARDER_SECRETS),
    )
    await connection.execute(
        "INSERT INTO audit.forwarder_state (forwarder_id, tenant_id) VALUES ($1, $2)",
        FORWARDER,
        ORG,
    )
    await connection.execute(
        "INSERT INTO audit.forwarder_position (forwarder_id, tenant_id, chain_id, sequence,"
        " sent) VALUES ($1, $2, $2, 3, 5)",
        FORWARDER,
        ORG,
    )


async def _add_directory(connection: asyncpg.Connection[asyncpg.Record], key_file: Path) -> None:
    """A directory, whose password the master key seals; not where the schema has none yet."""
    if await connection.fetchval("SELECT to_regclass('identity.directory')") is None:
        return
    purpose = catalog.SECRETS["identity.directory"]
    await connection.execute(
        "INSERT INTO identity.source VALUES"
        " ($1, $2, 'directory', 'School directory', true, 24, now(), now())",
        DIRECTORY,
        ORG,
    )
    await connection.execute(
        "INSERT INTO identity.directory (id, tenant_id, kind, urls, tls, ca_pem, bind_dn,"
        " sealed_secrets, base_dn, user_filter, id_attribute, email_attribute,"
        " name_attribute, group_base_dn, group_mode, sync_minutes, sync_next_at)"
        " VALUES ($1, $2, 'ad', '{}', 'ldaps', '', '', $3, '', '', '', '', '', '', 'none', 15,"
        " now())",
        DIRECTORY,
        ORG,
        Sealer.from_file(key_file, purpose).seal(DIRECTORY_PASSWORD),
    )


async def _add_provider(connection: asyncpg.Connection[asyncpg.Record], key_file: Path) -> None:
    """A provider, whose secret the master key seals; not where the schema has none yet."""
    if await connection.fetchval("SELECT to_regclass('identity.sso_provider')") is None:
        return
    purpose = catalog.SECRETS["identity.sso_provider"]
    await connection.execute(
        "INSERT INTO identity.source VALUES"
        " ($1, $2, 'sso', 'School sign-in', true, 12, now(), now())",
        PROVIDER,
        ORG,
    )
    await connection.execute(
        "INSERT INTO identity.sso_provider (id, tenant_id, issuer, client_id, sealed_secrets,"
        " ca_pem, scopes, groups_claim, email_claim, hosted_domain, just_in_time, login_button,"
        " trusts_mfa)"
        " VALUES ($1, $2, 'https://login.school.example', 'evergreen', $3, '', '{}', '', '', '',"
        " false, false, false)",
        PROVIDER,
        ORG,
        Sealer.from_file(key_file, purpose).seal(CLIENT_SECRET),
    )


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
async def repairing(database: TestDatabase) -> AsyncIterator[Connection]:
    """The connection that a restore gives to a context: the owner's, and it sees all rows."""
    connection = await owner(database)
    try:
        async with connection.transaction():
            await catalog.see_everything(connection)
            yield connection
    finally:
        await connection.close()


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
