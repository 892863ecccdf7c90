"""What somebody who knows a password alone leaves behind opens nothing once there is a factor."""

from __future__ import annotations

import re
from datetime import timedelta

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.services.identity.api_tokens.test_tokens import account, create, read, refuses, told
from tests.services.identity.second_factor.test_factors import reason_of, set_up
from tests.services.identity.second_factor.test_policies import ask
from tests.support.authenticator import App
from tests.support.identity import PASSWORD, Identity, as_caller, identity
from tests.support.single_sign_on import LOCAL, World, fake, leads_to, world

__all__ = ["fake", "identity", "world"]  # the fixtures

CODES = pb.CreateRecoveryCodesRequest()
KEY = pb.CreateTotpRequest()


def shown_key(page: str) -> App:
    found = re.search(r'<code class="key">([A-Z2-7 ]+)</code>', page)
    assert found, page
    return App(found[1])


def shown_codes(page: str) -> list[str]:
    return re.findall(r"<li><code>([^<]+)</code></li>", page)


def refresh(session: pb.Session) -> pb.RefreshSessionRequest:
    return pb.RefreshSessionRequest(refresh_token=session.refresh_token)


async def test_codes_from_before_the_factor_are_no_codes_of_it(identity: Identity) -> None:
    """The first app counts only with codes of its own session, whoever made others meanwhile."""
    thief, owner = await identity.as_user(), await identity.as_user()
    planted = list((await identity.factors.CreateRecoveryCodes(CODES, metadata=thief)).codes)
    key = identity.factors.CreateTotp(KEY, metadata=owner)
    assert await reason_of(key) == "RECOVERY_CODES_FIRST"
    await identity.factors.CreateRecoveryCodes(CODES, metadata=owner)
    app = App((await identity.factors.CreateTotp(KEY, metadata=owner)).secret)
    planted += (await identity.factors.CreateRecoveryCodes(CODES, metadata=thief)).codes
    confirm = pb.ConfirmTotpRequest(code=app.code(-1))
    confirmed = identity.factors.ConfirmTotp(confirm, metadata=owner)
    assert await reason_of(confirmed) == "RECOVERY_CODES_FIRST"
    codes = await identity.factors.CreateRecoveryCodes(CODES, metadata=owner)
    await identity.factors.ConfirmTotp(confirm, metadata=owner)
    for code in planted[::10]:
        assert await reason_of(identity.login(otp=code)) == "WRONG_CODE"
    await identity.login(otp=codes.codes[0])


async def test_the_page_shows_new_codes_with_the_first_app(world: World) -> None:
    """Also where somebody has made some before."""
    thief = await world.identity.as_user(LOCAL)
    planted = await world.identity.factors.CreateRecoveryCodes(CODES, metadata=thief)
    browser = world.browser()
    await browser.submit("/login", "login", email=LOCAL, password=PASSWORD)
    shown = await browser.submit("/auth/account", "set-up-app")
    codes = shown_codes(shown.text)
    assert len(codes) == 10
    assert not set(codes) & set(planted.codes)
    done = await browser.submit("/auth/account", "confirm-app", code=shown_key(shown.text).code(-1))
    assert done.headers["location"] == "/auth/account?done=factor"
    assert await reason_of(world.identity.login(LOCAL, otp=planted.codes[0])) == "WRONG_CODE"
    # A second app keeps the codes that there are.
    assert not shown_codes((await browser.submit("/auth/account", "set-up-app")).text)


async def test_a_key_belongs_to_the_session_that_made_it(identity: Identity) -> None:
    """Nobody confirms a key that somebody else has read."""
    thief, owner = await identity.as_user(), await identity.as_user()
    await identity.factors.CreateRecoveryCodes(CODES, metadata=thief)
    planted = App((await identity.factors.CreateTotp(KEY, metadata=thief)).secret)
    await identity.factors.CreateRecoveryCodes(CODES, metadata=owner)
    confirm = pb.ConfirmTotpRequest(code=planted.code(-1))
    assert await reason_of(identity.factors.ConfirmTotp(confirm, metadata=owner)) == "NO_TOTP"


async def test_a_login_shows_no_key_of_another_login(world: World) -> None:
    """Where a factor has to be set up first, each browser has its own."""
    await set_up(world.identity, world.root)
    user, _ = await world.identity.user(world.root, Role.ADMIN, world.school.id)
    await ask(world.identity, world.root, world.school.id, "admins", 0)
    thief, person = world.browser(), world.browser()
    for browser in (thief, person):
        await browser.submit("/login", "login", email=user.email, password=PASSWORD)
    read = await thief.submit("/auth/second-factor", "set-up")
    planted = shown_key(read.text)
    for code in ("000000", planted.code(-1)):
        answer = await person.submit("/auth/second-factor", "confirm-login", code=code)
        assert 'class="key"' not in answer.text
    assert "session" not in person.cookies
    shown = await person.submit("/auth/second-factor", "set-up")
    app = shown_key(shown.text)
    assert app.key != planted.key
    assert not set(shown_codes(shown.text)) & set(shown_codes(read.text))
    done = await person.submit("/auth/second-factor", "confirm-login", code=app.code(-1))
    assert done.status_code == 303
    assert "session" in person.cookies


