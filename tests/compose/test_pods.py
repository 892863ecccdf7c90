"""The chart's pods, as rendered, run as local containers: an evaluation, and production.

It takes minutes and Docker: `make test-compose` runs it, `make test` does not.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contract.contexts import CONTEXTS
from deploy.launcher.home import Home
from tests.compose.docker import Docker
from tests.compose.installations import EXTERNAL_NATS, PUBLIC, Release, evaluation, production
from tests.compose.pod import Pod
from tests.compose.project import main_job, new_directory
from tests.helm.chart import GIVEN
from tests.support.stack import PATIENCE, free_port

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EVERGREEN_TEST_COMPOSE"), reason="takes minutes: make test-compose"
    ),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def port() -> int:
    """Of this machine, in front of the evaluation."""
    return free_port()


@pytest.fixture(scope="module")
def release(docker: Docker, port: int) -> Iterator[Release]:
    """An evaluation whose pods have all been started, and whose migrations have not."""
    events = free_port()
    with evaluation(
        docker,
        publicUrl=f"https://localhost:{port}",
        nats__events__expose="true",
        nats__events__url=f"tls://localhost:{events}",
    ) as release:
        release.start_all()
        release.cluster.load_balancer("ev-gateway", port)
        release.cluster.load_balancer("ev-events", events)
        yield release


def test_services_wait_for_their_schema(release: Release) -> None:
    """Not ready before the Job, and ready after it; nothing ends meanwhile."""
    for part in ("postgres", "nats"):
        for pod in release.pods(part):
            pod.until_ready()
    waiting = [pod for context in CONTEXTS for pod in release.pods(context)]
    assert len(waiting) == len(CONTEXTS)
    assert not any(pod.probe("startup") for pod in waiting)
    assert "applied" in release.migrate()
    release.until_ready()
    assert [pod.restarts() for pod in waiting] == [0] * len(CONTEXTS)


def test_containers_are_confined(release: Release) -> None:
    """No root, no capability, nothing to write but what is mounted, and bounded memory."""
    form = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}}"
    form += " {{.HostConfig.SecurityOpt}} {{gt .HostConfig.Memory 0}}"
    ids = [pod.container for pod in release.cluster.pods.values()]
    told = set(release.cluster.docker("inspect", f"--format={form}", *ids).stdout.splitlines())
    assert told == {
        f"{user}:{user} true [ALL] [no-new-privileges] true" for user in ("10001", "999")
    }


def test_helm_test_enrolls_a_device(release: Release) -> None:
    """The pod's own command, through the gateway's Service."""
    release.test()


def test_the_main_job(release: Release, port: int) -> None:
    """An administrator's and a device's day, through the load balancers."""
    home = Home(new_directory())
    try:
        main_job(release.facts(home, f"https://localhost:{port}"))
    finally:
        shutil.rmtree(home.root)


def test_an_upgrade_rehearses_first(release: Release) -> None:
    """The Job of an upgrade; here there is nothing left to apply."""
    assert "up to date" in release.migrate(is_upgrade=True)


def test_pods_end_in_time(release: Release) -> None:
    """`preStop` works in the image, and nobody has to be killed."""
    for parts in ("gateway", *CONTEXTS), ("nats", "postgres"):
        pods = [pod for part in parts for pod in release.pods(part)]
        with ThreadPoolExecutor(len(pods)) as pool:
            assert list(pool.map(Pod.stop, pods)) == [0] * len(parts)


@pytest.mark.parametrize("outside", [{}, EXTERNAL_NATS], ids=["three-of-nats", "nats-outside"])
def test_production(docker: Docker, tmp_path: Path, outside: dict[str, str]) -> None:
    """Two pods of each, given secrets, an external PostgreSQL; one of each goes, nobody notices."""
    trusted = tmp_path / "public-ca.crt"
    with production(docker, **outside) as release:
        trusted.write_text(release.cluster.secret(GIVEN["gateway.tls.existingSecret"], "ca.crt"))
        release.start_all()
        release.cluster.load_balancer("ev-gateway", free_port(), PUBLIC)
        release.migrate()
        release.until_ready()
        # The certificate that is given is one that every device trusts.
        trusting = (f"--volume={trusted}:/public-ca.crt:ro", "--env=SSL_CERT_FILE=/public-ca.crt")
        release.test(*trusting)
        servers = release.pods("nats")
        if outside:
            assert servers == []
            return
        assert len(servers) == 3
        for server in servers:
            assert _copies_of_streams(server) == {3}
        with ThreadPoolExecutor(1) as pool:
            for part in ("gateway", *CONTEXTS, "nats"):
                stopped = pool.submit(release.pods(part)[0].stop)
                while not stopped.done():
                    release.test(*trusting)
                assert stopped.result() == 0, part
        release.test(*trusting)


def _copies_of_streams(server: Pod) -> set[int]:
    url = f"http://{server.address}:8222/jsz?accounts=true&streams=true&config=true"
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        told = json.load(answer)
    streams = [s for a in told["account_details"] for s in a.get("stream_detail", ())]
    return {stream["config"]["num_replicas"] for stream in streams}
