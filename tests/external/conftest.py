"""Fixtures of what `make test-servers` tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.external import browser as chromium
from tests.external.browser import Browser
from tests.support import debian


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them as what `make test-servers` runs."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("servers")


OpenBrowser = Callable[..., AbstractContextManager[Browser]]


@pytest.fixture
def open_browser(tmp_path: Path) -> OpenBrowser:
    """Opens a browser: `with open_browser(language="de", javascript=False) as browser:`."""
    debian.require("chromium", "chromedriver")
    return partial(chromium.browser, tmp_path)


@pytest.fixture
def browser(open_browser: OpenBrowser) -> Iterator[Browser]:
    """A browser in English, with JavaScript."""
    with open_browser() as found:
        yield found
