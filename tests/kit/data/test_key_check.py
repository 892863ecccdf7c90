"""An installation never runs with another master key than its database's."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import sys
from pathlib import Path
from uuid import UUID

import pytest

from contract.contexts import CONTEXTS
from deploy.launcher.home import master_key, password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from servicekit.app import start
from servicekit.data import key_check, migrate
from servicekit.data.key_check import OtherKeyError
from servicekit.security import mode
from servicekit.security.sealing import (
    SealingError,
    approved_check_value,
    check_value,
    read_master_key,
)
from servicekit.settings import ServiceSettings
from services.policy.__main__ import build
from services.policy.settings import PolicySettings
from tests.conftest import MakeKit
from tests.support.servers import Servers, TestDatabase
from tests.support.stack import PATIENCE

OTHER = secrets.token_bytes(32)


@pytest.fixture
def own(database: TestDatabase) -> bytes:
    """The key that the tests' services have."""
    return read_master_key(database.servers.home.secret_file("master_key", master_key))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "master_key"
    path.write_bytes(base64.b64encode(OTHER))
    return path


async def run(database: TestDatabase, sql: str) -> object:
    """Runs statements, or answers the value that a query finds."""
    connection = await database.superuser()
    try:
        if sql.startswith("SELECT"):
            return await connection.fetchval(sql)
        return await connection.execute(sql)
    finally:
        await connection.close()


async def up(database: TestDatabase, key: bytes) -> list[migrate.Migration]:
    servers = database.servers
    dsn = servers.postgres.dsn(roles.MIGRATOR, database.name)
    return await migrate.up(dsn, servers.home.secret(MIGRATOR_SECRET, password), master_key=key)


NOTED = "SELECT check_value FROM evergreen.key_check"


async def test_a_new_database_takes_the_key(database: TestDatabase, own: bytes) -> None:
    """With its first migrations; from then on it takes no other one, and nothing is changed."""
    for schema in ("evergreen", *CONTEXTS):
        await run(database, f"DROP SCHEMA {schema} CASCADE")
    assert await up(database, own)
    assert await run(database, NOTED) == check_value(own)
    newest = "DELETE FROM evergreen.schema_migrations WHERE schema_name = 'policy'"
    await run(database, newest)
    with pytest.raises(OtherKeyError, match="not the one of this database"):
        await up(database, OTHER)
    policy = "SELECT count(*) FROM evergreen.schema_migrations WHERE schema_name = 'policy'"
    assert await run(database, policy) == 0


