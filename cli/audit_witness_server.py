"""The server of `evergreen audit witness` (c2sp.org/tlog-witness), with its one table."""

from __future__ import annotations

import os
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

from auditlog.keys import CheckpointKey
from auditlog.notes import NoteError, TreeCheckpoint
from auditlog.tree import ProofError, check_consistency
from auditlog.witnesses import SIZE_TYPE, Request, WitnessKey
from cli.errors import CliError

_MOST_BYTES: Final = 16 << 10
_SECONDS: Final = 10.0
"""For a whole exchange."""
_AT_ONCE: Final = 32
_SEED_BYTES: Final = 32
_PATH: Final = "/add-checkpoint"
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS tree"
    " (origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL) STRICT"
)


def private_key(path: Path) -> bytes:
    """The seed in a file, which is made when it is not there.

    Raises:
        CliError: it cannot be read or made, or holds something else.
    """
    try:
        if not path.exists():
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(made, "w") as file:
                file.write(f"{secrets.token_hex(_SEED_BYTES)}\n")
                file.flush()
                os.fsync(file.fileno())
        seed = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise CliError(f"{path} is no key of a witness: {error}") from error
    if len(seed) != _SEED_BYTES:
        raise CliError(f"{path} is no key of a witness: it must have {_SEED_BYTES} bytes, in hex")
    return seed


class RefusedError(Exception):
    """Why a checkpoint is not signed."""

    def __init__(self, status: HTTPStatus, text: str, media: str = "text/plain") -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.media = media


class Memory:
    """The last tree of each log that was signed. What is signed is on the disk before.

    Args:
        connection: of a database of SQLite.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a file, or makes it.

        Raises:
            CliError: it is no such file.
        """
        try:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(_TABLE)
        except sqlite3.Error as error:
            raise CliError(f"{path} is no memory of a witness: {error}") from error
        return cls(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def take(self, asked: Request) -> None:
        """Remembers a tree in the place of the one before, which it holds.

        Raises:
            RefusedError: it does not, or another one was there before.
        """
        origin, size, root = asked.checkpoint.origin, asked.checkpoint.size, asked.checkpoint.root
        with self._lock, closing(self._connection.cursor()) as cursor:
            # Of two processes with one file, too, one is first.
            cursor.execute("BEGIN IMMEDIATE")
            try:
                row = cursor.execute(
                    "SELECT size, root FROM tree WHERE origin = ?", (origin,)
                ).fetchone()
                known, known_root = row or (0, b"")
                if known != asked.old:
                    raise RefusedError(HTTPStatus.CONFLICT, f"{known}\n", SIZE_TYPE)
                if known:
                    check_consistency(known, known_root, size, root, asked.hashes)
                elif asked.hashes:
                    raise ProofError("nothing was known, and there is a proof")
                cursor.execute(
                    "INSERT INTO tree VALUES (?, ?, ?) ON CONFLICT (origin)"
                    " DO UPDATE SET size = excluded.size, root = excluded.root",
                    (origin, size, root),
                )
                cursor.execute("COMMIT")
            except ProofError as wrong:
                raise RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{wrong}\n") from wrong
            finally:
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")


@dataclass(frozen=True, slots=True)
class Witness:
    """What answers a request."""

    key: WitnessKey
    logs: Mapping[str, Sequence[CheckpointKey]]
    memory: Memory
    clock: Callable[[], float] = time.time

    def add(self, body: str) -> str:
        """The signature under a checkpoint.

        Raises:
            RefusedError: it is not signed.
        """
        try:
            asked = Request.read(body)
        except NoteError as wrong:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{wrong}\n") from wrong
        checkpoint: TreeCheckpoint = asked.checkpoint
        keys = self.logs.get(checkpoint.origin)
        if keys is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "this log is not known here\n")
        if not checkpoint.signed_by(keys):
            raise RefusedError(HTTPStatus.FORBIDDEN, "no key that is known here signed it\n")
        if asked.old > checkpoint.size:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the tree is smaller than the one before\n")
        self.memory.take(asked)
        return self.key.cosign(checkpoint.text, int(self.clock())).line


class Server(ThreadingHTTPServer):
    """Answers several at a time, and no more."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], witness: Witness) -> None:
        super().__init__(address, Handler)
        self.witness = witness
        self.places = threading.BoundedSemaphore(_AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Has a thread answer, when one is free; else the caller comes again."""
        if not self.places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers, in a thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tells of a defect; a connection that broke is nothing to tell of."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One exchange."""

    server: Server
    timeout = _SECONDS
    server_version = "evergreen"
    sys_version = ""

    def do_POST(self) -> None:
        """Answers what is asked of a witness."""
        try:
            length = self.headers.get("content-length", "")
            if self.path != _PATH:
                raise RefusedError(HTTPStatus.NOT_FOUND, f"ask {_PATH}\n")
            if not length.isdecimal():
                raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed\n")
            if int(length) > _MOST_BYTES:
                raise RefusedError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MOST_BYTES} bytes\n"
                )
            body = self.rfile.read(int(length)).decode("utf-8", "replace")
            self._answer(HTTPStatus.OK, "text/plain", self.server.witness.add(body))
        except RefusedError as refused:
            self._answer(refused.status, refused.media, refused.text)

    def _answer(self, status: HTTPStatus, media: str, text: str) -> None:
        self.send_response(status)
        self.send_header("content-type", media)
        self.send_header("content-length", str(len(text.encode())))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(text.encode())
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing is logged of each request."""


def serve(
    address: tuple[str, int],
    key: WitnessKey,
    logs: Mapping[str, Sequence[CheckpointKey]],
    memory: Memory,
) -> Server:
    """Listens at an address.

    Raises:
        CliError: that cannot be.
    """
    try:
        return Server(address, Witness(key, logs, memory))
    except OSError as error:
        raise CliError(f"{address[0]}:{address[1]}: {error.strerror}") from error
