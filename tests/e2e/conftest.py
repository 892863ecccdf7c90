"""Fixtures on the running product."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.world import Org, make_org
from tests.support.stack import Stack


@pytest.fixture(scope="session")
def root(stack: Stack) -> Iterator[httpx.Client]:
    """The first Owner's client."""
    with stack.first_owner() as client:
        yield client


@pytest.fixture
def org(stack: Stack, root: httpx.Client) -> Org:
    """An organisation of the test's own."""
    return make_org(stack, root)