async def test_fips_mode_checks_in_its_own_way(
    database: TestDatabase, own: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that was noted in one mode is the only one in the other, too."""
    approved = "SELECT check_value FROM evergreen.approved_key_check"
    connection = await database.superuser()
    try:
        await key_check.note(connection, own)
        assert await run(database, approved) == approved_check_value(own)
        monkeypatch.setattr(mode, "_required", True)
        assert await key_check.is_noted(connection, own)
        with pytest.raises(OtherKeyError):
            await key_check.note(connection, OTHER)
        # Of a release that knew one way alone, whose keys the service has opened.
        await run(database, "DELETE FROM evergreen.approved_key_check")
        assert not await key_check.is_noted(connection, own)
        await key_check.note(connection, own)
        assert await key_check.is_noted(connection, own)
        # A database that began in FIPS mode.
        await run(database, "DELETE FROM evergreen.key_check")
        monkeypatch.setattr(mode, "_required", False)
        with pytest.raises(OtherKeyError):
            await key_check.note(connection, OTHER)
        assert await run(database, NOTED) is None
        await key_check.note(connection, own)
        assert await run(database, NOTED) == check_value(own)
    finally:
        await connection.close()


async def test_migrations_take_no_key_for_a_database_that_has_one(database: TestDatabase) -> None:
    """Of a release that noted none: what has opened its keys may say which one it is."""
    assert await up(database, OTHER) == []
    assert await run(database, NOTED) is None


async def test_a_service_refuses_another_key(
    database: TestDatabase, own: bytes, other: Path, make_kit: MakeKit
) -> None:
    """Before it makes keys of its own with it."""
    await run(
        database,
        f"INSERT INTO evergreen.key_check (check_value) VALUES ('\\x{check_value(own).hex()}')",
    )
    with pytest.raises(OtherKeyError):
        await start(
            await make_kit("policy", PolicySettings, tenants=[], master_key_file=other), build
        )
    assert await run(database, "SELECT count(*) FROM policy.signing_keys") == 0


async def test_a_key_that_opens_nothing_is_not_noted(
    database: TestDatabase, own: bytes, other: Path, make_kit: MakeKit
) -> None:
    """In a database of a release that noted none, the sealed keys tell."""
    running = await start(await make_kit("policy", PolicySettings, tenants=[]), build)
    await running.stop(0)
    assert await run(database, NOTED) == check_value(own)
    await run(database, "DELETE FROM evergreen.key_check")
    await run(database, "DELETE FROM evergreen.approved_key_check")
    with pytest.raises(SealingError, match="not the one that sealed"):
        await start(
            await make_kit("policy", PolicySettings, tenants=[], master_key_file=other), build
        )
    assert await run(database, NOTED) is None


async def test_a_lost_policy_key_is_not_made_anew(
    database: TestDatabase, make_kit: MakeKit
) -> None:
    """Devices pin it: one that meets another key ends for good."""
    await run(
        database,
        "SET evergreen.scope = '*'; INSERT INTO policy.versions (tenant_id, version, policy_id,"
        " authored, document, signature, statement_payload, statement_signature, key_id,"
        f" published_at, published_by) VALUES ('{UUID(int=1)}', 1, '{UUID(int=2)}', '{{}}', '', '',"
        " '', '', 'gone', now(), 'a')",
    )
    with pytest.raises(SealingError, match="restore a backup"):
        await start(await make_kit("policy", PolicySettings, tenants=[]), build)
    assert await run(database, "SELECT count(*) FROM policy.signing_keys") == 0


async def test_roles_of_a_database_with_another_key_are_left(
    servers: Servers, database: TestDatabase, other: Path, own: bytes
) -> None:
    """New passwords would shut out the services of the installation that it belongs to."""
    template = TestDatabase(servers, roles.DATABASE)
    await run(
        template,
        f"INSERT INTO evergreen.key_check (check_value) VALUES ('\\x{check_value(own).hex()}')",
    )
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cli.entry",
            "database",
            "init",
            env={
                "PATH": os.environ["PATH"],
                "EVERGREEN_ADMIN_DATABASE_URL": servers.postgres.dsn("postgres", "postgres"),
                "EVERGREEN_ADMIN_DATABASE_PASSWORD_FILE": str(
                    servers.home.secrets / "postgres_superuser"
                ),
                "EVERGREEN_ROLE_SECRETS": str(servers.home.secrets),
                "EVERGREEN_MASTER_KEY_FILE": str(other),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        await run(template, "DELETE FROM evergreen.key_check")
    assert process.returncode == 1, output
    assert b"the master key is not the one of this database" in output


@pytest.mark.parametrize("content", ["", "\n", "c2hvcnQ=", "no base64!"])
async def test_a_file_without_a_key_ends_the_start(
    database: TestDatabase, tmp_path: Path, content: str
) -> None:
    """With the reason in one line, and exit code 1, so that an orchestrator shows it."""
    file = tmp_path / "master_key"
    file.write_text(content)
    settings = database.servers.settings(ServiceSettings, "audit", database, master_key_file=file)
    values = {
        f"EVERGREEN_{name.upper()}": str(value)
        for name, value in settings.model_dump(exclude_defaults=True).items()
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.audit",
        env={"PATH": os.environ["PATH"], **values},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 1, output
    (line,) = [line for line in output.decode().splitlines() if "start refused" in line]
    assert "master key" in line
    assert "Traceback" not in output.decode()
