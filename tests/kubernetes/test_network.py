"""NetworkPolicies, as the cluster enforces them: who reaches what, and who does not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.kubernetes.cluster import Cluster, Namespace
from tests.kubernetes.images import TREE
from tests.kubernetes.releases import Release, evaluation
from tests.support.stack import until


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    with evaluation(
        cluster, **{"networkPolicy.enabled": "true", "operator.replicas": "1"}
    ) as found:
        yield found


@pytest.fixture(scope="module")
def stranger(cluster: Cluster) -> Iterator[Namespace]:
    """A pod of somebody else's, in another namespace."""
    with cluster.namespace() as namespace:
        namespace.apply(_pod("stranger", {}))
        namespace.kubectl("wait", "--for=condition=Ready", "pod/stranger", "--timeout=5m")
        yield namespace


def _pod(name: str, labels: dict[str, str]) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": name,
                    "image": TREE,
                    "imagePullPolicy": "Never",
                    "command": ["sleep", "infinity"],
                    "resources": {"requests": {"cpu": "5m"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


INSIDE = [
    ("policy", 9090),
    ("policy", 9091),
    ("policy", 9092),
    ("identity", 9091),
    ("postgres", 5432),
    ("nats", 4222),
    ("nats", 8222),
    ("nats", 6222),
]


@pytest.mark.parametrize(("component", "port"), INSIDE)
def test_a_stranger_reaches_nothing_inside(
    release: Release, stranger: Namespace, component: str, port: int
) -> None:
    """From another namespace; also from a pod beside it that does not belong to the release."""
    host = f"ev-{component}.{release.namespace.name}.svc"
    assert not stranger.reaches("stranger", host, port)


def test_a_stranger_in_the_same_namespace_reaches_nothing_inside(release: Release) -> None:
    """Without the release's labels."""
    release.namespace.apply(_pod("neighbour", {}))
    release.namespace.kubectl("wait", "--for=condition=Ready", "pod/neighbour", "--timeout=5m")
    assert not release.namespace.reaches("neighbour", "ev-policy", 9091)
    assert not release.namespace.reaches("neighbour", "ev-postgres", 5432)
    assert release.namespace.reaches("neighbour", "ev-gateway", 443)


def test_anyone_reaches_the_gateway_and_metrics(release: Release, stranger: Namespace) -> None:
    """Where the values do not name who may."""
    host = f"ev-gateway.{release.namespace.name}.svc"
    until(lambda: stranger.reaches("stranger", host, 443), 60, "no gateway", pause=1)
    assert stranger.reaches("stranger", f"ev-policy.{release.namespace.name}.svc", 9464)


@pytest.mark.parametrize(
    ("component", "to", "port", "may"),
    [
        ("telemetry", "identity", 9091, True),
        ("telemetry", "identity", 9090, False),
        ("telemetry", "postgres", 5432, True),
        ("telemetry", "nats", 4222, True),
        ("telemetry", "nats", 8222, False),
        ("operator", "nats", 8222, True),
        ("operator", "postgres", 5432, True),
        ("operator", "policy", 9091, False),
    ],
)
def test_each_part_reaches_what_it_needs_and_no_more(
    release: Release, component: str, to: str, port: int, may: bool
) -> None:
    """From its own pod."""
    pod = release.namespace.pod(component)

    def as_it_should() -> bool:
        return release.namespace.reaches(pod, f"ev-{to}", port) is may

    # A connection may hang once, in the first seconds of a pod.
    until(as_it_should, 30, f"{component} → {to}:{port} is not {may}", pause=1)


def test_the_product_works_with_them(release: Release) -> None:
    """`helm test` passes: the gateway, the services and the databases reach each other."""
    assert "Phase:          Succeeded" in release.test().stdout
    assert json.dumps(release.namespace.get("networkpolicies"))
