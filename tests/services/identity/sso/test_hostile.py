"""Providers and browsers that lie: each bad answer, and what nobody gets by it."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from services.identity.sources.breaker import FAILURES
from services.identity.sso import asking
from services.identity.sso.logins import LIFE, SsoLogins
from tests.fakes import oidc
from tests.fakes.oidc import CLIENT, Claims, FakeProvider, Key
from tests.support.identity import PASSWORD
from tests.support.single_sign_on import (
    LOCAL,
    PUBLIC_URL,
    World,
    fake,
    problem,
    row,
    wanted,
    world,
)

__all__ = ["fake", "world"]  # the fixtures

UNUSABLE = "cannot be used"
STALE = "This sign-in was not begun in this browser"
AWAY = "does not answer"


async def reasons(world: World) -> list[str]:
    return [event["after"]["reason"] for event in await world.events("sso_login_refused")]


def changed(**claims: Any) -> Callable[[Claims], Claims]:
    """Claims of an ID token, with others; `None` takes one away."""

    def change(known: Claims) -> Claims:
        whole = {**known, **{k: v(known) if callable(v) else v for k, v in claims.items()}}
        return {name: value for name, value in whole.items() if value is not None}

    return change


def ago(seconds: float) -> int:
    return int(time.time() - seconds)


BAD_CLAIMS: dict[str, tuple[Callable[[Claims], Claims], str]] = {
    "another issuer": (changed(iss="https://evil.example"), "ISSUER"),
    "the issuer with a slash": (changed(iss=lambda c: c["iss"] + "/"), "ISSUER"),
    "no issuer": (changed(iss=None), "ISSUER"),
    "another audience": (changed(aud="somebody"), "AUDIENCE"),
    "no audience": (changed(aud=None), "AUDIENCE"),
    "an audience that is no text": (changed(aud={"evergreen": 1}), "AUDIENCE"),
    "two audiences, no party": (changed(aud=[CLIENT, "other"]), "AUDIENCE"),
    "two audiences, another party": (changed(aud=[CLIENT, "other"], azp="other"), "AUDIENCE"),
    "another party": (changed(azp="other"), "AUDIENCE"),
    "another nonce": (changed(nonce="x"), "NONCE"),
    "no nonce": (changed(nonce=None), "NONCE"),
    "a nonce that is no text": (changed(nonce=["x"]), "NONCE"),
    "expired": (changed(exp=lambda c: ago(61)), "EXPIRED"),
    "never expires": (changed(exp=None), "EXPIRED"),
    "expires with a word": (changed(exp="soon"), "EXPIRED"),
    "expires with true": (changed(exp=True), "EXPIRED"),
    "not valid yet": (changed(nbf=lambda c: ago(-120)), "EXPIRED"),
    "issued long ago": (changed(iat=lambda c: ago(700)), "ISSUED"),
    "issued in the future": (changed(iat=lambda c: ago(-120)), "ISSUED"),
    "never issued": (changed(iat=None), "ISSUED"),
    "issued at no number": (changed(iat=float("inf")), "ISSUED"),
    "no subject": (changed(sub=None), "SUBJECT"),
    "an empty subject": (changed(sub=""), "SUBJECT"),
    "a subject that is a number": (changed(sub=7), "SUBJECT"),
    "a long subject": (changed(sub="x" * 256), "SUBJECT"),
    "a subject with a line feed": (changed(sub="a\nb"), "SUBJECT"),
    "groups that are none": (changed(groups={"owners": 1}), "GROUPS"),
    "groups of numbers": (changed(groups=[1, 2]), "GROUPS"),
    "too many groups": (changed(groups=["x"] * 10_001), "GROUPS"),
}


async def test_claims_that_are_not_this_logins(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gets in, and the log says why."""
    monkeypatch.setattr(SsoLogins, "_is_new", lambda *_: True)
    world.sso.person("anna", "owners")
    told: list[str] = []
    for case, (change, reason) in BAD_CLAIMS.items():
        world.sso.change_token = change
        assert UNUSABLE in await world.refused("anna"), case
        told.append(reason)
        assert await reasons(world) == told, case
    assert "anna" not in await world.users()


