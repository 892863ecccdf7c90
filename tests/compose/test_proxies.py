"""Reverse proxies in front, by the product's own snippets: REST and gRPC pass, and addresses."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from deploy.certificates import SERVER, Authority, now
from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc as rpc
from tests.compose.docker import Docker
from tests.compose.project import Project, new_directory
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, Stack, free_port, until

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EVERGREEN_TEST_COMPOSE"), reason="takes minutes: make test-compose"
    ),
    pytest.mark.timeout(1800),
]

_SNIPPETS = ROOT / "deploy" / "proxies"
_NAME = "evergreen.school.example"


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    found = new_directory()
    yield found
    shutil.rmtree(found)


@pytest.fixture(scope="module")
def public() -> int:
    """The port of whichever proxy is in front."""
    return free_port()


@pytest.fixture(scope="module")
def certificate(directory: Path) -> Authority:
    """The proxies' own certificate, and its CA."""
    authority = Authority.ensure_in(directory / "public", "Public CA")
    files = directory / "fullchain.pem", directory / "privkey.pem"
    authority.ensure_files(*files, ["localhost"], SERVER, now())
    return authority


@pytest.fixture(scope="module")
def stack(
    docker: Docker, directory: Path, public: int, certificate: Authority
) -> Iterator[tuple[Project, Callable[[], Stack]]]:
    """The product behind a proxy that is yet to be started."""
    project = Project(
        docker,
        directory,
        {
            "PUBLIC_URL": f"https://localhost:{public}",
            "TRUSTED_PROXIES": "1",
            "HTTPS_BIND": "127.0.0.1",
        },
    )
    try:
        project.up()
        (directory / "inside-ca.crt").write_text(project.operator("bootstrap", "--ca"))
        yield project, lambda: project.stack(certificate.certificate_file)
    finally:
        project.down()


@contextlib.contextmanager
def _proxy(name: str, directory: Path, public: int, inside: int) -> Iterator[None]:
    commands = {"nginx": _nginx, "caddy": _caddy}
    words = commands[name](directory, public, inside)
    if shutil.which(words[0]) is None:
        pytest.skip(f"{name} is not installed")
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=directory)
    try:
        context = ssl.create_default_context(cafile=str(directory / "public" / "ca.crt"))

        def answers() -> bool:
            assert process.poll() is None, (directory / f"{name}.log").read_text()
            with contextlib.suppress(OSError):
                ssl_socket = context.wrap_socket(
                    socket.create_connection(("localhost", public), 2),
                    server_hostname="localhost",
                )
                ssl_socket.close()
                return True
            return False

        until(answers, PATIENCE, f"{name} does not answer")
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _nginx(directory: Path, public: int, inside: int) -> list[str]:
    snippet = (_SNIPPETS / "nginx.conf").read_text()
    for old, new in (
        ("127.0.0.1:8443", f"127.0.0.1:{inside}"),
        ("listen 443", f"listen 127.0.0.1:{public}"),
        (_NAME, "localhost"),
        ("/etc/ssl/evergreen", str(directory)),
    ):
        assert old in snippet
        snippet = snippet.replace(old, new)
    places = "".join(
        f"{kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf = directory / "nginx.conf"
    conf.write_text(
        # Its workers must get into this directory.
        f"daemon off; {'user root;' if os.geteuid() == 0 else ''}\n"
        f"pid {directory}/nginx.pid; error_log stderr;\nevents {{}}\n"
        f"http {{ access_log off;\n{places}{snippet} }}\n"
    )
    return ["nginx", "-c", str(conf), "-e", "stderr"]


def _caddy(directory: Path, public: int, inside: int) -> list[str]:
    snippet = (_SNIPPETS / "Caddyfile").read_text()
    tls = f"tls {directory}/fullchain.pem {directory}/privkey.pem"
    for old, new in (
        ("127.0.0.1:8443", f"127.0.0.1:{inside}"),
        (f"\n{_NAME} {{", f"\nhttps://localhost:{public} {{\n\t{tls}"),
        (_NAME, "localhost"),
        ("/etc/caddy/evergreen-ca.crt", f"{directory}/inside-ca.crt"),
    ):
        assert old in snippet
        snippet = snippet.replace(old, new)
    file = directory / "Caddyfile"
    file.write_text("{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + snippet)
    return ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_behind_a_proxy(
    stack: tuple[Project, Callable[[], Stack]],
    certificate: Authority,
    directory: Path,
    public: int,
    name: str,
) -> None:
    """The main job passes, native gRPC passes, and a client cannot claim another address."""
    project, attach = stack
    with _proxy(name, directory, public, project.port):
        found = attach()
        assert found.url == f"https://localhost:{public}"
        project.main_job()
        token = found.login()["token"]
        credentials = grpc.ssl_channel_credentials(certificate.certificate_file.read_bytes())
        with grpc.secure_channel(f"localhost:{public}", credentials) as channel:
            answer = rpc.TenantServiceStub(channel).ListTenants(
                pb.ListTenantsRequest(),
                metadata=(("authorization", f"Bearer {token}"),),
                timeout=30,
            )
            assert answer.tenants
        with found.client(token) as client:
            made = client.post(
                "/api/tenants",
                json={"name": f"Behind {name}"},
                headers={"x-forwarded-for": "203.0.113.9"},
            ).json()

            def recorded() -> str:
                told = client.get("/api/audit", params={"orgId": made["id"]}).json()
                return str(told["entries"][0]["sourceIp"]) if told["entries"] else ""

            source = until(recorded, PATIENCE, "the action is not in the audit log")
        assert source in {"127.0.0.1", "::1"}
