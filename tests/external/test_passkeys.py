"""Passkeys, in Chromium with a virtual authenticator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.test_console import person
from tests.e2e.world import PASSWORD, Org, make_org, ok
from tests.external.browser import Browser, StaleError
from tests.support.stack import PATIENCE, Stack, until

_GET = """
const options = JSON.parse(document.querySelector("form[data-passkey]").dataset.passkey);
return navigator.credentials.get({
  publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options),
}).then((made) => JSON.stringify(made.toJSON()), (error) => error.name);
"""


class Authenticator:
    """A device that keeps passkeys, and verifies its owner when it is told to."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        options = {
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": True,
            "hasUserVerification": True,
            "isUserVerified": True,
        }
        self._path = "/webauthn/authenticator"
        self._path += "/" + str(browser.command("POST", self._path, options))

    def verifies(self, owner: bool) -> None:
        self._browser.command("POST", f"{self._path}/uv", {"isUserVerified": owner})

    def credentials(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._browser.command("GET", f"{self._path}/credentials")
        return found

    def replace(self, credential: dict[str, Any]) -> None:
        """Puts a copy of a passkey in its place."""
        self._browser.command("DELETE", f"{self._path}/credentials/{credential['credentialId']}")
        self._browser.command("POST", f"{self._path}/credential", credential)


@pytest.fixture
def org(stack: Stack) -> Iterator[Org]:
    with stack.first_owner() as root:
        yield make_org(stack, root, "School")


def _press(browser: Browser, words: str) -> None:
    def pressed() -> bool:
        try:
            found = [one for one in browser.all("button") if one.shown and one.text == words]
            assert found, f"no button {words}: {browser.text}"
            found[0].click()
        except StaleError:
            return False
        return True

    until(pressed, PATIENCE, f"the button {words} cannot be pressed", pause=0.1)


def _reads(browser: Browser, words: str) -> None:
    until(lambda: words in browser.text, PATIENCE, f"the page does not say {words}", pause=0.1)


def _log_in(stack: Stack, browser: Browser, email: str) -> None:
    browser.open(f"{stack.url}/login")
    browser.find("#email").type(email)
    browser.find("#password").type(PASSWORD)
    browser.find('form[action="/auth/forms/login"] button').click()


def _log_out(stack: Stack, browser: Browser) -> None:
    browser.open(f"{stack.url}/auth/account")
    _press(browser, "Sign out")
    browser.until_at("/login")


def test_a_passkey_opens_the_account(stack: Stack, org: Org, browser: Browser) -> None:
    """Alone, after the password, and to confirm; once, and only when its owner is there."""
    email = person(org, "Auditor")
    device = Authenticator(browser)
    _log_in(stack, browser, email)
    browser.until_at("/auth/signed-in")
    browser.open(f"{stack.url}/auth/account")
    _press(browser, "Add a passkey")
    _reads(browser, "Your recovery codes")  # they come first
    browser.open(f"{stack.url}/auth/account")
    _press(browser, "Add a passkey")
    _reads(browser, "What to call it")
    browser.find("#name").type("Tablet")
    _press(browser, "Make a passkey")
    _reads(browser, "Your passkey is added.")
    assert "Tablet" in browser.text
    assert len(device.credentials()) == 1

    # A device has one passkey of an account.
    _press(browser, "Add a passkey")
    _reads(browser, "What to call it")
    _press(browser, "Make a passkey")
    _reads(browser, "could not be used")

    _log_out(stack, browser)
    _press(browser, "Use a passkey")
    browser.until_at("/auth/signed-in")

    browser.open(f"{stack.url}/auth/confirm")
    _press(browser, "Use a passkey")
    browser.until_at("/auth/account")
    _reads(browser, "Now do once more")

    _log_out(stack, browser)
    _log_in(stack, browser, email)
    browser.until_at("/auth/second-factor")
    _press(browser, "Use a passkey")
    browser.until_at("/auth/signed-in")
    _log_out(stack, browser)

    device.verifies(False)
    _press(browser, "Use a passkey")
    _reads(browser, "could not be used")
    device.verifies(True)

    events = ok(org.owner.get("/api/audit", params={"pageSize": "100"}))["entries"]
    methods = [one["after"]["methods"] for one in events if "login_succeeded" in one["action"]]
    assert ["passkey"] in methods
    assert ["pwd", "passkey"] in methods


def test_an_answer_opens_once_and_no_copy_does(stack: Stack, org: Org, browser: Browser) -> None:
    """Replayed, from another browser, or from a copy that counts less: refused."""
    email = person(org, "Auditor")
    device = Authenticator(browser)
    _log_in(stack, browser, email)
    browser.until_at("/auth/signed-in")
    for _ in range(2):
        browser.open(f"{stack.url}/auth/account")
        _press(browser, "Add a passkey")
    _press(browser, "Make a passkey")
    _reads(browser, "Your passkey is added.")
    _log_out(stack, browser)

    browser.open(f"{stack.url}/login")
    answer = browser.run(_GET)
    assert json.loads(answer)["type"] == "public-key"
    token = browser.find('input[name="form"]').attribute("value") or ""

    def send(form_cookie: str, credential: str) -> httpx.Response:
        with stack.client() as client:
            return client.post(
                "/auth/forms/passkey",
                data={"form": form_cookie, "credential": credential},
                headers={
                    "sec-fetch-site": "same-origin",
                    "origin": stack.url,
                    "cookie": f"__Host-evergreen_form={form_cookie}",
                },
            )

    assert send("A" * 22, answer).status_code == 401  # another browser's
    assert send(token, "{}").status_code == 401
    assert send(token, answer).headers["location"] == "/auth/signed-in"
    again = send(token, answer)
    assert again.status_code == 401
    assert "not recognised" in again.text

    (credential,) = device.credentials()
    device.replace({**credential, "signCount": 0})
    browser.open(f"{stack.url}/login")
    _press(browser, "Use a passkey")
    _reads(browser, "not recognised")

    def told() -> bool:
        events = ok(org.owner.get("/api/audit", params={"pageSize": "100"}))["entries"]
        return any(one["action"] == "identity.passkey_counter_behind" for one in events)

    until(told, PATIENCE, "nobody is told of the copy")

    device.replace({**credential, "signCount": 50})
    browser.open(f"{stack.url}/login")
    _press(browser, "Use a passkey")
    browser.until_at("/auth/signed-in")
    browser.open(f"{stack.url}/auth/account")
    _press(browser, "Remove this passkey")
    _reads(browser, "opens nothing any more")
    stack.login(email, PASSWORD)
