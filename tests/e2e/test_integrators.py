"""Integrators on the whole product: the documented program, and a stream that is thrown away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.world import Org, ok
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, Stack, until

ORDER = "identity.tenant_updated"


def rename(org: Org, *names: str) -> None:
    for name in names:
        ok(org.root.patch(f"/api/tenants/{org.id}", json={"name": name}))


def names_of(lines: list[str]) -> list[str]:
    events = [json.loads(line) for line in lines if line.endswith("}\n")]
    return [e["data"]["after"]["name"] for e in events if e["data"]["action"] == ORDER]


def test_the_documented_program_reads_without_a_gap(stack: Stack, org: Org, tmp_path: Path) -> None:
    """Through a kill of NATS and of identity, in order, each event once; until it is revoked."""
    made = ok(org.owner.post("/api/event-credentials", json={"name": "Example"}))
    output = tmp_path / "events.jsonl"
    with output.open("w") as file:
        program = subprocess.Popen(
            [sys.executable, str(ROOT / "docs" / "examples" / "consumer.py")],
            env={
                **os.environ,
                "EVENTS_URL": made["url"],
                "EVENTS_CA_FILE": stack.ca_file,
                "EVENTS_USER": made["id"],
                "EVENTS_SECRET": made["secret"],
            },
            stdout=file,
            stderr=subprocess.DEVNULL,
        )
    try:

        def read(*names: str) -> None:
            until(
                lambda: names_of(output.read_text().splitlines(keepends=True)) == list(names),
                2 * PATIENCE,
                "events are missing, or came twice",
            )

        rename(org, "1", "2")
        read("1", "2")
        stack.signal("nats", 9)
        rename(org, "3")
        read("1", "2", "3")
        stack.until_ready()
        rename(org, "4")
        read("1", "2", "3", "4")
    finally:
        program.kill()
        program.wait(PATIENCE)
    ok(org.owner.post(f"/api/event-credentials/{made['id']}/revoke", json={}))
    stack.events(made).until_cut_off()


@pytest.mark.parametrize("stream", ["EVERGREEN", "EVERGREEN_TELEMETRY"])
def test_an_operator_has_a_stream_published_again(stack: Stack, org: Org, stream: str) -> None:
    """Everything comes again, with the ids that it had."""
    agent = org.device()
    agent.record("app.installed", {"severity": "info", "message": "x"})
    assert agent.send_events() == 1
    made = ok(org.owner.post("/api/event-credentials", json={"name": "Again"}))
    wanted = 1 if stream.endswith("TELEMETRY") else 3

    def enough(events: list[dict[str, Any]]) -> bool:
        return len(events) >= wanted

    first = stack.events(made, stream).until(enough)
    subprocess.run(
        [sys.executable, "-m", "cli.main", "events", "rebuild", stream, "--yes"],
        check=True,
        cwd=ROOT,
        env={**os.environ, "EVERGREEN_HOME": str(stack.home)},
    )
    again = stack.events(made, stream).until(
        lambda events: {e["id"] for e in first} <= {e["id"] for e in events}
    )
    assert again


def test_the_description_of_events_is_served(stack: Stack) -> None:
    """Beside the description of the API."""
    with stack.client() as client:
        answer = client.get("/asyncapi.json")
    assert answer.status_code == 200
    assert answer.json()["asyncapi"] == "3.0.0"


def test_an_auditor_makes_no_credentials(org: Org) -> None:
    """But sees which there are."""
    ok(org.owner.post("/api/event-credentials", json={"name": "Seen"}))
    answer: httpx.Response = org.auditor.post("/api/event-credentials", json={"name": "x"})
    assert answer.status_code == 403
    (seen,) = ok(org.auditor.get("/api/event-credentials"))["credentials"]
    assert seen["name"] == "Seen"
    assert "secret" not in seen
