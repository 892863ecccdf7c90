"""The audit log's proofs, checked by the Go project's own packages (`golang.org/x/mod/sumdb`)."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from auditlog.notes import Proof
from evergreen.v1 import audit_pb2 as pb
from services.audit.log.recorder import Recorder
from tests.support import callers
from tests.support.audit import ORG, SISTER, Audit, audit, event, start_audit

__all__ = ["audit", "start_audit"]

SOURCE = Path(__file__).parent / "tlog"


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that checks."""
    if shutil.which("go") is None:
        pytest.skip("Go is not here")
    program = tmp_path_factory.mktemp("tlog") / "tlog"
    subprocess.run(["go", "build", "-o", program, "."], cwd=SOURCE, check=True, timeout=600)
    return program


async def run(checker: Path, *files: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        checker, *files, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


async def test_go_takes_our_proofs_and_no_others(
    checker: Path, audit: Audit, tmp_path: Path
) -> None:
    """Of entries of both formats; a changed entry, place or tree is refused."""
    salted = Recorder(audit.kit.database, audit.kit.clock, salted=True)
    for number in range(0, 60, 2):
        await audit.record(event(number), event(number, SISTER.id))
        await Audit(**{**vars(audit), "recorder": salted}).record(event(number + 1))
    old = tmp_path / "old"
    old.write_text((await audit.tree_checkpoint(90)).write())
    for number in range(400):
        await audit.record(event(100 + number))
    await audit.tree_checkpoint(490)
    answer = await audit.api.GetAuditConsistency(
        pb.GetAuditConsistencyRequest(**{"from": "90"}), metadata=audit.owner
    )
    consistency = tmp_path / "consistency"
    told = {"hashes": list(answer.hashes), "checkpoint": answer.checkpoint}
    consistency.write_text(json.dumps(told))
    keys = tmp_path / "keys"
    found = await audit.api.GetAuditLogKeys(
        pb.GetAuditLogKeysRequest(), metadata=callers.anonymous()
    )
    keys.write_text(found.data.decode())
    proof = tmp_path / "proof"
    formats = set()
    entries = await audit.entries(org_id=str(ORG.id), page_size=500)
    for entry in (entries[0], entries[-1], entries[-2], entries[200]):
        proof.write_text(text := await audit.proof(entry.id))
        read = Proof.read(text)
        formats.add(read.entry.salt != "")
        code, said = await run(checker, keys, proof, old, consistency)
        assert code == 0, said
        assert f"entry is leaf {read.index} of 490" in said
        assert "nothing was removed between 90 and 490" in said
    assert formats == {True, False}
    line = json.loads(read.line)
    line["entry"]["record"] += " "
    changed = base64.b64encode(json.dumps(line).encode()).decode()
    proof.write_text(text.replace(text.splitlines()[1], f"extra {changed}"))
    assert (await run(checker, keys, proof, old, consistency))[0] == 1
    proof.write_text(text.replace(f"index {read.index}", f"index {read.index + 1}"))
    assert (await run(checker, keys, proof, old, consistency))[0] == 1
    proof.write_text(text)
    told["hashes"][0] = told["hashes"][1]
    consistency.write_text(json.dumps(told))
    code, said = await run(checker, keys, proof, old, consistency)
    assert (code, "entry is leaf" in said) == (1, True), said
