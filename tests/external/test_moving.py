"""A public name that changes, a certificate by ACME, and proxies that the shell names.

One installation goes through all of it, as a school's would: it begins under its old name with the
local CA, gets a certificate for its new name from a CA by ACME (Let's Encrypt's own test server,
with certbot), serves both names for a while, and drops the old one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import make_org
from tests.support import debian
from tests.support import stack as test_stack
from tests.support.doctor import by_status
from tests.support.documented import Commands
from tests.support.stack import PATIENCE, Stack, free_port, until

OLD, NEW = "evergreen.school.example", "mdm.district.example"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@contextmanager
def program(*argv: str | Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [str(word) for word in argv],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def authority(directory: Path) -> tuple[Path, Path]:
    """A certificate of the ACME server, for `localhost`."""
    chain, key = directory / "acme.crt", directory / "acme.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", chain, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    return chain, key


class Acme:
    """A CA that gives certificates by ACME; every name leads to this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, self.management, self.http01 = free_port(), free_port(), free_port()
        self.dns = free_port()
        self.chain, self.key = authority(directory)

    @contextmanager
    def running(self) -> Iterator[None]:
        config = self.directory / "pebble.json"
        config.write_text(
            json.dumps(
                {
                    "pebble": {
                        "listenAddress": f"127.0.0.1:{self.port}",
                        "managementListenAddress": f"127.0.0.1:{self.management}",
                        "certificate": str(self.chain),
                        "privateKey": str(self.key),
                        "httpPort": self.http01,
                        "tlsPort": free_port(),
                        "ocspResponderURL": "",
                        "externalAccountBindingRequired": False,
                    }
                }
            )
        )
        names = ["pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "",
                 "-dns01", f"127.0.0.1:{self.dns}", "-http01", "", "-https01", "",
                 "-tlsalpn01", "", "-management", f"127.0.0.1:{free_port()}"]  # fmt: skip
        server = ["pebble", "-config", config, "-dnsserver", f"127.0.0.1:{self.dns}"]
        quick = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
        with program(*names), program(*server, **quick):
            until(lambda: listens(self.port), PATIENCE, "the ACME server does not start")
            yield

    def root(self) -> Path:
        """The CA that its certificates lead to."""
        file = self.directory / "root.pem"
        answer = httpx.get(f"https://127.0.0.1:{self.management}/roots/0", verify=self._trust())
        file.write_text(answer.text)
        return file

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.chain))


@contextmanager
def proxy(directory: Path) -> Iterator[tuple[str, Path]]:
    """A real outbound proxy; its address, and its log."""
    port, log = free_port(), directory / "proxy.log"
    config = directory / "proxy.conf"
    config.write_text(
        f"Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\nAllow 127.0.0.1\n"
        f'LogFile "{log}"\nLogLevel Connect\n'
    )
    with program("tinyproxy", "-d", "-c", config):
        until(lambda: listens(port), PATIENCE, "the proxy does not start")
        # The probe above is the first line.
        log.write_text("")
        yield f"http://127.0.0.1:{port}", log


def asked_for(log: Path) -> list[str]:
    """What went through the proxy."""
    return re.findall(r"Request \(file descriptor \d+\): (.*)", log.read_text())


