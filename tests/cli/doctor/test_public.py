"""What `evergreen doctor` finds at the public address."""

from __future__ import annotations

import datetime
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cli.doctor import public
from cli.doctor.finding import Severity, findings
from cli.doctor.public import Public
from servicekit.call import H_HOPS
from servicekit.ids import now
from tests.support.doctor import codes, told
from tests.support.stack import PATIENCE, free_port

DAY = datetime.timedelta(days=1)


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
