"""A cluster for all tests, and the releases that several of them share."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.releases import Release, evaluation
from tests.support.stack import Stack

_BALANCED = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}]}}})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pods take their time."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster of `KUBECONFIG`."""
    found = Cluster.found()
    if found is None:
        pytest.skip("needs a cluster in KUBECONFIG, and kubectl: docs/contributing.md")
    return found


@pytest.fixture(scope="session", autouse=True)
def load_balancer(cluster: Cluster) -> Iterator[None]:
    """Gives Services of type LoadBalancer an address where the cluster has nothing that does so.

    `helm --wait` waits for one. The address is nobody's: tests go to the Services themselves.
    """
    ended = threading.Event()

    def give() -> None:
        while not ended.wait(5):
            listed = cluster.kubectl(
                "get", "services", "--all-namespaces", "-o", "json", check=False
            )
            for service in json.loads(listed.stdout or "{}").get("items", []):
                status = service["status"].get("loadBalancer", {})
                if service["spec"]["type"] == "LoadBalancer" and not status.get("ingress"):
                    cluster.kubectl(
                        "--namespace", service["metadata"]["namespace"],
                        "patch", "service", service["metadata"]["name"],
                        "--subresource=status", "--patch", _BALANCED, check=False,
                    )  # fmt: skip

    thread = threading.Thread(target=give)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    """An evaluation for the tests of a file."""
    with evaluation(cluster) as found:
        yield found


@pytest.fixture(scope="module")
def stack(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The product behind its gateway."""
    with release.reached(tmp_path_factory.mktemp("facts")) as found:
        yield found
