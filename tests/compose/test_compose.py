"""`docker compose up` from nothing, the main job in each TLS mode, crashes, and what is closed.

It takes minutes and Docker: `make test-compose` runs it, `make test` does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from contract.contexts import CONTEXTS
from deploy.certificates import SERVER, Authority, now
from servicekit.build import PRODUCT, VERSION
from tests.compose import images
from tests.compose.docker import Docker
from tests.compose.project import Project, new_directory
from tests.e2e.world import Org, make_org
from tests.fakes.agent import Agent, Hardware
from tests.fakes.agent.agent import CallError
from tests.support.doctor import by_status, wrong
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, until
from tools.release import artifacts
from tools.release.record import Release
from tools.release.tree import git

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EVERGREEN_TEST_COMPOSE"), reason="takes minutes: make test-compose"
    ),
    pytest.mark.timeout(1800),
]


@pytest.fixture
def directory() -> Iterator[Path]:
    found = new_directory()
    yield found
    shutil.rmtree(found)


def _started(docker: Docker, directory: Path, **settings: str) -> Project:
    project = Project(docker, directory, settings)
    began = time.monotonic()
    project.up()
    print(f"\ndocker compose up --wait: {time.monotonic() - began:.0f} s")
    return project


@pytest.fixture(scope="module")
def project(docker: Docker) -> Iterator[Project]:
    """An installation with a CA of its own."""
    directory = new_directory()
    project = _started(docker, directory)
    yield project
    project.down()
    shutil.rmtree(directory)


def _shown(docker: Docker, container: str, port: int, first: bytes = b"") -> bytes:
    """The certificate that a server shows, which begins in the clear."""
    form = "--format={{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    host = docker("inspect", form, container).stdout.strip()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, port), PATIENCE) as plain:
        plain.sendall(first)
        plain.recv(4096)
        with context.wrap_socket(plain) as connection:
            return connection.getpeercert(binary_form=True) or b""


def test_renewed_certificates_are_taken_over(docker: Docker, project: Project) -> None:
    """What `renewal` runs four times a day: PostgreSQL and NATS show new ones, and run on."""
    asks_tls = struct.pack("!ii", 8, 80877103)
    servers = {"postgres": (5432, asks_tls), "nats": (4222, b"")}
    containers = {name: project.compose("ps", "--quiet", name).stdout.strip() for name in servers}
    before = {name: _shown(docker, containers[name], *servers[name]) for name in servers}
    for name in servers:
        volume = f"--volume={project.name}_{name}:/files"
        docker("run", "--rm", "--entrypoint=rm", volume, images.ours(), "/files/tls.crt")
    project.compose("run", "--rm", "--no-TTY", "init")
    for name, server in servers.items():

        def is_new(name: str = name, server: tuple[int, bytes] = server) -> bool:
            return _shown(docker, containers[name], *server) != before[name]

        until(is_new, PATIENCE, f"{name} shows its old certificate", pause=1)
        form = "--format={{.RestartCount}} {{.State.Status}}"
        assert docker("inspect", form, containers[name]).stdout.strip() == "0 running"
    assert project.stack().login()["token"]
    assert project.compose("ps", "--status=running", "--quiet", "renewal").stdout.strip()


def test_the_image_is_small_and_says_what_is_in_it(docker: Docker) -> None:
    """Under 300 MB above the base; no root; a bill of materials."""
    assert images.layers_above_the_base(docker) < images.LIMIT
    user = docker("image", "inspect", "--format={{.Config.User}}", images.ours()).stdout.strip()
    assert user == "10001:10001"
    listed = docker(
        "run", "--rm", "--entrypoint=cat", images.ours(), "/usr/share/evergreen-sbom.cdx.json"
    ).stdout
    assert '"pkg:pypi/grpcio@' in listed
    assert '"pkg:deb/debian/python3@' in listed


def test_the_image_has_labels_and_knows_its_commit(docker: Docker) -> None:
    """The standard ones, and the same in `evergreen version`."""
    form = "--format={{json .Config.Labels}}"
    labels = json.loads(docker("image", "inspect", form, images.ours()).stdout)
    standard = {
        "title": PRODUCT,
        "licenses": "Apache-2.0",
        "version": VERSION,
        "revision": images.COMMIT,
        "created": images.CREATED,
    }
    for name, value in standard.items():
        assert labels[f"org.opencontainers.image.{name}"] == value
    said = json.loads(docker("run", "--rm", images.ours(), "version", "--json").stdout)
    assert (said["version"], said["commit"], said["build"]) == (
        VERSION,
        images.COMMIT,
        images.CREATED,
    )


def test_the_bill_of_materials_is_whole(docker: Docker) -> None:
    """Every package of Python has its licence and the digest of its wheel."""
    words = ("run", "--rm", "--entrypoint=cat", images.ours(), "/usr/share/evergreen-sbom.cdx.json")
    bill = json.loads(docker(*words).stdout)
    packages = [one for one in bill["components"] if one["purl"].startswith("pkg:pypi/")]
    lock = (ROOT / "deploy/docker/requirements.txt").read_text()
    assert {one["name"] for one in packages} == set(re.findall(r"^([\w.-]+)==", lock, re.M))
    for package in packages:
        assert package["licenses"], package["name"]
        (digest,) = package["hashes"]
        assert f"sha256:{digest['content']}" in lock, package["name"]
    assert any(one.get("licenses") for one in bill["components"] if "pkg:deb/" in one["purl"])


def test_an_image_built_again_under_its_tag_is_what_runs(project: Project) -> None:
    """After `docker compose up`; no tag has to change, and nothing has to be removed."""
    docker, commit = project.docker, "f" * 40
    built = images.build(docker, commit)
    try:
        project.up()
        for service in CONTEXTS:
            container = project.compose("ps", "--quiet", service).stdout.strip()
            runs = docker("inspect", "--format={{.Image}}", container).stdout.strip()
            assert runs == built, service
        with project.stack().first_owner() as root:
            assert root.get("/api/version").json()["commit"] == commit
    finally:
        images.build(docker)
        project.up()


def test_a_releases_image_is_published_as_a_file(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With labels, a bill of materials, and its digest in the statement of how it was built."""
    monkeypatch.setenv("PATH", str(Path(docker.program).parent), prepend=os.pathsep)
    for name, value in docker.environment.items():
        monkeypatch.setenv(name, value)
    release = Release(VERSION, git("rev-parse", "HEAD"), "2031-02-03", {})
    try:
        artifacts.build(release, tmp_path / "dist", ["--network=host"])
        form = "--format={{.Id}} {{json .Config.Labels}}"
        built, _, labels = docker("image", "inspect", form, images.ours()).stdout.partition(" ")
    finally:
        images.build(docker)
    assert json.loads(labels)["org.opencontainers.image.revision"] == release.commit
    stem = tmp_path / "dist" / f"evergreen-backend-{VERSION}"
    bill = json.loads(Path(f"{stem}-image.cdx.json").read_text())
    assert bill["metadata"]["component"]["version"] == VERSION
    statement = json.loads((tmp_path / "dist" / "provenance.intoto.json").read_text())
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert subjects[images.ours()] == built.removeprefix("sha256:")
    assert f"{stem.name}-image.tar.gz" in subjects
    assert "Loaded image" in docker("load", "--input", f"{stem}-image.tar.gz").stdout


