"""Logins, sessions, passwords and second factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal
from uuid import UUID

from contract.events.base import AT, EMAIL, ID, TENANT_ID, Action, Outcome, Since
from contract.events.identity.tenants import TenantAction
from contract.events.identity.users import UserAction


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginAttempt:
    """Who tried, and why it failed where somebody else's server judged it."""

    email: str
    reason: Annotated[
        str,
        Since("0.2.0"),
        "What a directory said, as `AD_533`; `CODE_WRONG` or `CODE_USED` where the password was"
        " right and the second factor was not; `LOCAL_LOGIN_OFF` where it was right and only Owners"
        " have passwords here; else empty.",
    ] = ""
    source: Annotated[UUID | None, Since("0.2.0"), "The directory or provider that was asked."] = (
        None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorChange:
    """A second factor, and whose it is."""

    email: str
    method: Literal["totp", "passkey"]
    factor_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorOwner:
    """Whose second factors."""

    email: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInPolicySnapshot:
    """How people of a tenant log in."""

    mfa: Literal["off", "owners", "admins", "all"]
    mfa_required_from: Annotated[
        datetime | None, "From when on they do not get in without one; null with `off`."
    ]
    local_login: Annotated[
        Literal["all", "owners-only"],
        Since("0.3.0"),
        "Who logs in with a password or passkey of here, where a directory or provider is used.",
    ] = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryCodesLeft:
    """Whose recovery codes, and how many can still be used."""

    email: str
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedRecoveryCode:
    """A recovery code that works no more, and how many can still be used."""

    email: str
    code_id: UUID
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """Whose password is being guessed: how many attempts failed, and until when they count."""

    email: str
    failures: int
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSession:
    """The session that was opened."""

    email: str
    session_id: UUID
    methods: Annotated[
        tuple[str, ...],
        Since("0.2.0"),
        "How the user logged in: `pwd` or `sso`, and `otp` or `recovery` beside it; `mfa` where a"
        " provider answers for a second factor; or `passkey`.",
    ] = ()
    source: Annotated[
        UUID | None, Since("0.2.0"), "The directory or provider that recognised the user."
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedSession:
    """The session that has ended."""

    session_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedSessions:
    """Whose sessions have ended, and how many."""

    email: str
    count: int
    session_id: Annotated[UUID | None, "Where it was one."]
    by: Annotated[str, "`backchannel` where a provider ended them; else empty."] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReusedSession:
    """The session that was ended for it."""

    session_id: UUID
    session_ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginSucceeded(UserAction):
    """A user logged in."""

    NAME: ClassVar[str] = "identity.login_succeeded"
    after: OpenedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginFailed(UserAction):
    """Somebody tried to log in as a user and could not."""

    NAME: ClassVar[str] = "identity.login_failed"
    OUTCOME: ClassVar[Outcome] = "failed"
    after: LoginAttempt


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedLogin:
    """With what address somebody tried."""

    email: Annotated[str, "Empty where what was typed does not look like an address."]
    reason: Literal["UNKNOWN_ADDRESS"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRefused(Action):
    """Somebody tried to log in with an address that no user has; told in the root tenant's log.

    Of a network (a /24 or /64) once in ten minutes; the others are in `identity.logins_refused`.
    """

    NAME: ClassVar[str] = "identity.login_refused"
    OUTCOME: ClassVar[Outcome] = "refused"
    RESOURCE: ClassVar[str] = "logins/{id}"
    after: RefusedLogin


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedLogins:
    """How many tried, and from where."""

    count: int
    sources: Annotated[tuple[str, ...], "The ten networks with the most attempts."]
    reason: Literal["UNKNOWN_ADDRESS"]
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginsRefused(Action):
    """Further logins of ten minutes with addresses that no user has."""

    NAME: ClassVar[str] = "identity.logins_refused"
    OUTCOME: ClassVar[Outcome] = "refused"
    RESOURCE: ClassVar[str] = "logins/{id}"
    after: RefusedLogins


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountUnderAttack(UserAction):
    """A hundred logins of a user failed within a day; told once a day."""

    NAME: ClassVar[str] = "identity.account_under_attack"
    after: Attack


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedOut(UserAction):
    """A user logged out."""

    NAME: ClassVar[str] = "identity.logged_out"
    after: EndedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionsEnded(UserAction):
    """Sessions of a user were ended, by the user or by somebody who manages users."""

    NAME: ClassVar[str] = "identity.sessions_ended"
    after: EndedSessions


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordChanged(UserAction):
    """A user changed the own password."""

    NAME: ClassVar[str] = "identity.password_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordResetRequested(UserAction):
    """Somebody asked for a link with which the user sets a new password; it was sent to the user's
    address."""

    NAME: ClassVar[str] = "identity.password_reset_requested"
    after: FactorOwner


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondFactorEnabled(UserAction):
    """A user confirmed a second factor, or another one in its place."""

    NAME: ClassVar[str] = "identity.mfa_enabled"
    after: FactorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondFactorDisabled(UserAction):
    """A second factor of a user opens nothing any more."""

    NAME: ClassVar[str] = "identity.mfa_disabled"
    after: FactorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryCodesCreated(UserAction):
    """A user made recovery codes; those that there were work no more."""

    NAME: ClassVar[str] = "identity.recovery_codes_created"
    after: RecoveryCodesLeft


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryCodeUsed(UserAction):
    """A user logged in with a recovery code."""

    NAME: ClassVar[str] = "identity.recovery_code_used"
    after: UsedRecoveryCode


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyAdded(UserAction):
    """A user added a passkey."""

    NAME: ClassVar[str] = "identity.passkey_added"
    after: FactorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyRemoved(UserAction):
    """A passkey of a user opens nothing any more."""

    NAME: ClassVar[str] = "identity.passkey_removed"
    after: FactorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class PasskeyCounterBehind(UserAction):
    """A passkey was refused: its device has counted less than before, as a copy of it would."""

    NAME: ClassVar[str] = "identity.passkey_counter_behind"
    after: FactorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondFactorsReset(UserAction):
    """An Owner, or an operator on the server's machine, removed all second factors of a user."""

    NAME: ClassVar[str] = "identity.mfa_reset"
    after: FactorOwner


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInPolicyUpdated(TenantAction):
    """A tenant asks others for a second factor, or from another day on; or others log in with what
    they have here."""

    NAME: ClassVar[str] = "identity.sign_in_policy_updated"
    before: SignInPolicySnapshot
    after: SignInPolicySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfirmed(UserAction):
    """A user confirmed with the password, and the second factor, who uses a session."""

    NAME: ClassVar[str] = "identity.session_confirmed"
    after: OpenedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationAccepted(UserAction):
    """An invited user set a password and logged in."""

    NAME: ClassVar[str] = "identity.invitation_accepted"
    after: OpenedSession


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshTokenReused(UserAction):
    """A refresh token was used twice; its session was ended."""

    NAME: ClassVar[str] = "identity.refresh_token_reused"
    OUTCOME: ClassVar[Outcome] = "refused"
    after: ReusedSession


_OPENED: Final = OpenedSession(email=EMAIL, session_id=TENANT_ID)
_FACTOR: Final = FactorChange(email=EMAIL, method="totp", factor_id=ID)
EXAMPLES: Final[tuple[Action, ...]] = (
    LoginSucceeded(id=ID, after=_OPENED),
    LoginFailed(id=ID, after=LoginAttempt(email=EMAIL)),
    LoginRefused(id=ID, after=RefusedLogin(email=EMAIL, reason="UNKNOWN_ADDRESS")),
    LoginsRefused(
        id=ID,
        after=RefusedLogins(
            count=12, sources=("192.0.2.0/24",), reason="UNKNOWN_ADDRESS", since=AT, until=AT
        ),
    ),
    AccountUnderAttack(id=ID, after=Attack(email=EMAIL, failures=100, until=AT)),
    LoggedOut(id=ID, after=EndedSession(session_id=TENANT_ID)),
    SessionsEnded(id=ID, after=EndedSessions(email=EMAIL, count=1, session_id=TENANT_ID)),
    PasswordChanged(id=ID),
    PasswordResetRequested(id=ID, after=FactorOwner(email=EMAIL)),
    SecondFactorEnabled(id=ID, after=_FACTOR),
    SecondFactorDisabled(id=ID, after=_FACTOR),
    PasskeyAdded(id=ID, after=replace(_FACTOR, method="passkey")),
    PasskeyRemoved(id=ID, after=replace(_FACTOR, method="passkey")),
    PasskeyCounterBehind(id=ID, after=replace(_FACTOR, method="passkey")),
    SecondFactorsReset(id=ID, after=FactorOwner(email=EMAIL)),
    SignInPolicyUpdated(
        id=ID,
        before=SignInPolicySnapshot(mfa="off", mfa_required_from=None),
        after=SignInPolicySnapshot(mfa="owners", mfa_required_from=AT),
    ),
    SessionConfirmed(id=ID, after=_OPENED),
    RecoveryCodesCreated(id=ID, after=RecoveryCodesLeft(email=EMAIL, left=10)),
    RecoveryCodeUsed(id=ID, after=UsedRecoveryCode(email=EMAIL, code_id=TENANT_ID, left=9)),
    InvitationAccepted(id=ID, after=_OPENED),
    RefreshTokenReused(id=ID, after=ReusedSession(session_id=TENANT_ID, session_ended=True)),
)
"""One of each."""
