"""A pruned log and its archives, verified as one, whichever of them are at hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from pathlib import Path

import pytest

from auditlog.archive import Archive, Archives, entries_file
from auditlog.chain import Head
from auditlog.leaves import TreeVerifier
from services.audit.retention import prune as pruning
from tests.services.audit.retention.conftest import LONG_AGO, NEWEST, Operator, operator
from tests.support.audit import ORG, SISTER, audit, start_audit

__all__ = ["audit", "operator", "start_audit"]


async def test_any_of_several_archives(operator: Operator, tmp_path: Path) -> None:
    """The later one alone, the earlier one alone, both in any order: with the tree."""
    await operator.record(10, 0, SISTER.id)
    await operator.record(30)
    await operator.audit.tree_checkpoint(40 + NEWEST)
    await operator.keep(1)
    first = await operator.archive(tmp_path / "a", LONG_AGO + timedelta(hours=10), ORG.id)
    assert await operator.prune(first) == [10]
    later = await operator.archive(tmp_path / "b", tenant_id=ORG.id)
    assert (later.manifest.chains[0].first, await operator.prune(later)) == (11, [20])
    kept = await operator.audit.tree_checkpoint(42 + NEWEST)
    for given in ([], [later], [first], [first, later], [later, first]):
        tree = TreeVerifier([kept])
        found, verifier = await operator.verified(tree=tree, archives=Archives(given))
        names = [one.directory.name for one in given]
        assert (found, tree.unchecked) == ([], []), names
        begins = 1 if len(given) == 2 else 11 if given == [later] else 31
        assert [base + 1 for base, _ in verifier.pruned] == [begins] * (begins > 1), names
    await operator.audit.sql("UPDATE audit.tree_leaf SET data = sha256('x') WHERE sequence = 3")
    for given in ([], [later]):
        found, _ = await operator.verified(tree=TreeVerifier([kept]), archives=Archives(given))
        assert any("was rewritten" in one for one in found), found


async def test_a_pruning_that_was_cut_short_and_ended_by_another_archive(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the second begins, no pruning was to end."""
    await operator.record(30)
    await operator.audit.tree_checkpoint(30 + NEWEST)
    await operator.keep(1)
    first = await operator.archive(tmp_path / "a")
    (wanted,) = await operator.plans(first)
    monkeypatch.setattr(pruning._pages, "__defaults__", (10,))

    def die(_: int) -> None:
        raise KeyboardInterrupt

    async with operator.machine() as connection:
        with pytest.raises(KeyboardInterrupt):
            await pruning.prune(connection, first, wanted, "root", die)
    later = await operator.archive(tmp_path / "b")
    assert (later.manifest.chains[0].first, await operator.prune(later)) == (11, [20])
    for given in ([], [later], [first], [first, later]):
        found, _ = await operator.verified(archives=Archives(given))
        assert found == [], [one.directory.name for one in given]
    await operator.audit.sql("ALTER TABLE audit.entry DISABLE TRIGGER ALL")
    await operator.audit.sql(
        "DELETE FROM audit.entry WHERE action = 'audit.pruned'"
        " AND record::jsonb #>> '{data,after,from}' = '1'"
    )
    found, _ = await operator.verified(archives=Archives([later]))
    assert "entries 1 to 10 were removed, and no entry says that they were pruned" in found


async def test_an_archive_of_another_history_is_not_joined(
    operator: Operator, tmp_path: Path
) -> None:
    """As one of before a restore, beside that of what the log really had."""
    await operator.record(30)
    await operator.audit.tree_checkpoint(30 + NEWEST)
    await operator.keep(1)
    good = await operator.archive(tmp_path / "a")
    (chain,) = good.manifest.chains
    (at_20,) = next(pruning._pages(good, str(ORG.id), 20, 20))
    shutil.copytree(good.directory, tmp_path / "other")
    file = tmp_path / "other" / entries_file(str(ORG.id))
    file.write_text(file.read_text().replace(at_20.hash, "00" * 32))
    manifest = replace(good.manifest, chains=(replace(chain, hash="00" * 32),))
    other = Archive(tmp_path / "other", manifest)
    for base in (Head(str(ORG.id), 30, chain.hash), Head(str(ORG.id), 20, at_20.hash)):
        for given in permutations([good, other]):
            joined = Archives(given).before(base)
            assert joined is not None
            assert [piece.archive for piece in joined.pieces] == [good]
    assert await operator.prune(good) == [30]
    assert (await operator.verified(archives=Archives([other, good])))[0] == []
