"""The example of docs/single-sign-on.md, as it is printed, against a real provider (oidc-provider);
its people sign in, by hand and in Chromium, and at two installations."""

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
from tests.support.forms import form_of
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
def _provider(directory: Path, port: int, ca_file: str, *addresses: str) -> Iterator[None]:
    log = directory / "provider.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["node", str(_PROGRAM), str(port), *addresses],
            cwd=directory,
            env={**os.environ, "NODE_EXTRA_CA_CERTS": ca_file},
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
        none = f"{stack.url}/none"
        with _provider(programs, port, stack.ca_file, none, none):
            _run_the_example(stack, issuer, directory)
        with stack.first_owner() as root:
            (made,) = root.get("/api/sso-providers").json()["providers"]
        addresses = made["redirectUri"], made["backchannelLogoutUri"]
        with _provider(programs, port, stack.ca_file, *addresses):
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


def _sign_in(client: httpx.Client, name: str, provider: str = "School sign-in") -> httpx.Response:
    """Goes by the button, through the provider's pages, and back."""
    page = client.get("/login")
    button = re.search(rf'href="(/auth/sso/start[^"]+)"[^>]*>[^<]*{provider}', page.text)
    assert button, page.text
    page = client.get(unescape(button[1]), follow_redirects=True)
    for _ in range(4):
        if page.url.path.endswith("/callback"):
            return page
        action, hidden = form_of(page)
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
            action, hidden = form_of(page)
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


def test_signing_out_there_too(installation: Installation) -> None:
    """Signing out here leads to the provider's question, and back to the sign-in page; then the
    provider asks who it is again. Somebody may also say no there."""
    stack = installation.stack
    with stack.first_owner() as root:
        (provider,) = root.get("/api/sso-providers").json()["providers"]
        path = f"/api/sso-providers/{provider['id']}"
        root.patch(path, json={"singleLogout": True}).raise_for_status()
        tried = root.post(f"{path}/test", json={}).json()
        assert tried["ok"], tried
        assert "logout" in {step["step"] for step in tried["steps"]}
    with stack.client() as client:
        for answer, is_known in (({}, True), ({"logout": "yes"}, False)):
            assert "You are signed in." in _sign_in(client, "adam").text
            form = re.search(r'action="/auth/forms/logout".*?</form>', _account(client), re.DOTALL)
            assert form
            hidden = dict(re.findall(r'name="([^"]+)" value="([^"]*)"', form[0]))
            led = client.post("/auth/forms/logout", data=hidden, headers={"origin": stack.url})
            assert client.get("/auth/account").status_code == 303
            page = client.get(led.headers["refresh"].removeprefix("0;url="))
            action, hidden = form_of(page)
            page = client.post(action, data=hidden | answer, follow_redirects=True)
            assert page.url.path == "/login", page.text
            assert "You are signed out." in page.text
            start = client.get(f"/auth/sso/start?provider={provider['id']}", follow_redirects=True)
            assert ('name="password"' not in start.text) is is_known, start.text
    with stack.first_owner() as root:
        root.patch(path, json={"singleLogout": False}).raise_for_status()


def _account(client: httpx.Client) -> str:
    page = client.get("/auth/account")
    assert page.status_code == 200
    return page.text


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
        # The next page has a button, too.
        until(lambda: not browser.all("input[name=login]"), PATIENCE, "still asked who it is")
        browser.find("button[type=submit]").click()
        browser.until_at("/auth/signed-in")
        assert "adam@school.test" in browser.text


@dataclass
class Backend:
    """One of two installations that have the same provider."""

    stack: Stack
    provider: dict[str, str]
    tenant_id: str

    def is_signed_in(self, client: httpx.Client) -> bool:
        return client.get("/auth/account").status_code == 200

    def rosa(self, root: httpx.Client) -> dict[str, str]:
        (found,) = [u for u in root.get("/api/users").json()["users"] if u["email"] == ROSA]
        return dict(found)


ROSA = "rosa@reseller.test"
RESELLER = "Reseller sign-in"


def _backend(stack: Stack, root: httpx.Client, issuer: str, client_id: str, role: str) -> Backend:
    wanted = {
        "name": RESELLER,
        "issuer": issuer,
        "clientId": client_id,
        "clientSecret": "oidc-secret",
        "justInTime": True,
        "orgId": stack.tenant_id,
        "roleMappings": [{"group": "eg-support", "role": role}],
    }
    made = root.post("/api/sso-providers", json=wanted)
    assert made.status_code == 200, made.text
    root.post(
        "/api/email-domains", json={"domain": "reseller.test", "orgId": stack.tenant_id}
    ).raise_for_status()
    used = {"sourceId": made.json()["id"]}
    root.patch("/api/email-domains/reseller.test", json=used).raise_for_status()
    return Backend(stack, made.json(), stack.tenant_id)


def _back_from(client: httpx.Client, name: str, backend: Backend) -> str:
    """Signs somebody in at the provider; answers the way back, which is not gone."""
    page = client.get(f"/auth/sso/start?provider={backend.provider['id']}")
    for _ in range(20):
        if page.is_redirect:
            where = urljoin(str(page.url), page.headers["location"])
            if where.startswith(backend.provider["redirectUri"]):
                return where
            page = client.get(where)
            continue
        action, hidden = form_of(page)
        typed = {"login": name, "password": "x"} if "password" in page.text else {}
        page = client.post(action, data=hidden | typed)
    raise AssertionError(page.text)


