"""FIPS mode in containers: the image of Dockerfile.fips, Compose's second file, the chart's values.

Its two packages take half an hour to build: `EVERGREEN_TEST_FIPS_WHEELS` names a directory that has
them (`deploy/docker/fips-wheels.sh` on Debian 13, or `make test-fips`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from servicekit.security import mode
from tests.compose import images
from tests.compose.docker import Docker
from tests.compose.installations import evaluation
from tests.compose.project import Project, new_directory
from tests.e2e.test_backup import patiently
from tests.e2e.world import PASSWORD, make_org, ok
from tests.support.doctor import by_status, wrong
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE, free_port, until

_WHEELS: Final = os.environ.get("EVERGREEN_TEST_FIPS_WHEELS", "")
pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EVERGREEN_TEST_COMPOSE"), reason="takes minutes: make test-compose"
    ),
    pytest.mark.skipif(
        not _WHEELS, reason="EVERGREEN_TEST_FIPS_WHEELS names no wheels of fips-wheels.sh"
    ),
    pytest.mark.timeout(1800),
]

_OF_DEBIAN: Final = "/usr/lib/x86_64-linux-gnu/ossl-modules/fips.so"
_CHECK: Final = ("fips", "check", "--tls")
_AS_COMPOSE: Final = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--network=none")


@pytest.fixture(scope="module")
def image(docker: Docker) -> str:
    return images.build_fips(docker, Path(_WHEELS))


class Module:
    """A directory with a module of the operator's own: a copy of Debian's."""

    def __init__(self, docker: Docker, image: str) -> None:
        self.directory = new_directory()
        self.directory.chmod(0o755)
        mounted = f"--volume={self.directory}:/copied"
        words = ("--entrypoint=cp", "--user=0", mounted, image, _OF_DEBIAN, "/copied/fips.so")
        docker("run", "--rm", *words)
        self.file = self.directory / "fips.so"
        self.sha256 = hashlib.sha256(self.file.read_bytes()).hexdigest()

    @property
    def given(self) -> tuple[str, ...]:
        """What `docker run` is told."""
        return (
            f"--volume={self.directory}:/opt/fips:ro",
            "--env=EVERGREEN_FIPS_MODULES=/opt/fips",
        )

    def flip(self) -> None:
        """Changes a bit; once more changes it back."""
        whole = bytearray(self.file.read_bytes())
        whole[len(whole) // 2] ^= 1
        # What runs has the file mapped, and would not survive it if it changed in its place.
        changed = self.file.with_suffix(".new")
        changed.write_bytes(whole)
        changed.replace(self.file)


@pytest.fixture
def module(docker: Docker, image: str) -> Iterator[Module]:
    found = Module(docker, image)
    yield found
    shutil.rmtree(found.directory)


def test_the_module_tests_itself_where_the_image_runs(docker: Docker, image: str) -> None:
    """Without a network and with nothing to write to but `/tmp`; each command says it."""
    said = docker("run", "--rm", *_AS_COMPOSE, image, *_CHECK)
    assert said.stdout.startswith("EVERGREEN_FIPS is required, EVERGREEN_SUITES is approved\n")
    assert f"file    {_OF_DEBIAN}\n" in said.stdout
    assert said.stderr == ""
    version = json.loads(docker("run", "--rm", *_AS_COMPOSE, image, "version", "--json").stdout)
    assert version["cryptography"]["fips"] == mode.REQUIRED
    assert version["commit"] == images.COMMIT
    off = docker("run", "--rm", *_AS_COMPOSE, "--env=EVERGREEN_FIPS=off", image, *_CHECK)
    assert off.stdout == "EVERGREEN_FIPS is off, EVERGREEN_SUITES is standard\n"


def _refused(docker: Docker, *words: str) -> str:
    """The line that a container ends with."""
    done = docker("run", "--rm", *_AS_COMPOSE, *words, check=False)
    assert (done.returncode, done.stdout) == (mode.REFUSED, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("FIPS mode refused: ")
    return line


def test_what_cannot_be_had_is_refused(docker: Docker, image: str, module: Module) -> None:
    """With one line and the status 78, by all commands alike."""
    nothing = f"--volume=/dev/null:{_OF_DEBIAN}:ro"
    assert _OF_DEBIAN in _refused(docker, nothing, image, "version")
    wrong_digest = f"--env={mode.SHA256}={'ab' * 32}"
    assert _OF_DEBIAN in _refused(docker, wrong_digest, image, *_CHECK)
    usual = f"--env={mode.FIPS}={mode.REQUIRED}"
    assert "an OpenSSL of its own inside" in _refused(docker, usual, images.ours(), "version")

    meant = f"--env={mode.SHA256}={module.sha256}"
    assert "/opt/fips/fips.so" in docker("run", "--rm", *module.given, meant, image, *_CHECK).stdout
    module.flip()
    assert module.sha256 in _refused(docker, *module.given, meant, image, *_CHECK)
    module.file.unlink()
    assert "is not there" in _refused(docker, *module.given, image, *_CHECK)


def test_a_module_that_changes_is_refused(docker: Docker, image: str, module: Module) -> None:
    """After its tests in this container, by each process that starts."""
    words = ("--detach", "--entrypoint=sleep", *_AS_COMPOSE, *module.given, image, "infinity")
    container = docker("run", *words).stdout.strip()
    try:
        check = ("exec", container, "evergreen", *_CHECK)
        assert "/opt/fips/fips.so" in docker(*check).stdout
        module.flip()
        done = docker(*check, check=False)
        assert (done.returncode, done.stdout) == (mode.REFUSED, "")
        assert len(done.stderr.splitlines()) == 1
    finally:
        docker("rm", "--force", container)


def test_the_bill_of_materials_has_what_was_built(docker: Docker, image: str) -> None:
    """The module's package, and the digests of the wheels."""
    words = ("run", "--rm", "--entrypoint=cat", image, "/usr/share/evergreen-sbom.cdx.json")
    parts = json.loads(docker(*words).stdout)["components"]
    assert any(part["purl"].startswith("pkg:deb/debian/openssl-provider-fips@") for part in parts)
    for name in ("cryptography", "grpcio"):
        (part,) = (part for part in parts if part["purl"].startswith(f"pkg:pypi/{name}@"))
        (wheel,) = Path(_WHEELS).glob(f"{name}-{part['version']}-*.whl")
        (digest,) = part["hashes"]
        assert digest["content"] == hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def project(docker: Docker, image: str) -> Iterator[Project]:
    """Compose with both files."""
    assert image
    directory = new_directory()
    project = Project(docker, directory, {})
    project.more = (ROOT / "docker-compose.fips.yaml",)
    yield project
    project.down()
    shutil.rmtree(directory)


