"""The gateway's limits fit the machine, and can be set."""

from __future__ import annotations

import os

import pytest

from deploy.gateway import Limits, Rate, workers_of
from deploy.gateway.limits import CONNECTION_BYTES, TOKEN_BYTES
from deploy.machine import machine_memory

GIB = 1 << 30
MANY = 1 << 20


def test_a_small_server_holds_a_state() -> None:
    """24 GiB: 200,000 devices, each with an open connection and a remembered token."""
    limits = Limits.for_machine(memory=24 * GIB, workers=1, processors=2, open_files=MANY)
    assert limits.connections >= 200_000
    assert limits.cached_tokens >= 200_000
    needed = 200_000 * (CONNECTION_BYTES + TOKEN_BYTES)
    # Below what makes the gateway close idle connections sooner (see bootstrap.py).
    assert needed < 0.65 * limits.heap < 0.65 * 0.5 * 24 * GIB
    # And the fleet's 4,100 calls a second may all be of one organisation.
    assert limits.tenant.per_second >= 4_100


@pytest.mark.parametrize("gib", [1, 4, 16, 256])
@pytest.mark.parametrize("workers", [1, 8])
def test_what_is_kept_fits_into_the_memory(gib: int, workers: int) -> None:
    """Connections and tokens together stay within the heap, on any machine."""
    limits = Limits.for_machine(memory=gib * GIB, workers=workers, processors=2, open_files=MANY)
    kept = limits.connections * CONNECTION_BYTES + limits.cached_tokens * workers * TOKEN_BYTES
    assert kept <= limits.heap <= gib * GIB / 2
    assert limits.connections >= 10_000


def test_a_connection_needs_a_file() -> None:
    """Never more connections than the process may have files, with some left for the rest."""
    limits = Limits.for_machine(memory=24 * GIB, workers=1, open_files=20_000)
    assert 10_000 <= limits.connections <= 16_000
    assert Limits.for_machine(memory=24 * GIB, workers=1, open_files=1024).connections == 512


def test_a_container_of_its_own_is_used_almost_whole() -> None:
    """Whatever the machine around it has; the limit is told, for another container renders."""
    limits = Limits.of_environment({"EVERGREEN_GATEWAY_MEMORY": str(2 * GIB)}, workers=1)
    assert 1.5 * GIB < limits.heap < 1.7 * GIB
    kept = limits.connections * CONNECTION_BYTES + limits.cached_tokens * TOKEN_BYTES
    assert kept <= limits.heap
    with pytest.raises(ValueError, match="EVERGREEN_GATEWAY_MEMORY is"):
        Limits.of_environment({"EVERGREEN_GATEWAY_MEMORY": "2Gi"}, workers=1)


def test_this_machine_has_memory() -> None:
    """Some, and no more than the largest machines."""
    assert GIB // 8 < machine_memory() < 1 << 50


def test_limits_are_set_by_the_environment() -> None:
    """What is not set stays; what cannot be is named."""
    limits = Limits().with_settings(
        {
            "EVERGREEN_GATEWAY_CONNECTIONS": "123",
            "EVERGREEN_GATEWAY_TIMEOUT": "2.5",
            "EVERGREEN_GATEWAY_TENANT": "60:30",
            "EVERGREEN_GATEWAY_HEAP": " ",
            "EVERGREEN_HOME": "/somewhere",
        }
    )
    assert limits == Limits(connections=123, timeout=2.5, tenant=Rate(burst=60, per_second=30))
    for name, wrong in (
        ("CONNECTIONS", "many"),
        ("DEVICE", "5"),
        ("DEVICE", "0:1"),
        ("HEAP", "-1"),
    ):
        with pytest.raises(ValueError, match=f"EVERGREEN_GATEWAY_{name} is"):
            Limits().with_settings({f"EVERGREEN_GATEWAY_{name}": wrong})


def test_workers_are_half_of_the_processors_or_what_is_set() -> None:
    """At least one; what cannot be is named."""
    half = max(1, len(os.sched_getaffinity(0)) // 2)
    assert workers_of({}) == workers_of({"EVERGREEN_GATEWAY_WORKERS": " "}) == half
    assert workers_of({"EVERGREEN_GATEWAY_WORKERS": "3"}) == 3
    for wrong in ("0", "all"):
        with pytest.raises(ValueError, match="EVERGREEN_GATEWAY_WORKERS is"):
            workers_of({"EVERGREEN_GATEWAY_WORKERS": wrong})
