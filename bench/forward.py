"""A backlog of the audit log that goes to a webhook, beside something else: for
`make bench DISTURBANCE=…`.

`python -m bench.forward` fills the log of the installation that the environment names, once, and
has a forwarder send all of it, in batches, to a receiver on this machine, until it is ended. It
says how many entries a second arrived, and by how much the audit service grew. The installation has
to be started with `EVERGREEN_FORWARD_ALLOW=127.0.0.1/32:9531`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
import psutil

from cli.sim import Target
from deploy.launcher.home import Home
from tests.support.backlog import fill
from tests.support.paths import ROOT
from tests.support.syslog_servers import until_listening

_PORT: Final = 9531
_CHAINS: Final = 4
"""As many tenants' entries are sent at the same time."""
_BEFORE_ALL: Final = "2026-08-01T00:00:00Z"
_PAUSE_SECONDS: Final = 0.5


@dataclass(slots=True)
class Drained:
    """What was seen of a backlog."""

    entries: int = 0
    seconds: float = 0.0
    grown: int = 0
    """Bytes."""

    def text(self) -> str:
        """For people."""
        rate = self.entries / self.seconds if self.seconds else 0.0
        return (
            f"{self.entries:,} entries in {self.seconds:.0f} s: {rate:,.0f} a second; the audit"
            f" service grew by at most {self.grown / 1e6:.0f} MB"
        )


def main() -> None:
    """Runs until all has arrived, or until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.forward", description=__doc__)
    parser.add_argument("--entries", type=int, default=200_000, help="how long the backlog is")
    parser.add_argument("--batch", type=int, default=100, help="entries in a message")
    options = parser.parse_args()
    facts = json.loads(Path(os.environ["BOOTSTRAP"]).read_text())
    home = Home(Path(os.environ["EVERGREEN_HOME"]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    drained = Drained()
    try:
        with _receiver(), _admin(facts) as api:
            forwarder = _forwarder(api, home, options.entries, options.batch)
            _drain(api, forwarder, _audit(home), drained)
    finally:
        # The bench takes the output away.
        print(drained.text(), file=sys.stderr, flush=True)


@contextmanager
def _receiver() -> Iterator[None]:
    """A receiver of webhooks, which takes what the product leaves of the processors."""
    with tempfile.TemporaryDirectory(prefix="evergreen-bench-") as directory:
        program = (sys.executable, "-m", "tests.support.webhook_program", str(_PORT))
        process = subprocess.Popen(["nice", "-n19", *program, f"{directory}/received"], cwd=ROOT)
        until_listening(_PORT)
        try:
            yield
        finally:
            process.kill()
            process.wait()


@contextmanager
def _admin(facts: dict[str, Any]) -> Iterator[httpx.Client]:
    tls = Target.of(facts["url"], facts["ca_file"]).tls
    assert tls is not None
    with httpx.Client(base_url=facts["url"], verify=tls, timeout=60) as client:
        login = {"email": facts["email"], "password": facts["password"]}
        client.headers["authorization"] = (
            f"Bearer {_ok(client.post('/auth/login', json=login))['token']}"
        )
        yield client


def _ok(answer: httpx.Response) -> Any:
    if not answer.is_success:
        raise SystemExit(f"{answer.request.method} {answer.request.url.path}: {answer.text[:500]}")
    return answer.json()


def _forwarder(api: httpx.Client, home: Home, entries: int, batch: int) -> str:
    """The forwarder's id; all is still to be sent."""
    kept = home.root / "forwarding.json"
    if kept.exists():
        forwarder = str(json.loads(kept.read_text()))
        _ok(api.post(f"/api/forwarders/{forwarder}/replay", json={"from": _BEFORE_ALL}))
        return forwarder
    root = _ok(api.get("/api/tenants"))["tenants"][0]
    names = [f"Backlog {number} of {time.time_ns()}" for number in range(_CHAINS)]
    made = [
        _ok(api.post("/api/tenants", json={"name": name, "parentId": root["id"]})) for name in names
    ]
    asyncio.run(_fill(home, [UUID(one["id"]) for one in made], entries))
    found = _ok(
        api.post(
            "/api/forwarders",
            json={
                "name": "Backlog",
                "kind": "webhook",
                "startAt": "beginning",
                "webhook": {"url": f"http://127.0.0.1:{_PORT}/", "batch": batch},
            },
        )
    )
    kept.write_text(json.dumps(found["id"]))
    return str(found["id"])


async def _fill(home: Home, tenants: list[UUID], entries: int) -> None:
    connection = await asyncpg.connect(
        f"postgresql://postgres@/evergreen?host={home.run_directory() / 'postgres'}",
        password=(home.secrets / "postgres_superuser").read_text().strip(),
    )
    try:
        for tenant_id in tenants:
            await fill(connection, tenant_id, entries // len(tenants))
        await connection.execute("ANALYZE audit.entry")
    finally:
        await connection.close()


def _audit(home: Home) -> psutil.Process:
    """The audit service of the installation."""
    pid, _ = (home.run_directory() / "audit.pid").read_text().split()
    return psutil.Process(int(pid))


def _drain(api: httpx.Client, forwarder: str, audit: psutil.Process, drained: Drained) -> None:
    # An earlier round's receiver was away: what waits is tried at once after a success.
    tested = _ok(api.post(f"/api/forwarders/{forwarder}/test", json={}))
    if not tested.get("delivered"):
        raise SystemExit(f"the receiver is not reached: {tested.get('error')}")
    before, began = audit.memory_info().rss, time.monotonic()
    waiting: int | None = None
    while True:
        left = int(_ok(api.get(f"/api/forwarders/{forwarder}"))["state"].get("backlog", 0))
        waiting = left if waiting is None else waiting
        drained.entries, drained.seconds = waiting - left, time.monotonic() - began
        drained.grown = max(drained.grown, audit.memory_info().rss - before)
        if not left:
            return
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main()
