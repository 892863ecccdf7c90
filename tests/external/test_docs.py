"""The API's description in a real browser."""

from __future__ import annotations

from tests.external.browser import Browser
from tests.support.stack import PATIENCE, Stack, until


def test_the_api_docs_are_drawn(stack: Stack, browser: Browser) -> None:
    """Swagger UI works under the page's strict content security policy."""
    browser.open(f"{stack.url}/docs")
    until(lambda: "Evergreen" in browser.text, PATIENCE, "the page stays empty", pause=0.2)
    assert browser.find(".swagger-ui .opblock").shown
