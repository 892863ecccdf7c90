"""`evergreen doctor` finds what is planted, names it, and says what to do."""

from __future__ import annotations

import asyncio
import datetime
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cli.doctor import database as postgres
from cli.doctor import installation, machine, messaging, public
from cli.doctor.database import Login
from cli.doctor.finding import Finding, Severity
from cli.doctor.messaging import Server
from cli.doctor.public import Public
from cli.errors import CliError
from deploy.launcher.home import password
from deploy.launcher.postgres import MIGRATOR_SECRET, SUPERUSER, SUPERUSER_SECRET
from deploy.postgres import roles
from servicekit.access import CONTEXTS
from servicekit.ids import now
from servicekit.portal import H_HOPS
from tests.servers import Servers, TestDatabase
from tests.stack import PATIENCE, free_port, until

DAY = datetime.timedelta(days=1)


def codes(found: Any) -> list[str]:
    found = list(found)
    assert all(finding.what and finding.fix for finding in found)
    return [finding.code for finding in found]


async def of(found: AsyncIterator[Finding]) -> list[str]:
    return codes([finding async for finding in found])


# The machine


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    class Usage(NamedTuple):
        total: int
        free: int

    def check(total: int, free: int) -> list[Finding]:
        return list(machine.disk(tmp_path, lambda _: Usage(total << 30, free << 30)))

    (full,) = check(100, 3)
    assert (full.code, full.severity) == ("DISK_FULL", Severity.ERROR)
    (nearly,) = check(100, 12)
    assert (nearly.code, nearly.severity) == ("DISK_NEARLY_FULL", Severity.WARNING)
    assert check(100, 40) == []
    # A twentieth of a large disk is still much.
    assert codes(check(2000, 160)) == []
    assert codes(machine.disk(tmp_path / "missing")) == ["DISK_UNREADABLE"]


def test_a_port_that_another_program_has() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        (found,) = machine.port(taken.getsockname()[1])
        assert found.code == "PORT_IN_USE"
        assert f"process {os.getpid()}" in found.what
    assert list(machine.port(free_port())) == []


# The public address


class Authority:
    """A CA for tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("Test CA", self.key, "ca", now() - DAY, now() + 9 * DAY)
        self.file = directory / "ca.crt"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        host: str,
        begins: datetime.datetime,
        ends: datetime.datetime,
    ) -> x509.Certificate:
        own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = own if host == "ca" else self.certificate.subject
        builder = (
            x509.CertificateBuilder()
            .subject_name(own)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=host == "ca", path_length=None), critical=True)
        )
        if host != "ca":
            names = x509.SubjectAlternativeName([x509.DNSName(host)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def context(self, host: str = "localhost", begins: int = -1, ends: int = 100) -> ssl.SSLContext:
        """A server's certificate, valid between so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._sign("Test", key, host, now() + begins * DAY, now() + ends * DAY)
        chain, secret = self.directory / "server.crt", self.directory / "server.key"
        chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, secret)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@contextmanager
