"""Volumes of the last release become this tree's, and go back, by docs/upgrade.md, under load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.compose import images
from tests.compose.docker import Docker
from tests.compose.project import Project, new_directory
from tests.e2e.load import Load
from tests.e2e.test_backup import changed, patiently
from tests.e2e.world import make_org, ok
from tests.fakes.agent import Agent
from tests.support.documented import Commands
from tests.support.stack import PATIENCE, until
from tests.upgrade.released import released, unpack

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("EVERGREEN_TEST_COMPOSE"), reason="takes minutes: make test-compose"
    ),
    pytest.mark.timeout(1800),
]

PAGE = "docs/upgrade.md"
_STORED = (
    "PGPASSWORD=$(cat /run/evergreen/superuser_password) psql --host=127.0.0.1"
    " --username=postgres --dbname=evergreen --no-align --tuples-only"
    " --command='SELECT event_id FROM telemetry.event'"
)


@pytest.fixture
def last(docker: Docker) -> Iterator[Path]:
    """The last release's tree, with its image built."""
    directory = new_directory()
    tree = unpack(directory / "last")
    images.build(docker, tree=tree, tag=f"evergreen-backend:{released().version}")
    yield tree
    shutil.rmtree(directory)


def _run(project: Project, heading: str) -> None:
    """The page's commands for Compose; the image is there already."""
    blocks = Commands(PAGE, "compose").take(heading)
    for line in "".join(block.text for block in blocks).splitlines():
        words = line.partition("#")[0].split()
        if words[:2] == ["docker", "compose"]:
            project.compose(*("--no-build" if word == "--build" else word for word in words[2:]))
        else:
            assert words[0] == "git", line


def _is_well(project: Project, load: Load, policy: dict[str, str], watcher: Agent) -> None:
    """Devices are served again, and a publish reaches them."""
    before = sum(map(len, load.acknowledged.values()))
    until(
        lambda: sum(map(len, load.acknowledged.values())) > before + 12,
        3 * PATIENCE,
        "no device is served",
    )
    with project.stack().first_owner() as root:
        published = _publish(root, policy)
    until(lambda: patiently(watcher.pull), PATIENCE, "the new policy does not come", 0.5)
    assert watcher.version == published


def _publish(root: httpx.Client, policy: dict[str, str]) -> str:
    ok(root.patch(f"/api/policies/{policy['id']}", json={"bundle": changed(policy)}))
    policy |= ok(root.post(f"/api/policies/{policy['id']}/publish", json={}))
    return str(policy["version"])


def test_there_and_back(docker: Docker, last: Path) -> None:
    """Nothing that was acknowledged is lost; versions of policies only rise."""
    directory = new_directory()
    project = Project(docker, directory, {}, file=last / "docker-compose.yaml")
    here = Project.file
    try:
        project.up()
        with project.stack().first_owner() as root:
            org = make_org(project.stack(), root)
            policy = org.publish()
            watcher, load = org.device(), Load([org.device() for _ in range(3)])
        with ExitStack() as work:
            work.enter_context(load.running())
            _is_well(project, load, policy, watcher)
            project.file = here
            _run(project, "Docker Compose")
            _is_well(project, load, policy, watcher)
            project.file = last / "docker-compose.yaml"
            _run(project, "Go back")
            _is_well(project, load, policy, watcher)
        stored = project.compose("exec", "--no-TTY", "postgres", "sh", "-c", _STORED).stdout
        acknowledged = [event for ids in load.acknowledged.values() for event in ids]
        assert sorted(stored.split()) == sorted(acknowledged)
    finally:
        project.down()
        shutil.rmtree(directory)
