"""Single sign-on: who gets in, as what, and what keeps everybody else out."""

from __future__ import annotations

import html
import re
import time
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.support.authenticator import App
from tests.support.identity import PASSWORD, as_caller, claims
from tests.support.single_sign_on import (
    DOMAIN,
    LOCAL,
    PUBLIC_URL,
    World,
    fake,
    leads_to,
    path_of,
    problem,
    row,
    wanted,
    world,
)

__all__ = ["fake", "world"]  # the fixtures

NO_ACCOUNT = "Your organisation knows you, but you have no account here that it opens."


async def test_a_person_gets_an_account_by_signing_in(world: World) -> None:
    """With the role and tenant of the mappings, by the button of the page."""
    world.sso.person("anna", "admins", "people who are nobody's business here")
    browser = world.browser()
    page = await browser.get("/login", org=world.school.code)
    start = f"/auth/sso/start?provider={world.provider.id}"
    assert f'href="{start}"' in page.text
    assert "Sign in with School sign-in" in page.text
    led = await browser.get(start)
    asked = parse_qs(urlsplit(led.headers["location"]).query)
    assert led.status_code == 303
    assert asked["redirect_uri"] == [f"{PUBLIC_URL}{world.callback}"]
    assert asked["tenant"] == ["1"], "the endpoint's own parameters stay"
    back = world.sso.authorize(led.headers["location"], "anna")
    answer = await browser.get(world.callback, **back)
    assert (answer.status_code, leads_to(answer)) == (200, "/auth/signed-in")
    assert "anna@school.example" in (await browser.get("/auth/signed-in")).text
    said = claims(browser.cookies["session"])
    assert (said["role"], said["tid"]) == ("Admin", world.school.id)
    user = (await world.users())["anna"]
    assert (user.origin, user.source_id, user.status) == ("sso", world.provider.id, "active")
    assert (await world.login("anna"))["sub"] == user.id

    (created,) = [e for e in await world.events("user_created") if e["after"]["origin"] == "sso"]
    assert created["actor"] == f"sso:{world.provider.id}"
    assert created["after"]["groups"] == ["admins"]
    logins = await world.events("login_succeeded")
    assert logins[-1]["after"]["source"] == world.provider.id


async def test_another_site_signs_nobody_in(world: World) -> None:
    """Its link shows a page with a button, and nothing has begun."""
    browser = world.browser()
    start = {"provider": world.provider.id, "returnTo": "/auth/account"}
    page = await browser.get("/auth/sso/start", site="cross-site", **start)
    assert (page.status_code, page.headers.get("refresh")) == (200, None)
    assert not browser.cookies
    (address,) = re.findall(r'class="button" href="(/auth/sso/start[^"]+)"', page.text)
    led = await browser.get(html.unescape(address), site="same-origin")
    assert led.status_code == 303
    assert led.headers["location"].startswith(world.sso.issuer)


async def test_cookies_are_for_this_browser_and_this_site(world: World) -> None:
    """The session's are strict; the one of the way there and back is lax, and sealed."""
    world.sso.person("anna", "admins")
    browser = world.browser()
    led = await browser.get("/auth/sso/start", provider=world.provider.id)
    (line,) = [c for c in led.headers.get_list("set-cookie") if "evergreen_sso" in c]
    assert line.startswith("__Host-evergreen_sso=")
    for attribute in ("HttpOnly", "Secure", "SameSite=lax", "Path=/", "Max-Age=600"):
        assert attribute in line
    asked = parse_qs(urlsplit(led.headers["location"]).query)
    for secret in ("state", "nonce"):
        assert asked[secret][0] not in line
    answer = await browser.get(
        world.callback, **world.sso.authorize(led.headers["location"], "anna")
    )
    lines = answer.headers.get_list("set-cookie")
    assert any(c.startswith("session=") and "SameSite=strict" in c for c in lines)
    assert "__Host-evergreen_sso" not in browser.cookies
    assert answer.headers["cache-control"] == "no-store"


