"""Who has to have a second factor, resets, and what needs a fresh login."""

from __future__ import annotations

import time
from datetime import timedelta

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from servicekit.ids import now
from tests.services.identity.second_factor.test_factors import reason_of, set_up
from tests.support import callers
from tests.support.identity import PASSWORD, Identity, as_caller, claims, identity, refused

__all__ = ["identity"]  # the fixture


async def ask(
    identity: Identity, by: callers.Metadata, tenant: str, mfa: str, days: int | None = None
) -> pb.SignInPolicy:
    change = pb.UpdateSignInPolicyRequest(id=tenant, mfa=mfa)
    if days is not None:
        change.grace_days = days
    return await identity.factors.UpdateSignInPolicy(change, metadata=by)


async def policy(identity: Identity, by: callers.Metadata, tenant: str) -> pb.SignInPolicy:
    return await identity.factors.GetSignInPolicy(pb.GetSignInPolicyRequest(id=tenant), metadata=by)


async def test_the_stricter_policy_above_counts(identity: Identity) -> None:
    """Each tenant asks its own and all below; none takes back what one above asks."""
    root = await identity.as_user()
    reseller = await identity.org(root, "District", reseller=True, code="district")
    school = await identity.org(root, "School", code="school", parent_id=reseller.id)
    _, owner = await identity.user(root, Role.OWNER, school.id)
    admin_user, _ = await identity.user(root, Role.ADMIN, school.id)
    auditor_user, _ = await identity.user(root, Role.AUDITOR, school.id)
    found = await policy(identity, owner, school.id)
    assert (found.mfa, found.effective_mfa, found.HasField("mfa_required_from")) == (
        "off",
        "off",
        False,
    )
    made = await ask(identity, root, reseller.id, "admins", 0)
    assert (made.mfa, made.effective_mfa) == ("admins", "admins")
    found = await policy(identity, owner, school.id)
    assert (found.mfa, found.effective_mfa) == ("off", "admins")
    assert await reason_of(identity.login(admin_user.email)) == "SECOND_FACTOR_REQUIRED"
    await identity.login(auditor_user.email)  # is not asked
    # The school cannot ask less; it may ask more.
    found = await ask(identity, owner, school.id, "off")
    assert found.effective_mfa == "admins"
    assert await reason_of(identity.login(admin_user.email)) == "SECOND_FACTOR_REQUIRED"
    await set_up(identity, owner)
    found = await ask(identity, owner, school.id, "all", 0)
    assert (found.mfa, found.effective_mfa) == ("all", "all")
    assert await reason_of(identity.login(auditor_user.email)) == "SECOND_FACTOR_REQUIRED"
    events = [e["data"] for e in await identity.events()]
    (told,) = [
        data
        for data in events
        if data["action"] == "identity.sign_in_policy_updated"
        and data["resource"] == f"tenants/{school.id}"
    ]
    assert (told["before"]["mfa"], told["after"]["mfa"]) == ("off", "all")


async def test_people_have_days_to_set_one_up(identity: Identity) -> None:
    """Until then they log in as before, and see from when on it is needed."""
    root = await identity.as_user()
    school = await identity.org(root, "School", code="school")
    user, caller = await identity.user(root, Role.AUDITOR, school.id)
    made = await ask(identity, root, school.id, "all")
    days = (made.mfa_required_from.ToDatetime() - now().replace(tzinfo=None)) / timedelta(days=1)
    assert 13.9 < days <= 14
    session = await identity.login(user.email)
    had = await identity.factors.GetSecondFactors(pb.GetSecondFactorsRequest(), metadata=caller)
    assert had.required
    assert had.required_from == made.mfa_required_from
    # The same again gives no more days.
    assert await ask(identity, root, school.id, "all") == made
    await ask(identity, root, school.id, "all", 0)
    # Who is logged in without one is out with the next refresh.
    refresh = pb.RefreshSessionRequest(refresh_token=session.refresh_token)
    assert await reason_of(identity.auth.RefreshSession(refresh)) == "WRONG_REFRESH_TOKEN"


