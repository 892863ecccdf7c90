"""What `evergreen doctor` finds in NATS."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nats

from cli.doctor import messaging
from cli.doctor.finding import Severity, findings
from cli.doctor.messaging import Server
from deploy.launcher.home import password
from tests.support.doctor import told
from tests.support.servers import Servers
from tests.support.stack import PATIENCE, free_port, until


@contextmanager
def nats_server(directory: Path, *arguments: str) -> Iterator[Server]:
    port, monitor = free_port(), free_port()
    binary = Path(sys.executable).with_name("nats-server")
    process = subprocess.Popen(
        [binary, "-a", "127.0.0.1", "-p", str(port), "-m", str(monitor), *arguments],
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def answers() -> bool:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{monitor}/varz", None, 2).close()
            except OSError:
                return False
            return True

        until(answers, PATIENCE, "NATS does not start")
        yield Server(f"nats://127.0.0.1:{port}", monitor=f"http://127.0.0.1:{monitor}")
    finally:
        process.terminate()
        process.wait(PATIENCE)
        shutil.rmtree(directory / "store", ignore_errors=True)


async def test_a_nats_that_keeps_nothing(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        found = told(await messaging.checks(server))
    assert set(found) == {"NATS_WITHOUT_JETSTREAM"}


async def test_a_nats_that_acknowledges_too_early(tmp_path: Path) -> None:
    with nats_server(tmp_path, "-js", "-sd", str(tmp_path / "store")) as server:
        assert told(await messaging.checks(server)) == ["NATS_SYNC_INTERVAL"]


async def test_a_stream_that_is_full(tmp_path: Path) -> None:
    """It drops the oldest messages; how full each one is, is told without that as well."""
    (tmp_path / "nats.conf").write_text(
        f'jetstream {{ store_dir: "{tmp_path / "store"}", sync_interval: always }}'
    )
    with nats_server(tmp_path, "-c", "nats.conf") as server:
        client = await nats.connect(server.url)
        js = client.jetstream()
        for name in ("EVERGREEN", "SMALL"):
            await js.add_stream(name=name, subjects=[f"{name}.x"], max_bytes=1 << 16)
        assert told(checks := await messaging.checks(server)) == []
        assert "EVERGREEN: 0% full" in {check.name: check.seen for check in checks}["nats.streams"]
        for _ in range(80):
            await js.publish("EVERGREEN.x", bytes(1000))
        (found,) = findings(await messaging.checks(server))
        await client.close()
    assert (found.code, found.severity) == ("STREAM_FULL", Severity.WARNING)
    assert "the stream EVERGREEN" in found.what
    assert "EVERGREEN_EVENTS_STREAM_BYTES" in found.fix


async def test_a_password_in_the_address_of_nats_is_not_shown(tmp_path: Path) -> None:
    """What the doctor says is sent to others who are to help."""
    with nats_server(tmp_path) as server:
        held = replace(server, url=server.url.replace("//", "//audit:hidden@"))
        found = await messaging.checks(held)
    away = await messaging.checks(
        Server(f"tls://audit:secret@localhost:{free_port()},tls://audit:secret@localhost:1")
    )
    assert told(away) == ["NATS_UNREACHABLE"]
    assert "NATS at tls://localhost:" in str(away)
    assert "secret" not in str(away)
    assert "hidden" not in str(found)


async def test_a_nats_that_is_away(servers: Servers) -> None:
    away = Server(f"nats://127.0.0.1:{free_port()}", monitor=f"http://127.0.0.1:{free_port()}")
    assert told(await messaging.checks(away)) == ["NATS_UNREACHABLE", "NATS_MONITOR_UNREACHABLE"]
    found = told(await messaging.checks(Server(servers.nats_url, "audit", "wrong")))
    assert found == ["NATS_LOGIN_REFUSED"]


async def test_a_healthy_nats(servers: Servers) -> None:
    secret = servers.home.secret("nats_audit", password)
    monitor = f"http://127.0.0.1:{servers.ports['nats_monitor']}"
    server = Server(servers.nats_url, "audit", secret, monitor)
    assert told(await asyncio.wait_for(messaging.checks(server), PATIENCE)) == []