def test_the_main_job_with_a_local_ca(project: Project) -> None:
    """An administrator's and a device's day, through the published port."""
    project.stack()
    project.main_job()


def test_nobody_calls_a_service_past_the_gateway(project: Project) -> None:
    """A container on the same network, with forged headers and without a certificate."""
    script = (
        "import grpc, sys\n"
        "from evergreen.v1 import identity_pb2 as pb, identity_pb2_grpc as rpc\n"
        "def ask(channel):\n"
        "    try:\n"
        "        rpc.TenantServiceStub(channel).ListTenants(pb.ListTenantsRequest(), timeout=5,\n"
        "            metadata=(('x-evergreen-kind', 'user'), ('x-evergreen-role', 'Owner')))\n"
        "    except grpc.RpcError as error:\n"
        "        return error.code().name\n"
        "    return 'served'\n"
        "ca = open('/var/lib/evergreen/operator/inside/ca.crt', 'rb').read()\n"
        "print(ask(grpc.insecure_channel('identity:9090')),\n"
        "      ask(grpc.secure_channel('identity:9090', grpc.ssl_channel_credentials(ca))))\n"
    )
    told = project.compose(
        "run", "--rm", "--no-TTY", "--entrypoint", "python", "operator", "-c", script
    ).stdout
    assert "served" not in told
    assert len(told.split()) == 2