async def test_asking_others_gives_no_days_to_those_who_are_asked(identity: Identity) -> None:
    """Neither asking more people, nor fewer; only who gives days to the same ones gives them."""
    root = await identity.as_user()
    school = await identity.org(root, "School", code="school")
    user, _ = await identity.user(root, Role.OWNER, school.id)
    other, _ = await identity.user(root, Role.AUDITOR, school.id)
    await ask(identity, root, school.id, "owners", 0)
    for mfa in ("admins", "all", "owners"):
        await ask(identity, root, school.id, mfa)
        assert await reason_of(identity.login(user.email)) == "SECOND_FACTOR_REQUIRED", mfa
        await identity.login(other.email)
    await ask(identity, root, school.id, "owners", 3)
    await identity.login(user.email)
    # Whom nobody asked any more gets days when asked again.
    await ask(identity, root, school.id, "owners", 0)
    await ask(identity, root, school.id, "off")
    await ask(identity, root, school.id, "all")
    await identity.login(user.email)


async def test_who_has_one_keeps_it(identity: Identity) -> None:
    """As long as it is asked for, the last one cannot be removed, only replaced."""
    root = await identity.as_user()
    school = await identity.org(root, "School", code="school")
    user, caller = await identity.user(root, Role.ADMIN, school.id)
    app, _ = await set_up(identity, caller)
    await ask(identity, root, school.id, "all", 0)
    delete = identity.factors.DeleteTotp(pb.DeleteTotpRequest(), metadata=caller)
    assert await reason_of(delete) == "SECOND_FACTOR_REQUIRED"
    await identity.login(user.email, otp=app.code())
    await ask(identity, root, school.id, "off")
    await identity.factors.DeleteTotp(pb.DeleteTotpRequest(), metadata=caller)
    await identity.login(user.email)


async def test_nobody_locks_themselves_out(identity: Identity) -> None:
    """Who asks for what they do not have has to set it up first."""
    root = await identity.as_user()
    session = await identity.auth.GetSession(pb.GetSessionRequest(), metadata=root)
    for mfa in ("owners", "admins", "all"):
        asked = ask(identity, root, session.tenant_id, mfa, 0)
        assert await reason_of(asked) == "SET_UP_YOURS_FIRST"
    await set_up(identity, root)
    await ask(identity, root, session.tenant_id, "owners", 0)


async def test_only_owners_decide_and_in_their_own_subtree(identity: Identity) -> None:
    """Neither an Admin, nor another school's Owner, who does not even see it."""
    root = await identity.as_user()
    school = await identity.org(root, "School", code="school")
    other = await identity.org(root, "Other", code="other")
    user, admin = await identity.user(root, Role.ADMIN, school.id)
    _, owner = await identity.user(root, Role.OWNER, school.id)
    _, stranger = await identity.user(root, Role.OWNER, other.id)
    await set_up(identity, admin)
    reset = pb.ResetSecondFactorsRequest(id=user.id)

    async def code(call: object) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call  # type: ignore[misc]
        return error.value.code()

    for by, status in (
        (admin, grpc.StatusCode.PERMISSION_DENIED),
        (stranger, grpc.StatusCode.NOT_FOUND),
    ):
        assert await code(ask(identity, by, school.id, "all")) is status
        assert await code(identity.factors.ResetSecondFactors(reset, metadata=by)) is status
    assert await code(policy(identity, stranger, school.id)) is grpc.StatusCode.NOT_FOUND
    assert (await policy(identity, admin, school.id)).mfa == "off"
    had = await identity.factors.GetSecondFactors(pb.GetSecondFactorsRequest(), metadata=admin)
    assert had.HasField("totp_since")
    await identity.factors.ResetSecondFactors(reset, metadata=owner)


