"""`evergreen audit witness`, and `follow` with the witnesses that somebody needs."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from auditlog.notes import TreeCheckpoint, verifier_key
from auditlog.witnesses import Policy, Request, WitnessKey, cosigned_at, read_answer
from cli.audit_cosigned import follow_witnessed
from cli.audit_report import NOT_CHECKED, TAMPERED, VERIFIED, Report
from tests.cli.test_audit_follow import _KEY, KEPT, ORIGIN, REWRITTEN, Tree
from tests.support.paths import ROOT

ONE = WitnessKey("one.example", b"1" * 32)
OTHER = WitnessKey("other.example", b"2" * 32)


@contextmanager
def running(directory: Path) -> Iterator[tuple[httpx.Client, str]]:
    """The command, on a port that it has chosen; and the key that it printed."""
    (directory / "log").write_text(f"{verifier_key(ORIGIN, _KEY.raw)}\n")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cli.entry", "audit", "witness", "--name", "w.example"),
            *("--log", directory / "log", "--key-file", directory / "key"),
            *("--state", directory / "state", "--listen", "127.0.0.1:0"),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        key = process.stdout.readline().strip()
        address = process.stderr.readline().strip().rpartition(" ")[2]
        with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
            yield client, key
    finally:
        process.kill()
        process.communicate()


def asked(old: int, new: int, tree: Tree = KEPT, *, forged: bool = False) -> Request:
    hashes = tree.consistency(old, new).hashes if old else ()
    return Request(old, hashes, tree.checkpoint(new, forged=forged))


def test_a_witness_signs_what_continues_what_it_signed(tmp_path: Path) -> None:
    """Also after it was killed; and it says what it knows to who does not."""

    def ask(client: httpx.Client, request: Request, path: str = "/add-checkpoint") -> Any:
        return client.post(path, content=request.write().encode())

    with running(tmp_path) as (client, text):
        policy = Policy.read(f"witness w {text}\nquorum w")
        key = policy.witnesses["w"].key
        answer = ask(client, asked(0, 10))
        assert answer.status_code == 200
        assert cosigned_at(KEPT.checkpoint(10), key, read_answer(answer.text))
        assert ask(client, asked(10, 20, REWRITTEN)).status_code == 422
        assert ask(client, asked(10, 20, forged=True)).status_code == 403
        assert ask(client, asked(10, 20), "/").status_code == 404
        other = Tree([b"x" * 32] * 3, "other.example/audit/0000bbbb")
        assert ask(client, asked(0, 3, other)).status_code == 404
        assert client.post("/add-checkpoint", content=b"old 1").status_code == 400
        assert client.post("/add-checkpoint", content=b"x" * 20_000).status_code == 413
        assert (tmp_path / "key").stat().st_mode & 0o77 == 0
    with running(tmp_path) as (client, again):
        assert again == text
        answer = ask(client, asked(0, 30))
        assert (answer.status_code, answer.text) == (409, "10\n")
        assert answer.headers["content-type"] == "text/x.tlog.size"
        assert ask(client, asked(10, 30)).status_code == 200
        assert ask(client, Request(30, (), KEPT.checkpoint(30))).status_code == 200
        assert ask(client, Request(30, (), KEPT.checkpoint(10))).status_code == 400


@dataclass
class FakeApi:
    """An installation that shows a checkpoint, and proves it to be in a tree."""

    witnessed: TreeCheckpoint
    tree: Tree = KEPT

    def get_text(self, path: str, **parameters: str) -> str:
        assert parameters == {"witnessed": "true"}
        return self.witnessed.write()

    def get(self, path: str, **parameters: str) -> Any:
        found = self.tree.consistency(int(parameters["from"]), 35)
        hashes = [base64.b64encode(one).decode() for one in found.hashes]
        return {"from": str(found.old), "hashes": hashes, "checkpoint": found.checkpoint.write()}


def signed(checkpoint: TreeCheckpoint, *by: WitnessKey) -> TreeCheckpoint:
    cosigned = (one.cosign(checkpoint.text, 1_800_000_000) for one in by)
    return replace(checkpoint, signatures=(*checkpoint.signatures, *cosigned))


@pytest.mark.parametrize(
    ("api", "code", "told", "size"),
    [
        (FakeApi(signed(KEPT.checkpoint(20), ONE, OTHER)), VERIFIED, "WITNESSED", 20),
        # Of a process that asked its witnesses a moment before another one.
        (FakeApi(signed(KEPT.checkpoint(7), ONE, OTHER)), VERIFIED, "WITNESSED", 10),
        (FakeApi(signed(KEPT.checkpoint(20), ONE)), NOT_CHECKED, "not enough witnesses", 20),
        (FakeApi(signed(REWRITTEN.checkpoint(20), ONE, OTHER)), TAMPERED, "of now", 20),
    ],
)
def test_what_witnesses_signed_is_followed(
    tmp_path: Path, api: FakeApi, code: int, told: str, size: int
) -> None:
    policy = tmp_path / "policy"
    names = f"witness one {ONE.public.text}\nwitness other {OTHER.public.text}\n"
    policy.write_text(f"{names}group both all one other\nquorum both\n")
    said: list[str] = []
    report = Report(said.append)
    kept = [("kept", KEPT.checkpoint(10))]
    found = follow_witnessed(api, [_KEY], kept, policy, report)  # type: ignore[arg-type]
    assert (report.exit_code, found.size) == (code, size), said
    assert told in "\n".join(said)