def test_every_container_is_confined(project: Project) -> None:
    """No root, no capability, nothing to write but what is mounted."""
    ids = project.compose("ps", "--all", "--quiet").stdout.split()
    form = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}"
    told = set(project.docker("inspect", f"--format={form}", *ids).stdout.splitlines())
    assert told == {"10001:10001 true [ALL]"}


def test_the_doctor_looks_at_everything_from_the_operators_container(project: Project) -> None:
    """Nothing on a healthy system, though `localhost` is elsewhere from there; and NATS's end."""
    found = json.loads(project.operator("doctor", "--json"))
    assert wrong(found) == []
    assert set(by_status(found, "skipped")) <= {
        "machine.disk",
        "machine.port",
        "machine.time-zone",
        "public.proxies",
    }
    project.compose("stop", "nats")
    try:
        done = project.compose("run", "--rm", "--no-TTY", "operator", "doctor", check=False)
        assert done.returncode == 1
        assert "NATS_UNREACHABLE" in done.stdout
    finally:
        project.compose("start", "nats")
        project.until_healthy()


def test_the_operator_calls_the_api_though_its_address_leads_elsewhere(project: Project) -> None:
    """`localhost` is the container itself; the gateway is not, and a given certificate is its."""
    project.operator("bootstrap")
    assert "Verified: " in project.operator("audit", "verify")


def test_the_demo_is_a_fleet(project: Project) -> None:
    """Its devices enroll by themselves, and live on."""
    stack = project.stack()
    project.compose("--profile", "demo", "up", "--wait", "--no-build")
    try:
        with stack.first_owner() as root:
            until(
                lambda: len(_devices(root, stack.tenant_id)) == 3, PATIENCE, "no devices", pause=1
            )

        def told() -> str:
            return project.compose("logs", "--no-log-prefix", "demo").stdout

        until(lambda: "failed so far 0" in told(), PATIENCE, "no fleet", pause=1)
    finally:
        project.compose("--profile", "demo", "rm", "--stop", "--force", "demo", "bootstrap")


def test_prometheus_watches_all(project: Project) -> None:
    """The product's own configuration: every target answers, every rule is sound, none fires.

    Grafana, the other half of the profile, is in no package and not tried.
    """
    project.compose("up", "--wait", "--no-build", "prometheus")
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{project.prometheus}/api/v1") as client:

            def health() -> dict[str, str]:
                targets = client.get("/targets").json()["data"]["activeTargets"]
                return {t["labels"]["service"]: t["health"] for t in targets}

            expected = dict.fromkeys([*CONTEXTS, "gateway"], "up")
            until(lambda: health() == expected, PATIENCE, "not all answer", pause=1)

            def rules() -> list[str]:
                groups = client.get("/rules").json()["data"]["groups"]
                return [rule["health"] for group in groups for rule in group["rules"]]

            until(lambda: set(rules()) == {"ok"}, PATIENCE, "not all rules work", pause=1)
            alerts = client.get("/alerts").json()["data"]["alerts"]
            assert [a for a in alerts if a["state"] == "firing"] == []
    finally:
        project.compose("rm", "--stop", "--force", "prometheus")