async def test_a_key_waits_ten_minutes(world: World) -> None:
    """Then a new one is needed."""
    await world.identity.factors.CreateRecoveryCodes(CODES, metadata=world.owner)
    app = App((await world.identity.factors.CreateTotp(KEY, metadata=world.owner)).secret)
    world.clock.ahead = timedelta(minutes=11)
    confirm = pb.ConfirmTotpRequest(code=app.code())
    confirmed = world.identity.factors.ConfirmTotp(confirm, metadata=world.owner)
    assert await reason_of(confirmed) == "NO_TOTP"


async def test_a_factor_set_up_at_a_login_ends_the_sessions_before(world: World) -> None:
    """They were opened with the password alone."""
    identity = world.identity
    await set_up(identity, world.root)
    user, _ = await identity.user(world.root, Role.ADMIN, world.school.id)
    stolen = await identity.login(user.email)
    await ask(identity, world.root, world.school.id, "admins", 0)
    browser = world.browser()
    await browser.submit("/login", "login", email=user.email, password=PASSWORD)
    shown = await browser.submit("/auth/second-factor", "set-up")
    code = shown_key(shown.text).code(-1)
    done = await browser.submit("/auth/second-factor", "confirm-login", code=code)
    assert done.status_code == 303
    # Also when it is asked of nobody any more.
    await ask(identity, world.root, world.school.id, "off")
    assert await reason_of(identity.auth.RefreshSession(refresh(stolen))) == "WRONG_REFRESH_TOKEN"


async def test_a_session_without_the_factor_is_not_refreshed(identity: Identity) -> None:
    """However it came to be; the one that set it up is, and one that showed it since."""
    session = await identity.login()
    caller = as_caller(session.token)
    app, _ = await set_up(identity, caller)
    session = await identity.auth.RefreshSession(refresh(session))
    connection = await identity.database.superuser()
    without = "UPDATE identity.session SET methods = '{pwd}'"
    await connection.execute(without)
    both = pb.StepUpRequest(password=PASSWORD, otp=app.code())
    await identity.auth.StepUp(both, metadata=caller)
    session = await identity.auth.RefreshSession(refresh(session))
    await connection.execute(without)
    await connection.close()
    assert await reason_of(identity.auth.RefreshSession(refresh(session))) == "WRONG_REFRESH_TOKEN"


async def test_confirming_is_no_way_around_the_rule(identity: Identity) -> None:
    """Who has to set one up logs in anew, and does so there."""
    root = await identity.as_user()
    school = await identity.org(root, "School", code="school")
    _, caller = await identity.user(root, Role.ADMIN, school.id)
    await ask(identity, root, school.id, "admins")
    step_up = pb.StepUpRequest(password=PASSWORD)
    await identity.auth.StepUp(step_up, metadata=caller)  # there are days left
    await ask(identity, root, school.id, "admins", 0)
    assert await reason_of(identity.auth.StepUp(step_up, metadata=caller)) == (
        "SECOND_FACTOR_REQUIRED"
    )


async def test_a_link_needs_a_fresh_login_and_keeps_the_factor(world: World) -> None:
    """A provider that answers for a second factor does so for its own people."""
    identity = world.identity
    await world.update(trusts_mfa=True)
    world.sso.person("subject-7", "owners")
    browser = world.browser()
    await browser.submit("/login", "login", email=LOCAL, password=PASSWORD)
    world.clock.ahead = timedelta(minutes=16)
    stale = await browser.submit(
        "/auth/account", "link", provider=world.provider.id, current=PASSWORD
    )
    assert (stale.status_code, stale.headers["location"]) == (303, "/auth/confirm")
    world.clock.ahead = timedelta()
    led = await browser.submit(
        "/auth/account", "link", provider=world.provider.id, current=PASSWORD
    )
    back = world.sso.authorize(leads_to(led), "subject-7")
    answer = await browser.get(world.callback, **back)
    assert leads_to(answer) == "/auth/account?done=linked"
    await set_up(identity, await identity.as_user(LOCAL))
    browser = world.browser()
    answer = await world.arrive(browser, "subject-7")
    assert leads_to(answer) == "/auth/second-factor"
    assert "session" not in browser.cookies


