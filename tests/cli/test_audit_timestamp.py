"""`evergreen audit timestamp` against OpenSSL as the authority, and checked by OpenSSL."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.audit import app

_CONFIG = """
[req]
distinguished_name = name
prompt = no
x509_extensions = tsa
[name]
CN = Timestamps
[tsa]
basicConstraints = critical,CA:true
extendedKeyUsage = critical,timeStamping
[ts]
serial = {directory}/serial
signer_cert = {directory}/tsa.pem
signer_key = {directory}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
ess_cert_id_chain = no
"""


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout + done.stderr


class Authority:
    """Stamps what it is sent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate = directory / "tsa.pem"
        self._config = directory / "tsa.cnf"
        self._config.write_text(_CONFIG.format(directory=directory))
        (directory / "serial").write_text("01\n")
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-config", self._config, "-keyout", directory / "tsa.key", "-out", self.certificate),
        )

    def stamp(self, query: bytes) -> bytes:
        (self.directory / "query").write_bytes(query)
        reply = self.directory / "reply"
        openssl(
            *("ts", "-reply", "-config", self._config, "-section", "ts"),
            *("-queryfile", self.directory / "query", "-out", reply),
        )
        return reply.read_bytes()


@contextmanager
def answering(answer: Callable[[bytes], tuple[int, bytes]]) -> Iterator[str]:
    """An HTTP server; answers its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/timestamp-query"
            status, content = answer(body)
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tsa"))


def test_a_checkpoint_is_stamped(authority: Authority, tmp_path: Path) -> None:
    """As OpenSSL says, who has the authority's certificate; another file is not."""
    file = tmp_path / "tree.checkpoint"
    file.write_text("school.example/audit/0000aaaa\n3\n…\n")
    with answering(lambda query: (200, authority.stamp(query))) as url:
        done = CliRunner().invoke(app, ["timestamp", str(file), "--authority", url])
    assert done.exit_code == 0, done.output
    reply = tmp_path / "tree.checkpoint.tsr"
    check = ("ts", "-verify", "-in", reply, "-CAfile", authority.certificate, "-data")
    assert "Verification: OK" in openssl(*check, file)
    other = tmp_path / "other"
    other.write_text("x")
    assert "Verification: FAILED" in openssl(*check, other)


def test_what_is_no_timestamp_is_told(authority: Authority, tmp_path: Path) -> None:
    """And nothing is written: a refusal, another file's, an old one, nothing at all."""
    file = tmp_path / "checkpoint"
    file.write_text("x")
    old: list[bytes] = []

    def replay(query: bytes) -> tuple[int, bytes]:
        old.append(authority.stamp(query))
        return 200, old[0]

    def invoke(url: str) -> str:
        done = CliRunner().invoke(app, ["timestamp", str(file), "--authority", url])
        return f"{done.exit_code} {done.output}"

    with answering(replay) as url:
        assert invoke(url).startswith("0")
        (tmp_path / "checkpoint.tsr").unlink()
        assert "gave a timestamp of something else" in invoke(url)
        file.write_text("y")
        assert "gave a timestamp of something else" in invoke(url)
    for status, content, said in (
        (500, b"", "answered 500"),
        (200, b"", "gave no timestamp"),
        (200, bytes.fromhex("30053003020102"), "gave no timestamp"),
        (200, b"<html>", "gave no timestamp"),
    ):
        with answering(lambda _, s=status, c=content: (s, c)) as url:  # type: ignore[misc]
            assert said in invoke(url)
    assert "cannot be reached" in invoke("http://127.0.0.1:1/")
    assert "cannot be reached" in invoke("nonsense")
    assert not (tmp_path / "checkpoint.tsr").exists()