async def test_groups_decide(world: World) -> None:
    """The highest role of the deciding tenant's rows; without a row there is no login."""
    world.sso.person("a", "auditors")
    world.sso.person("b", "auditors", "owners")
    world.sso.person("c", "Owners", "staff")
    assert (await world.login("a"))["role"] == "Auditor"
    assert (await world.login("b"))["role"] == "Owner"
    assert (await world.refused("c")).startswith(NO_ACCOUNT)
    world.sso.people["b"]["groups"] = ["auditors"]
    assert (await world.login("b"))["role"] == "Auditor"
    # Groups that are there, and none of which is mapped: out, at once.
    session = await world.login("a")
    world.sso.people["a"]["groups"] = []
    assert (await world.refused("a")).startswith(NO_ACCOUNT)
    assert (await world.users())["a"].status == "disabled"
    assert session["sid"] in await world.ended()
    refused = await world.events("sso_login_refused")
    assert [(e["after"]["email"], e["after"]["reason"]) for e in refused] == [
        ("c@school.example", "NO_ROLE"),
        ("a@school.example", "NO_ROLE"),
    ]
    # That it told none stands, too, when it tells nothing.
    del world.sso.people["a"]["groups"]
    assert (await world.refused("a")).startswith(NO_ACCOUNT)
    world.sso.people["a"]["groups"] = ["admins"]
    assert (await world.login("a"))["role"] == "Admin"


async def test_groups_that_are_not_told_are_those_of_before(world: World) -> None:
    """A claim that is absent, or points elsewhere (Microsoft Entra, more than 200 groups), takes
    nothing and gives nothing."""
    world.sso.person("anna", "owners")
    await world.login("anna")
    world.sso.only_in_userinfo = ("groups",)
    world.sso.userinfo = {"sub": "anna"}
    assert (await world.login("anna"))["role"] == "Owner"
    world.sso.only_in_userinfo = ()
    world.sso.people["anna"] |= {"groups": None, "_claim_names": {"groups": "src1"}}
    assert (await world.login("anna"))["role"] == "Owner"
    world.sso.people["anna"] = {
        "email": "anna@school.example", "email_verified": True, "hasgroups": True,
    }  # fmt: skip
    assert (await world.login("anna"))["role"] == "Owner"
    # Whoever comes for the first time has none.
    world.sso.people["berta"] = {
        "email": "berta@school.example", "email_verified": True, "_claim_names": {"groups": "x"},
    }  # fmt: skip
    assert (await world.refused("berta")).startswith(NO_ACCOUNT)
    # Since the mapping gives less, so do the groups of before.
    await world.update(role_mappings=[row("owners", Role.AUDITOR)])
    assert (await world.users())["anna"].role == "Auditor"
    assert (await world.login("anna"))["role"] == "Auditor"


async def test_what_an_id_token_leaves_out_is_asked_for(world: World) -> None:
    """At the user-info endpoint, of the same person; it takes nothing back that the token says."""
    world.sso.person("anna", "admins")
    world.sso.only_in_userinfo = ("groups", "email", "email_verified")
    assert (await world.login("anna"))["role"] == "Admin"
    world.sso.userinfo = {"sub": "mallory", "groups": ["owners"]}
    assert "cannot be used" in await world.refused("anna")
    world.sso.only_in_userinfo = ("email",)
    world.sso.userinfo = {"sub": "anna", "groups": ["owners"], "email": "anna@school.example"}
    assert (await world.login("anna"))["role"] == "Admin"


async def test_claims_may_be_inside_others(world: World) -> None:
    """As Keycloak's roles are; a claim of the whole name goes first."""
    world.sso.person("anna", realm_access={"roles": ["admins"]})
    await world.update(groups_claim="realm_access.roles")
    assert (await world.login("anna"))["role"] == "Admin"
    world.sso.people["anna"]["realm_access.roles"] = "auditors"
    assert (await world.login("anna"))["role"] == "Auditor"
    world.sso.people["anna"]["realm_access.roles"] = {"owners": True}
    assert "cannot be used" in await world.refused("anna")


