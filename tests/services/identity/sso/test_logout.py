"""Back-channel logout: a provider ends the sessions that it opened, and nobody else does."""

from __future__ import annotations

import time
from typing import Any

from contract.access import Role
from tests.fakes.oidc import Key
from tests.support.identity import PASSWORD
from tests.support.single_sign_on import LOCAL, World, fake, row, wanted, world

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
