"""The short form: one of each kind of fault. `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.faults import full_disk, hold, kill, partition, slow, step
from chaos.run import run

FAULTS = [
    kill("telemetry"),
    kill("postgres"),
    hold("nats", 2),
    partition("postgres", 3),
    kill("gateway"),
    slow("postgres", 0.1, 2),
    step("telemetry", 7200, 2),
    step("policy", -7200, 2),
    partition("identity", 2),
    kill("nats"),
    hold("policy", 2),
    full_disk(3),
    kill("audit"),
]


@pytest.mark.timeout(600)
async def test_every_promise_is_kept(tmp_path: Path) -> None:
    """Whatever happens, what was acknowledged is there once, and everything works again."""
    result = await run(tmp_path / "home", FAULTS, devices=24, pause=0.7, every=0, seed=1, say=print)
    assert result.broken == []
    assert len(result.recoveries) >= len(FAULTS) - 1
    assert result.acknowledged_events > 0
    assert result.acknowledged_actions > 0