def test_the_change_to_it(project: Project) -> None:
    """By docs/fips.md: nobody enrolls again, and the doctor says which module each part has."""
    both, project.more = project.more, ()
    project.up()
    with project.stack().first_owner() as root:
        org = make_org(project.stack(), root)
        policy = org.publish()
        device = org.device()
        person = {"email": "teacher@school.example", "role": "Owner", "password": PASSWORD}
        ok(root.post("/api/users", json=person | {"tenantId": org.id}))
    project.more = both
    project.set(FIPS="off")
    project.up()
    stack = project.stack()
    stack.login(person["email"], PASSWORD)
    project.operator("fips", "migrate")
    for purpose in ("users", "devices", "tokens"):
        project.operator("keys", "rotate", purpose)
    project.operator("fips", "plan")
    patiently(device.pull)

    project.set(FIPS="required")
    project.up()
    stack = project.stack()
    assert stack.login(person["email"], PASSWORD)["token"]
    with stack.first_owner() as root:
        assert ok(root.get("/api/version"))["cryptography"]["fips"] == mode.REQUIRED
        published = ok(root.post(f"/api/policies/{policy['id']}/publish", json={}))
    until(lambda: patiently(device.pull), PATIENCE, "no new policy", 0.5)
    assert device.version == str(published["version"])
    device.record("app.installed", {"message": "in FIPS mode"})
    patiently(device.send_events)
    patiently(device.report_state)
    project.main_job()

    said = json.loads(project.operator("doctor", "--json"))
    assert {finding["code"] for finding in wrong(said)} <= {
        "GATEWAY_MODULE_NOT_VALIDATED",
        "NATS_MODULE_NOT_VALIDATED",
        "DATABASE_MODULE_NOT_VALIDATED",
    }
    seen = by_status(said, "ok") | by_status(said, "warning")
    assert {"services.fips", "fips.gateway", "fips.nats", "fips.database"} <= seen.keys()


def test_what_is_refused_later_stays_and_does_nothing(project: Project, module: Module) -> None:
    """In a new installation; `up` says why, and with the module as it was, it goes on."""
    project.set(FIPS_MODULE=str(module.directory), FIPS_SHA256=module.sha256)
    project.up()
    module.flip()
    project.restart("policy")
    container = project.compose("ps", "--quiet", "policy").stdout.strip()
    form = "--format={{.State.Status}} {{.State.Health.Status}} {{.RestartCount}}"

    def state() -> str:
        return project.docker("inspect", form, container).stdout.strip()

    until(lambda: state() == "running unhealthy 0", 10 * PATIENCE, "it is not unhealthy", pause=2)
    told = project.docker("logs", container)
    refusals = [line for line in told.stderr.splitlines() if "FIPS mode refused" in line]
    assert len(refusals) == 1
    done = project.compose("up", "--wait", "--no-build", check=False)
    assert done.returncode != 0
    assert refusals[0] in project.compose("logs", "--no-log-prefix", "fips").stdout
    module.flip()
    project.restart("policy")
    project.until_healthy()
    project.up()


def test_the_charts_pods(docker: Docker, image: str, module: Module) -> None:
    """The check before an installation, the services, the operator's pod, and `helm test`."""
    port = free_port()
    values = {
        "publicUrl": f"https://localhost:{port}",
        "fips__required": "true",
        "fips__module__hostPath__path": str(module.directory),
        "fips__sha256": module.sha256,
        "image__repository": image.partition(":")[0],
    }
    with evaluation(docker, **values) as release:
        jobs = {job["metadata"]["name"]: job for job in release.cluster.of_kind("Job")}
        assert "/opt/fips/fips.so" in release.cluster.run(jobs["ev-fips"])
        release.start_all()
        release.cluster.load_balancer("ev-gateway", port)
        release.migrate()
        release.until_ready()
        release.test()
        operator = release.cluster.start("Deployment/ev-operator")
        said = json.loads(operator.run("evergreen", "doctor", "--json").stdout)
        assert "services.fips" in by_status(said, "ok")
        module.flip()
        with pytest.raises(AssertionError, match=r"FIPS mode refused: /opt/fips/fips\.so"):
            release.cluster.run(jobs["ev-fips"])
