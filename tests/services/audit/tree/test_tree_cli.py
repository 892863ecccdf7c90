"""`evergreen audit` with the tree: what a kept checkpoint convicts, and what a proof says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from auditlog.chain import Checkpoint
from auditlog.keys import read_keys
from auditlog.notes import TreeCheckpoint
from auditlog.tree import Growing, leaf_hash
from cli import audit_report
from cli import audit_verify as check
from cli.client import RefusedError
from tests.support.audit import (
    ORG,
    ROOT,
    SISTER,
    Audit,
    StartAudit,
    audit,
    event,
    start_audit,
)
from tests.support.audit_cli import Outcome, evergreen, rewrite

__all__ = ["audit", "start_audit"]


@dataclass
class Kept:
    """What is kept elsewhere: a checkpoint of the tree, and the keys."""

    directory: Path
    checkpoint: Path
    keys: Path

    async def verify(self, audit: Audit, **export: str) -> Outcome:
        """Exports the log as it is now, and verifies it against the checkpoint of the tree."""
        path = self.directory / "export.jsonl"
        path.write_text(await audit.export(**export))
        return await evergreen(
            *("audit", "verify", "--from-export", path),
            *("--checkpoint", self.checkpoint, "--public-key", self.keys),
        )


async def keep(audit: Audit, directory: Path) -> Kept:
    """Records two chains, keeps a checkpoint, and records something more."""
    await audit.record(*(event(number) for number in range(8)))
    await audit.record(*(event(number, SISTER.id) for number in range(4)))
    checkpoint = directory / "tree.checkpoint"
    checkpoint.write_text((await audit.tree_checkpoint(12)).write())
    keys = directory / "audit-keys.pem"
    keys.write_text(await audit.public_keys())
    await audit.record(*(event(number) for number in range(20, 23)))
    await audit.tree_checkpoint(15)
    return Kept(directory, checkpoint, keys)


async def records(audit: Audit) -> list[str]:
    """Of one chain, in its order."""
    rows = await audit.sql(
        "SELECT record FROM audit.entry WHERE tenant_id = $1 ORDER BY sequence", ORG.id
    )
    return [row["record"] for row in rows]


async def grow_anew(audit: Audit) -> None:
    """Makes a whole new tree that fits the chains, as a superuser could, under the old name."""
    rows = await audit.sql(
        "SELECT e.tenant_id, e.sequence, e.hash FROM audit.entry e ORDER BY e.tenant_id, e.sequence"
    )
    tree = Growing()
    await audit.sql("DELETE FROM audit.tree_leaf")
    for index, row in enumerate(rows):
        tree.add(leaf_hash(row["hash"]))
        await audit.sql(
            "INSERT INTO audit.tree_leaf VALUES (1, $1, $2, $3, $4)",
            index,
            row["tenant_id"],
            row["sequence"],
            row["hash"],
        )
    await audit.sql("UPDATE audit.tree_log SET size = $1, root = $2", tree.size, tree.root)


async def test_an_untouched_log_fits(audit: Audit, tmp_path: Path) -> None:
    """As far as an export has all leaves; one of a tenant says what it cannot check."""
    kept = await keep(audit, tmp_path)
    done = await kept.verify(audit)
    assert (done.code, done.err) == (0, "")
    assert "Verified: 15 entries in 2 chains, 1 checkpoint. Nothing was changed." in done.out
    one = await kept.verify(audit, org_id=str(ORG.id))
    assert one.code == 2
    assert "4 of 12 leaves are other tenants'" in one.out


async def change(audit: Audit) -> None:
    found = await records(audit)
    found[2] = found[2].replace("owner@school.example", "other@school.example")
    await rewrite(audit, str(ORG.id), found)


async def remove(audit: Audit) -> None:
    found = await records(audit)
    del found[3]
    await audit.sql("DELETE FROM audit.entry WHERE tenant_id = $1 AND sequence = 11", ORG.id)
    await audit.sql("UPDATE audit.chain_head SET sequence = 10 WHERE tenant_id = $1", ORG.id)
    await rewrite(audit, str(ORG.id), found)


async def reorder(audit: Audit) -> None:
    found = await records(audit)
    found[1], found[5] = found[5], found[1]
    await rewrite(audit, str(ORG.id), found)


async def insert(audit: Audit) -> None:
    found = await records(audit)
    made = json.loads(found[0])
    made["id"] = str(UUID(int=99))
    found.insert(2, json.dumps(made))
    await audit.sql(
        "INSERT INTO audit.entry (tenant_id, sequence, id, occurred_at, actor, actor_id, action,"
        " resource, record, previous_hash, hash) SELECT tenant_id, 12, $2, occurred_at, actor,"
        " actor_id, action, resource, record, previous_hash, hash FROM audit.entry"
        " WHERE tenant_id = $1 AND sequence = 1",
        ORG.id,
        UUID(int=99),
    )
    await audit.sql("UPDATE audit.chain_head SET sequence = 12 WHERE tenant_id = $1", ORG.id)
    await rewrite(audit, str(ORG.id), found)


@pytest.mark.parametrize("tamper", [change, remove, reorder, insert])
@pytest.mark.parametrize("tree_too", [False, True], ids=["chain", "chain-and-tree"])
async def test_what_a_superuser_does_is_found(
    audit: Audit, tmp_path: Path, tamper: object, tree_too: bool
) -> None:
    """Though the chain was written anew, with or without a tree that fits it."""
    kept = await keep(audit, tmp_path)
    await tamper(audit)  # type: ignore[operator]
    await audit.sql("UPDATE audit.entry SET id = gen_random_uuid() WHERE tenant_id = $1", ORG.id)
    await audit.sql(
        "UPDATE audit.entry SET id = (record::json->>'id')::uuid, occurred_at ="
        " (record::json->>'time')::timestamptz WHERE tenant_id = $1",
        ORG.id,
    )
    if tree_too:
        await grow_anew(audit)
    done = await kept.verify(audit)
    assert (done.code, done.err) == (1, "")
    assert "the tree" in done.out or "leaf" in done.out
    if tree_too:
        assert "the log was rewritten: its first 12 entries are not those" in done.out


async def test_a_shorter_tree_is_found(audit: Audit, tmp_path: Path) -> None:
    """One that a superuser cut off."""
    kept = await keep(audit, tmp_path)
    await audit.sql("DELETE FROM audit.entry WHERE tenant_id = $1", SISTER.id)
    await audit.sql("DELETE FROM audit.chain_head WHERE tenant_id = $1", SISTER.id)
    removed = await kept.verify(audit)
    assert removed.code == 1
    assert "was removed from the log" in removed.out
    await grow_anew(audit)
    short = await kept.verify(audit)
    assert short.code == 1
    assert "the tree became shorter: it had 12 leaves, and has 11" in short.out


async def test_a_forged_checkpoint_is_none(audit: Audit, tmp_path: Path) -> None:
    """One that says something else than what was signed."""
    kept = await keep(audit, tmp_path)
    text = kept.checkpoint.read_text()
    kept.checkpoint.write_text(text.replace("\n12\n", "\n11\n"))
    done = await kept.verify(audit)
    assert done.code == 1
    assert "is forged: its signature does not fit its text" in done.out
    kept.checkpoint.write_text(text.replace("\n12\n", "\ntwelve\n"))
    done = await kept.verify(audit)
    assert done.code == 2
    assert "is no checkpoint" in done.err


async def test_after_a_restore_the_checkpoint_is_of_another_log(
    audit: Audit, tmp_path: Path
) -> None:
    """That is said, and is no tampering."""
    kept = await keep(audit, tmp_path)
    old = TreeCheckpoint.read(kept.checkpoint.read_text())
    await another_log(audit, old.text)
    await audit.tree_checkpoint(16)
    silent = await kept.verify(audit)
    assert silent.code == 1, "somebody may have put a row there"
    assert "no entry says that a restore put evergreen/audit/00000002 in its place" in silent.out
    one = await kept.verify(audit, org_id=str(ORG.id))
    assert one.code == 2, "it may be told of elsewhere"
    trees = {"treeBefore": old.origin, "tree": "evergreen/audit/00000002"}
    await audit.record(event(90, name="audit.restored", after=trees))
    done = await kept.verify(audit)
    assert done.code == 2, done.out
    assert "RESTORED  the tree: restored: the checkpoint of 12 leaves is of the log" in done.out


async def test_a_log_that_ended_otherwise_is_no_restore(audit: Audit, tmp_path: Path) -> None:
    """Whatever entries say."""
    kept = await keep(audit, tmp_path)
    old = TreeCheckpoint.read(kept.checkpoint.read_text())
    await another_log(audit, TreeCheckpoint(old.origin, old.size, bytes(32)).text)
    trees = {"treeBefore": old.origin, "tree": "evergreen/audit/00000002"}
    await audit.record(event(90, name="audit.restored", after=trees))
    await audit.tree_checkpoint(17)
    done = await kept.verify(audit)
    assert done.code == 1
    assert "ended with other 12 leaves than those of the checkpoint" in done.out


async def another_log(audit: Audit, before: str) -> None:
    """Begins one as a superuser can."""
    await audit.sql(
        "INSERT INTO audit.tree_log SELECT 2, 'evergreen/audit/00000002', $1, 0, root, began_at"
        " FROM audit.tree_log",
        before,
    )


async def test_a_tree_that_grows_during_an_export_is_no_tampering(
    audit: Audit, tmp_path: Path
) -> None:
    """Entries of an early page have no leaf yet, those of a later one have."""
    kept = await keep(audit, tmp_path)
    opening, *rest = map(json.loads, (await audit.export()).splitlines())
    opening["tree"]["size"] = 12
    (early,) = (
        line["entry"]
        for line in rest
        if line.get("entry", {}).get("tenantId") == str(ORG.id) and line["entry"]["sequence"] == 9
    )
    del early["leaf"]
    path = tmp_path / "grown.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in (opening, *rest)))
    done = await evergreen(
        *("audit", "verify", "--from-export", path),
        *("--checkpoint", kept.checkpoint, "--public-key", kept.keys),
    )
    assert (done.code, done.out) == (0, done.out)


async def online(audit: Audit, *checkpoints: Path) -> tuple[int, str]:
    """Verifies one tenant's chain with the leaves that the log publishes."""
    said: list[str] = []
    report = audit_report.Report(said.append)
    keys = read_keys(await audit.public_keys())
    anchors = check.anchors(audit_report.Kept.read(checkpoints), keys, report)
    answers = Answers(
        (await audit.tree_checkpoint()).write(), {"000.p/12": await audit.tile("entries/000.p/12")}
    )
    tree = check.published(answers, anchors.trees, report)  # type: ignore[arg-type]
    export = await audit.export(org_id=str(ORG.id))
    lines = export.splitlines(keepends=True)
    check.run(lines, anchors, str(ORG.id), report, published=tree)
    return report.exit_code, "\n".join(said)


