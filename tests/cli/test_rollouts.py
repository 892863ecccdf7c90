"""`evergreen rollouts` where no answer comes."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app

ORG = {"id": "0192e4a0-0000-7000-8000-000000000000", "kind": "org", "code": "school"}
POLICY = {"id": "0192e4a0-0000-7000-8000-000000000001", "name": "Base", "signed": False}


@pytest.fixture
def server() -> Iterator[str]:
    """An installation whose database is away when something is published."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tenants = {"tenants": [ORG]}
            policies = {"policies": [{**POLICY, "orgId": ORG["id"]}]}
            self._answer(200, tenants if self.path.startswith("/api/tenants") else policies)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            said = {"message": "the service did not answer in time", "requestId": "r"}
            self._answer(504, said)

        def _answer(self, status: int, body: Any) -> None:
            sent = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_address[1]}"
    found.shutdown()
    found.server_close()


def test_a_rollout_without_an_answer_may_have_begun(server: str) -> None:
    """Once more would be another one: the command says where to look first."""
    done = CliRunner(env={"EVERGREEN_API_TOKEN": "t"}).invoke(
        app, ["rollouts", "create", "Base", "--org", "school", "--url", server]
    )
    assert done.exit_code == 2, done.output
    assert "did not answer in time" in done.output
    assert "`evergreen rollouts list`" in done.output
