"""The documentation's commands for Kubernetes, as they are printed, on an evaluation.

Backups and restores are in `test_restore.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.reader import Reader
from tests.e2e.world import ok
from tests.helm.chart import HELM
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.images import TREE
from tests.kubernetes.releases import HERE, SMALL, Release
from tests.support.documented import Commands
from tests.support.paths import ROOT

TARGET = "kubernetes"
CERTIFICATES = "docs/certificates.md"
_PROGRAM = """#!/bin/bash
for word; do
  [[ $before == @(-n|--namespace) && $word == evergreen ]] && word=%s
  words+=("$word") before=$word
done
exec %s "${words[@]}"
"""
HANDED_OUT = "150"
"""Seconds: kubelet hands a new Secret to the pods within two minutes."""


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    """With the name that the pages have; the first test installs it."""
    with cluster.namespace() as namespace:
        yield Release(namespace, "evergreen", {})


@pytest.fixture(scope="module")
def reader(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """At a terminal with kubectl and Helm, in a clone; `evergreen` is the test's namespace."""
    directory = tmp_path_factory.mktemp("documented")
    (directory / "helm").symlink_to(ROOT / "helm")
    programs = directory / "bin"
    programs.mkdir()
    for name, program in (("kubectl", release.namespace.cluster.kubectl_program), ("helm", HELM)):
        (programs / name).write_text(_PROGRAM % (release.namespace.name, program))
        (programs / name).chmod(0o755)
    return Reader(directory, {"PATH": f"{programs}:/usr/bin:/bin"})


def test_a_trial(release: Release, reader: Reader) -> None:
    """It is installed, and somebody logs in with what the commands show."""
    with Commands("docs/install.md", TARGET) as commands:
        install, facts = commands.take("A trial")
    repository, _, tag = TREE.partition(":")
    (printed,) = re.findall(r"image\.tag=\S+", install.text)
    here = " ".join(f"--set {key}={value}" for key, value in (HERE | SMALL).items())
    reader.run(
        [
            install.filled(
                {
                    "https://evergreen.example.org": f"https://localhost:{release.port}",
                    "registry.example.org/evergreen-backend": repository,
                    printed: f"image.tag={tag} {here}",
                }
            )
        ]
    )
    password = reader.run([facts]).strip()
    with release.reached(reader.directory) as stack:
        assert stack.login(password=password)["role"] == "Owner"
        assert Path(stack.ca_file).read_text() == (reader.directory / "ca.crt").read_text()
        with stack.first_owner() as root:
            ok(root.post("/api/users", json={"email": "lost@school.example", "role": "Admin"}))


def test_days_with_it(release: Release, reader: Reader) -> None:
    """Logs, the doctor, a lost password, and a certificate that is renewed at once."""
    with Commands("docs/troubleshooting.md", TARGET) as commands:
        assert "gateway" in reader.run(commands.take("When something does not work"))
    with Commands("docs/people.md", TARGET) as commands:
        (reset,) = commands.take("The only Owner has lost the password")
    said = reader.run([reset.filled({"owner@school.example": "lost@school.example"})])
    assert "/auth/accept#" in said
    reader.run(Commands(CERTIFICATES, TARGET).take("Kubernetes"))
    with Commands("docs/runbooks.md", TARGET) as commands:
        reader.run(commands.take("EvergreenCertificateExpires"))


def test_an_upgrade(release: Release, reader: Reader) -> None:
    """By a file of values."""
    values = release.namespace.helm("get", "values", "evergreen", "--output=yaml").stdout
    (reader.directory / "values.yaml").write_text(values)
    with Commands("docs/upgrade.md", TARGET) as commands:
        reader.run(commands.take("Kubernetes"))
    with release.reached(reader.directory) as stack:
        assert stack.ready()


def test_a_ca_is_replaced(release: Release, reader: Reader) -> None:
    """The one inside, in three steps; at the end the parts still know each other."""
    before = release.namespace.secret("evergreen-inside")["ca.crt"]
    with Commands(CERTIFICATES, TARGET) as commands:
        commands.take("Kubernetes")
        (steps,) = commands.take("Replace a CA")
        reader.run([steps.filled({"sleep 300": f"sleep {HANDED_OUT}"})])
    assert release.namespace.secret("evergreen-inside")["ca.crt"] != before
    with release.reached(reader.directory) as stack:
        assert stack.ready()