def test_two_installations_have_one_provider(
    installation: Installation, programs: Path, tmp_path: Path
) -> None:
    """The same person has an account of its own in each, with that one's role; what one gives opens
    nothing at the other, and neither log knows of the other. A logout at the provider is told to
    both; who is deactivated in one, or whose provider is gone there, works on in the other."""
    stack = installation.stack
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    with (
        running(tmp_path / "oak", EVERGREEN_ALLOW_INSECURE_SSO="true") as other,
        stack.first_owner() as root,
        other.first_owner() as others_root,
    ):
        here = _backend(stack, root, issuer, "evergreen", "Admin")
        there = _backend(other, others_root, issuer, "evergreen-2", "Auditor")
        addresses = [
            one.provider[name]
            for one in (here, there)
            for name in ("redirectUri", "backchannelLogoutUri")
        ]
        both = tmp_path / "both.pem"
        both.write_text(Path(stack.ca_file).read_text() + Path(other.ca_file).read_text())
        with (
            _provider(programs, port, str(both), *addresses),
            stack.client() as client,
            other.client() as others_client,
        ):
            _roles_are_each_ones(here, there, client, others_client, root, others_root)
            _nothing_opens_the_other(here, there, client, others_client)
            _a_logout_is_told_to_both(here, there, client, others_client, issuer)
            _one_goes_on_without_the_other(here, there, client, others_client, root)
        _no_log_knows_the_other(here, there, root, others_root)


def _roles_are_each_ones(
    here: Backend,
    there: Backend,
    client: httpx.Client,
    others_client: httpx.Client,
    root: httpx.Client,
    others_root: httpx.Client,
) -> None:
    assert "You are signed in." in _sign_in(client, "rosa", RESELLER).text
    # One browser: the provider knows the person already.
    for cookie in client.cookies.jar:
        if cookie.domain == "127.0.0.1":
            others_client.cookies.jar.set_cookie(cookie)
    assert "You are signed in." in _sign_in(others_client, "nobody else", RESELLER).text
    one, other = here.rosa(root), there.rosa(others_root)
    assert (one["role"], other["role"]) == ("Admin", "Auditor")
    assert one["id"] != other["id"]
    assert one["sourceId"] == here.provider["id"]
    assert other["sourceId"] == there.provider["id"]


def _nothing_opens_the_other(
    here: Backend, there: Backend, client: httpx.Client, others_client: httpx.Client
) -> None:
    """Neither a session nor the provider's code for the other."""
    token = client.cookies["session"]
    for headers in ({"authorization": f"Bearer {token}"}, {"cookie": f"session={token}"}):
        with here.stack.client() as known, there.stack.client() as stranger:
            assert known.get("/api/users", headers=headers).status_code == 200
            assert stranger.get("/api/users", headers=headers).status_code == 401
    with here.stack.client() as begun, there.stack.client() as elsewhere:
        back = _back_from(begun, "rosa", here)
        elsewhere.get(f"/auth/sso/start?provider={there.provider['id']}")
        query = back.partition("?")[2]
        refused = elsewhere.get(f"{there.provider['redirectUri']}?{query}")
        assert refused.status_code == 401, refused.text
        assert "session" not in elsewhere.cookies
        assert begun.get(back).status_code == 200


def _a_logout_is_told_to_both(
    here: Backend, there: Backend, client: httpx.Client, others_client: httpx.Client, issuer: str
) -> None:
    # The provider has one session of this browser, in which both signed in.
    for cookie in others_client.cookies.jar:
        if cookie.domain == "127.0.0.1":
            client.cookies.jar.set_cookie(cookie)
    page = client.get(f"{issuer}/session/end")
    action, hidden = form_of(page)
    client.post(action, data=hidden | {"logout": "yes"}, follow_redirects=True)
    for backend, browser in ((here, client), (there, others_client)):
        until(lambda b=backend, c=browser: not b.is_signed_in(c), PATIENCE, "it goes on")


def _one_goes_on_without_the_other(
    here: Backend,
    there: Backend,
    client: httpx.Client,
    others_client: httpx.Client,
    root: httpx.Client,
) -> None:
    for browser in (client, others_client):
        assert "You are signed in." in _sign_in(browser, "rosa", RESELLER).text
    users = f"/api/users/{here.rosa(root)['id']}"
    root.post(f"{users}/deactivate").raise_for_status()
    until(lambda: not here.is_signed_in(client), PATIENCE, "the session goes on")
    assert "You are signed in." not in _sign_in(client, "rosa", RESELLER).text
    assert there.is_signed_in(others_client)
    root.delete(f"/api/sso-providers/{here.provider['id']}").raise_for_status()
    others_client.cookies.delete("session")
    assert "You are signed in." in _sign_in(others_client, "rosa", RESELLER).text
    assert there.is_signed_in(others_client)


def _no_log_knows_the_other(
    here: Backend, there: Backend, root: httpx.Client, others_root: httpx.Client
) -> None:
    for mine, other, owner in ((here, there, root), (there, here, others_root)):
        log = owner.get("/api/audit/export").text
        assert mine.provider["id"] in log
        for secret in (other.provider["id"], other.tenant_id, other.stack.url):
            assert secret not in log
