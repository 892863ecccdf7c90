"""An evaluation: installed, tested, doctored, reached by devices."""

from __future__ import annotations

import json
from pathlib import Path

from contract.contexts import CONTEXTS
from tests.e2e.world import make_org, ok
from tests.kubernetes.cluster import PATIENCE, Cluster
from tests.kubernetes.images import TREE
from tests.kubernetes.releases import Release, evaluation
from tests.support.stack import Stack, until


def test_pods_keep_pod_security(release: Release) -> None:
    """The namespace enforces "restricted": others are refused in it, and ours run."""
    intruder = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "intruder"},
        "spec": {
            "containers": [{"name": "c", "image": TREE, "securityContext": {"privileged": True}}]
        },
    }
    done = release.namespace.kubectl("apply", "-f", "-", stdin=json.dumps(intruder), check=False)
    assert done.returncode != 0
    assert 'violates PodSecurity "restricted' in done.stderr
    running = release.namespace.pods()
    for component in (*CONTEXTS, "gateway", "nats", "postgres"):
        assert any(name.startswith(f"ev-{component}-") for name in running), component


def test_a_device_does_its_work(release: Release, stack: Stack) -> None:
    """It enrolls, gets a policy, reports; an administrator sees it."""
    with stack.client(stack.login()["token"]) as root:
        org = make_org(stack, root)
        org.publish()
        device = org.device()
        assert device.version
        device.report_state()
        seen = ok(root.get("/api/devices", params={"orgId": org.id}))
    assert [one["id"] for one in seen["devices"]] == [device.device_id]


def test_helm_test_leaves_nothing_but_its_log(release: Release, stack: Stack) -> None:
    """No device in the fleet, and a log until the next run; also of a run that fails."""
    for _ in range(2):
        release.test()
        said = release.namespace.kubectl("logs", "ev-test-enroll").stdout
        assert "is decommissioned and deleted" in said
    with stack.client(stack.login()["token"]) as root:

        def left() -> list[str]:
            found = ok(root.get("/api/devices", params={"pageSize": 100}))
            return [one["id"] for one in found["devices"] if "SIM-HELMTEST" in json.dumps(one)]

        until(lambda: not left(), 60, "a test's device is still there", pause=1)
    # No gateway, no success.
    release.namespace.kubectl("scale", "deployment/ev-gateway", "--replicas=0")
    try:
        release.namespace.kubectl(
            "wait", "--for=delete", "pod", "-l=app.kubernetes.io/component=gateway", "--timeout=3m"
        )
        done = release.namespace.helm("test", "ev", "--timeout=3m", check=False)
        assert done.returncode != 0
        assert release.namespace.kubectl("logs", "ev-test-enroll").stdout
    finally:
        release.namespace.kubectl("scale", "deployment/ev-gateway", "--replicas=1")
        release.namespace.kubectl("rollout", "status", "deployment/ev-gateway", "--timeout=5m")


def test_doctor_finds_nothing(release: Release) -> None:
    """In the operator's pod, of all that it looks at there, certificates included."""
    release.namespace.kubectl("scale", "deployment/ev-operator", "--replicas=1")
    try:
        release.namespace.kubectl("rollout", "status", "deployment/ev-operator", "--timeout=5m")
        pod = release.namespace.pod("operator")
        done = release.namespace.exec(pod, "evergreen", "doctor", "--json", check=False)
        assert done.returncode == 0, done.stdout
    finally:
        release.namespace.kubectl("scale", "deployment/ev-operator", "--replicas=0")


def test_a_second_release_fits_beside_it(release: Release, cluster: Cluster) -> None:
    """With the requests of the profile, on what the node has left."""
    node = cluster.kubectl("get", "nodes", "-o", "json").stdout
    allocatable = json.loads(node)["items"][0]["status"]["allocatable"]
    with cluster.namespace() as beside:
        second = Release(
            beside, "second", {**release.values, "serviceDefaults.resources.requests.cpu": "25m"}
        )
        second.install()
        pods = beside.pods()
        assert all(p["status"]["phase"] in {"Running", "Succeeded"} for p in pods.values())
    assert allocatable


def test_what_was_made_once_survives_a_reinstallation(cluster: Cluster, tmp_path: Path) -> None:
    """`helm uninstall` leaves secrets and data; the next installation goes on with them."""
    names = ("ev-ca", "ev-inside", "ev-gateway-tls", "ev-master-key")
    with evaluation(cluster) as release:
        before = {name: release.namespace.secret(name) for name in names}
        release.namespace.helm("uninstall", "ev", "--wait", "--timeout=10m", seconds=PATIENCE)
        assert {name: release.namespace.secret(name) for name in names} == before
        release.install()
        assert {name: release.namespace.secret(name) for name in names} == before
        with release.reached(tmp_path) as stack:
            assert stack.login()["token"]
