"""`evergreen doctor` in FIPS mode: what Envoy, NATS and PostgreSQL take, and what they say."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from cli.doctor import examine, fips, installation, tls_offers
from cli.doctor.finding import Check, findings
from cli.doctor.messaging import Server
from cli.doctor.public import Public
from deploy import certificates, nats
from deploy.postgres import settings
from deploy.private_files import private_directory
from servicekit.security import mode
from servicekit.security.tls import Tls
from tests.gateway.harness import Gateway, running_gateway
from tests.support import backups
from tests.support.servers import TestDatabase
from tests.support.stack import PATIENCE, free_port, until


def codes(check: Check) -> list[str]:
    return [finding.code for finding in findings([check])]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    place = tmp_path_factory.mktemp("tls")
    authority = certificates.Authority.ensure_in(place / "ca")
    return authority.ensure(private_directory(place / "own"), "localhost", "127.0.0.1")


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    """A server of TLS that Python makes, until it is left; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("versions", "ciphers", "curve", "expected"),
    [
        (None, None, None, {"ChaCha20-Poly1305 in TLS 1.2", "ChaCha20-Poly1305 in TLS 1.3",
                            "X25519 in TLS 1.3"}),
        (None, "ECDHE+AESGCM", "prime256v1", {"ChaCha20-Poly1305 in TLS 1.3"}),
        (ssl.TLSVersion.TLSv1_2, None, "prime256v1", {"ChaCha20-Poly1305 in TLS 1.2"}),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM", "prime256v1", set()),
    ],
    ids=["everything", "ChaCha20 in 1.3", "ChaCha20 in 1.2", "approved alone"],
)  # fmt: skip
def test_each_offer_is_told_apart(
    files: Tls,
    versions: ssl.TLSVersion | None,
    ciphers: str | None,
    curve: str | None,
    expected: set[str],
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate_file, files.key_file)
    if versions is not None:
        context.maximum_version = versions
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if curve is not None:
        context.set_ecdh_curve(curve)
    with serving(context) as port:
        found = tls_offers.taken("127.0.0.1", port, "localhost")
    assert set(found.others) == expected
    assert found.approved == (("1.2",) if versions else ("1.2", "1.3"))


def test_refusals_alone_prove_nothing() -> None:
    """A server that takes nothing at all is not one that keeps to approved algorithms."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def close() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        thread = threading.Thread(target=close, daemon=True)
        thread.start()
        with pytest.raises(tls_offers.NotTlsError, match="takes no TLS"):
            tls_offers.taken("127.0.0.1", port)
        thread.join()
    with pytest.raises(tls_offers.NotTlsError, match="does not answer"):
        tls_offers.taken("127.0.0.1", port)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway() -> AsyncIterator[Gateway]:
    """One whose configuration was written in FIPS mode; Envoy itself is the usual one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mode, "_required", True)
        async with running_gateway(metrics=f"127.0.0.1:{free_port()}") as found:
            patch.undo()
            yield found


async def test_the_gateway_is_held_to_approved_algorithms(gateway: Gateway) -> None:
    """Its build is not one for FIPS, which is said."""
    public = Public(gateway.url)
    check = await fips.gateway(public, admin=Path(gateway.settings.admin.removeprefix("unix:")))
    assert codes(check) == ["GATEWAY_MODULE_NOT_VALIDATED"]
    (found,) = findings([check])
    assert found.what.endswith("BoringSSL: approved algorithms, module not validated")
    # In containers its administration is out of reach, and its metrics tell.
    check = await fips.gateway(public, monitor=f"http://{gateway.settings.metrics}")
    (found,) = findings([check])
    assert found.what == "Envoy with BoringSSL: approved algorithms, module not validated"
    check = await fips.gateway(public)
    assert codes(check) == []
    assert check.seen.startswith("Envoy, whose build nobody was asked for; TLS 1.2 and 1.3 with")


async def test_a_gateway_of_before_is_not() -> None:
    async with running_gateway() as found:
        check = await fips.gateway(Public(found.url))
    assert "GATEWAY_TLS_NOT_APPROVED" in codes(check)
    (finding,) = (one for one in findings([check]) if one.code == "GATEWAY_TLS_NOT_APPROVED")
    assert "ChaCha20-Poly1305 in TLS 1.3" in finding.what


@contextmanager
def nats_server(directory: Path, files: Tls) -> Iterator[Server]:
    """A NATS with TLS, until it is left."""
    port, monitor = free_port(), free_port()
    text = nats.render(port, monitor, directory / "store", {"audit": "secret"}, tls=files)
    (directory / "nats.conf").write_text(text)
    program = str(Path(sys.executable).with_name("nats-server"))
    process = subprocess.Popen(
        [program, "--config", str(directory / "nats.conf")],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Server(
            f"tls://localhost:{port}", monitor=f"http://127.0.0.1:{monitor}", ca_file=files.ca_file
        )
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize(
    ("required", "expected"),
    [(False, ["NATS_TLS_NOT_APPROVED"]), (True, [])],
    ids=["usual", "fips"],
)
async def test_nats_says_its_build(
    tmp_path: Path,
    files: Tls,
    required: bool,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And keeps to approved algorithms as far as its configuration can say it."""
    monkeypatch.setattr(mode, "_required", required)
    with nats_server(tmp_path, files) as server:
        port = int(server.url.rpartition(":")[2])

        def listens() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                return False
            return True

        await asyncio.to_thread(until, listens, PATIENCE, "NATS does not listen")
        check = await fips.nats(server)
    assert codes(check) == expected
    if not expected:
        assert "nats-server 2." in check.seen
        assert "by go1." in check.seen
        assert "ChaCha20-Poly1305 in TLS 1.3 for who has nothing else" in check.seen
        assert check.seen.endswith(fips.NOT_VALIDATED)


async def test_postgresql_is_asked_for_md5(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the tests has an OpenSSL without FIPS mode."""
    target = backups.target(database)
    check = await fips.database(installation.Login(target.dsn, target.password))
    assert codes(check) == ["DATABASE_MODULE_NOT_VALIDATED"]
    # That one knows the settings by which the product's own keeps to approved algorithms.
    monkeypatch.setattr(mode, "_required", True)
    wanted = settings.approved_tls()
    connection = await database.superuser()
    try:
        known = await connection.fetch(
            "SELECT name FROM pg_settings WHERE name = ANY ($1)", list(wanted)
        )
    finally:
        await connection.close()
    assert {row["name"] for row in known} == wanted.keys()
    gone = await fips.database(installation.Login("postgresql://a@/b?host=/nowhere", None))
    assert gone.status == "skipped"


async def test_nobody_who_does_not_want_it_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    place = installation.Installation(Public("https://localhost:1"))
    names = {check.name for check in await examine.examine(place)}
    assert not names & set(fips.NAMES)
    monkeypatch.setattr(mode, "_required", True)
    names = {check.name for check in await examine.examine(place)}
    assert names >= set(fips.NAMES)
