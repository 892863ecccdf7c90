"""What an installation publishes of its log, where it wants to."""

from __future__ import annotations

import grpc
import pytest

from auditlog.keys import read_keys
from auditlog.notes import TreeCheckpoint
from auditlog.tree import complete_root
from evergreen.v1 import audit_pb2 as pb
from tests.support import callers
from tests.support.audit import Audit, StartAudit, audit, event, start_audit

__all__ = ["audit", "start_audit"]


async def tile(audit: Audit, path: str) -> bytes:
    answer = await audit.api.GetPublicAuditLogTile(
        pb.GetPublicAuditLogTileRequest(path=path), metadata=callers.anonymous()
    )
    return bytes(answer.data)


async def checkpoint(audit: Audit) -> TreeCheckpoint:
    answer = await audit.api.GetPublicAuditLogCheckpoint(
        pb.GetPublicAuditLogCheckpointRequest(), metadata=callers.anonymous()
    )
    return TreeCheckpoint.read(answer.data.decode())


async def refusal(audit: Audit, path: str) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await tile(audit, path)
    code: grpc.StatusCode = refused.value.code()
    return code


async def test_nothing_is_published_unless_it_is_wanted(audit: Audit) -> None:
    await audit.record(event())
    await audit.tree_checkpoint(1)
    assert await refusal(audit, "0/000.p/1") is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await checkpoint(audit)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_anyone_reads_checkpoints_and_hashes(start_audit: StartAudit) -> None:
    """And no hash of an entry, from which one without a salt could be guessed."""
    audit = await start_audit(stream=False, audit_log_public=True)
    await audit.record(*(event(number) for number in range(4)))
    await audit.tree_checkpoint(4)
    found = await checkpoint(audit)
    assert found.signed_by(read_keys(await audit.public_keys()))
    hashes = await tile(audit, "0/000.p/4")
    assert len(hashes) == 4 * 32
    assert complete_root([hashes[at : at + 32] for at in range(0, 128, 32)]) == found.root
    entries = [bytes.fromhex(one.hash) for one in await audit.entries()]
    assert not any(one in hashes for one in entries)
    for path in ("entries/000", "entries/000.p/4", "entries", "1/000", "0/001"):
        assert await refusal(audit, path) is grpc.StatusCode.NOT_FOUND, path
    assert await refusal(audit, "x") is grpc.StatusCode.INVALID_ARGUMENT
    # For ten seconds it is the same one, however much is recorded.
    await audit.record(event(5))
    await audit.tree_checkpoint(5)
    assert await checkpoint(audit) == found
