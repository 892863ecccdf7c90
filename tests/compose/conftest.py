"""Docker with all images, once for all tests of containers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.compose import images
from tests.compose.docker import Docker, NoDockerError, daemon


@pytest.fixture(scope="session")
def docker() -> Iterator[Docker]:
    """The daemon, with what is missing of the images built."""
    try:
        with daemon() as found:
            began = time.monotonic()
            images.build_all(found)
            print(f"\nimages: {time.monotonic() - began:.0f} s")
            yield found
    except NoDockerError as why:
        pytest.skip(str(why))
