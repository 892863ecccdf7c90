"""What is archived and pruned, what stays, and what is proved then."""

from __future__ import annotations

import asyncio
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import asyncpg
import grpc
import pytest

from auditlog.archive import Archive, Archives, entries_file
from auditlog.chain import Checkpoint, Head
from auditlog.leaves import Leaves, Published, TreeVerifier
from auditlog.notes import Proof, TreeCheckpoint
from cli import audit_report, audit_tree
from cli import audit_verify as check
from cli.audit_prove import prove as prove_archived
from cli.client import Api
from cli.errors import CliError
from evergreen.v1 import audit_pb2 as pb
from servicekit.data.postgres import Scope
from servicekit.errors import DomainError
from services.audit.forward import position_store as positions
from services.audit.log.recorder import Recorder
from services.audit.redaction.entry import redact
from services.audit.restore import ArchivedLog
from services.audit.retention import prune as pruning
from services.audit.retention.archives import seeing_all
from tests.services.audit.retention.conftest import NEWEST, Operator, operator
from tests.support.audit import ORG, SISTER, STRANGER, audit, message, start_audit
from tests.support.callers import user
from tests.support.refusals import refusal

__all__ = ["audit", "operator", "start_audit"]


def checked(archive: Archive, keys: Any, *heads: Checkpoint) -> tuple[int, list[str]]:
    """What `evergreen audit verify --from-export DIRECTORY` ends with, and says."""
    said: list[str] = []
    report = audit_report.Report(said.append)
    for found in check.open_archives([archive.directory], keys, report):
        check.run_archive(found, check.Anchors(heads, ()), keys, report)
    return report.exit_code, said


async def pruned(operator: Operator, directory: Path, old: int = 30) -> tuple[Archive, list[UUID]]:
    """A log of which the entries of long ago were archived and pruned."""
    ids = await operator.record(old)
    await operator.audit.tree_checkpoint(old + NEWEST)
    await operator.keep(5)
    archive = await operator.archive(directory)
    assert await operator.prune(archive) == [old]
    return archive, ids


