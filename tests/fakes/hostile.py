"""A directory, a provider and a mail server that hang, drip, cut or flood.

They have a process of their own: the one that measures beside them does none of their work.

    with hostile.running(directory) as servers:
        servers.lie("drip")
"""

from __future__ import annotations

import multiprocessing
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from tests.fakes import ldap, oidc

Lie: TypeAlias = Literal["hang", "drip", "cut", "flood"]
LIES: Final[tuple[Lie, ...]] = get_args(Lie)
_START_SECONDS: Final = 30.0


@dataclass
class Servers:
    """Where they are, and what they do."""

    ldaps: str
    ldap_allowed: str
    ldap_ca_pem: str
    issuer: str
    smtp_port: int
    _pipe: Connection

    def lie(self, how: Lie | Literal[""]) -> None:
        """Lets all of them do so from now on, or work; open connections end as they began."""
        self._pipe.send(how)
        assert self._pipe.recv() == how

    def asked(self) -> dict[str, int]:
        """How often each was connected to, or asked."""
        self._pipe.send("asked")
        found: dict[str, int] = self._pipe.recv()
        return found


@contextmanager
def running(directory: Path, ldaps_port: int = 0, smtp_port: int = 0) -> Iterator[Servers]:
    """Runs the three, the directory and the mail server on given ports or on their own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(
        target=_serve, args=(directory, there, ldaps_port, smtp_port), daemon=True
    )
    process.start()
    there.close()
    try:
        assert here.poll(_START_SECONDS), "the servers do not start"
        ldaps, allowed, ca_pem, issuer, smtp_port = here.recv()
        yield Servers(ldaps, allowed, ca_pem, issuer, smtp_port, here)
    finally:
        here.close()
        process.join(10)
        process.kill()
        process.join()


def _serve(directory: Path, pipe: Connection, ldaps_port: int, smtp_port: int) -> None:
    with (
        ldap.running(directory, ldaps_port) as found,
        oidc.running() as provider,
        _mail(smtp_port) as mail,
        suppress(EOFError),
    ):
        pipe.send((found.ldaps, found.allowed, found.ca_pem, provider.issuer, mail.port))
        while True:
            said = pipe.recv()
            if said == "asked":
                pipe.send(
                    {
                        "directory": found.connections,
                        "provider": len(provider.asked),
                        "mail": mail.connections,
                    }
                )
                continue
            found.lie = provider.lie = mail.lie = said
            pipe.send(said)


class _Mail:
    """A mail server that never takes a mail."""

    def __init__(self, port: int) -> None:
        self.lie = ""
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self.lie == "hang":
                self._ended.wait(60)
            elif self.lie == "drip":
                while not self._ended.wait(0.2):
                    client.sendall(b"2")
            elif self.lie == "flood":
                while not self._ended.is_set():
                    client.sendall(b"220-" + b"x" * 900 + b"\r\n")
            elif not self.lie:
                client.sendall(b"421 later\r\n")


@contextmanager
def _mail(port: int) -> Iterator[_Mail]:
    found = _Mail(port)
    try:
        yield found
    finally:
        found.close()
