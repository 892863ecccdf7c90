"""Witnesses: what they sign, what they refuse, and who asks for their signatures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from pydantic import ValidationError

from auditlog.keys import read_keys
from auditlog.notes import Proof, TreeCheckpoint
from auditlog.witnesses import Policy
from evergreen.v1 import audit_pb2 as pb
from services.audit.settings import AuditSettings
from services.audit.tree import witnesses
from tests.support.audit import Audit, StartAudit, event, start_audit
from tests.support.audit_cli import evergreen
from tests.support.witnesses import RunningWitness

__all__ = ["start_audit"]


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RunningWitness]]:
    """Two witnesses, and a file that asks for both."""
    monkeypatch.setattr(witnesses, "_LOOK_SECONDS", 0.1)
    one, other = (RunningWitness(name, tmp_path) for name in ("one", "other"))
    with one.running(), other.running():
        lines = [one.line, other.line, "group both all one other", "quorum both"]
        (tmp_path / "policy").write_text("\n".join(lines))
        yield [one, other]


async def start(start_audit: StartAudit, two: list[RunningWitness], directory: Path) -> Audit:
    """The service, whose witnesses know its key."""
    allowed = ",".join(f"127.0.0.1:{one.port}" for one in two)
    audit = await start_audit(
        stream=False,
        audit_witnesses_file=directory / "policy",
        forward_allow=allowed,
    )
    await know(audit, two)
    return audit


async def know(audit: Audit, known_by: list[RunningWitness]) -> None:
    origin = (await audit.tree_checkpoint()).origin
    for one in known_by:
        one.logs[origin] = read_keys(await audit.public_keys())


async def witnessed(audit: Audit, least: int) -> TreeCheckpoint:
    """The newest checkpoint that both signed, when it has so many leaves."""
    end = time.monotonic() + 60
    request = pb.GetAuditLogCheckpointRequest(witnessed=True)
    while True:
        try:
            answer = await audit.api.GetAuditLogCheckpoint(request, metadata=audit.owner)
            found = TreeCheckpoint.read(answer.data.decode())
            if found.size >= least:
                return found
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_what_witnesses_signed_is_served_and_in_proofs(
    start_audit: StartAudit, two: list[RunningWitness], tmp_path: Path
) -> None:
    """And a verifier that needs them takes nothing else."""
    audit = await start(start_audit, two, tmp_path)
    await audit.record(*(event(number) for number in range(5)))
    first = await witnessed(audit, 5)
    policy = Policy.read((tmp_path / "policy").read_text())
    assert policy.signed(first).keys() == {"one", "other"}
    await audit.record(*(event(number) for number in range(5, 12)))
    second = await witnessed(audit, 12)
    assert policy.signed(second).keys() == {"one", "other"}
    entry = (await audit.entries())[0]
    text = await audit.proof(entry.id)
    proof = Proof.read(text)
    proof.check()
    assert policy.signed(proof.checkpoint).keys() == {"one", "other"}

    file, keys, kept = (tmp_path / name for name in ("proof", "keys", "kept"))
    file.write_text(text)
    keys.write_text(await audit.public_keys())
    asked = ("--public-key", keys, "--witnesses", tmp_path / "policy")
    done = await evergreen("audit", "check-proof", file, *asked)
    assert (done.code, done.err) == (0, "")
    assert "WITNESSED the checkpoint in the proof: one at 20" in done.out
    assert "Proved: entry 12" in done.out
    signed = proof.checkpoint.signatures
    without = replace(proof, checkpoint=replace(proof.checkpoint, signatures=signed[:-1]))
    file.write_text(without.write())
    done = await evergreen("audit", "check-proof", file, *asked)
    assert done.code == 2
    assert "not enough witnesses signed it (one at 20" in done.out
    forged = replace(signed[-1], value=signed[-2].value)
    checkpoint = replace(proof.checkpoint, signatures=(*signed[:-1], forged))
    file.write_text(replace(proof, checkpoint=checkpoint).write())
    done = await evergreen("audit", "check-proof", file, *asked)
    assert done.code == 1
    assert "the signature of the witness other.example is forged" in done.out

    export = tmp_path / "export"
    export.write_text(await audit.export())
    kept.write_text(second.write())
    offline = ("audit", "verify", "--from-export", export, "--checkpoint", kept)
    done = await evergreen(*offline, *asked)
    assert (done.code, done.err) == (0, "")
    kept.write_text((await audit.tree_checkpoint(12)).write())
    done = await evergreen(*offline, *asked)
    assert done.code == 2
    assert "not enough witnesses signed it (none did)" in done.out


async def test_a_witness_that_is_away_holds_nothing_up(
    start_audit: StartAudit, two: list[RunningWitness], tmp_path: Path
) -> None:
    """What both signed stays the newest of those; the tree and its checkpoints grow."""
    audit = await start(start_audit, two, tmp_path)
    await audit.record(event(1))
    await witnessed(audit, 1)
    known = dict(two[1].logs)
    two[1].logs.clear()
    await audit.record(event(2))
    await audit.tree_checkpoint(2)
    newest = (await audit.entries())[0]
    proof = Proof.read(await audit.proof(newest.id))
    assert (proof.checkpoint.size, len(proof.checkpoint.signatures)) == (2, 1)
    assert (await witnessed(audit, 1)).size == 1
    away = witnesses._AWAY.labels("other")._value.get
    async with asyncio.timeout(30):
        while not away():
            await asyncio.sleep(0.02)
    assert (witnesses._AWAY.labels("one")._value.get(), away()) == (
        0,
        pytest.approx(time.time(), abs=60),
    )
    two[1].logs.update(known)
    assert (await witnessed(audit, 2)).size == 2
    async with asyncio.timeout(30):
        while away():
            await asyncio.sleep(0.02)


def test_a_quorum_that_nobody_asks_is_refused(tmp_path: Path) -> None:
    """At the start, with the names of those whose address is missing."""
    one, other = (RunningWitness(name, tmp_path) for name in ("one", "other"))
    file = tmp_path / "policy"

    def settings(*lines: str) -> AuditSettings:
        file.write_text("\n".join(lines))
        return AuditSettings(  # type: ignore[call-arg]  # the others have defaults
            grpc_listen="unix:/x",
            internal_listen="unix:/y",
            database_url="x",
            audit_witnesses_file=file,
        )

    without = other.line.rpartition(" ")[0]
    with pytest.raises(ValidationError) as refused:
        settings(one.line, without, "group both all one other", "quorum both")
    (error,) = refused.value.errors()
    assert error["msg"] == (
        "Value error, EVERGREEN_AUDIT_WITNESSES_FILE: the quorum both can never sign: without an"
        " address, the last word of a line `witness`, nobody asks other"
    )
    settings(one.line, without, "group either any one other", "quorum either")
    settings(without, "quorum none")


async def test_a_process_learns_from_witnesses_what_they_know(
    start_audit: StartAudit, two: list[RunningWitness], tmp_path: Path
) -> None:
    """One that has just begun has asked for nothing yet."""
    first = await start(start_audit, two, tmp_path)
    await first.record(*(event(number) for number in range(3)))
    before = await witnessed(first, 3)
    await first.running.stop(0)
    second = await start(start_audit, two, tmp_path)
    await second.record(event(3))
    after = await witnessed(second, 4)
    assert after.origin == before.origin


async def test_a_tree_that_was_made_anew_is_not_signed(
    start_audit: StartAudit, two: list[RunningWitness], tmp_path: Path
) -> None:
    """Though the log's own key signs it, as a superuser of its machine may have it do."""
    audit = await start(start_audit, two, tmp_path)
    await audit.record(*(event(number) for number in range(3)))
    before = await witnessed(audit, 3)
    await audit.sql("UPDATE audit.tree_leaf SET data = sha256('x') WHERE index = 1")
    await audit.record(event(3))
    larger = await audit.tree_checkpoint(4)
    assert larger.signed_by(read_keys(await audit.public_keys()))
    failures = witnesses._FAILED.labels("one", "STATUS_422")
    end = time.monotonic() + 60
    while not failures._value.get():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    assert await witnessed(audit, 1) == before


async def test_without_witnesses_none_signed(start_audit: StartAudit) -> None:
    audit = await start_audit(stream=False)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await audit.api.GetAuditLogCheckpoint(
            pb.GetAuditLogCheckpointRequest(witnessed=True), metadata=audit.owner
        )
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