async def test_a_provider_below_does_not_answer_for_the_rule_above(world: World) -> None:
    """An Owner below cannot let a provider of their own stand for what their organisation asks."""
    identity = world.identity
    await set_up(identity, world.root)
    await world.update(trusts_mfa=True)
    world.sso.person("anna", "owners")
    browser = world.browser()
    await world.login("anna", browser)
    # The school's own rule the school's own provider may keep.
    await set_up(identity, world.owner)
    await ask(identity, world.owner, world.school.id, "all", 0)
    await world.login("anna")
    await ask(identity, world.owner, world.school.id, "off")
    session = await identity.auth.GetSession(pb.GetSessionRequest(), metadata=world.root)
    await ask(identity, world.root, session.tenant_id, "owners", 0)
    answer = await world.arrive(world.browser(), "anna")
    assert leads_to(answer) == "/auth/second-factor"
    kept = pb.RefreshSessionRequest(refresh_token=browser.cookies["session_refresh"])
    assert await reason_of(identity.auth.RefreshSession(kept)) == "WRONG_REFRESH_TOKEN"


async def test_a_login_that_waits_ends_with_its_source(world: World) -> None:
    """When the provider is switched off between the two steps, the second one opens nothing."""
    world.sso.person("anna", "admins")
    browser = world.browser()
    await world.login("anna", browser)
    await set_up(world.identity, as_caller(browser.cookies["session"]))
    browser = world.browser()
    assert leads_to(await world.arrive(browser, "anna")) == "/auth/second-factor"
    await world.update(enabled=False)
    over = await browser.get("/auth/second-factor")
    assert (over.status_code, over.headers["location"].partition("?")[0]) == (303, "/login")
    assert "session" not in browser.cookies


async def test_tokens_from_before_the_factor_end_with_it(identity: Identity) -> None:
    """And those of somebody whose factors are reset; those of service accounts go on."""
    root = await identity.as_user()
    org = await identity.org(root, "North", reseller=True)
    user, admin = await identity.user(root, Role.ADMIN, org.id)
    below = await identity.org(root, "Below", parent_id=org.id)
    planted = [await create(identity, admin), await create(identity, admin, "x", org_id=below.id)]
    service = await account(identity, admin, Role.ADMIN)
    kept = await create(identity, admin, service_account_id=service)
    await set_up(identity, admin)
    for token in planted:
        assert await refuses(identity, token)
    await read(identity, kept)
    revoked = await told(identity, "api_token_revoked")
    assert {event["resource"] for event in revoked} == {f"tokens/{one.id}" for one in planted}
    made = await create(identity, admin)
    # Another app ends none.
    await set_up(identity, admin)
    await read(identity, made)
    await identity.factors.ResetSecondFactors(
        pb.ResetSecondFactorsRequest(id=user.id), metadata=root
    )
    assert await refuses(identity, made)
    await read(identity, kept)


async def test_no_token_is_made_without_the_factor_that_is_asked_for(identity: Identity) -> None:
    """Not in the days that are left either, and by no rotation."""
    root = await identity.as_user()
    org = await identity.org(root, "North")
    _, admin = await identity.user(root, Role.ADMIN, org.id)
    before = await create(identity, admin)
    await ask(identity, root, org.id, "all")
    assert await reason_of(create(identity, admin, "x")) == "SECOND_FACTOR_REQUIRED"
    rotated = identity.tokens.RotateApiToken(pb.RotateApiTokenRequest(id=before.id), metadata=admin)
    assert await reason_of(rotated) == "SECOND_FACTOR_REQUIRED"
    await read(identity, before)
    await set_up(identity, admin)
    await create(identity, admin, "x")


async def test_a_provider_that_answers_for_a_factor_lets_people_make_tokens(world: World) -> None:
    """And tokens that end with what a source says are told of."""
    world.sso.person("anna", "admins")
    await world.update(trusts_mfa=True)
    await set_up(world.identity, world.owner)
    await ask(world.identity, world.owner, world.school.id, "all", 0)
    browser = world.browser()
    await world.login("anna", browser)
    token = await create(world.identity, as_caller(browser.cookies["session"]))
    await world.update(trusts_mfa=False)
    refused = create(world.identity, as_caller(browser.cookies["session"]), "x")
    assert await reason_of(refused) == "SECOND_FACTOR_REQUIRED"
    await world.update(trusts_mfa=True)
    world.sso.people["anna"]["groups"] = []
    await world.refused("anna")
    assert await refuses(world.identity, token)
    (event,) = await world.events("api_token_revoked")
    assert event["resource"] == f"tokens/{token.id}"
