"""`evergreen doctor` finds what is planted, names it, and says what to do."""

from __future__ import annotations

import asyncio
import base64
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import nats
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cli.backup.catalog import SEALED
from cli.doctor import database as postgres
from cli.doctor import files, former, installation, machine, messaging, passkeys, public, services
from cli.doctor.database import Login
from cli.doctor.examine import examine
from cli.doctor.finding import Check, Finding, Severity, findings
from cli.doctor.messaging import Server
from cli.doctor.public import Public
from cli.errors import CliError
from cli.former_names import callers, lines_of_home
from contract.contexts import CONTEXTS
from deploy import certificates
from deploy.launcher.home import master_key, password
from deploy.launcher.postgres import MIGRATOR_SECRET, SUPERUSER, SUPERUSER_SECRET
from deploy.postgres import roles
from servicekit.call import H_HOPS
from servicekit.data import migrate, rights
from servicekit.ids import now
from servicekit.security import mode
from servicekit.security.sealing import Sealer
from servicekit.security.signing import Signer
from tests.support.mounted import Mounted
from tests.support.servers import Servers, TestDatabase
from tests.support.stack import PATIENCE, free_port, until

DAY = datetime.timedelta(days=1)


def codes(found: Any) -> list[str]:
    found = list(found)
    assert all(finding.what and finding.fix for finding in found)
    return [finding.code for finding in found]


def told(checks: Iterable[Check]) -> list[str]:
    """What was found; each check says what it saw, or why it did not look."""
    checks = list(checks)
    assert all(check.findings or check.seen or check.skipped for check in checks)
    return codes(findings(checks))


def status(checks: Iterable[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


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


def test_a_clock_that_nothing_keeps_right() -> None:
    (found,) = machine.clock(lambda: 5).findings
    assert (found.code, found.severity) == ("CLOCK_NOT_SYNCHRONISED", Severity.WARNING)
    assert machine.clock(lambda: 0).status == "ok"
    assert machine.clock(lambda: None).status == "skipped"


def test_a_process_in_another_time_zone() -> None:
    """As it is told by the processes themselves."""
    # Without a word a process may not have its environment yet.
    command = [sys.executable, "-c", "import time; print('runs', flush=True); time.sleep(600)"]
    west = subprocess.Popen(command, env={"TZ": "America/Bogota"}, stdout=subprocess.PIPE)
    utc = subprocess.Popen(command, env={"TZ": "UTC"}, stdout=subprocess.PIPE)
    try:
        for process in (west, utc):
            assert process.stdout is not None
            assert process.stdout.readline() == b"runs\n"
        zones = list(machine.zones_of([("telemetry", west.pid), ("policy", utc.pid)]))
        (found,) = machine.time_zone(zones).findings
        assert found.code == "TIME_ZONE"
        assert "telemetry (America/Bogota)" in found.what
        assert "policy" not in found.what
        assert machine.time_zone(zones[1:]).status == "ok"
        assert machine.time_zone([]).status == "skipped"
    finally:
        for process in (west, utc):
            process.kill()
            process.communicate()


# The files


def test_secrets_that_others_can_read(tmp_path: Path) -> None:
    secret, other = tmp_path / "secret", tmp_path / "other"
    for path in (secret, other):
        path.touch(0o600)
    assert files.permissions([secret, other]).status == "ok"
    other.chmod(0o640)
    (found,) = files.permissions([secret, other]).findings
    assert found.code == "SECRETS_READABLE"
    assert str(other) in found.what
    assert str(secret) not in found.what
    assert f"chmod go= {other}" in found.fix
    assert files.permissions([tmp_path / "missing"]).status == "skipped"


def test_the_directories_of_a_mounted_secret_are_no_secrets(tmp_path: Path) -> None:
    """Kubelet's have a mode for all, and names with underlines; the files in them have theirs."""
    volume = Mounted(tmp_path / "secrets")
    volume.put({"master_key": b"x", "postgres_audit": b"y"})
    found = installation.given({"EVERGREEN_ROLE_SECRETS": str(volume.path)}, None).private
    assert {path.name for path in found} == {"master_key", "postgres_audit"}


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        (None, "MASTER_KEY_MISSING", "is missing"),
        ("", "MASTER_KEY_INVALID", "is empty"),
        ("short", "MASTER_KEY_INVALID", "not one"),
        ("c2hvcnQ=", "MASTER_KEY_INVALID", "32 bytes"),
    ],
)
def test_a_master_key_that_is_none(tmp_path: Path, text: str | None, code: str, what: str) -> None:
    path = tmp_path / "master_key"
    if text is not None:
        path.write_text(text)
    (found,) = files.master_key(path).findings
    assert found.code == code
    assert what in found.what
    path.write_text(master_key() + "\n")
    assert files.master_key(path).status == "ok"
    assert files.master_key(None).status == "skipped"