async def test_a_clock_may_differ_by_a_minute(world: World) -> None:
    """Not by more."""
    world.sso.person("anna", "admins")
    for ahead in (-50, 50):
        world.sso.ahead = ahead
        await world.login("anna")
    world.sso.ahead = 120
    assert UNUSABLE in await world.refused("anna")


def none(claims: Claims) -> str:
    return jwt.encode(claims, "", "none")


def unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def test_signatures_that_nobody_may_make(world: World) -> None:
    """No algorithm, a shared secret, the public key as one, another key with the same name, a key
    that is not published, another kind of token, and what wants more than is known here."""
    world.sso.person("anna", "owners")
    (known,) = world.sso.keys
    public = json.dumps(known.published())
    stranger = Key.make(known.id)

    def by_secret(secret: str) -> Callable[[Claims], str]:
        def sign(claims: Claims) -> str:
            # By hand: PyJWT does not sign with what looks like a public key.
            parts = [{"alg": "HS256", "kid": known.id}, claims]
            signed = ".".join(unpadded(json.dumps(part).encode()) for part in parts)
            digest = hmac.digest(secret.encode(), signed.encode(), "sha256")
            return f"{signed}.{unpadded(digest)}"

        return sign

    def tampered(claims: Claims) -> str:
        head, _, signature = known.sign(claims).split(".")
        _, body, _ = known.sign({**claims, "groups": ["owners"]}).split(".")
        return f"{head}.{body}.{signature[:-4]}AAAA"

    for sign in (
        none,
        by_secret(oidc.SECRET),
        by_secret(public),
        stranger.sign,
        tampered,
        lambda claims: known.sign(claims, typ="logout+jwt"),
        lambda claims: known.sign(claims, typ="at+jwt"),
        lambda claims: known.sign(claims, crit=["x"], x=1),
        lambda claims: "not a token",
        lambda claims: "a.b.c",
        lambda claims: known.sign(claims) + "x" * (65 << 10),
    ):
        world.sso.sign = sign
        assert UNUSABLE in await world.refused("anna")
    assert set(await reasons(world)) == {"SIGNATURE", "TOKEN"}, "each is told once in ten minutes"
    assert len(await reasons(world)) == 2


async def test_keys_that_are_not_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too short, for encryption, of another curve, private, too many, or none."""
    monkeypatch.setattr(asking, "REFETCH_SECONDS", 0.0)
    world.sso.person("anna", "owners")
    (known,) = world.sso.keys
    good = known.published()
    secret = jwt.get_algorithm_by_name("ES256").to_jwk(known.private, as_dict=True)
    many = [{**good, "kid": str(number)} for number in range(51)]
    for number, keys in enumerate(
        (
            [{**good, "use": "enc"}],
            [{**good, "alg": "ES384"}],
            [{**good, "crv": "P-384"}],
            [{**good, "x": "AAAA"}],
            [{**good, "kty": "oct", "k": "AAAA"}],
            [{**secret, "kid": known.id}],
            ["not a key"],
            many,
        )
    ):
        world.sso.answers["/keys"] = (200, json.dumps({"keys": keys}).encode(), {})
        # As another one: neither its keys nor its failures are remembered.
        made = await world.identity.providers.CreateSsoProvider(
            wanted(world.sso.issuer, row("owners", Role.OWNER), name=f"Number {number}"),
            metadata=world.owner,
        )
        said = problem(await world.arrive(world.browser(), "anna", made.id))
        assert UNUSABLE in said or AWAY in said, keys
    assert "anna" not in await world.users()


async def test_a_short_rsa_key_signs_nothing(world: World) -> None:
    """2,048 bits at least."""
    world.sso.person("anna", "owners")
    world.sso.keys = [Key("k1", "RS256", rsa.generate_private_key(65537, 1024))]
    assert UNUSABLE in await world.refused("anna")


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
async def test_usual_signatures_are_taken(world: World, algorithm: str) -> None:
    """As providers make them."""
    world.sso.keys = [Key.make("a"), Key.make("b", algorithm)]
    world.sso.sign = world.sso.keys[1].sign
    world.sso.document = {"id_token_signing_alg_values_supported": [algorithm]}
    world.sso.person("anna", "admins")
    assert (await world.login("anna"))["role"] == "Admin"


async def test_keys_are_fetched_anew_when_another_one_signs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, or after a short wait when they were fetched just now; old ones stop."""
    monkeypatch.setattr(asking, "REFETCH_SECONDS", 1.0)
    world.sso.person("anna", "admins")
    await world.login("anna")
    await world.login("anna")
    assert world.sso.asked.count("/keys") == 1
    old = world.sso.keys[0]
    world.sso.keys = [Key.make("k2")]
    await asyncio.gather(*(world.login("anna") for _ in range(4)))
    assert world.sso.asked.count("/keys") == 2
    await asyncio.sleep(1.1)
    world.sso.sign = old.sign
    assert UNUSABLE in await world.refused("anna")
    assert world.sso.asked.count("/keys") == 3


