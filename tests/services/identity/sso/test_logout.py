"""Back-channel logout: a provider ends the sessions that it opened, and nobody else does."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.fakes.oidc import Key
from tests.support.identity import PASSWORD
from tests.support.single_sign_on import LOCAL, PUBLIC_URL, World, fake, row, wanted, world

__all__ = ["fake", "world"]  # the fixtures

EVENT = "http://schemas.openid.net/event/backchannel-logout"


async def test_sessions_end_with_the_providers(world: World) -> None:
    """Those of its session, or all that it opened; others go on."""
    world.sso.person("anna", "admins", sid="one")
    one = await world.login("anna")
    world.sso.people["anna"]["sid"] = "two"
    two = await world.login("anna")
    world.sso.person("berta", "admins")
    other = await world.login("berta")
    answer = await world.logout(sid="one")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert {one["sid"]} == await world.ended() & {one["sid"], two["sid"], other["sid"]}
    assert (await world.logout(sub="anna", sid="three")).status_code == 200
    assert two["sid"] not in await world.ended()
    assert (await world.logout(sub="anna")).status_code == 200
    assert two["sid"] in await world.ended()
    assert other["sid"] not in await world.ended()
    told = await world.events("sessions_ended")
    assert [event["after"]["by"] for event in told] == ["backchannel", "backchannel"]
    assert told[0]["actor"] == f"sso:{world.provider.id}"
    # What one of whom it knows nothing does is no error, and ends nothing.
    assert (await world.logout(sub="nobody")).status_code == 200
    assert (await world.logout(sub="berta", sid="unnamed")).status_code == 200
    assert other["sid"] in await world.ended(), "it gave that session no name: it may mean it"


async def test_a_link_ends_no_session_of_the_password(world: World) -> None:
    """A provider ends what it opened alone."""
    browser = world.browser()
    await browser.submit("/login", "login", email=LOCAL, password=PASSWORD)
    led = await browser.submit(
        "/auth/account", "link", provider=world.provider.id, current=PASSWORD
    )
    world.sso.person("anna", "admins")
    url = led.headers["refresh"].removeprefix("0;url=")
    await browser.get(world.callback, **world.sso.authorize(url, "anna"))
    opened = await world.login("anna")
    assert opened["email"] == LOCAL
    await world.logout(sub="anna")
    ended = await world.ended()
    assert opened["sid"] in ended
    assert (await browser.get("/auth/account")).status_code == 200


async def _sign_out(world: World, name: str) -> httpx.Response:
    """What the page answers to somebody who signs out; the session is over then."""
    browser = world.browser()
    session = await world.login(name, browser)
    answer = await browser.submit("/auth/account", "logout")
    assert session["sid"] in await world.ended()
    assert not {"session", "session_refresh"} & set(browser.cookies)
    return answer


async def test_signing_out_leads_to_the_provider(world: World) -> None:
    """Where an Owner wants that and the provider offers it, with the way back; nothing says who it
    was, and the session here is over in any case."""
    end = f"{world.sso.issuer}/session/end"
    world.sso.document = {"end_session_endpoint": f"{end}?tenant=1"}
    world.sso.person("anna", "admins")
    assert (await _sign_out(world, "anna")).headers["location"] == "/login?done=signed-out"

    made = await world.update(single_logout=True)
    assert made.post_logout_redirect_uri == f"{PUBLIC_URL}/auth/signed-out"
    led = await _sign_out(world, "anna")
    url = urlsplit(led.headers["refresh"].removeprefix("0;url="))
    assert f"{url.scheme}://{url.netloc}{url.path}" == end
    assert parse_qs(url.query) == {
        "tenant": ["1"],
        "client_id": ["evergreen"],
        "post_logout_redirect_uri": [made.post_logout_redirect_uri],
    }
    browser = world.browser()
    back = await browser.get("/auth/signed-out", site="cross-site")
    assert (back.status_code, back.headers["location"]) == (303, "/login?done=signed-out")
    # Who has a password here was not sent there, and is not.
    await browser.submit("/login", "login", email=LOCAL, password=PASSWORD)
    answer = await browser.submit("/auth/account", "logout")
    assert answer.headers["location"] == "/login?done=signed-out"
    (told,) = await world.events("sso_provider_updated")
    assert (told["before"]["singleLogout"], told["after"]["singleLogout"]) == (False, True)


async def test_signing_out_waits_for_no_provider(world: World) -> None:
    """One that offers nothing, or nothing usable, or does not answer, is left out."""
    world.sso.person("anna", "admins")
    tests = pb.TestSsoProviderRequest(id=world.provider.id)
    for said in (None, "", 7, "http://evil.example/out", "javascript:alert(1)", "https://x y"):
        world.sso.document = {"end_session_endpoint": None}
        await world.update(single_logout=False)
        browser = world.browser()
        await world.login("anna", browser)
        # The change has what it says of itself asked for again.
        world.sso.document = {"end_session_endpoint": said}
        await world.update(single_logout=True)
        answer = await browser.submit("/auth/account", "logout")
        assert answer.headers["location"] == "/login?done=signed-out", said
        tried = await world.identity.providers.TestSsoProvider(tests, metadata=world.owner)
        assert not tried.ok, said
    world.sso.document = {}
    await world.update(single_logout=False)
    browser = world.browser()
    await world.login("anna", browser)
    await world.update(single_logout=True)
    world.sso.lie = "hang"
    began = time.monotonic()
    answer = await browser.submit("/auth/account", "logout")
    assert answer.headers["location"] == "/login?done=signed-out"
    assert time.monotonic() - began < 8


BAD_TOKENS: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://evil.example"},
    "another audience": {"aud": "somebody"},
    "expired": {"exp": int(time.time()) - 3600},
    "issued long ago": {"iat": int(time.time()) - 3600},
    "no time": {"iat": None},
    "no id": {"jti": None},
    "no event": {"events": None},
    "another event": {"events": {"https://x.example": {}}},
    "an event that is none": {"events": {EVENT: "yes"}},
    "a nonce, as ID tokens have": {"nonce": "x"},
    "nobody": {"sub": None},
    "a subject that is a list": {"sub": None, "sid": ["one"]},
}


async def test_tokens_that_end_nothing(world: World) -> None:
    """400, and the session goes on."""
    world.sso.person("anna", "admins")
    session = await world.login("anna")
    for case, claims in BAD_TOKENS.items():
        answer = await world.logout(**({"sub": "anna"} | claims))
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), case
        assert session["sid"] not in await world.ended(), case


async def test_who_may_not_say_so(world: World) -> None:
    """Not with another key, not with an ID token, not twice, not of another provider, and not with
    something else."""
    world.sso.person("anna", "admins")
    session = await world.login("anna")
    stranger = Key.make("stranger")
    known = world.sso.keys[0]
    id_token = world.sso.id_token("anna", "n")
    world.sso.keys = [stranger]
    forged = world.sso.logout_token(sub="anna")
    world.sso.keys = [known]
    for token in (forged, id_token, "", "x", "a.b.c", "x" * 100_000):
        answer = await world.say_logout(token)
        assert answer.status_code == 400, token[:20]
    second = await world.identity.providers.CreateSsoProvider(
        wanted(world.sso.issuer, row("*", Role.AUDITOR), name="Second"), metadata=world.owner
    )
    token = world.sso.logout_token(sub="anna")
    assert (await world.say_logout(token, second.id)).status_code == 200
    assert session["sid"] not in await world.ended()
    assert (await world.say_logout(token)).status_code == 200
    assert session["sid"] in await world.ended()
    session = await world.login("anna")
    assert (await world.say_logout(token)).status_code == 400
    assert session["sid"] not in await world.ended()
    assert (await world.say_logout(token, world.school.id)).status_code == 404
    assert (await world.say_logout(token, "x")).status_code == 404
    asked = world.sso.asked.count("/keys")
    world.sso.keys = [stranger]
    for _ in range(5):
        await world.say_logout(world.sso.logout_token(sub="anna"))
    assert world.sso.asked.count("/keys") <= asked + 1, "keys are not fetched for everybody"