async def test_who_was_invited_keeps_the_account(world: World) -> None:
    """By an address that the provider has verified, or that is of a domain of its own; the
    invitation ends, and the mappings decide."""
    invited = await world.invite("anna@elsewhere.example", Role.ADMIN)
    world.sso.person("anna", "auditors", email="Anna@Elsewhere.example")
    said = await world.login("anna")
    assert (said["sub"], said["role"]) == (invited.id, "Auditor")
    own = await world.invite("berta", Role.ADMIN)
    world.sso.person("berta", "admins")
    del world.sso.people["berta"]["email_verified"]
    assert (await world.login("berta"))["sub"] == own.id
    other = await world.invite("carl@elsewhere.example", Role.ADMIN)
    world.sso.person("carl", "admins", email="carl@elsewhere.example")
    del world.sso.people["carl"]["email_verified"]
    assert (await world.refused("carl")).startswith(NO_ACCOUNT)
    assert (await world.users())["carl"].id == other.id


async def test_an_address_alone_opens_nothing(world: World) -> None:
    """Not an account with a password, not one of another tenant, not one that the provider has not
    verified, not one of another provider, not the first Owner's."""
    world.sso.person("local", "owners")
    assert (await world.refused("local")).startswith(NO_ACCOUNT)
    elsewhere = await world.invite("berta", Role.AUDITOR, world.school.parent_id)
    world.sso.person("berta", "owners")
    assert (await world.refused("berta")).startswith(NO_ACCOUNT)
    world.sso.person("mallory", "owners", email="owner@school.example", email_verified=False)
    assert "has not verified" in await world.refused("mallory")
    world.sso.people["mallory"]["email_verified"] = "true"
    assert (await world.refused("mallory")).startswith(NO_ACCOUNT)
    world.sso.person("nobody", "owners", email="")
    assert (await world.refused("nobody")).startswith(NO_ACCOUNT)
    world.sso.person("stranger", "owners", email="stranger@foreign.example")
    assert (await world.refused("stranger")).startswith(NO_ACCOUNT)
    users = await world.users()
    assert users["berta"].id == elsewhere.id
    assert (users["local"].origin, users["owner"].origin) == ("local", "local")
    assert "stranger" not in users
    reasons = [e["after"]["reason"] for e in await world.events("sso_login_refused")]
    assert reasons == [
        "OTHER_ACCOUNT", "OTHER_ACCOUNT", "EMAIL_UNVERIFIED", "OTHER_ACCOUNT", "EMAIL",
        "EMAIL_DOMAIN",
    ]  # fmt: skip
    second = await world.identity.providers.CreateSsoProvider(
        wanted(world.sso.issuer, row("*", Role.AUDITOR), name="Second"), metadata=world.owner
    )
    world.sso.person("anna", "admins")
    await world.login("anna")
    answer = await world.arrive(world.browser(), "anna", second.id)
    assert problem(answer).startswith(NO_ACCOUNT)


async def test_a_person_is_known_by_the_subject(world: World) -> None:
    """Whatever becomes of the address: it follows within the provider's domains, when verified."""
    world.sso.person("anna", "admins")
    first = await world.login("anna")
    world.sso.people["anna"]["email"] = "anna.smith@school.example"
    assert (await world.login("anna"))["email"] == "anna.smith@school.example"
    world.sso.people["anna"]["email"] = "anna@elsewhere.example"
    world.sso.people["anna"]["email_verified"] = False
    last = await world.login("anna")
    assert (last["sub"], last["email"]) == (first["sub"], "anna.smith@school.example")
    world.sso.people["anna"] |= {"email": LOCAL, "email_verified": True}
    assert (await world.login("anna"))["email"] == "anna.smith@school.example"