@dataclass
class Answers:
    """What the API answers of the tree; a tile that is not there is damaged."""

    checkpoint: str
    tiles: dict[str, bytes]

    def get_text(self, path: str) -> str:
        assert path == "/api/audit/log/checkpoint"
        return self.checkpoint

    def get_bytes(self, path: str) -> bytes:
        found = self.tiles.get(path.removeprefix("/api/audit/log/tile/entries/"))
        if found is None:
            raise RefusedError("damaged", 400, "AUDIT_TREE_DAMAGED")
        return found


async def test_a_tenants_rewritten_chain_does_not_pass(audit: Audit, tmp_path: Path) -> None:
    """Though its old leaves pass for others', and the new ones are behind the kept tree."""
    kept = await keep(audit, tmp_path)
    chains = tmp_path / "chains.checkpoint"
    chains.write_text(Checkpoint.read(await audit.checkpoint()).write())
    code, said = await online(audit, kept.checkpoint, chains)
    assert (code, said) == (
        0,
        f"KEPT      tenant {ORG.id}: the kept checkpoints know it up to entry 11",
    )
    await change(audit)
    await audit.sql(
        "UPDATE audit.tree_leaf SET tenant_id = $2 WHERE tenant_id = $1", ORG.id, UUID(int=1)
    )
    await audit.sql("DELETE FROM audit.tree_cursor WHERE tenant_id = $1", ORG.id)
    await audit.tree_checkpoint(26)
    code, said = await online(audit, kept.checkpoint)
    assert code == 2
    assert f"which leaves are of tenant {ORG.id}: the kept tree has its entries up to 0" in said
    code, said = await online(audit, kept.checkpoint, chains)
    assert code == 1
    assert "the chain was rewritten" in said


