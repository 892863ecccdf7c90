"""Chromium, driven by its own driver over the W3C's WebDriver protocol.

https://www.w3.org/TR/webdriver2/: a few JSON calls, so that no library is needed for it.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support.stack import PATIENCE, free_port, until

_ELEMENT: Final = "element-6066-11e4-a52e-4f735466cecf"
_ARGUMENTS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The CA of a test's installation is known to nobody.
    "--ignore-certificate-errors",
)


class StaleError(AssertionError):
    """What was found is on the page no more: another one comes."""


class Element:
    """An element of the page."""

    def __init__(self, browser: Browser, reference: str) -> None:
        self._browser = browser
        self._path = f"/element/{reference}"

    def click(self) -> None:
        self._browser.command("POST", f"{self._path}/click", {})

    def type(self, text: str) -> None:
        """Types into a field, in place of what was in it."""
        self._browser.command("POST", f"{self._path}/clear", {})
        self._browser.command("POST", f"{self._path}/value", {"text": text})

    @property
    def text(self) -> str:
        """What a person reads."""
        return str(self._browser.command("GET", f"{self._path}/text"))

    @property
    def shown(self) -> bool:
        return bool(self._browser.command("GET", f"{self._path}/displayed"))

    def attribute(self, name: str) -> str | None:
        found = self._browser.command("GET", f"{self._path}/attribute/{name}")
        return None if found is None else str(found)

    def value(self) -> str:
        """What is in a field."""
        return str(self._browser.command("GET", f"{self._path}/property/value"))


class Browser:
    """One window of a browser with a profile of its own."""

    def __init__(self, driver: httpx.Client, session: str) -> None:
        self._driver = driver
        self._session = f"/session/{session}"

    def command(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One call of the protocol.

        Raises:
            AssertionError: the driver refused.
        """
        answer = self._driver.request(method, self._session + path, json=body)
        value = answer.json()["value"]
        if answer.status_code != 200 and value["error"] == "stale element reference":
            raise StaleError(path)
        assert answer.status_code == 200, f"{path}: {value['error']}: {value['message'][:300]}"
        return value

    def open(self, url: str) -> None:
        """Goes to an address and waits until the page is there."""
        self.command("POST", "/url", {"url": url})

    @property
    def url(self) -> str:
        return str(self.command("GET", "/url"))

    @property
    def title(self) -> str:
        return str(self.command("GET", "/title"))

    @property
    def source(self) -> str:
        return str(self.command("GET", "/source"))

    @property
    def text(self) -> str:
        """All that a person reads on the page; nothing while it gives way to another one."""
        try:
            return self.find("body").text
        except StaleError:
            return ""

    @property
    def cookies(self) -> dict[str, dict[str, Any]]:
        """The cookies that the page's address gets, by name."""
        return {cookie["name"]: cookie for cookie in self.command("GET", "/cookie")}

    def all(self, css: str) -> list[Element]:
        body = {"using": "css selector", "value": css}
        return [Element(self, one[_ELEMENT]) for one in self.command("POST", "/elements", body)]

    def find(self, css: str) -> Element:
        """The first element that fits, when it is there."""
        found: list[Element] = until(
            lambda: self.all(css), PATIENCE, f"no {css} on {self.url}", pause=0.1
        )
        return found[0]

    def active(self) -> Element:
        """The element that has the focus."""
        return Element(self, self.command("GET", "/element/active")[_ELEMENT])

    def until_at(self, path: str) -> None:
        """Waits until the address is `path`, without query and fragment."""
        until(
            lambda: httpx.URL(self.url).path == path,
            PATIENCE,
            f"not at {path}, but {self.url}",
            pause=0.1,
        )

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs a function's body in the page; what it returns (also by a promise) is answered."""
        return self.command("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def size(self, width: int, height: int) -> None:
        """Makes the window so large."""
        self.command("POST", "/window/rect", {"width": width, "height": height})

    def picture(self, path: Path) -> None:
        """Saves what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.command("GET", "/screenshot")))


@contextmanager
def browser(
    directory: Path,
    *,
    language: str = "en",
    javascript: bool = True,
    arguments: tuple[str, ...] = (),
) -> Iterator[Browser]:
    """A browser with an empty profile in a directory."""
    port = free_port()
    with (directory / f"chromedriver-{port}.log").open("wb") as log:
        process = subprocess.Popen(
            ["chromedriver", f"--port={port}", "--allowed-ips=127.0.0.1"], stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as driver:
            until(lambda: _ready(driver), PATIENCE, "chromedriver did not start")
            options = {
                "args": [
                    *_ARGUMENTS,
                    *arguments,
                    f"--user-data-dir={directory / f'profile-{port}'}",
                ],
                "prefs": {
                    "intl.accept_languages": language,
                    # 2: blocked, as a person would in the settings.
                    **(
                        {}
                        if javascript
                        else {"profile.default_content_setting_values.javascript": 2}
                    ),
                },
            }
            capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
            answer = driver.post("/session", json={"capabilities": capabilities}).json()["value"]
            assert "sessionId" in answer, answer
            try:
                yield Browser(driver, answer["sessionId"])
            finally:
                driver.delete(f"/session/{answer['sessionId']}")
    finally:
        process.terminate()
        process.wait(30)


def _ready(driver: httpx.Client) -> bool:
    try:
        return bool(driver.get("/status").json()["value"]["ready"])
    except httpx.HTTPError:
        return False