def test_a_local_ca_that_cannot_go_on(tmp_path: Path) -> None:
    """Without its key, with another one, near its end, and gone."""
    at = now()
    there, other = tmp_path / "ca", tmp_path / "other"
    certificates.Authority.ensure_in(there, at=at)
    certificates.Authority.ensure_in(other, at=at)
    assert files.authorities([there]).status == "ok"
    soon = at + 3400 * DAY
    (found,) = files.authority(there, lambda: soon)
    assert (found.code, found.severity) == ("CA_EXPIRES_SOON", Severity.WARNING)
    shutil.copy2(other / "ca.key", there / "ca.key")
    assert codes(files.authority(there)) == ["CA_KEY_DOES_NOT_FIT"]
    (there / "ca.key").unlink()
    assert codes(files.authority(there)) == ["CA_KEY_MISSING"]
    (there / "ca.crt").unlink()
    assert codes(files.authority(there)) == ["CA_MISSING"]


def test_who_calls_by_a_former_name(tmp_path: Path) -> None:
    """As the gateway's log tells, the older files of it too; the latest caller is the first."""
    old = Public("https://old.example", what="former.old.example")
    assert former.checks([], tmp_path) == []
    assert former.checks([old], None)[0].status == "skipped"
    (nobody,) = former.checks([old], tmp_path)
    assert (nobody.name, nobody.status) == (former.CALLERS, "ok")

    def line(hour: int, subject: str = "", client: str = "10.0.0.1") -> str:
        said = {"time": f"2026-11-29T{hour:02}:00:00Z", "former_name": "old.example",
                "path": "/x", "client": client, "agent": "a"}  # fmt: skip
        return json.dumps(said | ({"subject": subject} if subject else {}))

    (tmp_path / "gateway.log.1").write_text(f"{line(9, 'device-1')}\n{line(9, 'device-2')}\n")
    (tmp_path / "gateway.log").write_text(
        f'{line(11, "device-1", "10.0.0.9")}\n{line(10)}\n{{"former_name": broken\n'
        '{"path": "/former_name", "status": 500}\n'
    )
    found = callers(lines_of_home(tmp_path))
    assert [(c.subject, c.calls, c.client) for c in found] == [
        ("device-1", 2, "10.0.0.9"),
        ("", 1, "10.0.0.1"),
        ("device-2", 1, "10.0.0.1"),
    ]
    assert callers(["gateway-1  | " + line(9)])[0].name == "old.example"
    (finding,) = former.checks([old], tmp_path)[0].findings
    assert (finding.code, finding.severity) == ("FORMER_NAME_USED", Severity.WARNING)
    assert "2 devices and users (device-1, device-2) called by old.example" in finding.what


def test_a_given_certificate_that_cannot_be_taken(tmp_path: Path) -> None:
    assert files.given(None) == []
    (found,) = files.given(tmp_path)[0].findings
    assert found.code == "CERTIFICATE_NOT_TAKEN"
    assert "fullchain.pem" in found.what


# The services


