"""The tests of passwords hash them as the product does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_hashes() -> Iterator[None]:
    """Leaves the parameters as they are."""
    yield