async def test_a_state_works_once_and_in_its_browser(world: World) -> None:
    """Not twice, not in another browser, not with another state, not after ten minutes."""
    world.sso.person("anna", "admins")
    browser = world.browser()
    url = await world.begin(browser)
    kept = dict(browser.cookies)
    back = world.sso.authorize(url, "anna")
    # An attacker's way back in somebody else's browser, with and without a way of its own.
    victim = world.browser()
    answer = await victim.get(world.callback, **back)
    assert (answer.status_code, problem(answer)[:42]) == (401, STALE)
    await world.begin(victim)
    answer = await victim.get(world.callback, **back)
    assert (answer.status_code, problem(answer)[:42]) == (401, STALE)
    assert "session" not in victim.cookies
    assert (await browser.get(world.callback, **back)).status_code == 200
    browser.cookies |= kept
    again = world.sso.authorize(url, "anna")
    answer = await browser.get(world.callback, **again)
    assert (answer.status_code, problem(answer)[:42]) == (401, STALE)
    url = await world.begin(browser)
    for wrong in ({"state": "x"}, {"state": ""}):
        answer = await browser.get(world.callback, **(world.sso.authorize(url, "anna") | wrong))
        assert problem(answer).startswith(STALE)
    cookie = kept["__Host-evergreen_sso"]
    changed = cookie[:-9] + ("B" if cookie[-9] == "A" else "A") + cookie[-8:]
    for forged in ("", "x", "A" * 5000, changed):
        browser.cookies["__Host-evergreen_sso"] = forged
        answer = await browser.get(world.callback, **world.sso.authorize(url, "anna"))
        assert problem(answer).startswith(STALE)
    url = await world.begin(browser)
    world.clock.ahead += LIFE
    answer = await browser.get(world.callback, **world.sso.authorize(url, "anna"))
    assert problem(answer).startswith(STALE)


async def test_a_parameter_that_is_there_twice_is_not_taken(world: World) -> None:
    """RFC 6749, section 3.1: which of them counts would be anybody's guess."""
    world.sso.person("anna", "admins")
    browser = world.browser()
    back = world.sso.authorize(await world.begin(browser), "anna")
    query = "&".join(f"{name}={value}" for name, value in back.items())
    answer = await browser.get(f"{world.callback}?{query}&state={back['state']}")
    assert problem(answer).startswith(STALE)


async def test_a_stolen_code_opens_nothing(world: World) -> None:
    """It was made for another challenge (PKCE), and another nonce."""
    world.sso.person("anna", "owners")
    victim, thief = world.browser(), world.browser()
    stolen = world.sso.authorize(await world.begin(victim), "anna")
    asked = parse_qs(urlsplit(await world.begin(thief)).query)
    answer = await thief.get(world.callback, **(stolen | {"state": asked["state"][0]}))
    assert UNUSABLE in problem(answer)
    assert "session" not in thief.cookies
    assert await reasons(world) == [], "anybody can bring wrong codes: the log is not theirs"


