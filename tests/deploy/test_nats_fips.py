"""NATS in FIPS mode: what its TLS agrees to, and why Go's own FIPS mode is not used."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.contexts import CONTEXTS
from deploy import nats
from deploy.certificates import Authority
from deploy.launcher.nats import binary
from servicekit.security import mode, nkey
from servicekit.security.tls import Tls
from tests.support.stack import PATIENCE, free_port, until


def _command(directory: Path, port: int, tls: Tls) -> list[str]:
    """The server with all that an installation's has."""
    passwords = dict.fromkeys((*CONTEXTS, nats.GATEKEEPER, nats.OPERATOR), "a password")
    issuer = nkey.public_key(nkey.new_seed())
    configuration = directory / "nats.conf"
    configuration.write_text(
        nats.render(port, free_port(), directory / "store", passwords, tls=tls, issuer=issuer)
    )
    return [str(binary()), "--config", str(configuration)]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    directory = tmp_path_factory.mktemp("nats")
    return Authority.ensure_in(directory / "ca").ensure(directory, "localhost")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, tls: Tls) -> Iterator[int]:
    """A server whose configuration was written in FIPS mode."""
    found = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mode, "_required", True)
        command = _command(tmp_path_factory.mktemp("server"), found, tls)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(found), PATIENCE, "NATS does not start")
        yield found
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except OSError:
        return False
    return True


def _agreed(port: int, tls: Tls, *, ciphers: str = "", curve: str = "") -> str:
    """The cipher that a client gets, which wants some things alone."""
    context = ssl.create_default_context(cafile=tls.ca_file)
    if ciphers:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)
    if curve:
        context.set_ecdh_curve(curve)
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as plain:
        while not plain.recv(65536).endswith(b"\n"):
            pass
        with context.wrap_socket(plain, server_hostname="localhost") as secured:
            found = secured.cipher()
    assert found is not None
    return found[0]


def test_tls_is_of_approved_algorithms(port: int, tls: Tls) -> None:
    """No curve that is not NIST's, and no ChaCha20 in TLS 1.2."""
    assert _agreed(port, tls).startswith("TLS_AES_")
    assert _agreed(port, tls, curve="prime256v1")
    assert "-AES" in _agreed(port, tls, ciphers="ECDHE+AESGCM")
    for refused in ({"curve": "X25519"}, {"ciphers": "ECDHE+CHACHA20"}):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _agreed(port, tls, **refused)


def test_go_s_fips_mode_would_lock_integrators_out(tmp_path: Path, tls: Tls) -> None:
    """The server does not start with it where identity judges who connects."""
    done = subprocess.run(
        _command(tmp_path, free_port(), tls),
        env={**os.environ, "GODEBUG": "fips140=on"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert "'auth_callout' cannot be configured in FIPS-140 mode" in done.stderr