async def test_without_rows_roles_are_local(world: World) -> None:
    """As with Google, which tells no groups: people are invited, and an Owner changes their
    roles here."""
    google = await world.identity.providers.CreateSsoProvider(
        wanted(world.sso.issuer, name="Without groups"), metadata=world.owner
    )
    invited = await world.invite("anna@elsewhere.example", Role.ADMIN)
    world.sso.person("anna", "owners", email="anna@elsewhere.example")
    browser = world.browser()
    assert (await world.arrive(browser, "anna", google.id)).status_code == 200
    said = claims(browser.cookies["session"])
    assert (said["sub"], said["role"]) == (invited.id, "Admin")
    changed = await world.identity.users.UpdateUser(
        pb.UpdateUserRequest(id=invited.id, role="Auditor"), metadata=world.owner
    )
    assert changed.role == "Auditor"
    await world.arrive(browser, "anna", google.id)
    assert claims(browser.cookies["session"])["role"] == "Auditor"
    world.sso.person("berta", "owners", email="berta@elsewhere.example")
    answer = await world.arrive(world.browser(), "berta", google.id)
    assert problem(answer).startswith(NO_ACCOUNT)
    # What an administrator deactivates stays so, until an administrator says otherwise.
    await world.identity.users.DeactivateUser(
        pb.DeactivateUserRequest(id=invited.id), metadata=world.owner
    )
    answer = await world.arrive(world.browser(), "anna", google.id)
    assert "disabled" in problem(answer)
    await world.identity.users.ReactivateUser(
        pb.ReactivateUserRequest(id=invited.id), metadata=world.owner
    )
    await world.arrive(browser, "anna", google.id)
    assert claims(browser.cookies["session"])["role"] == "Auditor"


async def test_a_login_is_as_fresh_as_the_provider_says(world: World) -> None:
    """A provider that remembered somebody for days has not asked them just now."""
    world.sso.person("anna", "admins")
    since = int(time.time()) - 3600
    world.sso.change_token = lambda token: {**token, "auth_time": since}
    browser = world.browser()
    assert (await world.login("anna", browser))["aat"] == since
    sent = await browser.submit("/auth/account", "set-up-app")
    assert sent.headers["location"] == "/auth/confirm"
    page = (await browser.get("/auth/confirm")).text
    assert "your organisation asks you once more who you are" in page
    assert 'type="password"' not in page
    (url,) = re.findall(r'href="(/auth/sso/start[^"]+)"', page)
    led = (await browser.get(html.unescape(url))).headers["location"]
    asked = parse_qs(urlsplit(led).query)
    assert (asked["prompt"], asked["max_age"]) == (["login"], ["0"])

    # One that does not ask again, whatever it was told, helps nobody.
    answer = await browser.get(world.callback, **world.sso.authorize(led, "anna"))
    assert leads_to(answer) == "/auth/account"
    sent = await browser.submit("/auth/account", "set-up-app")
    assert sent.headers["location"] == "/auth/confirm"

    world.sso.change_token = lambda token: {**token, "auth_time": token["iat"]}
    await world.arrive(browser, "anna", again="1")
    sent = await browser.submit("/auth/account", "set-up-app")
    assert sent.status_code == 200
    await browser.post("/api/auth/refresh")
    assert claims(browser.cookies["session"])["aat"] > since


@pytest.mark.parametrize("said", ["yesterday", True, -1, 1e300, None, [], 2**70])
async def test_a_time_that_is_none_is_not_fresh(world: World, said: object) -> None:
    """Nor does it refuse the login."""
    world.sso.person("anna", "admins")
    world.sso.change_token = lambda token: {**token, "auth_time": said}
    assert (await world.login("anna"))["aat"] == 0


async def test_a_time_ahead_is_now(world: World) -> None:
    """A provider's clock makes no login fresher than it is."""
    world.sso.person("anna", "admins")
    world.sso.change_token = lambda token: {**token, "auth_time": token["iat"] + 86_400}
    assert (await world.login("anna"))["aat"] <= time.time()


async def test_a_session_lasts_as_long_as_the_provider_says(world: World) -> None:
    """Then its people sign in with it again; others go on."""
    await world.update(session_hours=2)
    world.sso.person("anna", "admins")
    browser = world.browser()
    await world.login("anna", browser)
    assert (await browser.post("/api/auth/refresh")).status_code == 200
    world.clock.ahead = timedelta(hours=3)
    assert (await browser.post("/api/auth/refresh")).status_code == 401
    world.sso.ahead = world.clock.ahead.total_seconds()
    await world.login("anna", browser)
    assert (await browser.post("/api/auth/refresh")).status_code == 200