async def test_an_owner_resets_what_was_lost(identity: Identity) -> None:
    """The password stays, sessions end; not of one's own account; the log has it once."""
    root = await identity.as_user()
    user, admin = await identity.user(root, Role.ADMIN)
    app, _ = await set_up(identity, admin)
    session = await identity.login(user.email, otp=app.code())
    reset = pb.ResetSecondFactorsRequest(id=user.id)
    for _ in range(2):
        left = await identity.factors.ResetSecondFactors(reset, metadata=root)
        assert (left.HasField("totp_since"), left.recovery_codes_left) == (False, 0)
    refresh = pb.RefreshSessionRequest(refresh_token=session.refresh_token)
    assert await reason_of(identity.auth.RefreshSession(refresh)) == "WRONG_REFRESH_TOKEN"
    await identity.login(user.email)
    me = await identity.auth.GetSession(pb.GetSessionRequest(), metadata=root)
    users = await identity.users.ListUsers(pb.ListUsersRequest(), metadata=root)
    (own,) = [one for one in users.users if one.email == me.email]
    mine = identity.factors.ResetSecondFactors(
        pb.ResetSecondFactorsRequest(id=own.id), metadata=root
    )
    assert await reason_of(mine) == "NOT_YOURSELF"
    actions = [e["data"]["action"] for e in await identity.events()]
    assert actions.count("identity.mfa_reset") == 1


def logged_in_before(caller: callers.Metadata, seconds: int) -> callers.Metadata:
    at = int(time.time()) - seconds
    name = "x-evergreen-token-authenticated"
    return (*(pair for pair in caller if pair[0] != name), (name, str(at)))


async def test_what_opens_more_needs_a_fresh_login(identity: Identity) -> None:
    """A quarter of an hour after the login the password is asked for again, and the factor."""
    root = await identity.as_user()
    stale = logged_in_before(root, 16 * 60)
    codes = pb.CreateRecoveryCodesRequest()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.factors.CreateRecoveryCodes(codes, metadata=stale)
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert refused(error)["details"][0]["reason"] == "STEP_UP_NEEDED"
    for call in (
        identity.tokens.CreateApiToken(pb.CreateApiTokenRequest(), metadata=stale),
        identity.directories.DeleteDirectory(pb.DeleteDirectoryRequest(), metadata=stale),
        identity.keys.RotateTokenKey(pb.RotateTokenKeyRequest(), metadata=stale),
    ):
        assert await reason_of(call) == "STEP_UP_NEEDED"
    # All that the console calls goes on.
    await identity.users.ListUsers(pb.ListUsersRequest(), metadata=stale)
    await identity.user(stale, Role.ADMIN)

    wrong = pb.StepUpRequest(password="another long password")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.auth.StepUp(wrong, metadata=stale)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    session = await identity.auth.StepUp(pb.StepUpRequest(password=PASSWORD), metadata=stale)
    assert session.refresh_token == ""
    fresh = as_caller(session.token)
    await identity.factors.CreateRecoveryCodes(codes, metadata=fresh)

    app, _ = await set_up(identity, fresh)
    assert (
        await reason_of(identity.auth.StepUp(pb.StepUpRequest(password=PASSWORD), metadata=stale))
        == "OTP_NEEDED"
    )
    both = pb.StepUpRequest(password=PASSWORD, otp=app.code())
    await identity.auth.StepUp(both, metadata=stale)
    assert await reason_of(identity.auth.StepUp(both, metadata=stale)) == "WRONG_CODE"


async def test_a_refresh_makes_no_login_fresh(identity: Identity) -> None:
    """The token says when the person logged in; only logging in, or confirming, changes that."""

    def authenticated(token: str) -> int:
        return int(claims(token)["aat"])

    session = await identity.login()
    connection = await identity.database.superuser()
    await connection.execute(
        "UPDATE identity.session SET authenticated_at = authenticated_at - interval '1 hour'"
    )
    await connection.close()
    again = await identity.auth.RefreshSession(
        pb.RefreshSessionRequest(refresh_token=session.refresh_token)
    )
    assert authenticated(again.token) == authenticated(session.token) - 3600
    confirmed = await identity.auth.StepUp(
        pb.StepUpRequest(password=PASSWORD), metadata=as_caller(again.token)
    )
    assert authenticated(confirmed.token) >= authenticated(session.token)
    last = await identity.auth.RefreshSession(
        pb.RefreshSessionRequest(refresh_token=again.refresh_token)
    )
    assert authenticated(last.token) == authenticated(confirmed.token)