@contextmanager
def operations(metrics: str, missing: tuple[str, ...] = ()) -> Iterator[str]:
    """A service's operations port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_ready = self.path == "/readyz"
            body = (json.dumps({"missing": missing}) if is_ready else metrics).encode()
            self.send_response(503 if is_ready and missing else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


async def test_services_that_lag_behind() -> None:
    """Not ready, of another release, with a stale feed and a backlog; each is named."""
    moment = now()
    at = moment.timestamp()
    well = (
        'evergreen_build_info{version="2.0",schema_version="9"} 1\n'
        f'evergreen_feed_last_read_timestamp_seconds{{feed="tenants"}} {at - 5}\n'
        "evergreen_outbox_oldest_seconds 0.5\n"
    )
    ill = (
        'evergreen_build_info{version="1.9",schema_version="8"} 1\n'
        f'evergreen_feed_last_read_timestamp_seconds{{feed="tenants"}} {at - 5}\n'
        f'evergreen_feed_last_read_timestamp_seconds{{feed="lock_outs"}} {at - 300}\n'
        "evergreen_outbox_oldest_seconds 600\n"
    )
    with operations(well) as one, operations(ill, ("identity",)) as other:
        addresses = {"policy": one, "audit": other}
        checks = await services.checks(addresses, "2.0", lambda: moment)
        good = await services.checks({"policy": one}, "2.0", lambda: moment)
        away = await services.checks({"policy": f"http://127.0.0.1:{free_port()}"})
    found = {finding.code: finding for finding in findings(checks)}
    assert list(found) == ["SERVICE_NOT_READY", "VERSION_MISMATCH", "FEED_STALE", "EVENTS_WAIT"]
    assert found["SERVICE_NOT_READY"].what == "audit lacks: identity"
    assert "audit is 1.9" in found["VERSION_MISMATCH"].what
    assert "policy" not in found["VERSION_MISMATCH"].what
    assert "audit could not read the feed lock_outs for 300 seconds" in found["FEED_STALE"].what
    # Between processes of one machine there are no certificates.
    assert status(good).pop(services.CERTIFICATES) == "skipped"
    assert {status(good)[name] for name in services.NAMES[:-1]} == {"ok"}
    assert told(away) == ["SERVICE_UNREACHABLE"]
    assert status(away)[services.FEEDS] == "skipped"


async def test_a_witness_that_does_not_sign() -> None:
    """Of each for how long, once no process has its signature; without any there is no check."""
    moment = now()

    def since(name: str, minutes: float) -> str:
        at = moment.timestamp() - minutes * 60 if minutes else 0
        return f'evergreen_audit_witness_away_timestamp_seconds{{witness="{name}"}} {at}\n'

    one, two = since("a", 0) + since("b", 20), since("a", 30) + since("b", 16)
    with operations(one) as first, operations(two) as second, operations("") as without:
        checks = await services.checks({"audit": first, "audit-2": second}, "2.0", lambda: moment)
        good = await services.checks(
            {"audit": second}, "2.0", lambda: moment - datetime.timedelta(minutes=16)
        )
        none = await services.checks({"audit": without}, "2.0", lambda: moment)
    (found,) = [one for one in findings(checks) if one.code == "WITNESS_AWAY"]
    assert found.what == "the witness b has not signed the audit log for 20 minutes"
    assert found.severity is Severity.WARNING
    assert status(good)[services.WITNESSES] == "ok"
    assert services.WITNESSES not in status(none)


async def test_fips_mode_is_everywhere_or_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one module; who does not want it hears nothing of it."""

    def uses(digest: str) -> str:
        return f'evergreen_fips_info{{name="M",version="3.5",sha256="{digest}"}} 1\n'

    with operations(uses("aa")) as one, operations(uses("bb")) as two, operations("") as without:
        forgotten = await services.checks({"policy": one, "audit": one})
        mixed = await services.checks({"policy": one, "audit": two, "telemetry": without})
        off = await services.checks({"telemetry": without})
        monkeypatch.setattr(mode, "_required", True)
        alike = await services.checks({"policy": one, "audit": one})
        wanted = await services.checks({"telemetry": without})
    (missed,) = (check for check in forgotten if check.name == services.FIPS)
    assert codes(missed.findings) == ["COMMAND_NOT_FIPS"]
    (seen,) = (check.seen for check in alike if check.name == services.FIPS)
    assert seen == "M 3.5, SHA-256 aa"
    found = {finding.code: finding.what for finding in findings(mixed)}
    assert found["FIPS_OFF"] == "FIPS mode is off in telemetry."
    assert "2 modules" in found["FIPS_MODULES_DIFFER"]
    assert services.FIPS not in status(off)
    assert services.SUITES not in status(off)
    assert "FIPS_OFF" in told(wanted)


async def test_all_services_make_new_values_alike() -> None:
    """One that was forgotten would seal in the old way for ever."""
    approved = 'evergreen_suites_info{suites="approved"} 1\n'
    with operations(approved) as one, operations("") as without:
        alike = await services.checks({"policy": one, "audit": one})
        mixed = await services.checks({"policy": one, "audit": without})
    assert status(alike)[services.SUITES] == "ok"
    found = {finding.code: finding.what for finding in findings(mixed)}
    assert found["SUITES_DIFFER"] == "New values are made with standard algorithms by audit."
    assert "FIPS_OFF" not in found


