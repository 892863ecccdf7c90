"""The documentation's commands for Docker Compose, as they are printed, in a clone of the project.

The image is built before, so that `--build` has nothing to do.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deploy.certificates import SERVER, Authority, now
from tests.compose.docker import Docker
from tests.compose.project import new_directory
from tests.docs.reader import Reader, clone
from tests.e2e.world import ok
from tests.support.documented import Commands
from tests.support.stack import PATIENCE, Stack, attached, free_port, until

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EVERGREEN_TEST_COMPOSE"), reason="takes minutes: make test-compose"
    ),
    pytest.mark.timeout(1800),
]

TARGET = "compose"
_DOCKER = """#!/bin/bash
for word; do words+=("${word/#--build/--no-build}"); done
exec %s "${words[@]}"
"""


@dataclass(frozen=True)
class Machine:
    """A school's server: somebody at its terminal, and what its pages call by name."""

    reader: Reader
    port: int

    @property
    def names(self) -> dict[str, str]:
        return {"https://evergreen.school.example": f"https://localhost:{self.port}"}

    def stack(self) -> Stack:
        """The running product, by what the commands of the installation have printed."""
        directory = self.reader.directory
        facts = json.loads(self.reader.run("docker compose run --rm -T operator bootstrap"))
        told = directory / "bootstrap.json"
        told.write_text(json.dumps(facts | {"ca_file": str(directory / "ca.crt")}))
        return attached(told)


@pytest.fixture(scope="module")
def machine(docker: Docker) -> Iterator[Machine]:
    """Installed by the README, and once more by the page about it, which changes nothing."""
    directory = new_directory()
    program = directory / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(_DOCKER % docker.program)
    program.chmod(0o755)
    port = free_port()
    reader = Reader(
        clone(directory / "evergreen"),
        {
            **docker.environment,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "COMPOSE_PROJECT_NAME": f"evergreen-docs-{os.getpid()}",
            "HTTPS_PORT": str(port),
            "EVENTS_PORT": str(free_port()),
        },
    )
    found = Machine(reader, port)
    try:
        with Commands("README.md", TARGET) as commands:
            (start,) = commands.take("Start it")
        first = reader.run([start.filled(found.names)])
        page = Commands("docs/install.md", TARGET)
        start, trust = page.take("One machine, with Docker Compose")[:2]
        assert reader.run([start.filled(found.names)]) == first
        reader.run([trust])
        assert "PUBLIC KEY" in (reader.directory / "policy.pem").read_text()
        yield found
    finally:
        reader.run("docker compose --profile backup down --volumes --timeout 5")
        shutil.rmtree(directory)


def test_a_lost_password(machine: Machine) -> None:
    """A link is printed."""
    with machine.stack().first_owner() as root:
        ok(root.post("/api/users", json={"email": "lost@school.example", "role": "Admin"}))
    with Commands("docs/people.md", TARGET) as commands:
        (block,) = commands.take("The only Owner has lost the password")
    said = machine.reader.run([block.filled({"owner@school.example": "lost@school.example"})])
    assert "/auth/accept#" in said


def test_trouble(machine: Machine) -> None:
    """Containers and their logs are shown; the doctor finds nothing."""
    with Commands("docs/troubleshooting.md", TARGET) as commands:
        assert "gateway" in machine.reader.run(commands.take("When something does not work"))


def test_backup_and_restore(machine: Machine) -> None:
    """Backups are made by hand and on a schedule, and restored where nothing was."""
    reader, directory = machine.reader, machine.reader.directory
    passphrase = directory / "given"
    passphrase.write_text("correct horse battery\n")
    given = {"/etc/evergreen/backup-passphrase": str(passphrase)}
    with machine.stack().first_owner() as root:
        ok(root.post("/api/tenants", json={"name": "Kept", "code": "kept"}))
    with Commands("docs/backup.md", TARGET) as commands:
        make, checkpoint = commands.take("Backup")
        reader.run([make.filled(given), checkpoint])
        (scheduled,) = commands.take("Backups on a schedule")
        assert ".backup" in reader.run([scheduled.filled(given)])
        reader.run("docker compose --profile backup down --volumes --timeout 5")
        assert "Restored as of" in reader.run(commands.take("Restore"))
    with machine.stack().first_owner() as root:
        assert "kept" in {tenant["code"] for tenant in ok(root.get("/api/tenants"))["tenants"]}


def test_certificates(machine: Machine) -> None:
    """What is due is renewed, the CA inside is replaced, and a given certificate is served."""
    reader, directory = machine.reader, machine.reader.directory
    with Commands("docs/certificates.md", TARGET) as commands:
        renew, own = commands.take("Docker Compose")
        reader.run([renew, *commands.take("Replace a CA")])
    assert machine.stack().ready()

    authority = Authority.ensure_in(directory / "authority", "Some CA")
    authority.ensure_files(
        directory / "fullchain.pem", directory / "privkey.pem", ["localhost"], SERVER, now()
    )
    reader.run([own.filled({"/srv/evergreen-tls": str(directory / "given-tls")})])
    shutil.copy(authority.certificate_file, directory / "ca.crt")
    until(machine.stack().ready, PATIENCE, "the given certificate is not served")


def test_a_proxy_in_front(machine: Machine) -> None:
    """The gateway takes the proxy's word, and the proxy gets the CA to check it with."""
    proxy = Commands("docs/install.md", TARGET).take("Behind a reverse proxy")
    machine.reader.run(proxy)
    assert "BEGIN CERTIFICATE" in (machine.reader.directory / "inside-ca.crt").read_text()
    with Commands("docs/install.md", TARGET) as commands:
        assert len(commands.take("One machine, with Docker Compose")) == 2 + len(proxy)