def test_restarts_and_crashes_lose_nothing(project: Project) -> None:
    """Each service, NATS, PostgreSQL and the gateway is restarted, and then killed."""
    stack = project.stack()
    root = stack.first_owner()
    # On a machine that is just starting containers, an answer takes its time.
    root.timeout = httpx.Timeout(PATIENCE)
    with root:
        org = make_org(stack, root)
        agents: list[Agent] = []
        for part in (*CONTEXTS, "nats", "postgres", "gateway"):
            for disturb in (project.restart, project.kill):
                agents.append(agent := _enrolled(org))
                agent.record("app.installed", {"message": f"from {len(agents)}"})
                _patiently(agent.send_events)
                disturb(part)
                project.until_healthy()
                stack.until_ready(5 * PATIENCE)
        for agent in agents:
            _patiently(agent.report_state)
        serials = {device["serialNumber"] for device in _devices(root, org.id)}
        told = root.get("/api/events", params={"orgId": org.id, "pageSize": 100}).json()["events"]
    assert serials >= {agent.hardware.serial for agent in agents}
    assert {event["message"] for event in told} == {f"from {n + 1}" for n in range(len(agents))}


def _enrolled(org: Org) -> Agent:
    """A device; one whose answer was lost would have to be let in again by an administrator."""
    agents: list[Agent] = []

    def enrolls() -> bool:
        agents.append(org.agent(hardware=Hardware(serial=f"SN-{uuid4().hex}")))
        with contextlib.suppress(CallError):
            agents[-1].enroll()
            return True
        return False

    until(enrolls, 2 * PATIENCE, "no device can enroll", pause=1)
    return agents[-1]


def _patiently(call: Callable[[], object]) -> None:
    """Calls again after a failure, as agents do."""

    def succeeds() -> bool:
        with contextlib.suppress(CallError):
            call()
            return True
        return False

    until(succeeds, 2 * PATIENCE, "an agent's call fails for ever", pause=1)


def _devices(root: httpx.Client, org_id: str) -> list[dict[str, str]]:
    listed = root.get("/api/devices", params={"orgId": org_id, "pageSize": 100}).json()["devices"]
    return [root.get(f"/api/devices/{device['id']}").json() for device in listed]


def test_a_second_up_changes_no_secret(project: Project) -> None:
    """What devices trust and what is encrypted stays as it is."""
    script = "cd /var/lib/evergreen/operator && cat secrets/* tls/ca.* inside/ca.* | sha256sum"
    words = ("run", "--rm", "--no-TTY", "--entrypoint", "sh", "operator", "-c", script)
    before = project.compose(*words).stdout
    project.up()
    assert project.compose(*words).stdout == before


def test_the_main_job_with_a_given_certificate(docker: Docker, directory: Path) -> None:
    """Of a CA that clients know; the product makes none."""
    given = directory / "given"
    authority = Authority.ensure_in(directory / "ca", "Some CA")
    given.mkdir()
    chain, key = given / "fullchain.pem", given / "privkey.pem"
    authority.ensure_files(chain, key, ["localhost"], SERVER, now())
    for path in (directory, given, chain, key):
        os.chown(path, 10001, 10001)
    project = _started(docker, directory, TLS_DIRECTORY=str(given))
    try:
        project.stack(authority.certificate_file)
        project.main_job()
    finally:
        project.down()


def test_a_wrong_public_url_is_explained(docker: Docker, directory: Path) -> None:
    """Before anything is made."""
    project = Project(docker, directory, {"PUBLIC_URL": "https://localhost"})
    try:
        done = project.compose("run", "--rm", "--no-TTY", "init", check=False)
        assert "HTTPS_PORT" in done.stdout + done.stderr
        assert done.returncode != 0
    finally:
        project.down()
