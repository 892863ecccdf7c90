"""The commands of the documentation, as they are printed, on a cluster that knows no example."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.certificates import SERVER, Authority, now
from tests.kubernetes.cluster import PATIENCE, Cluster, Namespace
from tests.kubernetes.images import TREE
from tests.kubernetes.releases import external_postgres
from tests.support.documented import Block, Commands, script
from tests.support.paths import ROOT

REPOSITORY, _, TAG = TREE.partition(":")
NAMESPACE = "evergreen"
"""The one that the pages use."""


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    """That of the pages, which must not be there yet."""
    words = ("namespace", NAMESPACE, "--ignore-not-found", "-o", "name")
    if cluster.kubectl("get", *words).stdout:
        pytest.skip(f"the cluster has a namespace {NAMESPACE} already")
    try:
        yield Namespace(cluster, NAMESPACE)
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory to run commands in, with the chart where the pages have it."""
    (tmp_path / "helm").symlink_to(ROOT / "helm")
    return tmp_path


def run(blocks: list[Block], place: Path) -> str:
    """Runs them as a reader does who pastes them; answers what they print."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script(blocks, place)],
        cwd=place,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * PATIENCE,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def filled(block: Block, examples: Mapping[str, str] = {}) -> Block:
    """With our image, and with those of the examples that the block has."""
    known = {"registry.example.org/evergreen-backend": REPOSITORY, **examples}
    block = block.filled({key: value for key, value in known.items() if key in block.text})
    return replace(block, text=re.sub(r"image\.tag=\S+", f"image.tag={TAG}", block.text))


def test_a_trial_and_its_certificates(namespace: Namespace, place: Path) -> None:
    """Installed, tested; a certificate renewed at once; the CA between the parts replaced."""
    trial = Commands("docs/install.md", "kubernetes").take("A trial")
    said = run([filled(block) for block in trial], place)
    assert "Phase:          Succeeded" in said
    assert "BEGIN CERTIFICATE" in (place / "ca.crt").read_text()
    before = namespace.secret("evergreen-inside")["ca.crt"]
    with Commands("docs/certificates.md", "kubernetes") as certificates:
        assert "nothing is due" in run(certificates.take("Kubernetes"), place)
        run(certificates.take("Replace a CA"), place)
    after = namespace.secret("evergreen-inside")["ca.crt"]
    assert after != before
    assert after.count("BEGIN CERTIFICATE") == 1
    runbook = Commands("docs/runbooks.md", "kubernetes").take("EvergreenCertificateExpires")
    assert "nothing is due" in run(runbook, place)
    assert "Phase:          Succeeded" in namespace.helm("test", "evergreen").stdout


def test_production(cluster: Cluster, namespace: Namespace, place: Path) -> None:
    """With somebody's PostgreSQL and certificate; then upgraded as the page says."""
    with cluster.namespace({}) as outside:
        authority = Authority.ensure_in(place / "outside-ca", "Outside CA")
        (place / "admin-password").write_text("of-the-administrator")
        external_postgres(outside, authority, place, "of-the-administrator")
        (place / "postgres-ca.crt").write_bytes(authority.certificate_file.read_bytes())
        # Nobody here finds the public name, as `helm test` has to with a certificate for it alone.
        public = Authority.ensure_in(place / "public-ca", "Public CA")
        names = ["evergreen.example.org"]
        public.ensure_files(place / "fullchain.pem", place / "privkey.pem", names, SERVER, now())
        small = "resources: {requests: {cpu: 10m}}"
        examples = {
            # On one small machine.
            "profile: production\n": f"profile: production\nserviceDefaults: {{{small}}}\n"
            f"nats: {{{small}}}\n",
            "gateway:\n": f"gateway:\n  {small}\n",
            'digest: "sha256:…"': f"tag: {TAG}",
            "postgres.example.org": f"postgres.{outside.name}.svc",
            "helm test evergreen --namespace evergreen\n": "",
        }
        # By hand, as it needs a PostgreSQL and a certificate; the Prometheus operator is not there.
        install = Commands("docs/install.md", "by-hand").take("Production")
        blocks = [block for block in install if "Metrics and alerts" not in block.headings]
        run([filled(block, examples) for block in blocks], place)
        upgrade = Commands("docs/upgrade.md", "kubernetes").take("Kubernetes")
        run(upgrade, place)
