"""A witness of the Go ecosystem signs our log: litewitness of filippo.io/torchwood."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from auditlog.notes import Proof, TreeCheckpoint
from auditlog.witnesses import Policy
from evergreen.v1 import audit_pb2 as pb
from services.audit.tree import witnesses
from tests.support import callers
from tests.support.audit import Audit, StartAudit, event, start_audit
from tests.support.paths import LONG
from tests.support.stack import free_port

__all__ = ["start_audit"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not LONG, reason="a minute to compile it: `make test-long` runs it"),
]

VERSION = "v0.6.1"
NAME = "witness.example/torchwood"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where its two programs are."""
    if any(shutil.which(name) is None for name in ("go", "ssh-agent", "ssh-add", "ssh-keygen")):
        pytest.skip("Go or OpenSSH is not here")
    directory = tmp_path_factory.mktemp("torchwood")
    tools = [f"filippo.io/torchwood/cmd/{name}@{VERSION}" for name in ("litewitness", "witnessctl")]
    built = subprocess.run(
        ["go", "install", *tools],
        env=os.environ | {"GOBIN": str(directory), "GOFLAGS": "-mod=mod"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if built.returncode:
        pytest.skip(f"the Go module proxy does not answer: {built.stderr[-300:]}")
    return directory


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The socket of an agent that has the witness's key, and the key's fingerprint."""
    directory = tmp_path_factory.mktemp("a")  # a socket's path is short
    key, path = directory / "key", directory / "s"
    quiet: dict[str, Any] = {"capture_output": True, "text": True}
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, **quiet)
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while not path.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        subprocess.run(
            ["ssh-add", key], env=os.environ | {"SSH_AUTH_SOCK": str(path)}, check=True, **quiet
        )
        told = subprocess.run(["ssh-keygen", "-l", "-f", key], check=True, **quiet).stdout
        yield path, told.split()[1]
    finally:
        process.terminate()
        process.wait()


@pytest_asyncio.fixture
async def litewitness(
    programs: Path, agent: tuple[Path, str], tmp_path: Path
) -> AsyncIterator[tuple[str, str]]:
    """The running witness: its key, and its address."""
    port = free_port()
    said = tmp_path / "said"
    with said.open("w") as out:
        process = subprocess.Popen(
            [
                programs / "litewitness",
                *("-name", NAME, "-db", tmp_path / "witness.db", "-ssh-agent", agent[0]),
                *("-key", agent[1], "-listen", f"127.0.0.1:{port}"),
            ],
            stdout=out,
            stderr=out,
        )
    try:
        end = time.monotonic() + 30
        while "listening" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        vkey = said.read_text().partition("vkey=")[2].split()[0].strip('"')
        yield vkey, f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


async def _witnessed(audit: Audit, least: int) -> TreeCheckpoint:
    request = pb.GetAuditLogCheckpointRequest(witnessed=True)
    end = time.monotonic() + 60
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


async def test_litewitness_signs_our_log(
    programs: Path,
    litewitness: tuple[str, str],
    start_audit: StartAudit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once it knows our key; each time that the tree has grown; and again for a new process."""
    monkeypatch.setattr(witnesses, "_LOOK_SECONDS", 0.1)
    vkey, address = litewitness
    file = tmp_path / "policy"
    file.write_text(f"witness torchwood {vkey} http://{address}\nquorum torchwood\n")
    policy = Policy.read(file.read_text())
    settings = {"audit_witnesses_file": file, "forward_allow": address}
    audit = await start_audit(stream=False, **settings)
    await audit.record(*(event(number) for number in range(5)))
    await audit.tree_checkpoint(5)
    keys = await audit.api.GetAuditLogKeys(
        pb.GetAuditLogKeysRequest(), metadata=callers.anonymous()
    )
    key = keys.data.decode().split("\n")[0]
    origin = key.partition("+")[0]
    for words in (["add-log"], ["add-key", "-key", key]):
        done = subprocess.run(
            [programs / "witnessctl", words[0], "-db", tmp_path / "witness.db", "-origin", origin,
             *words[1:]],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert policy.signed(await _witnessed(audit, 5)).keys() == {"torchwood"}
    await audit.record(*(event(number) for number in range(5, 300)))
    await audit.tree_checkpoint(300)
    assert policy.signed(await _witnessed(audit, 300)).keys() == {"torchwood"}
    proof = Proof.read(await audit.proof((await audit.entries())[0].id))
    proof.check()
    assert policy.signed(proof.checkpoint).keys() == {"torchwood"}
    await audit.running.stop(0)
    again = await start_audit(stream=False, **settings)
    await again.record(event(300))
    assert policy.signed(await _witnessed(again, 301)).keys() == {"torchwood"}
