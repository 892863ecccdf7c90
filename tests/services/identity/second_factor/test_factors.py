"""Second factors: setting one up, logging in with it, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import re

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.conftest import MakeKit, ServeService
from tests.support import callers
from tests.support.authenticator import App
from tests.support.identity import OWNER, PASSWORD, Identity, as_caller, identity, refused, running
from tests.support.test_servers import TestDatabase

__all__ = ["identity"]  # the fixture


async def set_up(identity: Identity, caller: callers.Metadata) -> tuple[App, list[str]]:
    """Sets up an app with the code of half a minute ago, so that later ones still work."""
    codes = await identity.factors.CreateRecoveryCodes(
        pb.CreateRecoveryCodesRequest(), metadata=caller
    )
    app = App((await identity.factors.CreateTotp(pb.CreateTotpRequest(), metadata=caller)).secret)
    await identity.factors.ConfirmTotp(pb.ConfirmTotpRequest(code=app.code(-1)), metadata=caller)
    return app, list(codes.codes)


async def reason_of(call: grpc.aio.UnaryUnaryCall | object) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call  # type: ignore[misc]
    return str(refused(error)["details"][0]["reason"])


async def _named(identity: Identity, *names: str) -> list[dict[str, object]]:
    return [e["data"] for e in await identity.events() if e["data"]["action"] in names]


async def test_recovery_codes_come_first_and_a_code_confirms(identity: Identity) -> None:
    """Nothing is asked at a login before the app has shown a code; then the factor is."""
    owner = await identity.as_user()
    assert (
        await reason_of(identity.factors.CreateTotp(pb.CreateTotpRequest(), metadata=owner))
        == "RECOVERY_CODES_FIRST"
    )
    codes = await identity.factors.CreateRecoveryCodes(
        pb.CreateRecoveryCodesRequest(), metadata=owner
    )
    assert len(set(codes.codes)) == 10
    assert all(
        re.fullmatch(r"[0-9a-hj-km-np-tv-z]{5}-[0-9a-hj-km-np-tv-z]{5}", c) for c in codes.codes
    )
    key = await identity.factors.CreateTotp(pb.CreateTotpRequest(), metadata=owner)
    assert key.qr_svg.startswith("<svg")
    assert key.secret in key.uri
    await identity.login()  # nothing counts yet
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.factors.ConfirmTotp(pb.ConfirmTotpRequest(code="000000"), metadata=owner)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "here it is" in refused(error)["message"]
    app = App(key.secret)
    had = await identity.factors.ConfirmTotp(
        pb.ConfirmTotpRequest(code=app.code(-1)), metadata=owner
    )
    assert had.HasField("totp_since")
    assert (had.recovery_codes_left, had.required) == (10, False)
    assert await reason_of(identity.login()) == "OTP_NEEDED"
    session = await identity.login(otp=f" {app.code()[:3]} {app.code()[3:]} ")
    listed = await identity.sessions.ListSessions(
        pb.ListSessionsRequest(), metadata=as_caller(session.token)
    )
    assert list(listed.sessions[0].methods) == ["pwd", "otp"]
    succeeded = (await _named(identity, "identity.login_succeeded"))[-1]
    assert succeeded["after"]["methods"] == ["pwd", "otp"]  # type: ignore[index]
    enabled = (await _named(identity, "identity.mfa_enabled"))[-1]
    assert enabled["actor"] == OWNER


async def test_sessions_from_before_the_factor_end(identity: Identity) -> None:
    """All but the one that set it up; another app later ends none."""
    other = await identity.login()
    owner = await identity.as_user()
    app, _ = await set_up(identity, owner)
    assert (
        await reason_of(
            identity.auth.RefreshSession(
                pb.RefreshSessionRequest(refresh_token=other.refresh_token)
            )
        )
        == "WRONG_REFRESH_TOKEN"
    )
    await identity.factors.GetSecondFactors(pb.GetSecondFactorsRequest(), metadata=owner)
    second = await identity.login(otp=app.code())
    new = App((await identity.factors.CreateTotp(pb.CreateTotpRequest(), metadata=owner)).secret)
    await identity.factors.ConfirmTotp(pb.ConfirmTotpRequest(code=new.code()), metadata=owner)
    await identity.auth.RefreshSession(pb.RefreshSessionRequest(refresh_token=second.refresh_token))
    # The old app opens nothing, the new one does.
    assert await reason_of(identity.login(otp=app.code(1))) == "WRONG_CODE"
    await identity.login(otp=new.code(1))


async def test_a_code_works_once(identity: Identity) -> None:
    """Also for two at the same moment, for the code that confirmed, and for older ones."""
    owner = await identity.as_user()
    app, _ = await set_up(identity, owner)
    assert await reason_of(identity.login(otp=app.code(-1))) == "WRONG_CODE"
    code = app.code()
    answers = await asyncio.gather(
        *(identity.login(otp=code) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(one, pb.Session) for one in answers) == 1
    assert await reason_of(identity.login(otp=code)) == "WRONG_CODE"
    await identity.login(otp=app.code(1))
    assert await reason_of(identity.login(otp=code)) == "WRONG_CODE"
    reasons = {
        data["after"]["reason"]  # type: ignore[index]
        for data in await _named(identity, "identity.login_failed")
    }
    assert "CODE_USED" in reasons


async def test_a_recovery_code_works_once(identity: Identity) -> None:
    """However it is typed; and the log tells how many are left."""
    owner = await identity.as_user()
    _, codes = await set_up(identity, owner)
    session = await identity.login(otp=codes[0].upper().replace("-", " "))
    assert await reason_of(identity.login(otp=codes[0])) == "WRONG_CODE"
    answers = await asyncio.gather(
        *(identity.login(otp=codes[1]) for _ in range(4)), return_exceptions=True
    )
    assert sum(isinstance(one, pb.Session) for one in answers) == 1
    caller = as_caller(session.token)
    had = await identity.factors.GetSecondFactors(pb.GetSecondFactorsRequest(), metadata=caller)
    assert had.recovery_codes_left == 8
    used = await _named(identity, "identity.recovery_code_used")
    assert [data["after"]["left"] for data in used] == [9, 8]  # type: ignore[index]
    assert used[0]["actor"] == OWNER
    # New ones end the old ones.
    await identity.factors.CreateRecoveryCodes(pb.CreateRecoveryCodesRequest(), metadata=caller)
    assert await reason_of(identity.login(otp=codes[2])) == "WRONG_CODE"


async def test_nothing_opens_with_the_code_alone(identity: Identity) -> None:
    """A wrong password is a wrong password, with whatever code, and takes no code."""
    owner = await identity.as_user()
    app, codes = await set_up(identity, owner)
    for otp in (app.code(), codes[0], "000000"):
        assert await reason_of(identity.login(password="another long password", otp=otp)) == (
            "WRONG_CREDENTIALS"
        )
    await identity.login(otp=app.code())
    await identity.login(otp=codes[0])


async def test_codes_are_guessed_slowly_and_nobody_is_locked_out(identity: Identity) -> None:
    """Ten wrong ones an hour from all strange places; not from where the owner logs in, and not
    against recovery codes."""
    owner = await identity.as_user()
    app, codes = await set_up(identity, owner)
    for number in range(10):
        # From many networks: they count together.
        assert await reason_of(identity.login(otp="000000", source=f"198.51.{number}.7")) == (
            "WRONG_CODE"
        )
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.login(otp=app.code(), source="203.0.113.5")
    body = refused(error)
    assert (body["status"], body["details"][0]["reason"]) == (
        "RESOURCE_EXHAUSTED",
        "TOO_MANY_CODES",
    )
    await identity.login(otp=codes[0], source="203.0.113.6")  # never seen before
    await identity.login(otp=app.code())  # where the owner has logged in


async def test_a_day_of_guesses_is_an_attack(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From strange places no more are taken for a day, and the log tells of it once."""
    monkeypatch.setattr("services.identity.second_factor.tries.MOST_OF_DAY", 4)
    owner = await identity.as_user()
    app, codes = await set_up(identity, owner)
    for number in range(4):
        guess = identity.login(otp="000000", source=f"198.51.{number}.7")
        assert await reason_of(guess) == "WRONG_CODE"
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.login(otp=app.code(), source="203.0.113.5")
        assert refused(error)["details"][0]["reason"] == "TOO_MANY_CODES"
    (attack,) = await _named(identity, "identity.account_under_attack")
    assert attack["after"]["failures"] == 4  # type: ignore[index]
    await identity.login(otp=codes[0], source="203.0.113.6")
    await identity.login(otp=app.code())