async def test_another_provider_does_not_answer(world: World) -> None:
    """Mix-up: one that says who it is must be the one that was asked."""
    world.sso.person("anna", "admins")
    for wrong in ({"iss": "https://evil.example"}, {"iss": ""}):
        browser = world.browser()
        back = world.sso.authorize(await world.begin(browser), "anna")
        answer = await browser.get(world.callback, **(back | wrong))
        assert UNUSABLE in problem(answer)
    browser = world.browser()
    back = world.sso.authorize(await world.begin(browser), "anna")
    del back["iss"]
    answer = await browser.get(world.callback, **back)
    assert UNUSABLE in problem(answer)
    assert "/token" not in world.sso.asked, "no code went to the wrong one"
    # One that has never said so need not.
    world.sso.says_issuer = False
    await world.update(name="Silent")
    await world.login("anna")


async def test_no_provider_answers_for_another(world: World) -> None:
    """Mix-up, where the honest one does not say who it is: each has an address of its own to come
    back to, and its codes go to nobody else."""
    world.sso.person("anna", "admins")
    world.sso.says_issuer = False
    evil = await world.identity.providers.CreateSsoProvider(
        wanted(world.sso.issuer, row("admins", Role.ADMIN), name="Evil"), metadata=world.owner
    )
    assert evil.redirect_uri == PUBLIC_URL + world.callback_of(evil.id)
    assert world.provider.redirect_uri == PUBLIC_URL + world.callback
    browser = world.browser()
    # The evil one leads the browser on to the honest one, with the state of its own login.
    back = world.sso.authorize(await world.begin(browser, evil.id), "anna")
    answer = await browser.get(world.callback, **back)
    assert (answer.status_code, UNUSABLE in problem(answer)) == (401, True)
    assert "/token" not in world.sso.asked, "no code went to the wrong one"
    assert "session" not in browser.cookies
    # That login is over, at its own address, too.
    answer = await browser.get(world.callback_of(evil.id), **back)
    assert problem(answer).startswith(STALE)
    for other in ("/auth/sso/callback", "/auth/sso/x/callback"):
        back = world.sso.authorize(await world.begin(browser), "anna")
        assert (await browser.get(other, **back)).status_code == 404
    assert (await browser.get(world.callback, **back)).status_code == 401, "its cookie is gone"
    await world.login("anna")


async def test_a_refusal_is_told(world: World) -> None:
    """In plain words; what the provider says comes to no page as it is."""
    browser = world.browser()
    url = await world.begin(browser)
    state = parse_qs(urlsplit(url).query)["state"][0]
    answer = await browser.get(
        world.callback,
        state=state,
        iss=world.sso.issuer,
        error="<script>alert(1)</script>",
        error_description="<b>no</b>",
    )
    assert answer.status_code == 401
    assert problem(answer).startswith("The sign-in of your organisation did not let you in")
    assert "<script>alert" not in answer.text
    assert "/login" in answer.text
    assert 'action="/auth/forms/login"' in answer.text, "the password is one field away"


BAD_DOCUMENTS: dict[str, dict[str, Any]] = {
    "another issuer": {"issuer": "https://evil.example"},
    "no token endpoint": {"token_endpoint": None},
    "an endpoint that is no address": {"token_endpoint": 7},
    "an endpoint without TLS": {"token_endpoint": "http://login.school.example/token"},
    "an endpoint of another scheme": {"jwks_uri": "file:///etc/passwd"},
    "an endpoint with a name": {"jwks_uri": "https://a:b@login.school.example/"},
    "no code flow": {"response_types_supported": ["id_token"]},
    "no PKCE": {"code_challenge_methods_supported": ["plain"]},
    "shared secrets only": {"id_token_signing_alg_values_supported": ["HS256", "none"]},
    "no secrets": {"token_endpoint_auth_methods_supported": ["private_key_jwt"]},
}


