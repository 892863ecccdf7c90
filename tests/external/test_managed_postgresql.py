"""A PostgreSQL of the operator's own, without a superuser: the commands of docs/postgresql.md.

PgBouncer stands for the managed server's TLS, which the tests' PostgreSQL is built without.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest_asyncio

from cli.doctor import database as doctor
from cli.doctor.database import Login
from cli.doctor.finding import findings
from contract.contexts import CONTEXTS
from deploy.postgres import roles
from tests.external import pgbouncer
from tests.external.pgbouncer import Pooler
from tests.support import documented
from tests.support import servers as test_servers
from tests.support.servers import TestDatabase

PAGE = "docs/postgresql.md"
ROLES = (roles.MIGRATOR, *map(roles.service_role, CONTEXTS))
PASSWORD = "a password of its own"
"""As the document's SQL has it."""


def blocks(language: str) -> list[str]:
    """The document's blocks of code in a language."""
    return [block.text for block in documented.read(PAGE) if block.language == language]


@dataclass(frozen=True, slots=True)
class Managed:
    """A server of which an operator has an administrator's role, and TLS."""

    pooler: Pooler
    ca_file: Path
    directory: Path

    def dsn(self, role: str, database: str = roles.DATABASE) -> str:
        query = f"sslmode=verify-full&sslrootcert={self.ca_file}"
        return f"postgresql://{role}@localhost:{self.pooler.port}/{database}?{query}"

    async def run(self, sql: str, database: str) -> None:
        """Runs statements one by one as the administrator, as psql would."""
        connection = await asyncpg.connect(self.dsn("admin", database), password=PASSWORD)
        try:
            for statement in filter(str.strip, sql.split(";\n")):
                await connection.execute(statement)
        finally:
            await connection.close()

    async def clear(self) -> None:
        """Drops what was made."""
        superuser = await self.pooler.database.servers.postgres.connect()
        assert superuser is not None
        await superuser.execute(f"DROP DATABASE IF EXISTS {roles.DATABASE} WITH (FORCE)")
        for role in ROLES:
            await superuser.execute(f"DROP ROLE IF EXISTS {role}")
        await superuser.close()

    async def findings(self) -> list[str]:
        """What the doctor says of all roles."""
        logins = [Login(self.dsn(roles.MIGRATOR), PASSWORD)]
        logins += [Login(self.dsn(roles.service_role(c)), PASSWORD, c) for c in CONTEXTS]
        return [f.code for login in logins for f in findings(await doctor.checks(login))]

    def script(self, lines: str) -> subprocess.CompletedProcess[str]:
        """Runs lines of the document where the passwords' files are."""
        return subprocess.run(
            ["bash", "-ec", lines],
            cwd=self.directory,
            env={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOST": f"localhost:{self.pooler.port}",
                "CA": str(self.ca_file),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest_asyncio.fixture
async def managed(tmp_path: Path) -> AsyncIterator[Managed]:
    pgbouncer.require()
    directory = tmp_path / "operator"
    (directory / "secrets").mkdir(parents=True)
    (directory / "admin_password").write_text(f"{PASSWORD}\n")
    for role in ROLES:
        name = role.replace(roles.DATABASE, "postgres")
        (directory / "secrets" / name).write_text(f"{PASSWORD}\n")
    users = dict.fromkeys(("admin", *ROLES), PASSWORD)
    async with test_servers.running(tmp_path / "home", migrated=False) as own:
        with pgbouncer.running(
            tmp_path / "pooler", TestDatabase(own, roles.DATABASE), with_tls=True, users=users
        ) as pooler:
            found = Managed(pooler, tmp_path / "pooler" / "ca.crt", directory)
            await found.clear()
            superuser = await own.postgres.connect()
            assert superuser is not None
            await superuser.execute(
                f"CREATE ROLE admin LOGIN CREATEDB CREATEROLE PASSWORD '{PASSWORD}'"
            )
            await superuser.close()
            yield found


async def test_the_documented_commands_make_roles_and_schema(managed: Managed) -> None:
    """By `evergreen database init`, or by SQL of the operator's own; over verified TLS."""
    (script,) = blocks("sh")
    for _ in range(2):
        done = managed.script(script)
        assert done.returncode == 0, done.stderr
    assert "The schema is up to date." in done.stdout
    assert await managed.findings() == []
    await managed.clear()

    make, extension = blocks("sql")
    statements, _, rights = make.partition("GRANT CONNECT, CREATE")
    migrate = script[script.index("export EVERGREEN_MIGRATE") :]
    await managed.run(statements, "postgres")
    await managed.run(f"GRANT CONNECT ON DATABASE evergreen TO {roles.MIGRATOR}", "postgres")
    done = managed.script(migrate)
    assert done.returncode == 1
    assert "evergreen_migrator may not make schemas in the database evergreen" in done.stderr
    await managed.run(f"GRANT CONNECT, CREATE{rights}", "postgres")
    await managed.run(extension, roles.DATABASE)
    done = managed.script(migrate)
    assert done.returncode == 0, done.stderr
    assert await managed.findings() == []