async def test_certificates_between_the_parts_that_end() -> None:
    """Each service's own, and those that PostgreSQL and NATS show it; the first one first."""
    moment = now()
    name = "evergreen_certificate_expiry_timestamp_seconds"

    def ends(which: str, days: float) -> str:
        return f'{name}{{certificate="{which}"}} {moment.timestamp() + days * 86400}\n'

    well, ill = ends("own", 100), ends("own", 200) + ends("nats", 5) + ends("database", -1)
    with operations(well) as one, operations(ill) as other:
        checks = await services.checks({"policy": one, "audit": other}, "2.0", lambda: moment)
        good = await services.checks({"policy": one}, "2.0", lambda: moment)
    (check,) = (check for check in checks if check.name == services.CERTIFICATES)
    assert [finding.what for finding in check.findings] == [
        "audit: a certificate (database) has ended",
        "audit: a certificate (nats) ends in 5 days",
    ]
    assert check.status == "error"
    (seen,) = (check.seen for check in good if check.name == services.CERTIFICATES)
    assert seen == "the first one ends in 100 days"
    assert set(status(await services.checks({})).values()) == {"skipped"}


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
    assert told(public.checks(Public(url))) == ["PUBLIC_URL_MALFORMED"]


def test_an_address_that_leads_nowhere() -> None:
    assert told(public.checks(Public("https://nowhere.invalid"))) == ["PUBLIC_URL_UNKNOWN_HOST"]
    address = f"https://localhost:{free_port()}"
    assert told(public.checks(Public(address))) == ["PUBLIC_URL_UNREACHABLE"]


def test_an_address_that_leads_to_another_server(authority: Authority) -> None:
    with serving(authority.context(), {}) as url:
        found = told(public.checks(Public(url, authority.file)))
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
        assert told(public.checks(Public(url, authority.file))) == [code]


