"""`evergreen fips migrate` knows all that is sealed, and bears kills, company and load."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import asyncpg
import pytest

from cli import fips
from cli.backup.catalog import PASSING, SEALED, SECRETS
from contract.contexts import CONTEXTS
from deploy.launcher.home import master_key as new_master_key
from servicekit.security import mode
from servicekit.security.sealing import Sealer
from tests.support import backups
from tests.support.paths import ROOT
from tests.support.servers import TestDatabase
from tests.support.stack import PATIENCE

KNOWN: Final = {
    **dict.fromkeys(SEALED, "sealed_seed"),
    **dict.fromkeys({**SECRETS, **PASSING}, "sealed_secrets"),
}
PURPOSES: Final = {**SEALED, **SECRETS, **PASSING}
IN_BROWSERS: Final = {"sso-state"}
"""Sealed values that nobody stores: the cookie of a login that is under way."""
MARKS: Final = {"identity-guesses"}
"""Purposes of keyed hashes alone: counters, which begin anew."""
MAILS: Final = 3_000

_NAMED: Final = re.compile(r'^(?:SEALED_FOR|PURPOSE): Final = "(.+)"$', re.MULTILINE)
_UNNAMED: Final = re.compile(r'\bSealer(?:\.from_file)?\([^()]*"([^"]+)"\)')

_OF_TYPE: Final = {
    "uuid": "gen_random_uuid()",
    "text": "gen_random_uuid()::text",
    "bytea": "sha256(gen_random_uuid()::text::bytea)",
    "bigint": "1",
    "integer": "1",
    "boolean": "false",
    "jsonb": "'{}'",
    "text[]": "'{}'",
    "timestamp with time zone": "now()",
}
_OF_TABLE: Final[dict[str, dict[str, str]]] = {
    "audit.forwarder": {"kind": "'webhook'"},
    "identity.directory": {"kind": "'ad'", "tls": "'ldaps'", "group_mode": "'none'"},
    "identity.mail": {"budget": "'asked'"},
    "identity.signing_key": {"purpose": "'users'"},
    "policy.signing_keys": {"state": "'next'"},
    "policy.variable": {"is_secret": "true"},
}
"""What a constraint asks for."""


@pytest.fixture
def master_key(database: TestDatabase) -> bytes:
    return base64.b64decode(database.servers.home.secret("master_key", new_master_key))


@pytest.fixture
def command(database: TestDatabase) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command on the database, as a process of its own."""
    dsn, password = database.of_migrator()
    secrets = database.servers.home.secrets
    file = secrets / "postgres_migrator"
    assert file.read_text().strip() == password

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cli.main", "fips", *words],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("EVERGREEN_")},
                "EVERGREEN_MIGRATE_DATABASE_URL": dsn,
                "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(file),
                "EVERGREEN_MASTER_KEY_FILE": str(secrets / "master_key"),
                mode.SUITES: mode.APPROVED,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


async def _columns(connection: asyncpg.Connection[asyncpg.Record], where: str) -> list[Any]:
    return await connection.fetch(
        "SELECT n.nspname || '.' || c.relname AS name, a.attname::text AS column,"
        " format_type(a.atttypid, NULL) AS type, a.attnotnull AND NOT a.atthasdef AS needed"
        " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0"
        " AND NOT a.attisdropped AND a.attgenerated = '' AND n.nspname = ANY ($1)"
        f" AND {where} ORDER BY 1, a.attnum",
        ["evergreen", *CONTEXTS],
    )


async def test_all_that_is_sealed_is_known(database: TestDatabase) -> None:
    """The schema has no sealed column, and the code no purpose, that plan and migrate leave out."""
    connection = await database.superuser()
    try:
        rows = await _columns(connection, "a.attname LIKE '%seal%'")
    finally:
        await connection.close()
    assert {row["name"]: row["column"] for row in rows} == KNOWN
    assert {row["type"] for row in rows} == {"bytea"}
    code = [path.read_text() for path in (ROOT / "services").rglob("*.py")]
    stored = {one for text in code for one in _NAMED.findall(text)}
    assert stored == set(PURPOSES.values())
    others = {one for text in code for one in _UNNAMED.findall(text)}
    assert others == IN_BROWSERS | MARKS
    # Of a purpose, the first 16 bytes count.
    every = stored | others
    assert len({purpose.encode()[:16] for purpose in every}) == len(every)


