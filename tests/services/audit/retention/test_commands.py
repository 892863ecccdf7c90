"""The operator's commands, as they are run on the machine of the server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import asyncpg

from auditlog.archive import entries_file
from tests.services.audit.retention.conftest import NEWEST, Operator, operator
from tests.support.audit import ORG, RESELLER, SISTER, audit, start_audit
from tests.support.callers import user

__all__ = ["audit", "operator", "start_audit"]

_OLD = 4_100
"""Three batches."""


async def begin(
    operator: Operator, directory: Path, *arguments: str | Path
) -> asyncio.subprocess.Process:
    """Starts a command of `evergreen audit`."""
    dsn, password = operator.audit.database.of_migrator()
    secret = directory / "migrator"
    secret.write_text(password)
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cli.main", "audit", *map(str, arguments)),
        env={
            "PATH": os.environ["PATH"],
            "COLUMNS": "200",
            "EVERGREEN_MIGRATE_DATABASE_URL": dsn,
            "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(secret),
            "EVERGREEN_MASTER_KEY_FILE": str(operator.audit.kit.settings.master_key_file),
            "EVERGREEN_HOME": str(directory),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def run(operator: Operator, directory: Path, *arguments: str | Path) -> tuple[int, str]:
    process = await begin(operator, directory, *arguments)
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def until_pruned(operator: Operator, sequence: int) -> None:
    """Waits until a chain begins behind an entry."""
    connection = await operator.audit.database.superuser()
    try:
        async with asyncio.timeout(60):
            while await connection.fetchval("SELECT sequence FROM audit.chain_base") != sequence:
                await asyncio.sleep(0.05)
    finally:
        await connection.close()


async def held(operator: Operator, sequence: int) -> asyncpg.Connection[asyncpg.Record]:
    """Holds an entry, so that the batch that has it waits."""
    connection = await operator.audit.database.superuser()
    await connection.execute("BEGIN")
    await connection.execute("SELECT set_config('evergreen.scope', '*', true)")
    await connection.execute(
        "SELECT FROM audit.entry WHERE tenant_id = $1 AND sequence = $2 FOR UPDATE".replace(
            "$1", f"'{ORG.id}'"
        ).replace("$2", str(sequence))
    )
    return connection


async def test_archive_verify_prune_kill_and_go_on(operator: Operator, tmp_path: Path) -> None:
    """A prune that dies by -9 leaves a log that verifies; one beside it is refused; the same
    command ends it; archive and export verify as one, without a connection."""
    await operator.record(_OLD)
    await operator.audit.tree_checkpoint(_OLD + NEWEST)
    chains = tmp_path / "chains.checkpoint"
    chains.write_text(await operator.audit.checkpoint())
    keys = tmp_path / "keys.pem"
    keys.write_text(await operator.audit.public_keys())
    directory = tmp_path / "archive"
    code, said = await run(
        operator, tmp_path, "archive", "--until", "2030-01-01", "--to", directory
    )
    assert (code, f"tenant {ORG.id}, entries 1 to {_OLD + NEWEST}" in said) == (0, True), said
    code, said = await run(operator, tmp_path, "prune", directory, "--dry-run")
    assert (code, "keeps the log for ever" in said) == (0, True), said
    await operator.keep(5)
    code, said = await run(operator, tmp_path, "prune", directory)
    assert (code, f"--yes --expect {_OLD}" in said) == (2, True), said
    prune = ("prune", directory, "--yes", "--expect", str(_OLD))

    holder = await held(operator, 2_100)
    first = await begin(operator, tmp_path, *prune)
    await until_pruned(operator, 2_000)
    code, said = await run(operator, tmp_path, *prune)
    assert (code, "another process prunes" in said) == (2, True), said
    first.send_signal(signal.SIGKILL)
    await first.wait()
    await holder.close()
    found, verifier = await operator.verified()
    assert (found, verifier.pruned[0][0]) == ([], 2_000)
    left = _OLD - 2_000
    code, said = await run(operator, tmp_path, "prune", directory, "--yes", "--expect", str(left))
    assert (code, f"{left:,} entries." in said) == (0, True), said
    assert len(await operator.audit.entries(action="audit.pruned")) == 1

    export = tmp_path / "export.jsonl"
    export.write_text(await operator.audit.export())
    offline = ("verify", "--from-export", export, "--public-key", keys)
    code, said = await run(operator, tmp_path, *offline)
    assert code == 0, said
    assert f"PRUNED    tenant {ORG.id}: begins with entry {_OLD + 1}," in said
    assert "Verified: " in said
    code, said = await run(operator, tmp_path, *offline, "--archive", directory)
    assert code == 0, said
    assert "PRUNED" not in said
    assert f"Verified: {_OLD + NEWEST + 1:,} entries in 1 chain" in said
    code, said = await run(
        operator, tmp_path, "verify", "--from-export", directory, "--public-key", keys,
        "--checkpoint", chains,
    )  # fmt: skip
    assert (code, "Verified: " in said) == (0, True), said


async def test_a_deleted_tenant(operator: Operator, tmp_path: Path) -> None:
    """Its log is archived by its code or id, and kept as those above say."""
    ids = await operator.record(3)
    await operator.audit.tree_checkpoint(3 + NEWEST)
    await operator.keep(5)
    (row,) = await operator.audit.sql("SELECT code FROM identity.tenant WHERE id = $1", ORG.id)
    await operator.bury(ORG.id)
    for name, directory in ((row["code"], "a"), (str(ORG.id), "b")):
        code, said = await run(
            operator, tmp_path, "archive", "--until", "2020-01-01", "--to", tmp_path / directory,
            "--org", name,
        )  # fmt: skip
        assert (code, f"tenant {ORG.id}, entries 1 to 3" in said) == (0, True), said
    reseller = user(RESELLER.id)
    await operator.keep(None, reseller, legal_hold=True, hold_reason="case 4711")
    for command in (
        ("prune", tmp_path / "a", "--dry-run"),
        ("redact", str(ids[0]), "--reason", "asked for", "--yes"),
    ):
        code, said = await run(operator, tmp_path, *command)
        assert f"a legal hold of tenant {RESELLER.id}" in said


async def test_what_cannot_be_verified_is_not_pruned(operator: Operator, tmp_path: Path) -> None:
    """As a file that is not whole, also where the manifest names it so."""
    for tenant_id in (ORG.id, SISTER.id):
        await operator.record(3, tenant_id=tenant_id)
    await operator.audit.tree_checkpoint(6 + 2 * NEWEST)
    await operator.keep(5)
    archive = await operator.archive(tmp_path / "a")
    file = archive.directory / entries_file(archive.manifest.chains[0].tenant_id)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    await operator.sign(archive, file)
    code, said = await run(operator, tmp_path, "prune", archive.directory, "--dry-run")
    assert (code, "does not verify; nothing was pruned" in said) == (2, True), said
    assert "UNCHECKED the archive: it ends early" in said


async def test_a_hold_forbids_redactions(operator: Operator, tmp_path: Path) -> None:
    """Also one of a tenant above; released, the entry can go."""
    ids = await operator.record(1, 1)
    await operator.keep(None, legal_hold=True, hold_reason="case 4711")
    redact = ("redact", str(ids[0]), "--reason", "asked for", "--yes")
    code, said = await run(operator, tmp_path, *redact)
    assert (code, "a legal hold of tenant" in said) == (2, True), said
    await operator.keep(None, legal_hold=False)
    await operator.keep(None, user(ORG.id), legal_hold=True, hold_reason="case 4712")
    code, said = await run(operator, tmp_path, *redact)
    assert code == 2, said
    await operator.keep(None, user(ORG.id), legal_hold=False)
    code, said = await run(operator, tmp_path, *redact)
    assert (code, "is redacted" in said) == (0, True), said


async def test_a_redaction_that_is_run_again(operator: Operator, tmp_path: Path) -> None:
    """As after a kill: nothing more is said in the log. A list is no proof that an entry was
    redacted, and does not undo a hold."""
    ids = await operator.record(2, 1)
    redact = ("redact", str(ids[0]), "--reason", "asked for", "--yes")
    (old,) = await operator.audit.sql("SELECT * FROM audit.entry WHERE id = $1", ids[0])
    for _ in range(2):
        code, said = await run(operator, tmp_path, *redact)
        assert (code, "is redacted" in said) == (0, True), said
    assert len(await operator.audit.entries(action="audit.entry_redacted")) == 1
    listed = tmp_path / "list"
    listed.write_text(f"{ids[0]}\n{ids[1]}\n")
    await operator.keep(None, legal_hold=True, hold_reason="case 4711")
    code, said = await run(operator, tmp_path, "redact-again", listed)
    assert (code, "redacted again: 0." in said) == (0, True), said
    assert f"A legal hold keeps {ids[1]}, of which only the list says it." in said
    await operator.keep(None, legal_hold=False)
    code, said = await run(operator, tmp_path, "redact-again", listed)
    assert (code, "redacted again: 1." in said, "legal hold" in said) == (0, True, False), said
    # What the log says needs no list, and comes before a hold of later.
    await operator.keep(None, legal_hold=True, hold_reason="case 4712")
    await operator.audit.sql(
        "UPDATE audit.entry SET redacted = false, record_digest = NULL, record = $2, salt = $3,"
        " actor = $4, actor_id = $5, resource = $6 WHERE id = $1",
        *(old[name] for name in ("id", "record", "salt", "actor", "actor_id", "resource")),
    )
    code, said = await run(operator, tmp_path, "redact-again")
    assert (code, "redacted again: 1." in said) == (0, True), said
