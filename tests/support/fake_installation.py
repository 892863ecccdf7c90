"""Stands in for an installation: what `make bench BASE=…` asks of one, at a cost that is chosen.

    python -m tests.support.fake_installation MILLISECONDS [ANSWER] [--stubborn]

Every poll takes so much of a processor, in a process of its own as PostgreSQL's would be. With
ANSWER, polls are answered with that status. A stubborn one does not stop when it is asked to.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

from deploy.launcher import tls

_WORKER = """
import sys, time
for line in sys.stdin:
    end = time.thread_time() + float(line)
    while time.thread_time() < end:
        pass
    print(flush=True)
"""


class Backend:
    """Answers what the bench calls."""

    def __init__(self, milliseconds: float, poll: int) -> None:
        self._seconds = milliseconds / 1000
        self._poll = poll
        self._worker = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._number = 0

    def _work(self) -> None:
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(f"{self._seconds}\n".encode())
        self._worker.stdin.flush()
        self._worker.stdout.readline()

    def answer(self, path: str) -> tuple[int, dict[str, object]]:
        """The status and the body of an answer."""
        self._number += 1
        match path:
            case "/api/v1/devices/policy":
                self._work()
                return self._poll, {}
            case "/api/v1/devices/enroll":
                return 200, {"device_id": str(self._number), "device_token": "token"}
            case "/auth/login":
                return 200, {"token": "token"}
            case "/api/policies":
                return 200, {"id": "p"}
            case "/api/policies/p/publish":
                return 200, {"version": "1"}
        return 200, {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
                await reader.readexactly(int(fields.get("content-length", "0")))
                status, body = self.answer(head.split(" ", 2)[1])
                content = b"" if status == 304 else json.dumps(body).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                    + content
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def main() -> None:
    """Serves until it is told to stop."""
    if "--stubborn" in sys.argv:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    home = Path(os.environ["EVERGREEN_HOME"])
    port = int(os.environ["EVERGREEN_PORT"])
    numbers = [word for word in sys.argv[1:] if not word.startswith("-")]
    files = tls.ensure(home, ["localhost"], datetime.datetime.now(datetime.UTC))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.server_certificate, files.server_key)
    backend = Backend(float(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 304)
    server = await asyncio.start_server(backend.serve, "localhost", port, ssl=context)
    facts = {
        "url": f"https://localhost:{port}",
        "ca_file": str(files.ca_certificate),
        "tenant_id": "t",
        "email": "owner@localhost",
        "password": "password",
        "pre_shared_key": "key",
    }
    (home / "bootstrap.json").write_text(json.dumps(facts))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        # As a launcher takes its time.
        time.sleep(0.1)
