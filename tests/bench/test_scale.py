"""`python -m bench.publish`, `bench.start` and `SIZE=`: the smallest of each, on real products."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.against.installation import Place, Size, running
from tests.support.paths import ROOT
from tests.support.stack import PATIENCE

_SMALL = ("--organisations", "3", "--groups", "2")


def _run(directory: Path, module: str, *words: str) -> Any:
    """What a command writes."""
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{module}", *words],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE * 5,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((directory / "bench-results" / f"latest-{module}.json").read_text())


@pytest.mark.parametrize("text", ["", "1000", "10,20,5", "10,0,5", "10,5,-1", "a,b,c", "1,1,1,1"])
def test_a_size_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        Size.parse(text)


def test_a_size_has_devices_organisations_and_groups() -> None:
    assert Size.parse("100000,1000,5") == Size(100_000, 1_000, 5)


@pytest.mark.long
def test_a_publish_is_counted_until_a_device_of_each_organisation_gets_it(tmp_path: Path) -> None:
    found = _run(tmp_path, "publish", *_SMALL, "--publishes", "2")
    assert len(found["publishes"]) == 2
    for one in found["publishes"]:
        assert one["devices_without"] == 0
        assert one["policy_and_postgres_cpu_seconds"] > 0
        assert 0 < one["answered_seconds"] <= one["seconds"]


@pytest.mark.long
def test_organisations_that_only_inherit_get_a_publish_too(tmp_path: Path) -> None:
    words = ("--organisations", "3", "--groups", "0", "--inherit", "--publishes", "1")
    (one,) = _run(tmp_path, "publish", *words)["publishes"]
    assert one["devices_without"] == 0


@pytest.mark.long
def test_a_start_with_devices_is_compared_with_one_without(tmp_path: Path) -> None:
    words = ("--devices", "3000", "--polls", "500", "--starts", "1")
    found = _run(tmp_path, "start", *_SMALL, *words)
    assert found["devices"] == 3000 - 6
    assert found["start"].keys() == {"seconds", "cpu_seconds", "rss_mb"}
    assert "bytes_a_device_that_polled" in found


@pytest.mark.long
async def test_devices_of_a_size_have_what_they_say() -> None:
    """Each polls with a version that stands for what its organisation says to its groups."""
    with running(Place("tree", ROOT)) as installation:
        load = await installation.traffic(12, Size(30, 3, 2))
        assert len(load.devices) == 12
        # The organisation's own policy, and those of two groups, are its first numbers.
        assert {device.version for device in load.devices} <= {4, 5}