async def test_pruned_and_archived_are_the_whole_log(operator: Operator, tmp_path: Path) -> None:
    """The log goes on and verifies; with the archive from entry 1, by a checkpoint and a
    tree of before."""
    ids = await operator.record(30)
    await operator.record(5, 0, SISTER.id)
    kept_tree = await operator.audit.tree_checkpoint(35 + NEWEST)
    kept = Checkpoint.read(await operator.audit.checkpoint())
    proof = await operator.audit.proof(str(ids[0]))
    await operator.keep(5)
    archive = await operator.archive(tmp_path / "a", tenant_id=ORG.id)
    keys = await operator.keys()
    assert checked(archive, keys, kept) == (0, [])
    assert await operator.prune(archive) == [30]
    assert (
        await operator.audit.sql(
            "SELECT 1 FROM audit.entry WHERE sequence < 31 AND tenant_id = $1", ORG.id
        )
        == []
    )
    newest, *_ = await operator.audit.entries()
    sha256 = archive.sha256(entries_file(str(ORG.id)))
    assert newest.action == "audit.pruned"
    assert dict(newest.after)["archiveSha256"] == sha256
    assert {name: newest.after[name] for name in ("from", "to", "count")} == {
        "from": 1, "to": 30, "count": 30,
    }  # fmt: skip
    found, verifier = await operator.verified(kept)
    assert found == []
    ((base, told),) = verifier.pruned
    assert (base, told.actor_id, told.archive) == (30, "root", sha256)
    # All leaves of the tree are there, whose hashes the export has of what was pruned.
    grown = await operator.audit.tree_checkpoint(36 + NEWEST)
    tree = TreeVerifier([kept_tree, grown])
    found, _ = await operator.verified(tree=tree)
    assert (found, tree.unchecked) == ([], [])
    tree = TreeVerifier([kept_tree, grown])
    found, verifier = await operator.verified(
        kept, archive.anchor, tree=tree, archives=Archives([archive])
    )
    assert (found, tree.unchecked, verifier.pruned, verifier.unreached) == ([], [], [], [])
    assert verifier.entries == 36 + NEWEST
    Proof.read(proof).check()
    wish = pb.GetAuditProofRequest(id=str(ids[0]))
    refused = await refusal(operator.audit.api.GetAuditProof(wish, metadata=operator.audit.owner))
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_a_checkpoint_of_before_needs_the_archive(operator: Operator, tmp_path: Path) -> None:
    """Without it nothing is claimed of what it knows."""
    await operator.record(30, 10)
    kept = Checkpoint.read(await operator.audit.checkpoint())
    await operator.record(30)
    await operator.audit.tree_checkpoint(70 + NEWEST)
    await operator.keep(5)
    archive = await operator.archive(tmp_path / "a")
    # The archive ends before the first entry that is younger.
    assert archive.manifest.chains[0].last == 30
    await operator.prune(archive)
    old = Checkpoint("", "", b"", kept.taken_at, (Head(str(ORG.id), 7, "00" * 32),))
    found, verifier = await operator.verified(old)
    assert found == []
    assert verifier.unreached == [(str(ORG.id), 7, kept.taken_at)]
    found, _ = await operator.verified(old, archives=Archives([archive]))
    assert len(found) == 1
    assert "rewritten" in found[0]
    assert (await operator.verified(kept, archives=Archives([archive])))[0] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE audit.chain_base SET hash = sha256('x')", "does not continue entry 30"),
        ("UPDATE audit.chain_base SET sequence = 29", "was removed"),
        ("DELETE FROM audit.chain_base", "entries 1 to 30 were removed"),
        ("DELETE FROM audit.entry WHERE action = 'audit.pruned'", "no entry says"),
        ("DELETE FROM audit.entry WHERE sequence = 31", "entry 31 was removed"),
        (
            "WITH gone AS (DELETE FROM audit.entry WHERE sequence < 41) UPDATE audit.chain_base SET"
            " sequence = 40, until_sequence = 40, hash = e.hash, until_hash = e.hash"
            " FROM audit.entry e WHERE e.sequence = 40",
            "entries 1 to 40 were removed, and no entry says that they were pruned",
        ),
        (
            "UPDATE audit.tree_leaf SET data = sha256('x') WHERE sequence = 30",
            "the tree has another hash of entry 30 than its chain",
        ),
        ("UPDATE audit.tree_leaf SET data = sha256('x') WHERE sequence = 3", "was rewritten"),
        ("DELETE FROM audit.tree_leaf WHERE sequence = 3", "was removed from the log"),
    ],
)
async def test_who_prunes_past_the_rules_is_found(
    operator: Operator, tmp_path: Path, change: str, message: str
) -> None:
    """As one who has all rights in the database can: a base needs its entry, and its leaves."""
    await pruned(operator, tmp_path / "a")
    grown = await operator.audit.tree_checkpoint(31 + NEWEST)
    await operator.audit.sql("ALTER TABLE audit.chain_base DISABLE TRIGGER ALL")
    await operator.audit.sql(change)
    found, _ = await operator.verified(tree=TreeVerifier([grown]))
    assert any(message in one for one in found), found


async def test_no_call_and_no_service_can_prune(operator: Operator, tmp_path: Path) -> None:
    """Neither the service's role, nor the owner without the word, nor below no base."""
    await pruned(operator, tmp_path / "a")
    for statement in (
        "DELETE FROM audit.entry WHERE sequence = 31",
        "SELECT audit.prune('{}', '{}', '{}', '{}', 0, '', '')",
        "INSERT INTO audit.chain_base (chain_id, sequence, hash, until_sequence, until_hash,"
        " archive_sha256, pruned_at) SELECT $1, 5, hash, 5, hash, hash, now()"
        " FROM audit.entry LIMIT 1",
        "UPDATE audit.chain_base SET sequence = 999 WHERE chain_id = $1",
        "DELETE FROM audit.retention WHERE chain_id = $1",
    ):
        async with operator.audit.kit.database.transaction(Scope.of(ORG.id)) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement, *([ORG.id] if "$1" in statement else []))
    for announced, statement in (
        ("", "DELETE FROM audit.entry WHERE sequence = 31"),
        (str(ORG.id), "DELETE FROM audit.entry WHERE sequence = 31"),
        (str(SISTER.id), "DELETE FROM audit.entry WHERE sequence = 31"),
        (str(ORG.id), "TRUNCATE audit.entry"),
        (str(ORG.id), "DELETE FROM audit.chain_base"),
        (str(ORG.id), "UPDATE audit.chain_base SET sequence = 3"),
    ):
        async with operator.machine() as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only grows"):
                async with seeing_all(connection):
                    await connection.execute(
                        "SELECT set_config('evergreen.prunes', $1, true)", announced
                    )
                    await connection.execute(statement)


