"""One gateway for all tests that need nothing special."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from deploy.gateway import Limits, Rate
from tests.gateway.harness import Gateway, running_gateway

PLENTY = Rate(burst=1_000_000, per_second=1_000_000)


@pytest.fixture(scope="package")
async def shared_gateway() -> AsyncIterator[Gateway]:
    """A gateway that counts nobody's calls."""
    limits = Limits(
        device=PLENTY,
        user=PLENTY,
        login=PLENTY,
        refresh=PLENTY,
        invitation=PLENTY,
        enroll=PLENTY,
        open=PLENTY,
        published=PLENTY,
        other=PLENTY,
    )
    async with running_gateway(limits=limits) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared_gateway: Gateway) -> Iterator[Gateway]:
    """The shared gateway, with nothing left from other tests."""
    shared_gateway.backends.reset()
    yield shared_gateway
    shared_gateway.backends.reset()
