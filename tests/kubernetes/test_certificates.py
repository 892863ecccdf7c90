"""Certificates of short lives are renewed under load, and taken over by pods that run on."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from contract.contexts import CONTEXTS
from deploy.certificates import issued_by, now
from tests.e2e.world import make_org
from tests.kubernetes.cluster import Cluster, Namespace
from tests.kubernetes.load import load
from tests.kubernetes.releases import Release, evaluation
from tests.support.stack import until

LIFE = 480
HANDED_OUT = 150
"""Seconds: kubelet hands a new Secret to the pods within two minutes."""


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    short = {
        "certificates.gatewayLife": f"{LIFE}s",
        "certificates.insideLife": f"{LIFE}s",
        "certificates.schedule": "* * * * *",
    }
    with evaluation(cluster, **short) as found:
        yield found


def _ends(text: str) -> float:
    return x509.load_pem_x509_certificate(text.encode()).not_valid_after_utc.timestamp()


def _shown(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=30)


def _told(namespace: Namespace, pod: str) -> dict[str, float]:
    """When a service says that certificates end."""
    name = "evergreen_certificate_expiry_timestamp_seconds"
    read = (
        "import urllib.request as r\n"
        "print(r.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
    )
    metrics = namespace.exec(pod, "python3", "-c", read).stdout
    lines = [line for line in metrics.splitlines() if line.startswith(f"{name}{{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines}


def test_they_are_renewed_without_a_failed_call_or_a_restart(
    release: Release, tmp_path: Path
) -> None:
    """Past the end of the first short-lived ones: whatever connects by then shows later ones."""
    namespace = release.namespace
    with release.reached(tmp_path) as stack, stack.client(stack.login()["token"]) as root:
        org = make_org(stack, root)
        org.publish()
        devices = [org.device() for _ in range(4)]
        serve = (*CONTEXTS, "gateway", "postgres", "nats")
        pods = {name for component in serve for name in namespace.pods(component)}
        restarts = namespace.restarts()
        first = namespace.secret("ev-gateway-tls")["ca.crt"]
        until(
            lambda: _ends(namespace.secret("ev-inside")["policy.crt"]) < time.time() + LIFE + 5,
            300,
            "the job does not run",
            pause=2,
        )
        generations = {namespace.secret("ev-inside")["policy.crt"]}
        works = [
            *(device.pull for device in devices),
            *(device.report_state for device in devices),
            lambda: root.get("/api/devices").raise_for_status(),
        ]
        ends = max(_ends(text) for text in generations)
        with load(works, 10) as found:
            while time.time() < ends + 60:
                generations.add(namespace.secret("ev-inside")["policy.crt"])
                assert now().timestamp() < _ends(_shown(release.port))
                time.sleep(10)
        assert not found.failures, "\n".join(found.failures)
        assert found.calls > 5 * LIFE
        assert len(generations) >= 2
        assert namespace.secret("ev-gateway-tls")["ca.crt"] == first
        after = namespace.restarts()
        assert {name: after.get(name) for name in pods} == {name: restarts[name] for name in pods}
        # New connections between all parts: the old generations have ended.
        for context in CONTEXTS:
            told = _told(namespace, namespace.pod(context))
            assert {"own", "inside_ca", "database", "nats"} <= set(told)
            # They look every ten minutes.
            assert min(told["nats"], told["database"]) > time.time() - 600, context


@pytest.mark.parametrize("which", ["insideCa", "gatewayCa"])
def test_a_ca_is_replaced_under_load(release: Release, tmp_path: Path, which: str) -> None:
    """In three steps, with the time between them that pods need; no call fails.

    Who calls has been given what `begin` made, as devices have to be.
    """
    namespace = release.namespace
    secret, party = ("ev-inside", "nats") if which == "insideCa" else ("ev-gateway-tls", "tls")
    old = namespace.secret(secret)["ca.crt"]
    release.upgrade({f"certificates.{which}": "begin"})
    assert old.strip() in namespace.secret(secret)["ca.crt"] != old
    with release.reached(tmp_path) as stack, stack.client(stack.login()["token"]) as root:
        with load([lambda: root.get("/api/devices").raise_for_status()], 5) as found:
            time.sleep(HANDED_OUT)
            release.upgrade({f"certificates.{which}": "switch"})
            time.sleep(HANDED_OUT)
            assert not issued_by(namespace.secret(secret)[f"{party}.crt"], old)
            release.upgrade({f"certificates.{which}": "end"})
            assert old.strip() not in namespace.secret(secret)["ca.crt"]
            time.sleep(HANDED_OUT)
        assert not found.failures, "\n".join(found.failures)
    release.upgrade({f"certificates.{which}": "kept"})