@pytest.mark.parametrize("case", list(BAD_DOCUMENTS))
async def test_documents_that_are_not_taken(world: World, case: str) -> None:
    """Nobody is led there; a try says what is wrong."""
    world.sso.document = BAD_DOCUMENTS[case]
    answer = await world.browser().get("/auth/sso/start", provider=world.provider.id)
    assert (answer.status_code, AWAY in problem(answer)) == (503, True)
    assert "retry-after" in answer.headers
    tried = await world.identity.providers.TestSsoProvider(
        pb.TestSsoProviderRequest(id=world.provider.id), metadata=world.owner
    )
    assert not tried.ok
    assert (tried.steps[-1].step, tried.steps[-1].ok) == ("document", False)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/.well-known/openid-configuration", (302, b"", {"location": "https://evil.example"})),
        ("/.well-known/openid-configuration", (200, b"<html>", {})),
        ("/.well-known/openid-configuration", (200, b"[" * 100_000, {})),
        ("/.well-known/openid-configuration", (200, b"[]", {})),
        ("/.well-known/openid-configuration", (200, b"\x1f\x8b", {"content-encoding": "gzip"})),
        ("/.well-known/openid-configuration", (200, b" " * (300 << 10), {})),
        ("/.well-known/openid-configuration", (500, b"{}", {})),
        ("/keys", (200, b'{"keys": 7}', {})),
        ("/keys", (200, b"{}", {})),
        ("/keys", (302, b"", {"location": "http://169.254.169.254/"})),
        ("/token", (500, b"", {})),
        ("/token", (302, b"", {"location": "https://evil.example"})),
        ("/token", (200, b'{"id_token": 7}', {})),
        ("/token", (400, b'{"error": "invalid_client"}', {})),
    ],
)
async def test_answers_that_are_none(
    world: World, path: str, answer: tuple[int, bytes, dict[str, str]]
) -> None:
    """Never an error of ours, never another address."""
    world.sso.person("anna", "owners")
    world.sso.answers[path] = answer
    browser = world.browser()
    led = await browser.get("/auth/sso/start", provider=world.provider.id)
    if led.status_code == 303:
        back = world.sso.authorize(led.headers["location"], "anna")
        led = await browser.get(world.callback, **back)
    assert led.status_code in {401, 503}
    said = problem(led)
    assert AWAY in said or UNUSABLE in said
    assert "session" not in browser.cookies