async def test_each_kind_of_sealed_value_is_sealed_anew(
    database: TestDatabase, master_key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every table, as its own service opens it; nothing else of the row changes."""
    connection = await database.superuser()
    try:
        await connection.execute(
            "SET evergreen.scope = '*'; SET session_replication_role = replica"
        )
        for table, column in KNOWN.items():
            await connection.execute(f"DELETE FROM {table}")
            values = {
                row["column"]: _OF_TYPE[row["type"]]
                for row in await _columns(connection, f"'{table}'::regclass = c.oid")
                if row["needed"]
            } | _OF_TABLE.get(table, {})
            values.pop(column, None)
            await connection.execute(
                f"INSERT INTO {table} ({', '.join([*values, column])})"
                f" VALUES ({', '.join([*values.values(), '$1'])})",
                Sealer(master_key, PURPOSES[table]).seal(table.encode()),
            )

        async def rest() -> dict[str, list[str]]:
            return {
                table: [
                    row[0]
                    for row in await connection.fetch(
                        f"SELECT (to_jsonb(t) - '{column}')::text FROM {table} AS t"
                    )
                ]
                for table, column in KNOWN.items()
            }

        before = await rest()
        monkeypatch.setenv(mode.SUITES, mode.APPROVED)
        done = await fips._migrate(backups.target(database), master_key)
        assert (done.sealed, done.closed) == (len(KNOWN), [])
        assert await rest() == before
        monkeypatch.setattr(mode, "_required", True)
        for table, column in KNOWN.items():
            sealed = await connection.fetchval(f"SELECT {column} FROM {table}")
            assert Sealer(master_key, PURPOSES[table]).open(sealed) == table.encode()
    finally:
        await connection.close()


async def _mails(connection: asyncpg.Connection[asyncpg.Record], master_key: bytes) -> None:
    sealer = Sealer(master_key, PASSING["identity.mail"])
    await connection.execute("SET evergreen.scope = '*'")
    await connection.executemany(
        "INSERT INTO identity.mail (id, tenant_id, key, kind, budget, address, details,"
        " sealed_secrets, created_at, expires_at, next_at) VALUES (gen_random_uuid(),"
        " gen_random_uuid(), $1, 'x', 'asked', 'a@school.example', '{}', $2, now(), now(), now())",
        [(str(number), sealer.seal(str(number).encode())) for number in range(MAILS)],
    )


async def _sealed_anew(connection: asyncpg.Connection[asyncpg.Record]) -> int:
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM identity.mail"
            " WHERE substring(sealed_secrets FOR 11) = '$aes256gcm$'::bytea"
        )
    )


async def _all_open(connection: asyncpg.Connection[asyncpg.Record], master_key: bytes) -> None:
    sealer = Sealer(master_key, PASSING["identity.mail"])
    rows = await connection.fetch("SELECT key, sealed_secrets FROM identity.mail")
    assert len(rows) == MAILS
    for row in rows:
        assert sealer.open(row["sealed_secrets"]) == row["key"].encode()


async def test_a_kill_loses_nothing(
    database: TestDatabase, master_key: bytes, command: Callable[..., subprocess.Popen[str]]
) -> None:
    """What is sealed anew stays so, the rest opens as before, and the next run goes on there."""
    connection = await database.superuser()
    try:
        await _mails(connection, master_key)
        killed = command("migrate")
        until = time.monotonic() + PATIENCE
        while not await _sealed_anew(connection):
            assert killed.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        before = await _sealed_anew(connection)
        assert 0 < before < MAILS
        await _all_open(connection, master_key)
        said, complaints = (again := command("migrate")).communicate(timeout=PATIENCE)
        assert again.returncode == 0, complaints
        # A batch may still have been committed while the process died.
        assert 0 < int(said.split()[0]) <= MAILS - before
        assert await _sealed_anew(connection) == MAILS
        await _all_open(connection, master_key)
    finally:
        await connection.close()


async def test_two_at_once_seal_each_value_once(
    database: TestDatabase, master_key: bytes, command: Callable[..., subprocess.Popen[str]]
) -> None:
    """Neither fails, waits for ever, or undoes what the other one did."""
    connection = await database.superuser()
    try:
        await _mails(connection, master_key)
        both = [command("migrate") for _ in range(2)]
        counted = []
        for one in both:
            said, complaints = one.communicate(timeout=PATIENCE)
            assert one.returncode == 0, complaints
            counted.append(int(said.split()[0]))
        assert sum(counted) == MAILS
        assert await _sealed_anew(connection) == MAILS
        await _all_open(connection, master_key)
    finally:
        await connection.close()


async def test_what_a_service_writes_meanwhile_stays(
    database: TestDatabase, master_key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that is replaced between reading and writing is its service's."""
    connection = await database.superuser()
    sealer = Sealer(master_key, PASSING["identity.mail"])
    try:
        await _mails(connection, master_key)
        newer = sealer.seal(b"newer")
        monkeypatch.setenv(mode.SUITES, mode.APPROVED)
        monkeypatch.setattr(fips, "_BATCH", MAILS)
        writer = await database.superuser()
        begun = asyncio.Event()
        opened = Sealer.open

        def noted(self: Sealer, sealed: bytes) -> bytes:
            begun.set()
            return opened(self, sealed)

        monkeypatch.setattr(Sealer, "open", noted)
        async with writer.transaction():
            await writer.execute("SELECT set_config('evergreen.scope', '*', true)")
            await writer.execute(
                "UPDATE identity.mail SET sealed_secrets = $1 WHERE key = '7'", newer
            )
            work = asyncio.create_task(fips._migrate(backups.target(database), master_key))
            await begun.wait()
        done = await work
        assert done.sealed == MAILS - 1
        assert (
            await connection.fetchval("SELECT sealed_secrets FROM identity.mail WHERE key = '7'")
            == newer
        )
        await writer.close()
    finally:
        await connection.close()


async def test_a_second_hash_counts_too(database: TestDatabase, master_key: bytes) -> None:
    """A login verifies that of the prepared form: while it is argon2id, nobody logs in by it."""
    await backups.seed(database)
    connection = await database.superuser()
    try:
        await connection.execute("SET evergreen.scope = '*'")
        await connection.execute(
            "UPDATE identity.account SET password_hash = '$pbkdf2-sha256$x',"
            " prepared_hash = '$argon2id$x'"
        )
        plan = {one.what: one for one in await fips._plan(backups.target(database), master_key)}
        found = plan["passwords of users: active"]
        assert (found.old, found.approved) == (1, 0)
    finally:
        await connection.close()
