"""`evergreen fips`: an installation changes to approved algorithms, and nothing is lost."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli import entry, fips
from cli import migrate as migrate_command
from cli.backup.catalog import PASSING, SEALED, SECRETS
from cli.backup.keys import SealedKeys
from cli.main import app
from servicekit.security import mode
from servicekit.security.passwords import hash_password
from servicekit.security.sealing import Sealer
from tests.support import backups
from tests.support.servers import TestDatabase

Evergreen = Callable[..., Result]


@pytest.fixture
async def seeded(database: TestDatabase) -> TestDatabase:
    """An installation with something in each corner."""
    await backups.seed(database)
    return database


@pytest.fixture
def evergreen(seeded: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> Evergreen:
    """Runs the command on its database."""
    found = backups.target(seeded)
    monkeypatch.setattr(migrate_command, "find_target", lambda _home: found)
    key = seeded.servers.home.secrets / "master_key"

    def run(*words: str) -> Result:
        # The command has an event loop of its own.
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(
                CliRunner().invoke,
                app,
                ["fips", *words],
                env={"EVERGREEN_MASTER_KEY_FILE": str(key)},
            ).result()

    return run


def _planned(done: Result) -> dict[str, dict[str, Any]]:
    return {item["what"]: item for item in map(json.loads, done.stdout.splitlines())}


async def _hash(database: TestDatabase, hashed: str) -> None:
    connection = await database.superuser()
    try:
        await connection.execute("SET evergreen.scope = '*'")
        await connection.execute(
            "UPDATE identity.account SET password_hash = $1, prepared_hash = $1", hashed
        )
    finally:
        await connection.close()


async def test_the_plan_says_what_is_old_and_what_renews_it(
    seeded: TestDatabase, evergreen: Evergreen
) -> None:
    """For each table, for passwords and for keys; for programs as JSON."""
    await _hash(seeded, hash_password("a long enough password"))
    done = evergreen("plan", "--json")
    assert done.exit_code == 1, done.output
    found = _planned(done)
    for table in (*SEALED, *SECRETS, *PASSING):
        assert found[f"sealed: {table}"]["approved"] == 0
    assert found["sealed: policy.signing_keys"]["old"] == 1
    assert found["sealed: audit.forwarder"]["renewed"] == "`evergreen fips migrate`"
    assert found["passwords of users: active"]["old"] == 1
    assert "next login" in found["passwords of users: active"]["renewed"]
    assert found["keys of tokens: users"]["old"] == 1
    assert "keys rotate users" in found["keys of tokens: users"]["renewed"]
    done = evergreen("plan")
    assert "sealed: identity.directory" in done.stdout
    assert "Policies are signed by Ed25519" in done.stdout


async def test_values_are_sealed_anew_and_open_in_both_modes(
    seeded: TestDatabase, evergreen: Evergreen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; a second run has nothing to do. Afterwards a FIPS mode opens all of them."""
    own = base64.b64decode((seeded.servers.home.secrets / "master_key").read_text())
    done = evergreen("migrate")
    assert done.exit_code == 2
    assert "set EVERGREEN_SUITES=approved, for all services first" in done.output
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    done = evergreen("migrate")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("7 values were sealed anew.")
    assert evergreen("migrate").stdout.startswith("0 values")
    await _hash(seeded, hash_password("a long enough password"))
    done = evergreen("plan", "--json")
    assert done.exit_code == 0, done.output
    found = _planned(done)
    assert {item["old"] for item in found.values() if item["blocks"]} == {0}
    assert found["check of the master key"]["approved"] == 1
    monkeypatch.delenv(mode.SUITES)
    for required in (True, False):
        monkeypatch.setattr(mode, "_required", required)
        connection = await backups.owner(seeded)
        try:
            await connection.execute("SET evergreen.scope = '*'")
            keys = SealedKeys(base64.b64encode(own))
            for table in SEALED:
                for row in await connection.fetch(f"SELECT public_key, sealed_seed FROM {table}"):
                    keys.check(table, row["public_key"], row["sealed_seed"])
            assert keys.opened == 4
            sealed = await connection.fetchval("SELECT sealed_secrets FROM audit.forwarder")
            sealer = Sealer(own, SECRETS["audit.forwarder"])
            assert sealer.open(sealed) == backups.FORWARDER_SECRETS
        finally:
            await connection.close()
    monkeypatch.setattr(mode, "_required", True)
    assert "set EVERGREEN_FIPS=off" in evergreen("migrate").output