async def test_a_wrong_clock_is_told_in_the_log(identity: Identity) -> None:
    """The person learns what time it is here, and not that a code was nearly right."""
    owner = await identity.as_user()
    app, _ = await set_up(identity, owner)
    messages = set()
    for code in (app.code(-5), app.code(5), "000000"):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await identity.login(otp=code)
        messages.add(re.sub(r"\d\d:\d\d:\d\d", "", refused(error)["message"]))
    assert len(messages) == 1
    reasons = [
        data["after"]["reason"]  # type: ignore[index]
        for data in await _named(identity, "identity.login_failed")
    ]
    assert sorted(reasons) == ["CODE_OFF_CLOCK", "CODE_OFF_CLOCK", "CODE_WRONG"]


async def test_the_app_is_removed_with_its_recovery_codes(identity: Identity) -> None:
    """Then the password is enough again, and nothing of it is left."""
    owner = await identity.as_user()
    await set_up(identity, owner)
    had = await identity.factors.DeleteTotp(pb.DeleteTotpRequest(), metadata=owner)
    assert (had.HasField("totp_since"), had.recovery_codes_left) == (False, 0)
    await identity.login()
    again = await identity.factors.DeleteTotp(pb.DeleteTotpRequest(), metadata=owner)
    assert again == had
    assert len(await _named(identity, "identity.mfa_disabled")) == 1