async def test_what_stays_and_why(operator: Operator, tmp_path: Path) -> None:
    """For ever until the root says otherwise; what is younger; the last 1,000; a legal hold, also
    one above; what a forwarder has not sent. Each by the plan, and in the database once more."""
    await operator.record(30, NEWEST - 10)
    await operator.audit.tree_checkpoint(20 + NEWEST)
    archive = await operator.archive(tmp_path / "a")
    (wanted,) = await operator.plans(archive)
    assert (wanted.count, wanted.reason) == (0, f"tenant {wanted.line[0]} keeps the log for ever")
    await operator.keep(5)
    (wanted,) = await operator.plans(archive)
    assert (wanted.last, wanted.reason) == (20, "the last 1,000 entries of a chain stay")
    whole = wanted

    async def stays(reason: str) -> None:
        (found,) = await operator.plans(archive)
        assert found.count == 0
        assert reason in found.reason
        async with operator.machine() as connection:
            with pytest.raises(DomainError) as refused:
                await pruning.prune(connection, archive, whole, "root")
        assert refused.value.reason == "NOT_PRUNED"

    await operator.keep(12)
    await stays("entry 1 is younger than 12 years")
    await operator.keep(5)
    await operator.keep(0, user(ORG.id))
    await stays("for ever")
    await operator.keep(None, user(ORG.id), inherit=True)
    await operator.keep(None, legal_hold=True, hold_reason="case 4711")
    await stays("a legal hold of tenant")
    await operator.keep(None, legal_hold=False)
    forwarder = await operator.add_forwarder(whole.line[0])
    await stays("the forwarder 'SIEM' has not delivered those behind")
    await operator.audit.sql(
        "INSERT INTO audit.forwarder_position (forwarder_id, tenant_id, chain_id, sequence, sent)"
        " VALUES ($1, $2, $3, 7, 25)",
        forwarder,
        whole.line[0],
        ORG.id,
    )
    (found,) = await operator.plans(archive)
    assert found.last == 7
    assert await operator.prune(archive) == [7]
    async with operator.audit.kit.database.system_transaction("a test reads it") as connection:
        lag = await positions.lag(connection, UUID(int=8), Scope.of(ORG.id))
    assert lag.backlog == 21 + NEWEST - 7
    await operator.audit.sql("UPDATE audit.forwarder SET enabled = false")
    # With the entry that said so, one more is no longer among the newest.
    assert await operator.prune(archive) == [14]
    assert (await operator.verified())[0] == []


async def test_other_tenants_stay_as_they_are(operator: Operator, tmp_path: Path) -> None:
    """An archive of all prunes those that may; a hold of one keeps just that one."""
    await operator.record(3)
    await operator.record(4, tenant_id=SISTER.id)
    await operator.record(5, tenant_id=STRANGER.id)
    await operator.audit.tree_checkpoint(12 + 3 * NEWEST)
    await operator.keep(5)
    await operator.keep(None, user(SISTER.id), legal_hold=True, hold_reason="case 4711")
    archive = await operator.archive(tmp_path / "a")
    assert await operator.prune(archive) == [3, 0, 5]
    rows = await operator.audit.sql(
        "SELECT tenant_id, min(sequence) AS first FROM audit.entry GROUP BY 1 ORDER BY 1"
    )
    assert [row["first"] for row in rows] == [4, 1, 6]
    found, verifier = await operator.verified()
    assert (found, len(verifier.pruned)) == ([], 2)
    own, verifier = await operator.verified(org_id=str(SISTER.id))
    assert (own, verifier.pruned) == ([], [])


