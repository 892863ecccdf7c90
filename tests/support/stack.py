"""The whole product as `evergreen up` starts it, for end-to-end tests."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from contract.subjects import EVENTS
from deploy.launcher.ports import is_free
from tests.support.events import Reader
from tests.support.paths import ROOT

_START_SECONDS = 120.0
LDAP_PORT = 10_636
"""Where the product may find a directory on this machine."""
_OFTEN = "too many requests"
"""How the gateway's own refusals begin; those of a service say what there is too much of."""
PATIENCE = 60.0
"""Seconds that anything may take on a slow, busy machine before a test gives up."""


class _Patient(httpx.Client):
    """Repeats what the gateway refuses for its rate, after the delay that it names."""

    def send(self, request: httpx.Request, **more: Any) -> httpx.Response:
        until = time.monotonic() + PATIENCE
        while (answer := super().send(request, **more)).status_code == 429:
            answer.read()
            if _OFTEN not in answer.text or time.monotonic() > until:
                break
            time.sleep(float(answer.headers["retry-after"]))
        return answer


class _FirstOwner(_Patient):
    """Logs in again when a call needs a fresh login: a run of tests lasts longer than one is."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(base_url=stack.url, verify=stack.tls(), timeout=PATIENCE)
        self._stack = stack
        self._log_in()

    def _log_in(self) -> None:
        self.headers["authorization"] = f"Bearer {self._stack.login()['token']}"

    def send(self, request: httpx.Request, **more: Any) -> httpx.Response:
        answer = super().send(request, **more)
        if answer.status_code == 403 and "STEP_UP_NEEDED" in answer.read().decode():
            self._log_in()
            request.headers["authorization"] = self.headers["authorization"]
            answer = super().send(request, **more)
        return answer


@dataclass(frozen=True, slots=True)
class Stack:
    """A running product: what `bootstrap.json` says, and clients for it."""

    home: Path
    port: int
    process: subprocess.Popen[bytes]
    bootstrap: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.bootstrap["url"])

    @property
    def ca_file(self) -> str:
        return str(self.bootstrap["ca_file"])

    @property
    def email(self) -> str:
        return str(self.bootstrap["email"])

    @property
    def password(self) -> str:
        return str(self.bootstrap["password"])

    @property
    def tenant_id(self) -> str:
        return str(self.bootstrap["tenant_id"])

    @property
    def pre_shared_key(self) -> str:
        return str(self.bootstrap["pre_shared_key"])

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.ca_file)

    def events(self, credential: dict[str, Any], stream: str = EVENTS.name) -> Reader:
        """A reader with a credential as the API has answered it."""
        return Reader(
            credential["url"], self.ca_file, credential["id"], credential["secret"], stream
        )

    def client(self, token: str | None = None, *, http2: bool = False) -> httpx.Client:
        """A client that trusts the installation's CA, with a bearer token if one is given."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(
            base_url=self.url, verify=self.tls(), headers=headers, timeout=PATIENCE, http2=http2
        )

    def first_owner(self) -> httpx.Client:
        """A client of the first Owner, as whom all tests of an installation call: it waits when the
        gateway says that this user calls too often."""
        return _FirstOwner(self)

    def raw(self, request: bytes) -> tuple[int, bytes]:
        """Sends bytes over TLS as they are; answers the status and all that came."""
        with (
            socket.create_connection(("localhost", self.port), PATIENCE) as plain,
            self.tls().wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            sock.sendall(request)
            answer = b""
            while part := sock.recv(65536):
                answer += part
        return int(answer.split(b" ", 2)[1]), answer

    def login(self, email: str | None = None, password: str | None = None) -> dict[str, Any]:
        """The session of a user, the first Owner if none is named."""
        with self.client() as client:
            answer = client.post(
                "/auth/login",
                json={"email": email or self.email, "password": password or self.password},
            )
            answer.raise_for_status()
            session: dict[str, Any] = answer.json()
            return session

    def pids(self, name: str) -> list[int]:
        """The processes of a part: `postgres`, `nats`, `gateway`, or a context."""
        return [
            pid
            for pid, command in children(self.process.pid).items()
            if _is_part(name, command.split("\0"))
        ]

    @staticmethod
    def children(pid: int, word: str) -> list[int]:
        """The children of a process whose command line holds a word."""
        return [child for child, command in children(pid).items() if word in command]

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a part's process."""
        pids = self.pids(name)
        assert pids, f"{name} does not run"
        for pid in pids:
            os.kill(pid, number)

    def ready(self) -> bool:
        """Whether `/readyz` answers 200."""
        try:
            with self.client() as client:
                return client.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def until_ready(self, seconds: float = PATIENCE) -> None:
        """Waits until `/readyz` answers 200."""
        until(self.ready, seconds, "the product is not ready")


def children(pid: int) -> dict[int, str]:
    """The command lines of a process's children."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            command = (stat.parent / "cmdline").read_bytes().decode()
        except (OSError, IndexError, ValueError):
            continue
        if parent == pid:
            found[int(stat.parent.name)] = command
    return found


def _is_part(name: str, words: list[str]) -> bool:
    program = Path(words[0]).name if words else ""
    programs = {"postgres": "postgres", "nats": "nats-server", "gateway": "envoy"}
    if name in programs:
        return program.startswith(programs[name])
    return f"services.{name}" in words


def until(condition: Any, seconds: float, otherwise: str, pause: float = 0.05) -> Any:
    """Polls until `condition()` is true and answers what it was.

    Raises:
        AssertionError: with `otherwise`, when it is not within `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(otherwise)
        time.sleep(pause)


# Below those that kernels hand out for outgoing connections, and beside those that launchers pick.
# Each worker has a part of its own, and names no port twice.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
_FIRST = 10_000 + 2_000 * _WORKER
_PORTS = iter(random.SystemRandom().sample(range(_FIRST, _FIRST + 2_000), 2_000))


def free_port() -> int:
    """A port that nobody uses now, nor is given by chance before a test uses it."""
    return next(port for port in _PORTS if is_free(port, "0.0.0.0"))


def attached(bootstrap: Path) -> Stack:
    """A product that runs already; tests that look into its processes or its home cannot use it."""
    facts = json.loads(bootstrap.read_text())
    port = httpx.URL(facts["url"]).port or 443
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    return Stack(bootstrap.parent, port, nobody, facts)


@contextmanager
def running(
    home: Path, *, program: tuple[str, ...] = ("-m", "cli.main"), **environment: str
) -> Iterator[Stack]:
    """Starts the product in a directory; stops it as Ctrl-C does and checks that it did stop."""
    port = int(environment.pop("EVERGREEN_PORT", "0")) or free_port()
    output = home.parent / f"{home.name}.out"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *program, "up"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "EVERGREEN_HOME": str(home),
                "EVERGREEN_PORT": str(port),
                "EVERGREEN_EVENTS_LISTEN": f"127.0.0.1:{free_port()}",
                **environment,
            },
        )
    try:
        bootstrap = home / "bootstrap.json"

        def started() -> bool:
            assert process.poll() is None, output.read_text(errors="replace")
            return bootstrap.exists() and b"curl" in output.read_bytes()

        try:
            until(started, _START_SECONDS, "the product did not start")
        except AssertionError:
            sys.stderr.write(output.read_text(errors="replace"))
            raise
        yield Stack(home, port, process, json.loads(bootstrap.read_text()))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
