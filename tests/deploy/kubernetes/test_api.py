"""The client of the cluster's API: what it sends, what it stands, and what it says."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.kubernetes.api import Api, ConflictError, KubernetesError, as_data, data_of
from tests.fakes.kubernetes import NAMESPACE, FakeKubernetes, kubernetes


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    with kubernetes() as fake:
        fake.secret("one", a=b"1", b=b"2")
        yield fake


@pytest.fixture
def api(cluster: FakeKubernetes) -> Api:
    return replace(Api.of_pod(cluster.environment, cluster.account), pause=0.01)


def test_a_patch_merges(cluster: FakeKubernetes, api: Api) -> None:
    """What it does not name stays, and what it names as nothing goes."""
    changed = api.patch("secrets", "one", {"data": {"a": None, **as_data({"c": b"3"})}})
    assert data_of(changed) == cluster.data("one") == {"b": b"2", "c": b"3"}


def test_a_replacement_is_of_the_version_that_was_read(cluster: FakeKubernetes, api: Api) -> None:
    """One of an older version changes nothing; it is not tried again with the same one."""
    read = api.get("secrets", "one")
    assert read is not None
    cluster.secret("one", a=b"of another")
    before = cluster.calls
    with pytest.raises(ConflictError, match=r"PUT .*secrets/one \(409\): .*has been modified"):
        api.replace("secrets", read | {"data": {}})
    with pytest.raises(ConflictError):
        api.patch("secrets", "one", {"data": {}, "metadata": read["metadata"]})
    assert cluster.calls == before + 2
    assert cluster.data("one") == {"a": b"of another"}
    read = api.get("secrets", "one")
    assert read is not None
    api.replace("secrets", read | {"data": as_data({"z": b"26"})})
    assert cluster.data("one") == {"z": b"26"}


def test_what_is_not_there(cluster: FakeKubernetes, api: Api) -> None:
    """It is nothing to read, and an error to change."""
    assert api.get("secrets", "other") is None
    with pytest.raises(KubernetesError, match=r'secrets/other \(404\): secrets "other" not found'):
        api.patch("secrets", "other", {})
    cluster.put("pods", "p", metadata={"labels": {"of": "a"}})
    assert [found["metadata"]["name"] for found in api.list("pods", "of=a")] == ["p"]
    assert api.list("pods", "of=b") == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(cluster: FakeKubernetes, api: Api, status: int) -> None:
    """As often as it is said, then the error tells what it answered last."""
    cluster.busy[:] = [status] * (api.attempts - 1)
    assert api.get("secrets", "one") is not None
    cluster.busy[:] = [status] * api.attempts
    with pytest.raises(KubernetesError, match=rf"does not answer GET .*\({status}\) .*is busy"):
        api.get("secrets", "one")
    assert cluster.busy == []


def test_a_broken_connection_is_made_again(cluster: FakeKubernetes, api: Api) -> None:
    left = [2]

    def breaks(_: str) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError

    cluster.before_write = breaks
    api.patch("secrets", "one", {"data": as_data({"a": b"new"})})
    assert cluster.data("one")["a"] == b"new"
    assert cluster.writes == ["PATCH secrets/one"]


def test_a_server_that_says_nothing_is_given_up(cluster: FakeKubernetes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        api = Api(url, NAMESPACE, cluster.account, timeout=0.2, attempts=2, pause=0.01)
        started = time.monotonic()
        with pytest.raises(KubernetesError, match=rf"{url} does not answer GET .*timed out"):
            api.get("secrets", "one")
        assert time.monotonic() - started < 10


def test_token_and_ca_are_read_for_each_call(
    cluster: FakeKubernetes, api: Api, tmp_path: Path
) -> None:
    """Both are replaced while a pod runs."""
    cluster.token = "next"
    with pytest.raises(KubernetesError, match=r"\(401\): Unauthorized"):
        api.get("secrets", "one")
    (cluster.account / "token").write_text("next\n")
    assert api.get("secrets", "one") is not None
    ca = cluster.account / "ca.crt"
    kept = ca.read_bytes()
    with kubernetes() as other:
        ca.write_bytes((other.account / "ca.crt").read_bytes())
    with pytest.raises(KubernetesError, match=r"does not answer.*CERTIFICATE_VERIFY_FAILED"):
        replace(api, attempts=1).get("secrets", "one")
    ca.write_bytes(kept)
    assert api.get("secrets", "one") is not None
    with pytest.raises(KubernetesError, match=r"does not answer.*token"):
        replace(api, account=tmp_path, attempts=1).get("secrets", "one")


def test_rights_are_the_accounts(cluster: FakeKubernetes, api: Api) -> None:
    cluster.allowed = lambda what: what != "secrets/one"
    with pytest.raises(KubernetesError, match=r"refuses GET .*/one \(403\): .*forbidden"):
        api.get("secrets", "one")


def test_where_no_cluster_is(cluster: FakeKubernetes, tmp_path: Path) -> None:
    with pytest.raises(KubernetesError, match=r"no pod of Kubernetes: .*HOST.* is not set"):
        Api.of_pod({}, cluster.account)
    with pytest.raises(KubernetesError, match="no service account's token"):
        Api.of_pod(cluster.environment, tmp_path)
    six = cluster.environment | {"KUBERNETES_SERVICE_HOST": "fd00::1"}
    assert Api.of_pod(six, cluster.account).url == f"https://[fd00::1]:{cluster.port}"
