"""The tree over all entries: it has every entry once, and proves what it has."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from uuid import UUID, uuid4

import grpc
import pytest

from auditlog.keys import read_keys
from auditlog.leaves import beginning
from auditlog.notes import Consistency, NoteError, Proof, TreeCheckpoint
from auditlog.tree import (
    Growing,
    ProofError,
    check_consistency,
    complete_root,
    leaf_hash,
)
from evergreen.v1 import audit_pb2 as pb
from services.audit.log.store import stream_position
from services.audit.tree import service, store
from services.audit.tree.sequencer import Sequencer
from tests.support import callers
from tests.support.audit import (
    ORG,
    ROOT,
    SISTER,
    STRANGER,
    Audit,
    StartAudit,
    audit,
    event,
    start_audit,
)

__all__ = ["audit", "start_audit"]


async def fill(audit: Audit, count: int) -> None:
    """Records events of three tenants, in batches."""
    tenants = (ORG.id, SISTER.id, STRANGER.id)
    events = [event(number, tenants[number % 3]) for number in range(count)]
    for at in range(0, count, 100):
        await audit.record(*events[at : at + 100])


def sequencer(audit: Audit) -> Sequencer:
    """Of another process."""
    return Sequencer(audit.kit.database, "other", audit.kit.clock, stream_position)


async def consistency(audit: Audit, old: int) -> Consistency:
    request = pb.GetAuditConsistencyRequest(**{"from": str(old)})
    answer = await audit.api.GetAuditConsistency(request, metadata=audit.owner)
    return Consistency.of(
        {
            "from": getattr(answer, "from"),
            "hashes": list(answer.hashes),
            "checkpoint": answer.checkpoint,
        }
    )


async def test_an_entry_is_proved(audit: Audit) -> None:
    """A new one at once; by the text alone, with the public keys."""
    await fill(audit, 30)
    keys = read_keys(await audit.public_keys())
    for entry in await audit.entries():
        proof = Proof.read(await audit.proof(entry.id))
        proof.check()
        assert proof.checkpoint.signed_by(keys) is True
        assert (proof.entry.columns.id, proof.entry.hash) == (entry.id, entry.hash)
        assert proof.checkpoint.origin.startswith("evergreen/audit/")
        assert Proof.read(proof.write()) == proof


async def test_a_proof_of_something_else_is_none(audit: Audit) -> None:
    """With another content, another place, another tree, or signed by somebody else."""
    await fill(audit, 9)
    entry = (await audit.entries())[3]
    text = await audit.proof(entry.id)
    proof = Proof.read(text)
    changed = Proof.read(text.replace(f"index {proof.index}", f"index {(proof.index + 1) % 9}"))
    with pytest.raises(ProofError):
        changed.check()
    line = json.loads(proof.line)
    line["entry"]["record"] = proof.entry.record.replace("owner@school", "other@school")
    forged = replace(proof, line=json.dumps(line))
    with pytest.raises(ProofError):
        Proof.read(forged.write()).check()
    keys = read_keys(await audit.public_keys())
    smaller = text.replace(f"\n{proof.checkpoint.size}\n", f"\n{proof.checkpoint.size + 1}\n")
    assert Proof.read(smaller).checkpoint.signed_by(keys) is False
    assert proof.checkpoint.signed_by([]) is None
    for broken in ("", "c2sp.org/tlog-proof@v1\n\n", text.replace("extra ", "extra x")):
        with pytest.raises(NoteError):
            Proof.read(broken)


async def test_only_who_sees_an_entry_gets_its_proof(audit: Audit) -> None:
    """For others it is not there."""
    await fill(audit, 3)
    (entry,) = await audit.entries(org_id=str(STRANGER.id))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await audit.proof(entry.id, callers.user(ORG.id))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert await audit.proof(entry.id, callers.user(STRANGER.id))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await audit.proof(str(uuid4()))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_older_tree_is_in_the_newer_one(audit: Audit) -> None:
    """Of any size; and a longer one is not."""
    await fill(audit, 40)
    old = await audit.tree_checkpoint(40)
    await fill(audit, 300)
    await audit.tree_checkpoint(340)
    proof = await consistency(audit, old.size)
    check_consistency(
        old.size, old.root, proof.checkpoint.size, proof.checkpoint.root, proof.hashes
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await consistency(audit, 100_000)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "must be at most 340" in (refused.value.details() or "")


async def test_tiles_are_the_tree(audit: Audit) -> None:
    """Full and partial ones, of all levels; the entries' hashes are what is hashed."""
    await fill(audit, 600)
    checkpoint = await audit.tree_checkpoint(600)
    bundles = b"".join([await audit.tile(f"entries/{n}") for n in ("000", "001", "002.p/88")])
    data = [bundles[at + 2 : at + 34] for at in range(0, len(bundles), 34)]
    tree = Growing()
    for leaf in data:
        tree.add(leaf_hash(leaf))
    assert (tree.size, tree.root) == (600, checkpoint.root)
    hashes = [leaf_hash(leaf) for leaf in data]
    assert await audit.tile("0/001") == b"".join(hashes[256:512])
    assert await audit.tile("0/002.p/3") == b"".join(hashes[512:515])
    assert await audit.tile("1/000.p/2") == complete_root(hashes[:256]) + complete_root(
        hashes[256:512]
    )
    rows = await audit.sql("SELECT hash FROM audit.entry")
    assert {row["hash"] for row in rows} == set(data)
    for missing in (
        "0/002",
        "0/003",
        "0/002.p/89",
        "1/000",
        "1/000.p/3",
        "2/000.p/1",
        "0/x001/000",
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await audit.tile(missing)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND, missing
    for wrong in ("", "0/2", "0/000.p/0", "0/000.p/256", "entries", "../0/000", "0/000/"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await audit.tile(wrong)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, wrong
        assert "path" in (refused.value.details() or "")


async def test_two_processes_grow_one_tree(audit: Audit) -> None:
    """While entries are recorded: each is in it once, in the order of its chain."""
    other = sequencer(audit)

    async def grow() -> None:
        for _ in range(60):
            await other.grow()
            await asyncio.sleep(0.01)

    await asyncio.gather(fill(audit, 900), grow(), grow())
    checkpoint = await audit.tree_checkpoint(900)
    assert checkpoint.size == 900
    rows = await audit.sql(
        "SELECT l.index, l.data = e.hash AS same, l.sequence > coalesce(lag(l.sequence) OVER"
        " (PARTITION BY l.tenant_id ORDER BY l.index), 0) AS rises FROM audit.tree_leaf l"
        " JOIN audit.entry e USING (tenant_id, sequence) ORDER BY l.index"
    )
    assert [row["index"] for row in rows] == list(range(900))
    assert all(row["same"] and row["rises"] for row in rows)
    (logs,) = await audit.sql("SELECT count(*) FROM audit.tree_log")
    assert logs["count"] == 1


async def test_a_tree_of_before_is_taken_up(start_audit: StartAudit) -> None:
    """Entries that an older release recorded come into it at the first start."""
    first = await start_audit(stream=False)
    await fill(first, 700)
    await first.tree_checkpoint(700)
    await first.sql("TRUNCATE audit.tree_log, audit.tree_leaf, audit.tree_node, audit.tree_cursor")
    found = await first.tree_checkpoint(700)
    assert found.size == 700


async def test_a_database_that_went_back_gets_another_log(audit: Audit) -> None:
    """Its origin differs, and its first leaf tells what the log before said last."""
    await fill(audit, 5)
    before = await audit.tree_checkpoint(5)
    assert await sequencer(audit).begin_again() is not None
    after = await audit.tree_checkpoint(6)
    while after.origin == before.origin:
        after = await audit.tree_checkpoint(6)
    assert after.origin.rpartition("/")[0] == before.origin.rpartition("/")[0]
    assert after.size == 6
    told = [
        json.loads(row["payload"]) for row in await audit.sql("SELECT payload FROM audit.outbox")
    ]
    assert {event["tenantid"] for event in told} == {str(t.id) for t in (ORG, SISTER, STRANGER)}
    for event_told in told:
        assert event_told["data"]["action"] == "audit.restored"
        found = event_told["data"]["after"]
        assert (found["treeBefore"], found["tree"]) == (before.origin, after.origin)
        (head,) = await audit.sql(
            "SELECT sequence, hash FROM audit.chain_head WHERE tenant_id = $1",
            UUID(event_told["tenantid"]),
        )
        assert (found["sequence"], found["hash"]) == (head["sequence"], head["hash"].hex())
    data = await audit.tile("entries/000.p/6")
    assert data[2:34] == beginning(before.text)
    entry = (await audit.entries())[0]
    proof = Proof.read(await audit.proof(entry.id))
    proof.check()
    assert proof.checkpoint.origin == after.origin


async def test_a_log_that_ended_does_not_grow(audit: Audit) -> None:
    """Though another process holds the newest one; who ends that one waits for it."""
    await fill(audit, 5)
    await audit.tree_checkpoint(5)
    assert await sequencer(audit).begin_again() is not None
    await fill(audit, 3)
    async with audit.kit.database.system_transaction("a test") as connection:
        held = await store.hold(connection)
        assert held is not None
        assert held.number == 2
        assert await sequencer(audit).grow() is False
        ended = await connection.fetchval("SELECT size FROM audit.tree_log WHERE number = 1")
        assert ended == 5
        waiting = asyncio.create_task(sequencer(audit).begin_again())
        await asyncio.sleep(0.3)
        assert not waiting.done()
    begun = await waiting
    assert begun is not None
    assert begun.number == 3
    async with audit.kit.database.system_transaction("a test") as connection:
        with pytest.raises(RuntimeError, match="another log began"):
            await store.begin_behind(connection, held, audit.kit.clock())


async def test_the_services_role_cannot_change_the_tree(audit: Audit) -> None:
    """Nor a superuser, without removing the triggers first."""
    await fill(audit, 3)
    await audit.tree_checkpoint(3)
    statements = (
        "UPDATE audit.tree_leaf SET data = sha256('x')",
        "DELETE FROM audit.tree_leaf",
        "TRUNCATE audit.tree_leaf",
        "UPDATE audit.tree_node SET hash = sha256('x')",
        "DELETE FROM audit.tree_node",
        "DELETE FROM audit.tree_log",
        "UPDATE audit.tree_log SET size = size - 1",
        "UPDATE audit.tree_log SET origin = 'x'",
        "UPDATE audit.entry SET salt = NULL",
    )
    superuser = await audit.database.superuser()
    try:
        for statement in statements:
            with pytest.raises(Exception, match=r"permission denied|only grows"):
                async with audit.kit.database.system_transaction("a test") as connection:
                    await connection.execute(statement)
            with pytest.raises(Exception, match="only grows"):
                await superuser.execute(statement)
    finally:
        await superuser.close()


async def test_keys_of_notes_are_published(audit: Audit) -> None:
    """To anyone; they verify the checkpoint, before and after a rotation."""
    await fill(audit, 1)
    checkpoint = await audit.tree_checkpoint(1)
    answer = await audit.api.GetAuditLogKeys(
        pb.GetAuditLogKeysRequest(), metadata=callers.anonymous()
    )
    (line,) = answer.data.decode().splitlines()
    name, key_hash, _ = line.split("+", 2)
    assert name == checkpoint.origin
    assert [s.key_hash.hex() for s in checkpoint.signatures] == [key_hash]
    await audit.sql("UPDATE audit.tree_log SET origin = 'not/read/each/time'")
    again = await audit.api.GetAuditLogKeys(
        pb.GetAuditLogKeysRequest(), metadata=callers.anonymous()
    )
    assert again.data == answer.data


async def test_a_service_without_its_stream_does_not_grow_the_tree(
    start_audit: StartAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its database may be an older one; a proof is refused at once when much is before it."""
    audit = await start_audit(stream=False, grows=False)
    await fill(audit, 12)
    monkeypatch.setattr(service, "_NEAR", 3)
    monkeypatch.setattr(service, "_WAIT_SECONDS", 120)
    entry = (await audit.entries(org_id=str(ORG.id)))[0]
    began = asyncio.get_running_loop().time()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await audit.proof(entry.id)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert asyncio.get_running_loop().time() - began < 60
    await asyncio.sleep(1)
    assert (await audit.tree_checkpoint()).size == 0
    assert await sequencer(audit).grow()
    assert Proof.read(await audit.proof(entry.id)).checkpoint.size == 12


async def test_a_damaged_tree_is_told(start_audit: StartAudit) -> None:
    """And does not stop the service, nor one that starts with a backlog."""
    audit = await start_audit(stream=False)
    await fill(audit, 10)
    await audit.tree_checkpoint(10)
    await audit.sql("DELETE FROM audit.tree_leaf WHERE index = 2")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await audit.tile("0/000.p/10")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await audit.record(event(50, ROOT.id))
    assert len(await audit.entries(org_id=str(ROOT.id))) == 1
    again = await start_audit(stream=False)
    assert len(await again.entries(org_id=str(ROOT.id))) == 1


async def test_one_query_finds_many_hashes(audit: Audit) -> None:
    """All subtrees that a proof needs, of any level."""
    await fill(audit, 520)
    await audit.tree_checkpoint(520)
    async with audit.kit.database.system_transaction("a test") as connection:
        log = await store.newest(connection)
        assert log is not None
        with pytest.raises(store.DamagedError):
            await store.row_of(connection, log.number, 0, 510, 20)
    assert TreeCheckpoint.of_text(log.text).size == 520