def test_a_certificate_of_an_unknown_authority(authority: Authority) -> None:
    with serving(authority.context(), EVERGREEN) as url:
        assert told(public.checks(Public(url))) == ["CERTIFICATE_UNTRUSTED"]
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
        found = told(
            public.checks(
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
        assert told(public.checks(named)) == ["HTTP2_NOT_PASSED"]
        other = Public("https://other.example", authority.file, connect=there)
        assert told(public.checks(other)) == ["CERTIFICATE_WRONG_NAME"]


def test_a_product_that_is_not_ready(authority: Authority) -> None:
    pages = EVERGREEN | {"/readyz": {"message": "not ready: policy"}}
    with serving(authority.context(), pages, status=503) as url:
        found = findings(public.answers(Public(url, authority.file)))
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
    assert told(await postgres.checks(owner(database))) == []
    assert told(await postgres.checks(service(database))) == []


async def test_passkeys_of_another_host(database: TestDatabase) -> None:
    """They open nothing where the public address has another host by now; no right, no word."""

    async def found(login: Login, host: str) -> list[str]:
        return [one.what async for one in passkeys.of(login, host)]

    connection = await database.superuser()
    await connection.execute(
        "WITH t AS (INSERT INTO identity.tenant (id, parent_id, kind, name, code, created_at,"
        " updated_at) VALUES (gen_random_uuid(), NULL, 'root', 'R', 'r', now(), now())"
        " RETURNING id), a AS (INSERT INTO identity.account (id, tenant_id, email, role, status,"
        " created_at, updated_at) SELECT gen_random_uuid(), id, 'a@b.example', 'Owner', 'active',"
        " now(), now() FROM t RETURNING id)"
        " INSERT INTO identity.passkey SELECT gen_random_uuid(), id, site::bytea, site, '', 0,"
        " false, gen_random_uuid(), site, now(), NULL"
        " FROM a, unnest(ARRAY['old.example', 'new.example']) AS site"
    )
    await connection.close()
    (said,) = await found(owner(database), "new.example")
    assert said.startswith("1 passkeys of 1 users are for another host, as old.example")
    assert len(await found(owner(database), "third.example")) == 1
    assert await found(service(database), "third.example") == []


async def test_a_database_that_is_away_or_refuses(database: TestDatabase, tmp_path: Path) -> None:
    away = Login(f"postgresql://x@/evergreen?host={tmp_path}", None)
    assert told(await postgres.checks(away)) == ["DATABASE_UNREACHABLE"]
    wrong = Login(owner(database).dsn, "wrong")
    assert told(await postgres.checks(wrong)) == ["DATABASE_LOGIN_REFUSED"]


async def test_a_database_that_is_too_old(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old(NamedTuple):
        major: int

    monkeypatch.setattr(asyncpg.Connection, "get_server_version", lambda _: Old(13))
    assert told(await postgres.checks(owner(database))) == ["DATABASE_TOO_OLD"]


async def test_storage_budgets_that_are_nearly_used(database: TestDatabase) -> None:
    """Who it is, of how much; not what was stored on other days."""
    connection = await database.superuser()
    try:
        await connection.executemany(
            "INSERT INTO telemetry.storage_use VALUES ($1, $2, $3, $3, $4, 100)",
            [
                (day, what, UUID(int=subject), stored)
                for day, what, subject, stored in (
                    (datetime.date(2026, 11, 29), "device_events", 1, 79),
                    (datetime.date(2026, 11, 29), "device_events", 2, 81),
                    (datetime.date(2026, 11, 29), "device_events", 3, 101),
                    (datetime.date(2026, 11, 29), "tenant_states", 4, 85),
                    (datetime.date(2026, 11, 28), "tenant_events", 5, 500),
                )
            ],
        )
        moment = datetime.datetime(2026, 11, 29, 23, 59, tzinfo=datetime.UTC)
        found = findings(await postgres.checks(owner(database), lambda: moment))
    finally:
        await connection.close()
    used, nearly = (f for f in found if f.code.startswith("STORAGE"))
    assert (used.code, nearly.code) == ("STORAGE_BUDGET_USED", "STORAGE_BUDGET_NEARLY_USED")
    assert used.severity is nearly.severity is Severity.WARNING
    assert f"the device {UUID(int=3)}" in used.what
    assert "101 bytes of events today, of 100 that it may, and 1 more are like it" in used.what
    assert f"the organisation {UUID(int=4)}" in nearly.what


async def test_devices_with_a_policy_that_is_not_in_force(database: TestDatabase) -> None:
    """How many, and of which organisation; decommissioned ones do not count."""
    connection = await database.superuser()
    org, other = UUID(int=1), UUID(int=2)
    try:
        await connection.executemany(
            "INSERT INTO policy.assignments (id, tenant_id) VALUES ($1, $1)", [(org,), (other,)]
        )
        await connection.executemany(
            "INSERT INTO identity.tenant (id, parent_id, kind, name, code, created_at, updated_at)"
            " VALUES ($1, $2, $3, $4, $4, now(), now())",
            [(UUID(int=9), None, "root", "Root"), (org, UUID(int=9), "org", "Linden")],
        )
        for number, tenant, version, status in (
            (3, org, 1, "active"),
            (4, org, 1, "active"),
            (5, org, 0, "active"),
            (6, org, 1, "decommissioned"),
            (7, other, 1, "active"),
        ):
            device = UUID(int=number)
            await connection.execute(
                "INSERT INTO policy.devices VALUES ($1, $2, $3)", device, tenant, status
            )
            await connection.execute(
                "INSERT INTO policy.applied_versions VALUES ($1, $2, $3, 1, now())",
                device,
                tenant,
                version,
            )
    finally:
        await connection.close()
    every = findings(await postgres.checks(owner(database)))
    (found,) = [f for f in every if f.code == "POLICY_ORPHANED"]
    assert found.severity is Severity.WARNING
    assert found.what.startswith("3 devices run a policy")
    assert f"2 of the organisation Linden ({org}), the others of 1 more organisation" in found.what


async def test_devices_with_a_key_that_is_not_good(database: TestDatabase) -> None:
    """Retired, compromised, or perhaps another one than is known; with one key there is nothing to
    be seen."""
    connection = await database.superuser()
    org = UUID(int=1)

    async def key(number: int, state: str, *, compromised: bool = False) -> None:
        await connection.execute(
            "INSERT INTO policy.signing_keys (id, public_key, signs, created_at, state,"
            " compromised_at, is_first) VALUES ($1, $2, false, now() - $3 * interval '1 s', $4,"
            " CASE WHEN $5 THEN now() END, $3 = 1)",
            f"key{number}",
            bytes([number] * 32),
            number,
            state,
            compromised,
        )

    async def device(number: int, key_id: str | None, *, calls: bool) -> None:
        await connection.execute(
            "INSERT INTO policy.devices VALUES ($1, $2, 'active', now() - interval '1 h')",
            UUID(int=number),
            org,
        )
        await connection.execute(
            "INSERT INTO policy.memberships VALUES ($1, $2, '{}', 1) ", UUID(int=number), org
        )
        await connection.execute(
            "UPDATE policy.memberships SET key_id = $2 WHERE device_id = $1",
            UUID(int=number),
            key_id,
        )
        if calls:
            await connection.execute(
                "INSERT INTO policy.applied_versions VALUES ($1, $2, 1, 1, now())",
                UUID(int=number),
                org,
            )

    def told(every: list[Finding]) -> dict[str, str]:
        return {f.code: f.what for f in every if f.code.startswith("POLICY_KEY")}

    try:
        await key(1, "active")
        await device(11, None, calls=False)
        assert told(findings(await postgres.checks(owner(database)))) == {}
        await key(2, "retired")
        await key(3, "retiring", compromised=True)
        for number, pinned in ((12, "key2"), (13, "key3"), (14, "key3")):
            await device(number, pinned, calls=True)
    finally:
        await connection.close()
    found = told(findings(await postgres.checks(owner(database))))
    assert set(found) == {
        "POLICY_KEY_RETIRED",
        "POLICY_KEY_COMPROMISED",
        "POLICY_KEY_DOUBTFUL",
    }
    assert found["POLICY_KEY_COMPROMISED"].startswith("2 devices with the key key3")
    assert found["POLICY_KEY_DOUBTFUL"].startswith("1 of 1 device with the key key1")


async def test_policies_of_which_some_are_sealed(database: TestDatabase) -> None:
    """It is said how many are not; where none is, the setting is another one."""
    insert = (
        "INSERT INTO policy.policies (id, tenant_id, name, authored, sealed_secrets, created_at,"
        " updated_at) VALUES ($1, $1, '', $2, $3, now(), now())"
    )
    connection = await database.superuser()
    try:
        text = '{"network":{"wifi":[{"ssid":"a","passphrase":"b"}]}}'
        await connection.execute(insert, UUID(int=1), text, None)
        await connection.execute(insert, UUID(int=2), '{"browser":{"homepage":"b"}}', None)
        assert "POLICY_SECRETS_OPEN" not in told(await postgres.checks(owner(database)))
        await connection.execute(insert, UUID(int=3), "", b"sealed")
    finally:
        await connection.close()
    every = findings(await postgres.checks(owner(database)))
    (found,) = [f for f in every if f.code == "POLICY_SECRETS_OPEN"]
    assert found.severity is Severity.WARNING
    assert found.what.startswith("1 row of stored policies with secrets is not sealed")


async def test_policies_that_name_secrets_and_are_published_open(database: TestDatabase) -> None:
    """A secret that nobody can read lies open in what is published, until that is sealed."""
    insert = (
        "INSERT INTO policy.policies (id, tenant_id, name, authored, uses, published_version,"
        " sealed_secrets, created_at, updated_at) VALUES ($1, $1, '', '', $2, $3, $4, now(), now())"
    )

    async def said() -> list[str]:
        every = findings(await postgres.checks(owner(database)))
        return [f.what for f in every if f.code == "NAMED_SECRETS_OPEN"]

    connection = await database.superuser()
    try:
        await connection.execute(insert, UUID(int=1), ["var.x"], 1, None)
        await connection.execute(insert, UUID(int=2), ["secret.x"], None, None)
        assert await said() == []
        await connection.execute(insert, UUID(int=3), ["var.x", "secret.x"], 2, None)
        (found,) = await said()
        assert found.startswith("1 published policy names secrets")
        await connection.execute(insert, UUID(int=4), [], None, b"sealed")
        assert await said() == []
    finally:
        await connection.close()


async def test_wrong_roles(database: TestDatabase) -> None:
    """Each role does its own work only, and the superuser none."""
    superuser = login(database, SUPERUSER, SUPERUSER_SECRET)
    assert told(await postgres.checks(superuser)) == ["DATABASE_WRONG_ROLE"]
    for role, secret in ((SUPERUSER, SUPERUSER_SECRET), (roles.MIGRATOR, MIGRATOR_SECRET)):
        found = told(await postgres.checks(login(database, role, secret, "policy")))
        assert found == ["DATABASE_WRONG_ROLE"]
    other = login(database, roles.service_role("audit"), "postgres_audit", "policy")
    assert told(await postgres.checks(other)) == ["DATABASE_WRONG_ROLE"]


async def test_a_schema_that_is_behind_or_ahead(database: TestDatabase) -> None:
    connection = await database.superuser()
    try:
        await connection.execute(
            "DELETE FROM evergreen.schema_migrations WHERE schema_name = 'audit' AND version > 1"
        )
        assert told(await postgres.checks(owner(database))) == ["SCHEMA_BEHIND"]
        await connection.execute(
            "INSERT INTO evergreen.schema_migrations (schema_name, version, name, checksum)"
            " VALUES ('audit', 999, 'x', 'x')"
        )
    finally:
        await connection.close()
    assert told(await postgres.checks(owner(database))) == ["SCHEMA_AHEAD"]


async def test_a_master_key_that_does_not_fit_the_database(database: TestDatabase) -> None:
    """Every key that lies sealed there is opened; another key opens none."""
    key = master_key()
    seed = bytes(range(32))
    signer = Signer(seed)
    sealed = Sealer(base64.b64decode(key), SEALED["identity.signing_key"]).seal(seed)
    connection = await database.superuser()
    try:
        await connection.execute(
            "INSERT INTO identity.signing_key (key_id, public_key, purpose, algorithm,"
            " sealed_seed, created_at) VALUES ($1, $2, 'users', 'EdDSA', $3, now())",
            signer.public.id,
            signer.public.raw,
            sealed,
        )
    finally:
        await connection.close()
    good, other, broken = [
        await postgres.checks(replace(owner(database), master_key=text))
        for text in (key, master_key(), "no key")
    ]
    assert told(good) == []
    seen = {check.name: check.seen for check in good}
    assert seen[postgres.KEYS] == "the master key opens all 1 sealed keys"
    assert told(other) == ["MASTER_KEY_DOES_NOT_FIT"]
    assert status(broken)[postgres.KEYS] == "skipped"


async def test_a_clock_that_went_back(database: TestDatabase) -> None:
    """As after a dead battery: the database was set up in what is now the future."""
    long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    found = told(await postgres.checks(owner(database), lambda: long_ago))
    assert found == ["CLOCK_SKEW", "CLOCK_WENT_BACK"]


async def test_what_was_not_reached_is_skipped_with_the_reason(database: TestDatabase) -> None:
    """Of a database that lets nobody in."""
    checks = await postgres.checks(Login(owner(database).dsn, "wrong"))
    assert [check.name for check in checks] == [
        postgres.LOGIN, postgres.POOLER, *postgres.OWNERS
    ]  # fmt: skip
    assert {check.skipped for check in checks[1:]} == {"needs database.login"}


async def test_a_clock_that_differs_from_the_database(database: TestDatabase) -> None:
    past = now() - datetime.timedelta(minutes=3)
    found = told(await postgres.checks(owner(database), lambda: past))
    assert found == ["CLOCK_SKEW"]


async def test_a_database_that_forgets(database: TestDatabase) -> None:
    connection = await database.superuser()
    try:
        await connection.execute(
            f"ALTER ROLE {roles.MIGRATOR} IN DATABASE {database.name} SET synchronous_commit = off"
        )
    finally:
        await connection.close()
    assert told(await postgres.checks(owner(database))) == ["DATABASE_NOT_DURABLE"]


async def test_a_database_without_an_extension(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "EXTENSION", "pg_none")
    assert told(await postgres.checks(owner(database))) == ["DATABASE_LACKS_EXTENSION"]


async def test_a_role_that_may_not_migrate(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each missing right, with who has to give it; migrations change nothing then."""
    connection = await database.superuser()
    try:
        await connection.execute(
            f"REVOKE CREATE ON DATABASE {database.name} FROM {roles.MIGRATOR};"
            "DROP EXTENSION pg_trgm CASCADE; CREATE SCHEMA closed;"
            "CREATE EXTENSION pg_trgm SCHEMA closed"
        )
    finally:
        await connection.close()
    monkeypatch.setattr(rights, "CONTEXTS", ("audit", "weather"))
    found = findings(await postgres.checks(owner(database)))
    assert [(finding.code, finding.fix) for finding in found] == [
        (
            "DATABASE_LACKS_RIGHTS",
            f"As the database's owner, run: GRANT CREATE ON DATABASE {database.name} TO"
            f" {roles.MIGRATOR}",
        ),
        (
            "DATABASE_LACKS_ROLES",
            "Make them by `evergreen database init`, or as docs/postgresql.md says.",
        ),
        (
            "DATABASE_LACKS_EXTENSION",
            f"As an administrator, run: GRANT USAGE ON SCHEMA closed TO {roles.MIGRATOR}",
        ),
    ]
    assert "the roles evergreen_weather are missing" in found[1].what
    login = owner(database)
    with pytest.raises(migrate.MigrationError, match="may not make schemas"):
        await migrate.up(login.dsn, login.password)


@pytest.mark.parametrize(
    ("dsn", "mode"),
    [
        ("postgresql://x@db.example/evergreen", "prefer"),
        ("postgresql://x@10.0.0.1/evergreen?sslmode=require", "require"),
        ("postgresql:///evergreen?host=db.example&sslmode=disable", "disable"),
        ("postgresql://x@db.example/evergreen?sslmode=verify-full", ""),
        ("postgresql://x@db.example/evergreen?sslmode=verify-ca", ""),
        ("postgresql://x@localhost/evergreen?sslmode=disable", ""),
        ("postgresql://x@/evergreen?host=/run/postgresql", ""),
    ],
)
def test_a_way_to_the_database_that_is_not_verified(dsn: str, mode: str) -> None:
    """A network's only; what the environment says counts where the address says nothing."""
    finding = postgres.unverified(dsn, {})
    assert (finding is not None) == bool(mode)
    if finding is not None:
        assert (finding.code, finding.severity) == ("DATABASE_NOT_VERIFIED", Severity.WARNING)
        assert f"sslmode={mode}" in finding.what
    assert postgres.unverified("postgresql://x@db/e", {"PGSSLMODE": "verify-full"}) is None


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


# What is looked at


async def test_an_installation_in_containers_that_is_stopped_is_one_finding(tmp_path: Path) -> None:
    """Nothing answers: the rest follows from that, and is skipped."""
    place = installation.Installation(
        Public(f"https://localhost:{free_port()}"),
        databases=(Login(f"postgresql://x@/e?host={tmp_path}", None), Login("x", None, "policy")),
        nats=Server(f"nats://127.0.0.1:{free_port()}", monitor=f"http://127.0.0.1:{free_port()}"),
        disks=(tmp_path,),
    )
    checks = await examine(place)
    found = [f for f in findings(checks) if not f.code.startswith(("DISK_", "CLOCK_NOT"))]
    assert [finding.code for finding in found] == ["NOT_RUNNING"]
    assert "docker compose up" in found[0].fix
    why = {check.name: check.skipped for check in checks}
    assert why["database.role.policy"] == why["nats.login"] == why["public.server"] == "not running"


async def test_a_database_alone_that_is_away_is_itself_the_finding(
    servers: Servers, tmp_path: Path
) -> None:
    """While NATS answers, and without asking for every role."""
    secret = servers.home.secret("nats_audit", password)
    place = installation.Installation(
        Public(f"https://localhost:{free_port()}"),
        databases=(Login(f"postgresql://x@/e?host={tmp_path}", None), Login("x", None, "policy")),
        nats=Server(servers.nats_url, "audit", secret),
    )
    checks = await examine(place)
    codes = {finding.code for finding in findings(checks)}
    assert {"DATABASE_UNREACHABLE", "PUBLIC_URL_UNREACHABLE"} <= codes
    assert "NOT_RUNNING" not in codes
    assert status(checks)["running"] == "ok"
    why = {check.name: check.skipped for check in checks}
    assert why["database.role.policy"] == "needs database.login"


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
        "EVERGREEN_OPS_TARGET": "x-{context}:9464",
    }
    found = installation.given(given, None)
    assert found.public == Public("https://x.example", None, 1)
    assert found.databases == (Login("postgresql://m@db/evergreen", "s3cret"),)
    assert found.nats == Server("nats://nats:4222")
    assert found.services["policy"] == "http://x-policy:9464"
    with pytest.raises(CliError, match="EVERGREEN_OPS_TARGET"):
        installation.given(given | {"EVERGREEN_OPS_TARGET": "policy:9464"}, None)
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
    assert found.authorities == ()
    (tmp_path / "inside").mkdir()
    assert installation.given(given, None).authorities == (tmp_path / "tls", tmp_path / "inside")
    assert found.master_key == secrets / "master_key"
    # Behind a proxy the certificate that devices see is not of the own CA.
    assert installation.given(given | {"TRUSTED_PROXIES": "1"}, None).public.ca_file is None
