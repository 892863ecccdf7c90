"""Single sign-on with a real Keycloak: who gets in as what, what is refused, and both logouts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.external import keycloak
from tests.external.keycloak import CLIENT, SECRET, password_of
from tests.support.forms import form_of
from tests.support.paths import LONG
from tests.support.stack import PATIENCE, Stack, free_port, running, until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not LONG, reason="minutes to start Keycloak: `make test-long` runs it"),
    pytest.mark.timeout(2400),
]


@dataclass(frozen=True, slots=True)
class Realm:
    """The product, and Keycloak beside it."""

    stack: Stack
    provider: str
    """The provider's id here."""
    issuer: str

    def browser(self) -> httpx.Client:
        """A browser: to it this machine is a safe place, as Keycloak says of its cookies."""
        client = self.stack.client()

        def trust(_: httpx.Response) -> None:
            for cookie in client.cookies.jar:
                cookie.secure = cookie.secure and cookie.domain != "127.0.0.1"

        client.event_hooks = {"response": [trust]}
        return client

    def sign_in(self, client: httpx.Client, name: str) -> httpx.Response:
        """Goes to Keycloak, logs in there unless it knows the browser, and comes back."""
        page = client.get(f"/auth/sso/start?provider={self.provider}", follow_redirects=True)
        if page.url.path.endswith("/callback"):
            return page
        action, hidden = form_of(page)
        typed = {"username": name, "password": password_of(name)}
        return client.post(action, data=hidden | typed, follow_redirects=True)

    @staticmethod
    def is_signed_in(client: httpx.Client) -> bool:
        return client.get("/auth/account").status_code == 200


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    directory = tmp_path_factory.mktemp("keycloak")
    place = keycloak.distribution(directory)
    port = free_port()
    issuer = f"http://127.0.0.1:{port}/realms/school"
    with running(directory / "home", EVERGREEN_ALLOW_INSECURE_SSO="true") as stack:
        wanted = {
            "name": "Keycloak",
            "orgId": stack.tenant_id,
            "issuer": issuer,
            "clientId": CLIENT,
            "clientSecret": SECRET,
            "justInTime": True,
            "singleLogout": True,
            "roleMappings": [
                {"group": "eg-owners", "role": "Owner"},
                {"group": "eg-admins", "role": "Admin"},
            ],
        }
        with stack.first_owner() as root:
            made = root.post("/api/sso-providers", json=wanted)
            assert made.status_code == 200, made.text
            provider = made.json()
            domain = {"domain": "school.test", "orgId": stack.tenant_id}
            root.post("/api/email-domains", json=domain).raise_for_status()
            used = {"sourceId": provider["id"]}
            root.patch("/api/email-domains/school.test", json=used).raise_for_status()
        addresses = [
            provider[name]
            for name in ("redirectUri", "backchannelLogoutUri", "postLogoutRedirectUri")
        ]
        with keycloak.running(place, port, stack.ca_file, addresses):
            yield Realm(stack, provider["id"], issuer)


def test_who_gets_in(realm: Realm) -> None:
    """Each with the role of the group; an address that is not verified and a person in no mapped
    group do not, and an answer works once, in its browser alone."""
    with realm.stack.first_owner() as root:
        tried = root.post(f"/api/sso-providers/{realm.provider}/test", json={}).json()
        assert tried["ok"], tried
    for name, role in {"adam": "Admin", "olive": "Owner"}.items():
        with realm.browser() as client:
            back = realm.sign_in(client, name)
            assert "You are signed in." in back.text, back.text
            page = client.get("/auth/account").text
            assert f"{name}@school.test" in page
            assert role in page
            assert client.get(str(back.url)).status_code == 401, "twice"
            with realm.browser() as stranger:
                assert stranger.get(str(back.url)).status_code == 401, "another browser"
    for name in ("mallory", "nobody"):
        with realm.browser() as client:
            back = realm.sign_in(client, name)
            assert back.status_code >= 400, name
            assert not realm.is_signed_in(client), name
    with realm.stack.first_owner() as root:
        emails = {one["email"] for one in root.get("/api/users").json()["users"]}
    assert {"adam@school.test", "olive@school.test"} <= emails
    assert not {"mallory@school.test", "nobody@school.test"} & emails


def test_a_logout_there_ends_the_session_here(realm: Realm) -> None:
    """By Keycloak's word, which reaches the installation at its own address."""
    with realm.browser() as client:
        realm.sign_in(client, "adam")
        assert realm.is_signed_in(client)
        page = client.get(f"{realm.issuer}/protocol/openid-connect/logout")
        action, hidden = form_of(page)
        client.post(action, data=hidden | {"confirmLogout": "Logout"}, follow_redirects=True)
        until(lambda: not realm.is_signed_in(client), PATIENCE, "the session goes on")


def test_signing_out_here_leads_there(realm: Realm) -> None:
    """Keycloak asks, and leads back; then it knows the browser no more."""
    with realm.browser() as client:
        realm.sign_in(client, "adam")
        form = re.search(
            r'action="/auth/forms/logout".*?</form>', client.get("/auth/account").text, re.DOTALL
        )
        assert form
        hidden = dict(re.findall(r'name="([^"]+)" value="([^"]*)"', form[0]))
        led = client.post("/auth/forms/logout", data=hidden, headers={"origin": realm.stack.url})
        assert not realm.is_signed_in(client)
        page = client.get(led.headers["refresh"].removeprefix("0;url="), follow_redirects=True)
        action, hidden = form_of(page)
        page = client.post(action, data=hidden | {"confirmLogout": "Logout"}, follow_redirects=True)
        assert page.url.path == "/login", page.text
        assert "You are signed out." in page.text
        page = client.get(f"/auth/sso/start?provider={realm.provider}", follow_redirects=True)
        assert 'name="password"' in page.text
