"""What is kept: of deleted tenants, while rules change, and what was not delivered."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from auditlog.archive import Archive, entries_file
from servicekit.errors import DomainError
from services.audit.retention import prune as pruning
from services.audit.retention.archives import seeing_all
from tests.services.audit.retention.conftest import NEWEST, Operator, operator
from tests.support.audit import ORG, RESELLER, ROOT, SISTER, audit, start_audit
from tests.support.callers import user

__all__ = ["audit", "operator", "start_audit"]


@pytest.mark.parametrize("how", ["hold", "years", "forwarder"])
async def test_a_deleted_tenant_is_kept_as_those_above_say(
    operator: Operator, tmp_path: Path, how: str
) -> None:
    """Also when the one between it and the root was deleted; and one that nobody knows any more
    is kept as any of them says."""
    await operator.record(10)
    await operator.audit.tree_checkpoint(10 + NEWEST)
    await operator.keep(1)
    reseller = user(RESELLER.id)
    if how == "hold":
        await operator.keep(None, reseller, legal_hold=True, hold_reason="case 4711")
    elif how == "years":
        await operator.keep(0, reseller)
    else:
        await operator.add_forwarder(RESELLER.id)
    archive = await operator.archive(tmp_path / "a")
    for gone in (ORG.id, SISTER.id, RESELLER.id):
        await operator.bury(gone)
        assert await operator.prune(archive) == [0]
    await operator.audit.sql("DELETE FROM identity.tenant_tombstone WHERE id = $1", ORG.id)
    assert await operator.prune(archive) == [0]
    await operator.audit.sql("DELETE FROM identity.tenant")
    with pytest.raises(DomainError, match="no root tenant"):
        await operator.prune(archive)


async def test_a_deleted_tenant_is_pruned(operator: Operator, tmp_path: Path) -> None:
    """Once nothing keeps it; so is one that nobody knows."""
    await operator.record(5)
    await operator.record(5, tenant_id=SISTER.id)
    await operator.audit.tree_checkpoint(10 + 2 * NEWEST)
    await operator.keep(5)
    archive = await operator.archive(tmp_path / "a")
    await operator.bury(ORG.id)
    await operator.audit.sql("DELETE FROM identity.tenant WHERE id = $1", SISTER.id)
    assert await operator.prune(archive) == [5, 5]


@pytest.mark.parametrize(
    "wish", [{"legal_hold": True, "hold_reason": "case 4711"}, {"keep_years": 30}]
)
async def test_a_rule_that_is_acknowledged_counts(
    operator: Operator, tmp_path: Path, wish: dict[str, Any]
) -> None:
    """While a batch is open the call waits; behind it nothing goes any more."""
    await operator.record(30)
    await operator.audit.tree_checkpoint(30 + NEWEST)
    await operator.keep(1)
    archive = await operator.archive(tmp_path / "a")
    (wanted,) = await operator.plans(archive)
    pages = list(pruning._pages(archive, str(ORG.id), 1, 30, 10))
    async with operator.machine() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT set_config('evergreen.scope', '*', true)")
        await pruning._batch(connection, wanted, pages[0], "00" * 32)
        rule = asyncio.create_task(operator.keep(None, user(ORG.id), **wish))
        await waits_for_a_lock(operator)
        assert not rule.done()
        await transaction.commit()
        await rule
        with pytest.raises(asyncpg.RaiseError, match=r"HELD|DIFFERS"):
            async with seeing_all(connection):
                await pruning._batch(connection, wanted, pages[1], "00" * 32)


async def waits_for_a_lock(operator: Operator) -> None:
    """Until some connection does."""
    connection = await operator.audit.database.superuser()
    try:
        async with asyncio.timeout(30):
            while not await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
            ):
                await asyncio.sleep(0.02)
    finally:
        await connection.close()


async def test_a_hold_that_is_acknowledged_forbids_redactions(operator: Operator) -> None:
    """It waits for one that has looked for holds already."""
    async with operator.machine() as connection:
        async with seeing_all(connection):
            await pruning.require_no_hold(connection, [ROOT.id, ORG.id])
            wish = {"legal_hold": True, "hold_reason": "case 4711"}
            hold = asyncio.create_task(operator.keep(None, user(ORG.id), **wish))
            await waits_for_a_lock(operator)
            assert not hold.done()
        await hold
        with pytest.raises(DomainError, match="a legal hold of tenant"):
            async with seeing_all(connection):
                await pruning.require_no_hold(connection, [ROOT.id, ORG.id])


async def test_an_archive_that_changes_meanwhile(operator: Operator, tmp_path: Path) -> None:
    """Between the question and the answer, or the batches: nothing goes whose record is nowhere."""
    await operator.record(30)
    await operator.audit.tree_checkpoint(30 + NEWEST)
    await operator.keep(1)
    archive = await operator.archive(tmp_path / "a")
    (wanted,) = await operator.plans(archive)
    file = archive.directory / entries_file(str(ORG.id))
    whole = file.read_text()
    file.write_text(whole.replace("device-", "evil-", 1) if "device-" in whole else whole + " ")
    async with operator.machine() as connection:
        with pytest.raises(DomainError, match="is not the file that the manifest names"):
            await pruning.prune(connection, archive, wanted, "root")
        file.write_text(whole)
        pages = pruning._pages.__defaults__

        def change(_: int) -> None:
            lines = whole.splitlines(keepends=True)
            lines[25] = lines[25].replace('\\"source', '\\"sourcE')
            file.write_text("".join(lines))

        pruning._pages.__defaults__ = (10,)
        try:
            with pytest.raises(DomainError, match="the archive has changed: entry"):
                await pruning.prune(connection, archive, wanted, "root", change)
        finally:
            pruning._pages.__defaults__ = pages
    file.write_text(whole)
    assert sum(await operator.prune(archive)) in {10, 20}


async def test_a_chain_without_its_head_is_not_pruned(operator: Operator, tmp_path: Path) -> None:
    """Nobody knows then which entries are its newest."""
    await operator.record(5)
    await operator.audit.tree_checkpoint(5 + NEWEST)
    await operator.keep(1)
    archive = await operator.archive(tmp_path / "a")
    (wanted,) = await operator.plans(archive)
    await operator.audit.sql("DELETE FROM audit.chain_head")
    async with operator.machine() as connection:
        with pytest.raises(DomainError, match="the last 1,000 entries"):
            await pruning.prune(connection, archive, wanted, "root")


async def test_what_is_quarantined_stays(operator: Operator, tmp_path: Path) -> None:
    """It was not delivered: until it is, or the forwarder is disabled. One that was pruned
    meanwhile keeps nothing."""
    await operator.record(30)
    await operator.audit.tree_checkpoint(30 + NEWEST)
    await operator.keep(1)
    archive = await operator.archive(tmp_path / "a")
    (whole,) = await operator.plans(archive)
    forwarder = await operator.add_forwarder(RESELLER.id, sequence=30)
    for sequence in (3, 12):
        await operator.audit.sql(
            "INSERT INTO audit.forwarder_quarantine (id, forwarder_id, tenant_id, chain_id,"
            " sequence, entry_id, reason, attempts, quarantined_at)"
            " VALUES (gen_random_uuid(), $1, $2, $3, $4, gen_random_uuid(), 'HTTP_413', 6, now())",
            forwarder,
            RESELLER.id,
            ORG.id,
            sequence,
        )
    (wanted,) = await operator.plans(archive)
    assert (wanted.last, "'SIEM' has not delivered" in wanted.reason) == (2, True)
    async with operator.machine() as connection:
        with pytest.raises(DomainError, match="has not delivered all"):
            await pruning.prune(connection, archive, whole, "root")
    await operator.audit.sql(
        "UPDATE audit.forwarder_quarantine SET delivered_at = now() WHERE sequence = 3"
    )
    assert await operator.prune(archive) == [11]
    await operator.audit.sql("UPDATE audit.forwarder SET enabled = false")
    assert (await operator.plans(archive))[0].last == 30
    async with operator.machine() as connection:
        (wanted,) = await operator.plans(archive)
        part = replace(wanted, last=20, hash=hash_of(archive, 20))
        assert await pruning.prune(connection, archive, part, "root") == 9
    await operator.audit.sql("UPDATE audit.forwarder SET enabled = true")
    assert await operator.prune(archive) == [10]


def hash_of(archive: Archive, sequence: int) -> str:
    """Of an entry of an archive."""
    (page,) = pruning._pages(archive, str(ORG.id), sequence, sequence)
    return page[0].hash