async def test_the_domain_of_an_address_finds_the_provider(world: World) -> None:
    """Whether there is such a user plays no part; a form leads on by a page of its own."""
    browser = world.browser()
    page = (await browser.get("/login")).text
    assert 'action="/auth/sso/start"' in page
    assert "School sign-in" not in page, "it is none that everybody sees"
    for name in ("local", "nobody-of-that-name"):
        answer = await browser.get("/auth/sso/start", email=f"{name}@SCHOOL.example")
        assert answer.status_code == 200
        assert leads_to(answer).startswith(f"{world.sso.issuer}/authorize?")
        asked = parse_qs(urlsplit(leads_to(answer)).query)
        assert asked["login_hint"] == [f"{name}@school.example"]
    answer = await browser.get("/auth/sso/start", email="a@foreign.example")
    assert answer.status_code == 404
    assert problem(answer).startswith("No organisation signs in here")
    methods = world.identity.auth.ListLoginMethods
    for question, found in (
        (pb.ListLoginMethodsRequest(), []),
        (pb.ListLoginMethodsRequest(email=f"x@{DOMAIN}"), ["School sign-in"]),
        (pb.ListLoginMethodsRequest(org=world.school.code), ["School sign-in"]),
        (pb.ListLoginMethodsRequest(org="nobody"), []),
    ):
        said = await methods(question, metadata=[])
        assert [one.name for one in said.providers] == found


WISHES = (
    "https://evil.example", "//evil.example", "/\\evil.example", "/dashboard/..//evil",
    "javascript:alert(1)", "/dashboard\r\nset-cookie: x=y", "/auth/forms/logout",
)  # fmt: skip


async def test_nobody_is_led_elsewhere(world: World) -> None:
    """Whatever the link says, one comes back to a page of ours."""
    world.sso.person("anna", "admins")
    for wish in WISHES:
        answer = await world.arrive(world.browser(), "anna", returnTo=wish)
        assert answer.status_code == 200, wish
        assert path_of(leads_to(answer)) in {"/auth/signed-in", "/dashboard/..//evil"}, wish
        assert urlsplit(leads_to(answer)).netloc == "", wish


async def test_one_comes_back_to_where_one_wanted(world: World) -> None:
    """If it is a page of ours."""
    world.sso.person("anna", "admins")
    answer = await world.arrive(world.browser(), "anna", returnTo="/auth/account?a=b")
    assert leads_to(answer) == "/auth/account?a=b"


async def test_a_provider_that_is_not_in_use_is_not_there(world: World) -> None:
    """Disabled, deleted, or of an organisation that is archived; its sessions end."""
    world.sso.person("anna", "admins")
    session = await world.login("anna")
    local = await world.identity.as_user(LOCAL)
    await world.update(enabled=False)
    assert session["sid"] in await world.ended()
    answer = await world.browser().get("/auth/sso/start", provider=world.provider.id)
    assert (answer.status_code, problem(answer)[:15]) == (404, "No organisation")
    # Who has a password here goes on.
    await world.identity.auth.GetSession(pb.GetSessionRequest(), metadata=local)
    await world.update(enabled=True)
    browser = world.browser()
    url = await world.begin(browser)
    await world.archive(world.school.id, "now()")
    back = world.sso.authorize(url, "anna")
    assert (await browser.get(world.callback, **back)).status_code == 404
    await world.archive(world.school.id, "NULL")
    await world.login("anna")
    await world.identity.providers.DeleteSsoProvider(
        pb.DeleteSsoProviderRequest(id=world.provider.id), metadata=world.owner
    )
    anna = (await world.users())["anna"]
    assert (anna.status, anna.origin) == ("disabled", "local")