def test_leaves_that_are_gone_are_one_finding() -> None:
    """And the chains are checked all the same."""
    said: list[str] = []
    report = audit_report.Report(said.append)
    tree = TreeCheckpoint("x/audit/1", 3, bytes(32))
    note = tree.text + "\n\u2014 x AAAAAAAA\n"
    answers = Answers(note, {})
    assert check.published(answers, [tree], report) is None  # type: ignore[arg-type]
    assert (report.exit_code, said) == (1, ["TAMPERED  the tree: damaged"])
    answers = Answers("x", {})
    assert check.published(answers, [tree], report) is None  # type: ignore[arg-type]
    assert said[-1].startswith("UNCHECKED the leaves of the tree: ")


@pytest.mark.parametrize("form", ["v1", "v2"])
async def test_a_proof_is_checked_without_a_connection(
    start_audit: StartAudit, tmp_path: Path, form: str
) -> None:
    """And a changed one, or one with other keys, is not taken."""
    running = await start_audit(stream=False, audit_entry_format=form)
    salted = form == "v2"
    audit = Audit(
        **{**vars(running), "recorder": type(running.recorder)(
            running.kit.database, running.kit.clock, salted=salted
        )}
    )  # fmt: skip
    kept = await keep(audit, tmp_path)
    entry = (await audit.entries(org_id=str(SISTER.id)))[1]
    path = tmp_path / "x.tlog-proof"
    path.write_text(await audit.proof(entry.id))
    done = await evergreen("audit", "check-proof", path, "--public-key", kept.keys)
    assert (done.code, done.err) == (0, "")
    assert f"Proved: entry 3 of tenant {SISTER.id} is leaf" in done.out
    assert "owner@school.example: policy.updated policies/2" in done.out
    text = path.read_text()
    (line,) = (x for x in text.splitlines() if x.startswith("index"))
    path.write_text(text.replace(line, "index 0"))
    done = await evergreen("audit", "check-proof", path, "--public-key", kept.keys)
    assert done.code == 1
    assert "Nothing is proved." in done.out
    path.write_text("x")
    done = await evergreen("audit", "check-proof", path, "--public-key", kept.keys)
    assert done.code == 2
    whole = await kept.verify(audit)
    assert whole.code == 0, whole.out


async def test_a_chain_may_have_entries_of_both_formats(audit: Audit, tmp_path: Path) -> None:
    """As two releases write them in turn; a salt that is gone is found."""
    salted = type(audit.recorder)(audit.kit.database, audit.kit.clock, salted=True)
    for number in range(6):
        other = Audit(**{**vars(audit), "recorder": salted if number % 2 else audit.recorder})
        await other.record(event(number), event(number, ROOT.id))
    rows = await audit.sql("SELECT salt FROM audit.entry WHERE tenant_id = $1", ORG.id)
    assert [row["salt"] is not None for row in rows].count(True) == 3
    keys = tmp_path / "keys"
    keys.write_text(await audit.public_keys())
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text((await audit.tree_checkpoint(12)).write())
    kept = Kept(tmp_path, checkpoint, keys)
    assert (await kept.verify(audit)).code == 0
    await audit.sql("UPDATE audit.entry SET salt = NULL WHERE sequence = 2")
    done = await kept.verify(audit)
    assert done.code == 1
    assert "entry 2" in done.out