async def test_rows_without_an_id_are_sealed_anew(
    seeded: TestDatabase, evergreen: Evergreen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of documents and versions, some at a time; those that are not sealed are left alone."""
    own = base64.b64decode((seeded.servers.home.secrets / "master_key").read_text())
    sealer = Sealer(own, SECRETS["policy.documents"])
    connection = await backups.owner(seeded)
    try:
        await connection.execute("SET evergreen.scope = '*'")
        for number in range(3):
            await connection.execute(
                "INSERT INTO policy.documents VALUES ($1, $2, '', $3)",
                backups.ORG,
                bytes([number]) * 32,
                sealer.seal(b"%d" % number) if number else None,
            )
        monkeypatch.setenv(mode.SUITES, mode.APPROVED)
        monkeypatch.setattr(fips, "_BATCH", 1)
        done = evergreen("migrate")
        assert done.exit_code == 0, done.output
        assert _planned(evergreen("plan", "--json"))["sealed: policy.documents"]["approved"] == 2
        rows = await connection.fetch(
            "SELECT sealed_secrets FROM policy.documents WHERE digest < $1 ORDER BY digest",
            bytes([3]) * 32,
        )
        assert [row[0] and sealer.open(row[0]) for row in rows] == [None, b"1", b"2"]
    finally:
        await connection.close()


async def test_another_master_key_changes_nothing(
    seeded: TestDatabase, evergreen: Evergreen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    other = tmp_path / "other"
    other.write_bytes(base64.b64encode(bytes(32)))
    done = evergreen("migrate", "--master-key-file", str(other))
    assert done.exit_code == 2
    assert "does not open" in done.output
    assert {item["approved"] for what, item in _planned(evergreen("plan", "--json")).items()
            if what.startswith("sealed")} == {0}  # fmt: skip


async def test_what_does_not_open_keeps_nothing_else(
    seeded: TestDatabase, evergreen: Evergreen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A restore may leave such secrets; they are named, and block nothing. Keys of backups do."""
    lost = Sealer(bytes(32), SECRETS["audit.forwarder"]).seal(b"{}")
    connection = await backups.owner(seeded)
    try:
        await connection.execute("SET evergreen.scope = '*'")
        await connection.execute("UPDATE audit.forwarder SET sealed_secrets = $1", lost)
        forwarder = await connection.fetchval("SELECT id FROM audit.forwarder")
    finally:
        await connection.close()
    monkeypatch.setenv(mode.SUITES, mode.APPROVED)
    monkeypatch.setattr(fips, "_BATCH", 1)
    done = evergreen("migrate")
    assert done.exit_code == 1, done.output
    assert done.stdout.startswith("6 values were sealed anew.")
    assert "1 values do not open with this master key" in done.output
    assert f"audit.forwarder {forwarder}" in done.output
    recipients = tmp_path / "recipients"
    recipients.write_text("age1x\n")
    found = _planned(evergreen("plan", "--json", "--recipient-file", str(recipients)))
    assert found["does not open: audit.forwarder"]["old"] == 1
    blocking = {what for what, item in found.items() if item["blocks"] and item["old"]}
    assert {what for what in blocking if "passwords" not in what} == {"public keys of backups"}


def test_what_fips_mode_forbids_ends_a_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with a traceback."""

    def forbidden() -> None:
        raise mode.ForbiddenImportError("nacl may not be imported")

    monkeypatch.setattr(entry, "_run", forbidden)
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == mode.REFUSED
    assert capsys.readouterr().err == "FIPS mode refused: nacl may not be imported\n"


def test_the_command_says_that_it_is_off() -> None:
    done = CliRunner().invoke(app, ["fips", "check"])
    assert done.stdout == "EVERGREEN_FIPS is off, EVERGREEN_SUITES is standard\n"


def test_a_unit_of_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in FIPS mode writes none that would run without."""
    monkeypatch.setattr(mode, "_required", True)
    settings = tmp_path / "evergreen.env"
    words = ["service", "install", "--print", "--home", str(tmp_path), "--env-file", str(settings)]
    for text in ("", "#EVERGREEN_FIPS=required\n", "EVERGREEN_FIPS=off\n"):
        settings.write_text(text)
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1
        assert "lacks EVERGREEN_FIPS=required" in done.output
        assert "[Service]" not in done.output
    settings.write_text("EVERGREEN_FIPS=required\n")
    done = CliRunner().invoke(app, words)
    assert "[Service]" in done.output, done.output