def serving(
    context: ssl.SSLContext, pages: dict[str, Any], hops: str = "1", status: int = 200
) -> Iterator[str]:
    """An HTTP/1.1 server, as a proxy that knows nothing newer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(pages.get(self.path, {})).encode()
            self.send_response(status if self.path == "/readyz" else 200)
            self.send_header("content-length", str(len(body)))
            self.send_header(H_HOPS, hops)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


EVERGREEN: dict[str, Any] = {"/.well-known/jwks.json": {"keys": []}}


@pytest.mark.parametrize(
    "url", ["", "evergreen.school.example", "http://x.example", "https://x.example/app", "https://"]
)
def test_an_address_that_is_none(url: str) -> None:
    assert codes(public.check(Public(url))) == ["PUBLIC_URL_MALFORMED"]


def test_an_address_that_leads_nowhere() -> None:
    assert codes(public.check(Public("https://nowhere.invalid"))) == ["PUBLIC_URL_UNKNOWN_HOST"]
    address = f"https://localhost:{free_port()}"
    assert codes(public.check(Public(address))) == ["PUBLIC_URL_UNREACHABLE"]


def test_an_address_that_leads_to_another_server(authority: Authority) -> None:
    with serving(authority.context(), {}) as url:
        found = codes(public.check(Public(url, authority.file)))
    assert found == ["PUBLIC_URL_WRONG_SERVER"]


@pytest.mark.parametrize(
    ("certificate", "code"),
    [
        ({"begins": -30, "ends": -1}, "CERTIFICATE_EXPIRED"),
        ({"begins": 2}, "CERTIFICATE_NOT_YET_VALID"),
        ({"host": "other.example"}, "CERTIFICATE_WRONG_NAME"),
    ],
)
def test_certificates_that_devices_refuse(
    authority: Authority, certificate: dict[str, Any], code: str
) -> None:
    with serving(authority.context(**certificate), EVERGREEN) as url:
        assert codes(public.check(Public(url, authority.file))) == [code]


def test_a_certificate_of_an_unknown_authority(authority: Authority) -> None:
    with serving(authority.context(), EVERGREEN) as url:
        assert codes(public.check(Public(url))) == ["CERTIFICATE_UNTRUSTED"]
    missing = Public(url, authority.directory / "missing")
    assert codes(public.certificate(missing)) == ["CA_FILE_UNREADABLE"]


def test_a_certificate_that_ends_soon_is_a_warning(authority: Authority) -> None:
    with serving(authority.context(ends=5), EVERGREEN) as url:
        (found,) = public.certificate(Public(url, authority.file))
    assert (found.code, found.severity) == ("CERTIFICATE_EXPIRES_SOON", Severity.WARNING)


def test_no_tls_at_all() -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.handle_request, daemon=True)
    thread.start()
    url = f"https://localhost:{server.server_address[1]}"
    assert codes(public.certificate(Public(url))) == ["NOT_TLS"]
    thread.join(PATIENCE)
    server.server_close()


def test_what_a_proxy_does_not_pass_on(authority: Authority) -> None:
    """HTTP/2, and for whom it asks; a clock that differs shows in the answers as well."""
    with serving(authority.context(), EVERGREEN, hops="1") as url:
        found = codes(
            public.check(
                Public(url, authority.file, trusted_proxies=1),
                lambda: now() + datetime.timedelta(minutes=5),
            )
        )
    assert found == ["CLOCK_SKEW", "PROXY_HEADERS_MISSING", "HTTP2_NOT_PASSED"]


def test_an_address_that_leads_elsewhere_from_here(authority: Authority) -> None:
    """As from the operator's container: by another way, and still with the public name."""
    with serving(authority.context("evergreen.example"), EVERGREEN, hops="1") as url:
        there = url.removeprefix("https://").replace("localhost", "127.0.0.1")
        named = Public("https://evergreen.example", authority.file, 1, connect=there)
        assert codes(public.check(named)) == ["HTTP2_NOT_PASSED"]
        other = Public("https://other.example", authority.file, connect=there)
        assert codes(public.check(other)) == ["CERTIFICATE_WRONG_NAME"]


def test_a_product_that_is_not_ready(authority: Authority) -> None:
    pages = EVERGREEN | {"/readyz": {"message": "not ready: policy"}}
    with serving(authority.context(), pages, status=503) as url:
        found = list(public.answers(Public(url, authority.file)))
    assert found[0].code == "NOT_READY"
    assert "policy" in found[0].what


# PostgreSQL


def login(database: TestDatabase, role: str, secret: str, context: str = "") -> Login:
    return Login(
        database.servers.postgres.dsn(role, database.name),
        database.servers.home.secret(secret, password),
        context,
    )


def owner(database: TestDatabase) -> Login:
    return login(database, roles.MIGRATOR, MIGRATOR_SECRET)


def service(database: TestDatabase, context: str = "policy") -> Login:
    return login(database, roles.service_role(context), f"postgres_{context}", context)


async def test_a_healthy_database(database: TestDatabase) -> None:
    assert await of(database_check(owner(database))) == []
    assert await of(database_check(service(database))) == []


def database_check(
    login: Login, clock: Callable[[], datetime.datetime] = now
) -> AsyncIterator[Finding]:
    return postgres.check(login, clock)


async def test_a_database_that_is_away_or_refuses(database: TestDatabase, tmp_path: Path) -> None:
    away = Login(f"postgresql://x@/evergreen?host={tmp_path}", None)
    assert await of(database_check(away)) == ["DATABASE_UNREACHABLE"]
    wrong = Login(owner(database).dsn, "wrong")
    assert await of(database_check(wrong)) == ["DATABASE_LOGIN_REFUSED"]