async def test_an_account_is_linked_from_within(world: World) -> None:
    """With its password: it stays what it is, and opens by both; the link can be taken back."""
    world.sso.person("subject-7", "auditors", email="other@elsewhere.example")
    browser = world.browser()
    await browser.submit("/login", "login", email=LOCAL, password=PASSWORD)
    assert "Link with School sign-in" in (await browser.get("/auth/account")).text
    wrong = await browser.submit(
        "/auth/account", "link", provider=world.provider.id, current="not it"
    )
    assert (wrong.status_code, problem(wrong)) == (400, "Current password: is wrong")
    led = await browser.submit(
        "/auth/account", "link", provider=world.provider.id, current=PASSWORD
    )
    url = leads_to(led)
    answer = await browser.get(world.callback, **world.sso.authorize(url, "subject-7"))
    assert (answer.status_code, leads_to(answer)) == (200, "/auth/account?done=linked")
    assert "Unlink School sign-in" in (await browser.get("/auth/account?done=linked")).text
    said = await world.login("subject-7")
    assert (said["email"], said["role"]) == (LOCAL, "Owner")
    await world.identity.login(LOCAL)
    assert (await world.users())["local"].origin == "local"
    # It is nobody else's any more.
    again = await browser.submit(
        "/auth/account", "link", provider=world.provider.id, current=PASSWORD
    )
    world.sso.person("subject-8", "owners")
    answer = await browser.get(world.callback, **world.sso.authorize(leads_to(again), "subject-8"))
    assert "linked already" in problem(answer)
    done = await browser.submit("/auth/account", "unlink", provider=world.provider.id)
    assert done.headers["location"] == "/auth/account?done=unlinked"
    assert said["sid"] in await world.ended()
    assert (await world.refused("subject-7")).startswith(NO_ACCOUNT)
    told = await world.events("account_linked", "account_unlinked")
    assert [event["actor"] for event in told] == [LOCAL, LOCAL]


async def test_who_runs_a_provider_below_gets_into_no_account_above(world: World) -> None:
    """Not even by linking; and a link ends with the session that wanted it."""
    browser = world.browser()
    await browser.submit("/login", "login", email="owner@school.example", password=PASSWORD)
    assert "Link with" not in (await browser.get("/auth/account")).text
    led = await browser.submit(
        "/auth/account", "link", provider=world.provider.id, current=PASSWORD
    )
    world.sso.person("anna", "owners")
    answer = await browser.get(world.callback, **world.sso.authorize(leads_to(led), "anna"))
    assert problem(answer) == "This account cannot be linked with that."
    browser = world.browser()
    await browser.submit("/login", "login", email=LOCAL, password=PASSWORD)
    led = await browser.submit(
        "/auth/account", "link", provider=world.provider.id, current=PASSWORD
    )
    await world.identity.auth.Logout(
        pb.LogoutRequest(), metadata=as_caller(browser.cookies["session"])
    )
    answer = await browser.get(world.callback, **world.sso.authorize(leads_to(led), "anna"))
    assert "session has ended" in problem(answer)


async def test_pages_speak_german(world: World) -> None:
    """Whatever goes wrong."""
    world.http.headers["accept-language"] = "de"
    world.sso.person("anna")
    assert (await world.refused("anna")).startswith("Ihre Organisation kennt Sie")


async def test_a_second_factor_of_ours_is_asked_for(world: World) -> None:
    """Unless the provider answers for one; back-channel logout ends what it opened then, too."""
    world.sso.person("anna", "admins", sid="their-session")
    browser = world.browser()
    said = await world.login("anna", browser)
    caller = as_caller(browser.cookies["session"])
    await world.identity.factors.CreateRecoveryCodes(
        pb.CreateRecoveryCodesRequest(), metadata=caller
    )
    made = await world.identity.factors.CreateTotp(pb.CreateTotpRequest(), metadata=caller)
    app = App(made.secret)
    await world.identity.factors.ConfirmTotp(
        pb.ConfirmTotpRequest(code=app.code(-1)), metadata=caller
    )
    browser = world.browser()
    answer = await world.arrive(browser, "anna", returnTo="/auth/account")
    assert leads_to(answer) == "/auth/second-factor?next=/auth/account"
    assert "session" not in browser.cookies
    done = await browser.submit(
        "/auth/second-factor?next=/auth/account", "code", code=app.code(), next="/auth/account"
    )
    assert (done.status_code, done.headers["location"]) == (303, "/auth/account")
    opened = claims(browser.cookies["session"])
    assert opened["sub"] == said["sub"]
    told = (await world.events("login_succeeded"))[-1]["after"]
    assert (told["methods"], told["source"]) == (["sso", "otp"], world.provider.id)
    answer = await world.logout(sub="anna", sid="their-session")
    assert answer.status_code == 200
    assert opened["sid"] in await world.ended()
    await world.update(trusts_mfa=True)
    await world.login("anna", browser)
    told = (await world.events("login_succeeded"))[-1]["after"]
    assert told["methods"] == ["sso", "mfa"]


