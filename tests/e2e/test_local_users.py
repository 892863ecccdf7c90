"""Another user of the machine that runs the product."""

from __future__ import annotations

import http.client
import stat
import urllib.error
import urllib.request

import psutil
import pytest

from tests.support.stack import Stack


def _listening(stack: Stack, part: str) -> set[int]:
    return {
        connection.laddr.port
        for pid in stack.pids(part)
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def test_the_gateways_administration_is_nobodys_but_the_owners(stack: Stack) -> None:
    """It stops the gateway and has it log tokens: over a socket in a private directory alone."""
    assert _listening(stack, "gateway") == {stack.port}
    (socket,) = (
        str(connection.laddr)
        for connection in psutil.Process(stack.pids("gateway")[0]).net_connections("unix")
        if "gateway.admin" in str(connection.laddr)
    )
    directory = (stack.home / "run").stat() if socket.startswith(str(stack.home)) else None
    if directory is not None:
        assert stat.S_IMODE(directory.st_mode) == 0o700


def test_the_database_has_no_port(stack: Stack) -> None:
    """Services reach it over its socket."""
    assert _listening(stack, "postgres") == set()


@pytest.mark.parametrize("part", ["identity", "policy", "telemetry", "nats"])
def test_other_ports_only_tell_how_it_is(stack: Stack, part: str) -> None:
    """Health and counters, which anybody may read; nothing that does something."""
    for port in _listening(stack, part):
        for path in ("/", "/metrics", "/readyz", "/healthz", "/varz"):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}{path}", method="POST", data=b"{}"
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    assert part == "nats", answer.read()
            except urllib.error.HTTPError as error:
                assert error.code in {404, 405, 501}
            except (OSError, http.client.HTTPException):
                assert part == "nats"  # the port of clients
