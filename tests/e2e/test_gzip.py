"""Policies in gzip, through the gateway: with Go's client, which the released agent has."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.e2e.world import make_org
from tests.fakes.agent.gojson import unmarshal
from tests.fakes.agent.structs import ENVELOPE
from tests.fakes.agent.verify import check_envelope, load_pinned_key
from tests.support.stack import PATIENCE, Stack

SOURCE: Final = Path(__file__).parent / "gzipped"
LARGE: Final = {
    "browser": {"extensions": [f"https://extensions.example/{number:03}" for number in range(100)]}
}


def test_gos_client_unpacks_it_by_itself(stack: Stack, root: httpx.Client, tmp_path: Path) -> None:
    """net/http asks for gzip and gives the agent plain bytes, whose signature verifies; a poll that
    changes nothing has no body."""
    if shutil.which("go") is None:
        pytest.skip("Go is not here")
    program = tmp_path / "gzipped"
    subprocess.run(["go", "build", "-o", program, "."], cwd=SOURCE, check=True, timeout=600)
    org = make_org(stack, root, "Packed")
    org.publish(LARGE)
    agent = org.device()

    def ask(version: str) -> tuple[str, bytes]:
        done = subprocess.run(
            [
                program,
                f"{stack.url}/api/v1/devices/policy",
                stack.ca_file,
                agent.device_token,
                json.dumps({"current_version": version}),
            ],
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )
        head, _, body = done.stdout.partition(b"\n")
        return head.decode(), body

    head, body = ask("")
    assert head == "200 true"
    pinned = Path(stack.bootstrap["policy_public_key_file"])
    check_envelope(load_pinned_key(pinned), unmarshal(ENVELOPE, body))
    assert ask(agent.version) == ("304 false", b"")