@pytest.mark.parametrize("lie", ["hang", "drip", "flood"])
async def test_a_provider_that_hangs_holds_nobody_else(
    world: World, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passwords go on; after three failures nobody waits for it; others are not held either."""
    monkeypatch.setattr(asking, "_SECONDS", 1.0)
    world.sso.person("anna", "admins")
    world.sso.lie = lie
    browsers = [world.browser() for _ in range(30)]
    waiting = [
        asyncio.create_task(one.get("/auth/sso/start", provider=world.provider.id))
        for one in browsers
    ]
    await asyncio.sleep(0.2)
    begun = time.monotonic()
    await world.identity.login(LOCAL, PASSWORD)
    with oidc.running() as other:
        second = await world.identity.providers.CreateSsoProvider(
            wanted(other.issuer, row("*", Role.AUDITOR), name="Other"), metadata=world.root
        )
        assert (await world.browser().get("/auth/sso/start", provider=second.id)).status_code == 303
    took = time.monotonic() - begun
    answers = await asyncio.gather(*waiting)
    assert {answer.status_code for answer in answers} <= {429, 503}
    assert took < 5
    asked = len(world.sso.asked)
    assert asked > 0
    begun = time.monotonic()
    answer = await world.browser().get("/auth/sso/start", provider=world.provider.id)
    assert (answer.status_code, time.monotonic() - begun < 0.5) == (503, True)
    assert len(world.sso.asked) == asked, "it is left alone for a while"
    assert int(answer.headers["retry-after"]) <= 30
    world.sso.hang.set()


async def test_wrong_codes_do_not_keep_others_out(world: World) -> None:
    """A provider that refuses codes has answered: nobody else waits for it."""
    world.sso.person("anna", "admins")
    for _ in range(2 * FAILURES):
        browser = world.browser()
        back = world.sso.authorize(await world.begin(browser), "anna")
        answer = await browser.get(world.callback, **(back | {"code": "guessed"}))
        assert UNUSABLE in problem(answer)
    await world.login("anna")


@pytest.mark.parametrize(("status", "said"), [(400, b"{}"), (404, b"no JSON"), (500, b"oops")])
async def test_one_person_keeps_nobody_out(world: World, status: int, said: bytes) -> None:
    """By codes that the provider answers otherwise than the standard says."""
    world.sso.person("anna", "admins")
    world.sso.answers["/token"] = (status, said, {})
    for _ in range(2 * FAILURES):
        browser = world.browser()
        back = world.sso.authorize(await world.begin(browser), "anna")
        answer = await browser.get(world.callback, **(back | {"code": "guessed"}))
        assert answer.status_code == (401 if status < 500 else 503)
    del world.sso.answers["/token"]
    await world.login("anna")
    assert await reasons(world) == []


async def test_slow_providers_of_one_organisation_stop_no_other(world: World) -> None:
    """However many people wait there."""
    slow = [world.provider.id]
    for number in range(2):
        made = await world.identity.providers.CreateSsoProvider(
            wanted(world.sso.issuer, name=f"Slow {number}"), metadata=world.owner
        )
        slow.append(made.id)
    world.sso.lie = "hang"
    with oidc.running() as other:
        roots = await world.identity.providers.CreateSsoProvider(
            wanted(other.issuer), metadata=world.root
        )
        waiting = [
            asyncio.create_task(world.browser().get("/auth/sso/start", provider=one))
            for one in slow
            for _ in range(22)
        ]
        await asyncio.sleep(2)
        answer = await world.browser().get("/auth/sso/start", provider=roots.id)
        assert answer.status_code == 303
    world.sso.hang.set()
    await asyncio.gather(*waiting)


async def test_a_login_ends_with_a_change_of_its_provider(world: World) -> None:
    """What was asked before is not taken for an answer of what the provider is now."""
    world.sso.person("anna", "admins")
    browser = world.browser()
    back = world.sso.authorize(await world.begin(browser), "anna")
    await world.update(name="Another")
    assert (await browser.get(world.callback, **back)).status_code == 503
    assert "/token" not in world.sso.asked
    await world.login("anna")


async def test_a_changed_secret_is_told(world: World) -> None:
    """The provider refuses the client: the log says so, once."""
    world.sso.person("anna", "admins")
    await world.update(client_secret="another one")
    for _ in range(3):
        assert UNUSABLE in await world.refused("anna")
    assert await reasons(world) == ["CLIENT"]


async def test_what_is_private_stays_so(world: World, fake: FakeProvider) -> None:
    """Whatever an organisation's Owner types, and wherever its provider points; the root tenant's
    may be private, nobody's this machine."""
    world.sso.person("anna", "owners")
    for address in ("https://127.0.0.1:1", "https://10.1.2.3", "https://169.254.169.254"):
        made = await world.identity.providers.CreateSsoProvider(
            wanted(address, name=address.replace("/", "").replace(":", "")), metadata=world.owner
        )
        tried = await world.identity.providers.TestSsoProvider(
            pb.TestSsoProviderRequest(id=made.id), metadata=world.owner
        )
        assert "none that providers may have" in tried.steps[-1].detail
    world.sso.document = {"token_endpoint": "https://10.1.2.3/token"}
    await world.update(name="Points inside")
    browser = world.browser()
    back = world.sso.authorize(await world.begin(browser), "anna")
    answer = await browser.get(world.callback, **back)
    assert answer.status_code == 503
