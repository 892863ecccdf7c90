"""Entries of the audit log that were redacted stay so, whatever backup is restored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from uuid import UUID, uuid4

import asyncpg
import pytest

from auditlog.entries import withheld
from auditlog.export import EXPORT_FORMAT
from auditlog.verify import Verifier
from cli.backup import procedure
from cli.backup.facts import Facts, read_audit_export, read_redacted
from cli.backup.places import Directories
from cli.backup.procedure import Wanted, into_database
from cli.errors import CliError
from services.audit.log.store import ENTRY, entry_of
from services.audit.redaction.entry import redact
from services.audit.restore import Again
from tests.support.backups import KEY, ORG, World, owner, repairing, seed, target, world

__all__ = ["world"]

SECRET = "line"
"""What each record says."""


async def entries(world: World) -> Mapping[int, asyncpg.Record]:
    """Position → the entry, of the first database."""
    async with repairing(world.first) as connection:
        rows = await connection.fetch(f"SELECT {ENTRY} FROM audit.entry ORDER BY sequence")
    return {row["sequence"]: row for row in rows}


async def redacted_since_the_backup(world: World) -> UUID:
    """An installation whose log has lost an entry's content, and a backup that has it."""
    await seed(world.first)
    entry_id: UUID = (await entries(world))[3]["id"]
    async with repairing(world.first) as connection:
        await connection.execute(
            "INSERT INTO policy.outbox (id, subject, payload) SELECT id, '', record"
            " FROM audit.entry WHERE id = $1",
            entry_id,
        )
    await world.back_up()
    async with repairing(world.first) as connection:
        await redact(connection, entry_id, "a name", "root", unsalted=True)
    return entry_id


async def restored(world: World, facts: Facts, *, carry: bool) -> Again:
    wanted = Wanted(world.archive, KEY, facts, replace=True, carry=carry)
    outcome, _ = await into_database(wanted, Directories(world.directory), target(world.first))
    return outcome.redactions


async def check(world: World, entry_id: UUID) -> None:
    """The entry is without content, and the log says why, behind the word of the restore."""
    found = await entries(world)
    assert (found[3]["id"], found[3]["redacted"], found[3]["record"]) == (entry_id, True, "")
    assert [found[number]["action"] for number in (10, 11)] == [
        "audit.restored",
        "audit.entry_redacted",
    ]
    verifier = Verifier()
    findings = []
    for row in found.values():
        entry = entry_of(row)
        findings += verifier.withheld(withheld(entry)) if entry.redacted else verifier.entry(entry)
    assert [*findings, *verifier.finish()] == []
    async with repairing(world.first) as connection:
        assert await connection.fetchval("SELECT to_regclass('audit.redact_again')") is None
        assert await connection.fetchval("SELECT count(*) FROM policy.outbox") == 0
        # Which the service finds in the log when the stream brings it.
        assert await connection.fetchval(
            "SELECT count(*) = 2 FROM audit.outbox WHERE id IN (SELECT id FROM audit.entry)"
        )


async def test_the_replaced_database_knows_what_was_redacted(world: World) -> None:
    """Unless nothing of it is wanted."""
    entry_id = await redacted_since_the_backup(world)
    assert await restored(world, Facts(), carry=True) == Again(1)
    await check(world, entry_id)
    # Again, from the same backup: it is still known.
    assert await restored(world, Facts(), carry=True) == Again(1)
    await check(world, entry_id)
    assert await restored(world, Facts(), carry=False) == Again()
    assert SECRET in (await entries(world))[3]["record"]


async def test_a_list_knows_it_without_a_database(world: World) -> None:
    """What the backup does not have is named: the event stream may bring it."""
    entry_id = await redacted_since_the_backup(world)
    other = uuid4()
    path = world.directory / "redacted"
    path.write_text(f"{entry_id}  # 2026-11-01\n\n# remark\n{other}\n")
    facts = Facts()
    read_redacted(path, facts)
    assert await restored(world, facts, carry=False) == Again(1, (other,))
    await check(world, entry_id)
    path.write_text("entry 3\n")
    with pytest.raises(CliError, match=r"line 1: entry 3 is no entry's id"):
        read_redacted(path, facts)


async def test_an_export_of_the_log_knows_it(world: World) -> None:
    """One that was made after the redaction."""
    entry_id = await redacted_since_the_backup(world)
    said = (await entries(world))[10]
    path = world.directory / "export.jsonl"
    line = {"sequence": 10, "tenantId": str(ORG), "record": said["record"]}
    path.write_text("\n".join(map(json.dumps, ({"format": EXPORT_FORMAT}, {"entry": line}))) + "\n")
    facts = Facts()
    read_audit_export(path, {str(ORG): 9}, facts)
    assert await restored(world, facts, carry=False) == Again(1)
    await check(world, entry_id)


async def test_a_restore_that_is_cut_short_still_knows_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the rows, and before what was redacted is: then it is run again."""
    entry_id = await redacted_since_the_backup(world)

    async def killed(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(procedure, "redact_what_waits", killed)
        with pytest.raises(RuntimeError, match="killed"):
            await restored(world, Facts(), carry=True)
    assert SECRET in (await entries(world))[3]["record"]
    assert await restored(world, Facts(), carry=True) == Again(1)
    await check(world, entry_id)


async def test_an_older_release_had_nothing_redacted(world: World) -> None:
    """Its log has no such entries, and the database that is replaced may be of it."""
    await seed(world.first)
    connection = await owner(world.first)
    try:
        facts = Facts()
        async with connection.transaction():
            await connection.execute("SELECT set_config('evergreen.scope', '*', true)")
            await connection.execute("ALTER TABLE audit.entry DROP COLUMN redacted CASCADE")
            await facts.audit.read(connection)
        assert facts.audit.reasons == {}
    finally:
        await connection.close()