async def test_a_login_that_waits_ends_with_what_it_came_from(world: World) -> None:
    """A provider that is disabled, or says that the session is over: no code opens it then."""
    world.sso.person("anna", "admins", sid="their-session")
    browser = world.browser()
    await world.login("anna", browser)
    caller = as_caller(browser.cookies["session"])
    await world.identity.factors.CreateRecoveryCodes(
        pb.CreateRecoveryCodesRequest(), metadata=caller
    )
    made = await world.identity.factors.CreateTotp(pb.CreateTotpRequest(), metadata=caller)
    app = App(made.secret)
    await world.identity.factors.ConfirmTotp(
        pb.ConfirmTotpRequest(code=app.code(-1)), metadata=caller
    )

    async def waiting() -> str:
        browser.cookies.clear()
        answer = await world.arrive(browser, "anna")
        assert path_of(leads_to(answer)) == "/auth/second-factor"
        text = (await browser.get("/auth/second-factor")).text
        found = re.search(r'name="form" value="([^"]+)"', text)
        assert found
        return found[1]

    async def code(form: str) -> None:
        answer = await browser.post("/auth/forms/code", form=form, code=app.code())
        assert "session" not in browser.cookies
        assert answer.headers.get("location", "").startswith("/login"), answer.text

    form = await waiting()
    await world.logout(sid="their-session")
    await code(form)
    form = await waiting()
    await world.update(enabled=False)
    await world.update(enabled=True)
    await code(form)
    form = await waiting()
    # As if the login had begun while the provider was being disabled.
    connection = await world.identity.database.superuser()
    await connection.execute("UPDATE identity.source SET enabled = false")
    await code(form)
    await connection.execute("UPDATE identity.source SET enabled = true")
    form = await waiting()
    await connection.execute("DELETE FROM identity.external_identity")
    await connection.close()
    await code(form)


async def test_a_new_invitation_ends_links(world: World) -> None:
    """Whoever gets a password anew has nobody else's way in."""
    connection = await world.identity.database.superuser()
    local = (await world.users())["local"]
    world.sso.person("subject-7", "auditors", email="other@elsewhere.example")
    browser = world.browser()
    await browser.submit("/login", "login", email=LOCAL, password=PASSWORD)
    led = await browser.submit(
        "/auth/account", "link", provider=world.provider.id, current=PASSWORD
    )
    await browser.get(world.callback, **world.sso.authorize(leads_to(led), "subject-7"))
    await world.login("subject-7")
    # Another Owner with a password, so that this one may be invited again.
    await world.identity.users.CreateUser(
        pb.CreateUserRequest(
            email="third@school.example", role="Owner", org_id=world.school.id, password=PASSWORD
        ),
        metadata=world.root,
    )
    await world.identity.users.InviteUser(pb.InviteUserRequest(id=local.id), metadata=world.root)
    assert await connection.fetchval("SELECT count(*) FROM identity.external_identity") == 0
    await connection.close()
    assert (await world.refused("subject-7")).startswith(NO_ACCOUNT)
    (told,) = await world.events("account_unlinked")
    assert (told["before"]["source"], told["before"]["provider"]) == (
        world.provider.id,
        "School sign-in",
    )