async def test_secrets_are_sealed_or_hashed(identity: Identity) -> None:
    """Neither key nor code is in the database, nor in an event."""
    owner = await identity.as_user()
    app, codes = await set_up(identity, owner)
    connection = await identity.database.superuser()
    try:
        rows = [
            *await connection.fetch("SELECT sealed_secrets AS kept FROM identity.totp"),
            *await connection.fetch("SELECT sealed_secrets AS kept FROM identity.recovery_code"),
            *await connection.fetch("SELECT payload::text::bytea AS kept FROM identity.outbox"),
        ]
    finally:
        await connection.close()
    kept = b"".join(bytes(row["kept"]) for row in rows)
    assert app.key not in kept
    assert base64.b32encode(app.key) not in kept
    for code in codes:
        assert code.encode() not in kept
        assert code.replace("-", "").encode() not in kept


async def test_a_shorter_password_does_beside_a_factor(identity: Identity) -> None:
    """Twelve characters instead of fifteen."""
    owner = await identity.as_user()

    def change(current: str, new: str) -> object:
        return identity.auth.ChangePassword(
            pb.ChangePasswordRequest(current_password=current, new_password=new), metadata=owner
        )

    short = "kelp tundra7"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await change(PASSWORD, short)  # type: ignore[misc]
    assert "at least 15" in refused(error)["message"]
    await set_up(identity, owner)
    await change(PASSWORD, short)  # type: ignore[misc]


async def test_an_invitation_keeps_the_factor(identity: Identity) -> None:
    """A new password does not open an account that had a factor; without a code the invitation
    stays as it is."""
    owner = await identity.as_user()
    user, admin = await identity.user(owner, Role.ADMIN)
    app, _ = await set_up(identity, admin)
    again = await identity.users.InviteUser(pb.InviteUserRequest(id=user.id), metadata=owner)
    accept = pb.AcceptInvitationRequest(
        invitation_token=again.invitation_token, password="another long password"
    )
    assert await reason_of(identity.auth.AcceptInvitation(accept)) == "OTP_NEEDED"
    accept.otp = app.code()
    session = await identity.auth.AcceptInvitation(accept)
    assert session.email == user.email
    assert await reason_of(identity.login(user.email, "another long password")) == "OTP_NEEDED"


async def test_a_person_who_was_disabled_meanwhile_stays_out(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: object
) -> None:
    """Between the two steps the password may have been changed, or the person disabled."""
    async with running(make_kit, serve, database, tmp_path) as identity:  # type: ignore[arg-type]
        owner = await identity.as_user()
        user, admin = await identity.user(owner, Role.ADMIN)
        app, _ = await set_up(identity, admin)
        await identity.users.DeactivateUser(pb.DeactivateUserRequest(id=user.id), metadata=owner)
        assert await reason_of(identity.login(user.email, otp=app.code())) == "WRONG_CREDENTIALS"