async def test_a_pruning_that_was_cut_short_goes_on(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch leaves a log that verifies; the entry that says it is written once."""
    ids = await operator.record(30)
    await operator.audit.tree_checkpoint(30 + NEWEST)
    await operator.keep(5)
    archive = await operator.archive(tmp_path / "a")
    (wanted,) = await operator.plans(archive)
    monkeypatch.setattr(pruning._pages, "__defaults__", (8,))

    class KilledError(Exception):
        pass

    def die(_: int) -> None:
        raise KilledError

    async with operator.machine() as connection:
        for batch in (1, 2):
            (wanted,) = await operator.plans(archive)
            with pytest.raises(KilledError):
                await pruning.prune(connection, archive, wanted, "root", die)
            found, verifier = await operator.verified()
            assert found == []
            assert verifier.pruned[0][0] == 8 * batch
            assert (await operator.verified(archives=Archives([archive])))[0] == []
    # What was pruned, and comes again by the stream, is not there twice by its entry.
    assert await operator.prune(archive) == [14]
    said = await operator.audit.entries(action="audit.pruned")
    assert len(said) == 1
    assert (await operator.verified())[0] == []
    assert len(ids) == 30 + NEWEST


async def test_one_process_prunes_at_a_time(operator: Operator, tmp_path: Path) -> None:
    """Another one is told; and one that knows an older base changes nothing."""
    archive, _ = await pruned(operator, tmp_path / "a")
    async with operator.machine() as one, operator.machine() as other, pruning.alone(one):
        with pytest.raises(DomainError, match="another process prunes"):
            async with pruning.alone(other):
                pass
    chain = archive.manifest.chains[0]
    async with operator.machine() as connection:
        async with seeing_all(connection):
            line = await connection.fetchval("SELECT ARRAY[$1::uuid, $2]", STRANGER.id, ORG.id)
        stale = pruning.Plan(chain, line, 1, 30, chain.hash, "")
        with pytest.raises(DomainError, match="begins behind entry 30"):
            await pruning.prune(connection, archive, stale, "root")


async def test_archives_follow_one_another(operator: Operator, tmp_path: Path) -> None:
    """The next archive begins where the log does; together they have all of it, also with a gap
    that overlaps, and one that is missing is said to be."""
    first, _ = await pruned(operator, tmp_path / "a", 10)
    await operator.record(20, NEWEST)
    await operator.audit.tree_checkpoint(31 + 2 * NEWEST)
    later = await operator.archive(tmp_path / "b", datetime(2030, 1, 1, tzinfo=UTC))
    chain = later.manifest.chains[0]
    assert chain.first == 11
    assert checked(later, await operator.keys()) == (0, [])
    (wanted,) = await operator.plans(later)
    assert "entry 11 is younger than 5 years" in wanted.reason
    both = Archives([later, first])
    found, verifier = await operator.verified(archives=both)
    assert (found, verifier.entries) == ([], 31 + 2 * NEWEST)


async def test_a_changed_archive_is_found(operator: Operator, tmp_path: Path) -> None:
    """Any changed byte; a file of another archive; a manifest that another key signed."""
    await operator.record(5)
    await operator.record(5, tenant_id=SISTER.id)
    await operator.audit.tree_checkpoint(10 + 2 * NEWEST)
    archive = await operator.archive(tmp_path / "a")
    keys = await operator.keys()
    assert checked(archive, keys) == (0, [])
    names = [file.name for file in archive.manifest.files]
    assert len(names) == 5
    for name in (*names, "manifest.txt"):
        copy = tmp_path / f"copy-{name}"
        shutil.copytree(archive.directory, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        try:
            code, said = checked(Archive.open(copy), keys)
        except Exception as broken:  # a manifest that is none at all
            assert "is no archive" in str(broken)
        else:
            assert code == 1, said
    code, said = checked(archive, [])
    assert code == 2
    with pytest.raises(DomainError, match="has an archive already"):
        await operator.archive(tmp_path / "a")


async def test_an_archive_that_was_not_finished_is_begun_anew(
    operator: Operator, tmp_path: Path
) -> None:
    """Without a manifest it is none; a directory of something else is left alone."""
    await operator.record(5)
    await operator.audit.tree_checkpoint(5 + NEWEST)
    target = tmp_path / "a"
    target.mkdir()
    (target / "old.jsonl").write_text("x")
    (target / "other.jsonl.part").write_text("x")
    await operator.archive(target)
    assert sorted(one.name for one in target.iterdir()) == [
        f"{ORG.id}.jsonl", f"{ORG.id}.tlog-proof", "manifest.txt", "tree.checkpoint",
    ]  # fmt: skip
    assert (target / "manifest.txt").stat().st_mode & 0o777 == 0o600
    other = tmp_path / "b"
    other.mkdir()
    (other / "thesis.odt").write_text("x")
    with pytest.raises(DomainError, match="is not empty"):
        await operator.archive(other)
    assert (other / "thesis.odt").exists()
    rows = await operator.audit.sql("SELECT payload FROM audit.outbox")
    (told,) = [json.loads(row["payload"])["data"] for row in rows]
    assert (told["action"], told["after"]["from"], told["after"]["to"]) == ("audit.archived", 1, 5)


async def test_the_log_tells_only_of_an_archive_that_is_one(
    operator: Operator, tmp_path: Path
) -> None:
    """Not of one that ended at the second chain, and once of that which is made in its place."""
    await operator.record(5)
    await operator.record(5, tenant_id=SISTER.id)
    await operator.audit.tree_checkpoint(10 + 2 * NEWEST)
    await operator.audit.sql("ALTER TABLE audit.entry DISABLE TRIGGER ALL")
    await operator.audit.sql(
        "DELETE FROM audit.entry WHERE sequence = 1 AND tenant_id = $1", SISTER.id
    )
    with pytest.raises(DomainError, match="has no entry"):
        await operator.archive(tmp_path / "a")
    assert await operator.audit.sql("SELECT payload FROM audit.outbox") == []
    archive = await operator.archive(tmp_path / "a", tenant_id=ORG.id)
    (row,) = await operator.audit.sql("SELECT payload FROM audit.outbox")
    told = json.loads(row["payload"])["data"]["after"]
    assert told["archiveSha256"] == archive.sha256(entries_file(str(ORG.id)))


async def test_an_archive_does_not_keep_what_was_redacted(
    operator: Operator, tmp_path: Path
) -> None:
    """One of before a redaction is not pruned by; one of since has the entry without content."""
    ids = await operator.record(30)
    await operator.audit.tree_checkpoint(30 + NEWEST)
    await operator.keep(5)
    before = await operator.archive(tmp_path / "a")
    async with operator.machine() as connection, connection.transaction():
        await redact(connection, ids[9], "asked for", "root", unsalted=False)
    (wanted,) = await operator.plans(before)
    assert (wanted.last, "entry 10 was redacted since" in wanted.reason) == (9, True)
    await operator.audit.tree_checkpoint(31 + NEWEST)
    since = await operator.archive(tmp_path / "b")
    text = (since.directory / entries_file(str(ORG.id))).read_text()
    assert str(ids[9]) in text
    assert text.count('"withheld"') == 1
    # The entry that says that it was redacted is behind the archive.
    assert checked(since, await operator.keys())[0] == 2
    assert await operator.prune(since) == [30]
    found, verifier = await operator.verified(archives=Archives([since]))
    assert (found, [one.sequence for one in verifier.redacted]) == ([], [10])
    said = await operator.audit.entries(action="audit.pruned")
    async with operator.machine() as connection:
        with pytest.raises(DomainError, match="needed to verify"):
            async with connection.transaction():
                await redact(connection, UUID(said[0].id), "x", "root", unsalted=False)


async def test_a_backup_of_a_pruned_log_verifies(operator: Operator, tmp_path: Path) -> None:
    """From its base on; a backup whose base nobody explains does not."""
    await pruned(operator, tmp_path / "a")

    async def findings(base: bool) -> list[str]:
        log = ArchivedLog()
        connection = await operator.audit.database.superuser()
        for table in ("chain_base", "chain_head", "entry"):
            assert ArchivedLog.wants(table)
            rows = await connection.fetch(f"SELECT * FROM audit.{table} ORDER BY 1, 2")
            if base or table != "chain_base":
                log.take(table, [_text(row) for row in rows])
        await connection.close()
        return log.finish()

    assert await findings(base=True) == []
    assert any("entries 1 to 30 were removed" in one for one in await findings(base=False))


def _text(row: asyncpg.Record) -> dict[str, str | None]:
    def one(value: Any) -> str | None:
        if isinstance(value, bytes):
            return f"\\x{value.hex()}"
        if isinstance(value, bool):
            return "t" if value else "f"
        return None if value is None else str(value)

    return {name: one(value) for name, value in row.items()}


async def test_the_log_goes_on(operator: Operator, tmp_path: Path) -> None:
    """It records, lists, exports and follows the tree as before; a part of it verifies."""
    await pruned(operator, tmp_path / "a")
    kept = await operator.audit.tree_checkpoint(31 + NEWEST)
    await operator.record(0, 3)
    grown = await operator.audit.tree_checkpoint(34 + NEWEST)
    leaves = Leaves()
    width = grown.size % 256
    bundles = [f"entries/{at:03d}" for at in range(grown.size // 256)]
    for at, path in enumerate([*bundles, f"entries/{grown.size // 256:03d}.p/{width}"]):
        data = await operator.audit.tile(path)
        for place in range(len(data) // 34):
            leaves[at * 256 + place] = data[place * 34 + 2 : place * 34 + 34]
    tree = TreeVerifier([kept, grown], Published(grown.origin, grown.size, leaves))
    assert (await operator.verified(tree=tree))[0] == []
    csv = await operator.audit.export(format="csv")
    # With the row that says what was pruned.
    assert len(csv.splitlines()) == 1 + 1 + 4 + NEWEST
    assert isinstance(grown, TreeCheckpoint)
    wish = pb.GetAuditRetentionRequest()
    shown = await operator.rules.GetAuditRetention(wish, metadata=user(ORG.id))
    assert shown.pruned.sequence == 30
    # What the stream delivers again of what is there is known.
    before = len(await operator.audit.entries(page_size=5))
    rows = await operator.audit.sql("SELECT subject, payload FROM audit.outbox")
    recorder = Recorder(operator.audit.kit.database, operator.audit.kit.clock, salted=True)
    await recorder.handle(
        [message(subject=row["subject"], data=row["payload"].encode()) for row in rows]
    )
    assert before == 5
    assert (await operator.verified())[0] == []


class _Tiles:
    """The calls of a command, past the gateway."""

    def __init__(self, operator: Operator) -> None:
        self._audit = operator.audit
        self._loop = asyncio.get_running_loop()

    def get_text(self, _: str) -> str:
        found = asyncio.run_coroutine_threadsafe(self._audit.tree_checkpoint(), self._loop)
        return found.result().write()

    def get_bytes(self, path: str) -> bytes:
        wanted = self._audit.tile(path.removeprefix("/api/audit/log/tile/"))
        return asyncio.run_coroutine_threadsafe(wanted, self._loop).result()


async def test_an_entry_that_was_pruned_is_proved(operator: Operator, tmp_path: Path) -> None:
    """By the archive, and hashes that the tree keeps; one that the archive lacks is not."""
    archive, ids = await pruned(operator, tmp_path / "a", 300)
    tiles = cast("Api", _Tiles(operator))
    keys = await operator.keys()
    for at in (0, 17, 255, 256, 299):
        proof = Proof.read(
            (await asyncio.to_thread(prove_archived, tiles, archive, str(ids[at]))).write()
        )
        said: list[str] = []
        report = audit_report.Report(said.append)
        audit_tree.check_proof(proof, keys, (), report)
        assert (report.exit_code, proof.entry.columns.id) == (0, str(ids[at])), said
    with pytest.raises(CliError, match="has no entry"):
        await asyncio.to_thread(prove_archived, tiles, archive, str(ids[-1]))