def certificate(stack: Stack, name: str) -> x509.Certificate:
    """What the gateway shows to somebody who asks for a name."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", stack.port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=name) as connection,
    ):
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")


def client(stack: Stack, name: str, ca_file: Path | str) -> httpx.Client:
    """A client that finds the gateway by a name, which no name server here knows."""

    class Named(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            request.headers["host"] = f"{name}:{stack.port}"
            request.extensions["sni_hostname"] = name
            return super().handle_request(request)

    tls = ssl.create_default_context(cafile=str(ca_file))
    return httpx.Client(
        base_url=f"https://127.0.0.1:{stack.port}", transport=Named(verify=tls), timeout=PATIENCE
    )


def poll(device: httpx.Client, token: str) -> int:
    headers = {"authorization": f"Bearer {token}"}
    body = {"current_version": ""}
    return device.post("/api/v1/devices/policy", json=body, headers=headers).status_code


def by_form(browser: httpx.Client, name: str, port: int) -> int:
    """What a page under a name gets for a write, of a browser that says its origin alone."""
    headers = {"origin": f"https://{name}:{port}"}
    nobody = {"email": "nobody@school.example", "password": "not a password of anybody"}
    return browser.post("/api/auth/login", json=nobody, headers=headers).status_code


def certbot(acme: Acme, directory: Path, *words: str, **environment: str) -> None:
    done = subprocess.run(
        ["certbot", *words, "--non-interactive", "--config-dir", directory / "letsencrypt",
         "--work-dir", directory / "work", "--logs-dir", directory / "certbot-logs",
         "--http-01-port", str(acme.http01), "--http-01-address", "127.0.0.1"],
        env={**os.environ, "REQUESTS_CA_BUNDLE": str(acme.chain), **environment},
        capture_output=True, text=True, check=False, timeout=4 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def certificate_of(acme: Acme, directory: Path, target: Path, **environment: str) -> None:
    """Asks for the certificate by the documentation, with its paths and names replaced."""
    with Commands("docs/certificates.md", "servers") as commands:
        hook, request = commands.take("By ACME (Let's Encrypt)")
    script = hook.filled({"/srv/evergreen-tls": str(target), "-o evergreen ": ""})
    path = directory / "hook"
    path.write_text(script.text)
    path.chmod(0o755)
    names = {"/usr/local/sbin/evergreen-certificate": str(path), OLD: NEW}
    program, *words = shlex.split(request.filled(names).text)
    assert program == "certbot"
    certbot(
        acme, directory, *words, "--server", f"https://localhost:{acme.port}/dir",
        "--register-unsafely-without-email", "--agree-tos", **environment,
    )  # fmt: skip


def documented(port: int) -> tuple[dict[str, str], list[list[str]]]:
    """What the page about moving sets before the start, and the commands that it asks with."""
    with Commands("docs/moving.md", "servers") as commands:
        start, asked = commands.take("Another name or port")
    *settings, last = start.filled({":8443": f":{port}"}).text.splitlines()
    assert last == "evergreen up"
    pairs = (line.removeprefix("export ").partition("=") for line in settings)
    return {name: value for name, _, value in pairs}, [
        shlex.split(line)[1:] for line in asked.text.splitlines()
    ]


@pytest.mark.timeout(900)
def test_an_installation_moves_to_another_name(tmp_path: Path) -> None:
    """No device is lost: both names work meanwhile; who calls by the old one is seen."""
    debian.require("pebble", "pebble-challtestsrv", "certbot", "tinyproxy")
    home, given = tmp_path / "home", tmp_path / "tls"
    acme = Acme(tmp_path)
    port = free_port()
    with acme.running(), proxy(tmp_path) as (address, log):
        through = dict.fromkeys(PROXIES, address)
        with test_stack.running(
            home,
            EVERGREEN_PORT=str(port),
            EVERGREEN_PUBLIC_URL=f"https://{OLD}:{port}",
            **through,
        ) as first:
            org = make_org(first, first.client(first.login()["token"]))
            agent = org.device()
            org.publish()
            agent.report_state()
            with client(first, OLD, first.ca_file) as device:
                assert poll(device, agent.device_token) == 200
            with pytest.raises(httpx.ConnectError), client(first, NEW, first.ca_file) as device:
                poll(device, agent.device_token)
            # Nothing of the installation went out, whatever the shell says of proxies.
            assert asked_for(log) == []

        certificate_of(acme, tmp_path, given, HTTPS_PROXY=address)
        # The client of ACME goes through the proxy.
        assert any(line.startswith(f"CONNECT localhost:{acme.port} ") for line in asked_for(log))
        assert sorted(path.name for path in given.iterdir()) == ["fullchain.pem", "privkey.pem"]

        settings, asked = documented(port)
        move = {"EVERGREEN_PORT": str(port), "EVERGREEN_TLS_DIRECTORY": str(given), **settings}
        root = acme.root()
        with test_stack.running(home, **move) as second:
            both_names_work(second, agent.device_token, root)
            who_calls_by_the_old_name(second, agent.device_id)
            for words in asked:
                told = evergreen(*words, "--home", home).stdout
                assert agent.device_id in told, told
            renewal_is_taken_over(second, acme, tmp_path)
            a_broken_renewal_is_told(second, given)

        del move["EVERGREEN_FORMER_PUBLIC_URLS"]
        with test_stack.running(home, **move) as third:
            the_old_name_is_dropped(third, agent.device_token, root)


def both_names_work(stack: Stack, token: str, root: Path) -> None:
    """By the old name for who trusts the local CA, by the new one for who trusts the public one."""
    with client(stack, OLD, stack.ca_file) as old, client(stack, NEW, root) as new:
        assert poll(old, token) == poll(new, token) == 200
        # 401: the password is wrong, and the page's origin is one of ours.
        assert by_form(old, OLD, stack.port) == by_form(new, NEW, stack.port) == 401
        assert by_form(new, "students.district.example", stack.port) == 403
    # This machine's commands go on as before.
    assert stack.ready()


def who_calls_by_the_old_name(stack: Stack, device: str) -> None:
    """Devices by their ids, and nobody who calls by the new name."""

    def named() -> list[dict[str, Any]]:
        done = evergreen("former-names", "--json", "--home", stack.home)
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    until(lambda: device in {c["subject"] for c in named()}, PATIENCE, "the device is not named")
    assert {caller["name"] for caller in named()} == {OLD}
    said = json.loads(evergreen("doctor", "--json", "--home", stack.home).stdout)
    callers = by_status(said, "warning")["former.callers"]["findings"][0]
    assert callers["code"] == "FORMER_NAME_USED"
    assert device in callers["what"]
    # No name server knows either name here.
    errors = by_status(said, "error")
    assert errors["public.name"]["findings"][0]["code"] == "PUBLIC_URL_UNKNOWN_HOST"
    assert errors[f"former.{OLD}.name"]["findings"][0]["code"] == "PUBLIC_URL_UNKNOWN_HOST"
    assert {"gateway.certificate", "certificates.given"} <= set(by_status(said, "ok"))


def renewal_is_taken_over(stack: Stack, acme: Acme, directory: Path) -> None:
    """As the timer of certbot does it; the gateway goes on, and cuts nobody."""
    before, gateway = certificate(stack, NEW), stack.pids("gateway")
    with client(stack, OLD, stack.ca_file) as kept:
        assert kept.get("/healthz").status_code == 200
        certbot(acme, directory, "renew", "--force-renewal", "--no-random-sleep-on-renew")
        until(
            lambda: certificate(stack, NEW).serial_number != before.serial_number,
            PATIENCE,
            "the renewed certificate is not served",
        )
        assert kept.get("/healthz").status_code == 200
    assert stack.pids("gateway") == gateway
    assert certificate(stack, "somebody.else").serial_number != before.serial_number


def a_broken_renewal_is_told(stack: Stack, given: Path) -> None:
    """What is served stays; the doctor says what is wrong, and the log once."""
    serial = certificate(stack, NEW).serial_number
    kept = (given / "privkey.pem").read_bytes()
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-out", given / "privkey.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    said = json.loads(evergreen("doctor", "--json", "--home", stack.home).stdout)
    finding = by_status(said, "error")["certificates.given"]["findings"][0]
    assert finding["code"] == "CERTIFICATE_NOT_TAKEN"
    assert "the key is not the certificate's" in finding["what"]
    log = stack.home / "logs" / "evergreen.log"
    until(lambda: "certificate not taken over" in log.read_text(), PATIENCE, "nothing is logged")
    assert certificate(stack, NEW).serial_number == serial
    (given / "privkey.pem").write_bytes(kept)


def the_old_name_is_dropped(stack: Stack, token: str, root: Path) -> None:
    """Its certificate is gone, and its pages are others'."""
    with client(stack, NEW, root) as new:
        assert poll(new, token) == 200
        assert by_form(new, OLD, stack.port) == 403
    with pytest.raises(httpx.ConnectError), client(stack, OLD, stack.ca_file) as old:
        poll(old, token)
    said = json.loads(evergreen("doctor", "--json", "--home", stack.home).stdout)
    assert not [check for check in said["checks"] if check["name"].startswith("former.")]
