"""The tree as tiles, checked from the first entry to the root by `fsck` of Tessera, with which logs
of the Go ecosystem are run."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from evergreen.v1 import audit_pb2 as pb
from tests.support import callers
from tests.support.audit import SISTER, Audit, StartAudit, event, start_audit

__all__ = ["start_audit"]

pytestmark = pytest.mark.servers

PROGRAM = "github.com/transparency-dev/tessera/cmd/fsck@v1.0.4"
_WIDTH = 256


@pytest.fixture(scope="module")
def fsck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program is."""
    if shutil.which("go") is None:
        pytest.skip("Go is not here")
    directory = tmp_path_factory.mktemp("tessera")
    built = subprocess.run(
        ["go", "install", PROGRAM],
        env=os.environ | {"GOBIN": str(directory), "GOFLAGS": "-mod=mod"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if built.returncode:
        pytest.skip(f"the Go module proxy does not answer: {built.stderr[-300:]}")
    return directory / "fsck"


async def check(fsck: Path, log: Path, key: Path) -> str:
    """What it says: it ends with 0 whatever it found. With one worker it waits for ever for that
    one when it found a fault."""
    process = await asyncio.create_subprocess_exec(
        *(fsck, f"-storage_url=file://{log}/", f"-public_key={key}", "-ui=false", "-N=8"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(120):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return said.decode()


def paths(size: int) -> list[str]:
    """Of all tiles and bundles of a tree, as tlog-tiles has them."""
    found = []
    for kind, width in (("entries", size), *((str(n), size >> (8 * n)) for n in range(8))):
        for first in range(0, width, _WIDTH):
            rest = min(_WIDTH, width - first)
            number = f"{first // _WIDTH:03}"
            found.append(f"{kind}/{number}" + ("" if rest == _WIDTH else f".p/{rest}"))
    return found


async def download(audit: Audit, log: Path) -> list[Path]:
    """Writes what the installation publishes, and for users the hashes of entries."""
    anybody = callers.anonymous()
    answer = await audit.api.GetPublicAuditLogCheckpoint(
        pb.GetPublicAuditLogCheckpointRequest(), metadata=anybody
    )
    log.mkdir()
    (log / "checkpoint").write_bytes(answer.data)
    files = []
    for path in paths(int(answer.data.split(b"\n")[1])):
        if path.startswith("entries"):
            data = await audit.tile(path)
        else:
            tile = await audit.api.GetPublicAuditLogTile(
                pb.GetPublicAuditLogTileRequest(path=path), metadata=anybody
            )
            data = tile.data
        file = log / "tile" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        files.append(file)
    return files


async def test_tessera_takes_our_log_and_no_other(
    fsck: Path, start_audit: StartAudit, tmp_path: Path
) -> None:
    """Each tile and bundle, and the root; a changed byte in any of them is found."""
    audit = await start_audit(stream=False, audit_log_public=True)
    for number in range(5):
        batch = range(number * 130, (number + 1) * 130)
        await audit.record(*(event(n) for n in batch), event(number, SISTER.id))
    await audit.tree_checkpoint(655)
    log, key = tmp_path / "log", tmp_path / "key"
    files = await download(audit, log)
    keys = await audit.api.GetAuditLogKeys(
        pb.GetAuditLogKeysRequest(), metadata=callers.anonymous()
    )
    key.write_text(keys.data.decode().splitlines()[0])
    said = await check(fsck, log, key)
    assert "Successfully fsck'd log with size 655" in said, said
    assert {file.relative_to(log).parts[1] for file in files} == {"entries", "0", "1"}
    for file in files:
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        said = await check(fsck, log, key)
        assert "Successfully" not in said, (file, said)
        file.write_bytes(good)
    checkpoint = log / "checkpoint"
    checkpoint.write_text(checkpoint.read_text().replace("\n655\n", "\n654\n"))
    assert "Successfully" not in await check(fsck, log, key)
