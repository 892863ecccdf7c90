"""The example of docs/single-sign-on.md, as it is printed, against a real provider (oidc-provider);
its people sign in, by hand and in Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.external.conftest import OpenBrowser
from tests.support.documented import Commands, script
from tests.support.stack import PATIENCE, Stack, free_port, running, until

PLACE = "https://login.school.example/realms/school"
_PACKAGES = ("oidc-provider@9.13.3", "jose@6")
_PROGRAM = Path(__file__).with_name("oidc_provider.mjs")


@dataclass
class Installation:
    """The product with a provider beside it."""

    stack: Stack
    issuer: str


@contextmanager
def _provider(
    directory: Path, port: int, stack: Stack, redirect: str, logout: str
) -> Iterator[None]:
    log = directory / "provider.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["node", str(_PROGRAM), str(port), redirect, logout],
            cwd=directory,
            env={**os.environ, "NODE_EXTRA_CA_CERTS": stack.ca_file},
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{port}/.well-known/openid-configuration"
    try:
        until(lambda: process.poll() is not None or _answers(url), PATIENCE, "no provider")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the provider is installed."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("needs Node.js with npm")
    directory = tmp_path_factory.mktemp("oidc-provider")
    done = subprocess.run(
        ["npm", "install", "--no-save", "--no-fund", "--no-audit", *_PACKAGES],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode != 0:
        pytest.skip(f"oidc-provider could not be installed: {done.stderr[-300:]}")
    return directory


@pytest.fixture(scope="module")
def installation(
    programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    directory = tmp_path_factory.mktemp("single-sign-on")
    insecure = {"EVERGREEN_ALLOW_INSECURE_SSO": "true"}
    with running(directory / "home", **insecure) as stack:
        # The id here is in both addresses: so the provider begins with others.
        with _provider(programs, port, stack, f"{stack.url}/none", f"{stack.url}/none"):
            _run_the_example(stack, issuer, directory)
        with stack.first_owner() as root:
            (made,) = root.get("/api/sso-providers").json()["providers"]
        addresses = made["redirectUri"], made["backchannelLogoutUri"]
        with _provider(programs, port, stack, *addresses):
            yield Installation(stack, issuer)


def _run_the_example(stack: Stack, issuer: str, directory: Path) -> None:
    (directory / "client-secret").write_text("oidc-secret\n")
    with Commands("docs/single-sign-on.md", "servers") as commands:
        create, *others = commands.take("Example: Keycloak")
        text = script([create.filled({PLACE: issuer}), *others], directory)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=directory,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "EVERGREEN_HOME": str(stack.home),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (directory / "output").write_text(done.stdout)
    assert "FAILED" not in done.stdout
    assert re.search(rf"{stack.url}/auth/sso/[-0-9a-f]+/callback \(redirect URI\)", done.stdout)
    assert "ok     keys: 1 for signatures (RS256)" in done.stdout.splitlines()
    assert re.search(r"school\.test +default +School sign-in", done.stdout)


def _form(page: httpx.Response) -> tuple[str, dict[str, str]]:
    """Where the first form of a page goes, and its hidden fields."""
    action = re.search(r'<form[^>]* action="([^"]+)"', page.text)
    assert action, page.text
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.text))
    return urljoin(str(page.url), unescape(action[1])), hidden


def _sign_in(client: httpx.Client, name: str) -> httpx.Response:
    """Goes by the button, through the provider's pages, and back."""
    page = client.get("/login")
    button = re.search(r'href="(/auth/sso/start[^"]+)"', page.text)
    assert button, page.text
    page = client.get(unescape(button[1]), follow_redirects=True)
    for _ in range(4):
        if page.url.path.endswith("/callback"):
            return page
        action, hidden = _form(page)
        typed = {"login": name, "password": "x"} if "password" in page.text else {}
        page = client.post(action, data=hidden | typed, follow_redirects=True)
    return page


def test_the_example(installation: Installation) -> None:
    """Each command does what the page says; people get what their groups are mapped to, keys may
    change, and a logout at the provider ends the session here."""
    stack = installation.stack
    with stack.client() as client:
        answer = _sign_in(client, "adam")
        assert "You are signed in." in answer.text, answer.text
        page = client.get("/auth/account")
        assert "adam@school.test" in page.text
        assert "Admin" in page.text
        httpx.post(f"{installation.issuer}/_test/rotate").raise_for_status()
        # With a session there, nobody is asked again.
        client.cookies.delete("session")
        with stack.client() as other:
            assert "You are signed in." in _sign_in(other, "olive").text
            page = other.get(f"{installation.issuer}/session/end")
            action, hidden = _form(page)
            other.post(action, data=hidden | {"logout": "yes"}, follow_redirects=True)
            until(
                lambda: other.get("/auth/account").status_code == 303,
                PATIENCE,
                "the session goes on after a logout at the provider",
            )
    with stack.client() as client:
        refused = _sign_in(client, "mallory")
        assert "has not verified your e-mail address" in refused.text
        assert "session" not in client.cookies
    with stack.first_owner() as root:
        users = {one["email"]: one for one in root.get("/api/users").json()["users"]}
    assert {users[f"{name}@school.test"]["role"] for name in ("adam", "olive")} == {
        "Admin",
        "Owner",
    }
    assert "mallory@school.test" not in users


def test_in_a_browser_without_scripts(
    installation: Installation, open_browser: OpenBrowser
) -> None:
    """The button leads to the provider, and back to a session, on pages that need no script."""
    with open_browser(javascript=False) as browser:
        browser.open(f"{installation.stack.url}/login")
        browser.find("a.button").click()
        browser.find("input[name=login]").type("adam")
        browser.find("input[name=password]").type("x")
        browser.find("button[type=submit]").click()
        browser.find("button[type=submit]").click()
        browser.until_at("/auth/signed-in")
        assert "adam@school.test" in browser.text