async def test_a_database_that_is_too_old(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old(NamedTuple):
        major: int

    monkeypatch.setattr(asyncpg.Connection, "get_server_version", lambda _: Old(13))
    assert await of(database_check(owner(database))) == ["DATABASE_TOO_OLD"]


async def test_wrong_roles(database: TestDatabase) -> None:
    """Each role does its own work only, and the superuser none."""
    superuser = login(database, SUPERUSER, SUPERUSER_SECRET)
    assert await of(database_check(superuser)) == ["DATABASE_WRONG_ROLE"]
    for role, secret in ((SUPERUSER, SUPERUSER_SECRET), (roles.MIGRATOR, MIGRATOR_SECRET)):
        found = await of(database_check(login(database, role, secret, "policy")))
        assert found == ["DATABASE_WRONG_ROLE"]
    other = login(database, roles.service_role("audit"), "postgres_audit", "policy")
    assert await of(database_check(other)) == ["DATABASE_WRONG_ROLE"]


async def test_a_schema_that_is_behind_or_ahead(database: TestDatabase) -> None:
    connection = await database.superuser()
    try:
        await connection.execute(
            "DELETE FROM evergreen.schema_migrations WHERE schema_name = 'audit' AND version > 1"
        )
        assert await of(database_check(owner(database))) == ["SCHEMA_BEHIND"]
        await connection.execute(
            "INSERT INTO evergreen.schema_migrations (schema_name, version, name, checksum)"
            " VALUES ('audit', 999, 'x', 'x')"
        )
    finally:
        await connection.close()
    assert await of(database_check(owner(database))) == ["SCHEMA_AHEAD"]


async def test_a_clock_that_differs_from_the_database(database: TestDatabase) -> None:
    found = await of(database_check(owner(database), lambda: now() - datetime.timedelta(minutes=3)))
    assert found == ["CLOCK_SKEW"]


async def test_a_database_that_forgets(database: TestDatabase) -> None:
    connection = await database.superuser()
    try:
        await connection.execute(
            f"ALTER ROLE {roles.MIGRATOR} IN DATABASE {database.name} SET synchronous_commit = off"
        )
    finally:
        await connection.close()
    assert await of(database_check(owner(database))) == ["DATABASE_NOT_DURABLE"]


async def test_a_database_without_an_extension(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "EXTENSION", "pg_none")
    assert await of(database_check(owner(database))) == ["DATABASE_LACKS_EXTENSION"]


# NATS


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
        found = await of(messaging.check(server))
    assert set(found) == {"NATS_WITHOUT_JETSTREAM"}


async def test_a_nats_that_acknowledges_too_early(tmp_path: Path) -> None:
    with nats_server(tmp_path, "-js", "-sd", str(tmp_path / "store")) as server:
        assert await of(messaging.check(server)) == ["NATS_SYNC_INTERVAL"]


async def test_a_nats_that_is_away(servers: Servers) -> None:
    away = Server(f"nats://127.0.0.1:{free_port()}", monitor=f"http://127.0.0.1:{free_port()}")
    assert await of(messaging.check(away)) == ["NATS_UNREACHABLE", "NATS_MONITOR_UNREACHABLE"]
    found = await of(messaging.check(Server(servers.nats_url, "audit", "wrong")))
    assert found == ["NATS_LOGIN_REFUSED", "NATS_MONITOR_UNKNOWN"]


async def test_a_healthy_nats(servers: Servers) -> None:
    secret = servers.home.secret("nats_audit", password)
    monitor = f"http://127.0.0.1:{servers.ports['nats_monitor']}"
    server = Server(servers.nats_url, "audit", secret, monitor)
    assert await asyncio.wait_for(of(messaging.check(server)), PATIENCE) == []


# What is looked at


def test_settings_of_containers(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    given = {
        "PUBLIC_URL": "https://x.example",
        "TRUSTED_PROXIES": "1",
        "EVERGREEN_CONNECT": "gateway:8443",
        "EVERGREEN_MIGRATE_DATABASE_URL": "postgresql://m@db/evergreen",
        "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(secret),
        "EVERGREEN_NATS_URL": "nats://nats:4222",
    }
    found = installation.given(given, None)
    assert found.public == Public("https://x.example", None, 1)
    assert found.databases == (Login("postgresql://m@db/evergreen", "s3cret"),)
    assert found.nats == Server("nats://nats:4222")
    bad = {"PUBLIC_URL": "https://x.example", "TRUSTED_PROXIES": "yes"}
    with pytest.raises(CliError, match="TRUSTED_PROXIES"):
        installation.given(bad, None)
    with pytest.raises(CliError, match="no installation"):
        installation.of_home(tmp_path)


def test_settings_of_the_operators_container(tmp_path: Path) -> None:
    """It has the passwords of all roles; `localhost` is another machine than the container."""
    secrets, own = tmp_path / "secrets", tmp_path / "tls" / "ca.crt"
    secrets.mkdir()
    own.parent.mkdir()
    own.touch()
    for context in CONTEXTS:
        (secrets / f"postgres_{context}").write_text(f"of {context}\n")
    given = {
        "PUBLIC_URL": "https://localhost:8443",
        "EVERGREEN_HOME": str(tmp_path),
        "EVERGREEN_CONNECT": "gateway:8443",
        "EVERGREEN_ROLE_SECRETS": str(secrets),
        "EVERGREEN_MIGRATE_DATABASE_URL": "postgresql://m@db:5432/evergreen?sslmode=verify-full",
        "EVERGREEN_NATS_URL": "tls://nats:4222",
        "EVERGREEN_NATS_CA_FILE": str(own),
    }
    found = installation.given(given, None)
    assert found.public == Public("https://localhost:8443", own, connect="gateway:8443")
    assert found.nats == Server("tls://nats:4222", ca_file=own)
    services = {login.context: (login.dsn, login.password) for login in found.databases}
    dsn = "postgresql://evergreen_policy@db:5432/evergreen?sslmode=verify-full"
    assert set(services) == {"", *CONTEXTS}
    assert services["policy"] == (dsn, "of policy")
    # Behind a proxy the certificate that devices see is not of the own CA.
    assert installation.given(given | {"TRUSTED_PROXIES": "1"}, None).public.ca_file is None
