"""Second factors: their rules."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias, get_args
from uuid import UUID

from contract.access import Role
from contract.events.identity.sign_in import SignInPolicySnapshot
from servicekit.errors import DomainError, failed_precondition, unauthenticated

SEALED_FOR: Final = "identity-mfa"
"""The purpose for which the master key seals the keys of authenticator apps."""
RECOVERY_CODES: Final = 10
CHALLENGE_LIFE: Final = timedelta(minutes=10)
"""How long a login of a browser waits for its second factor, which includes setting one up."""
MAX_TRIES: Final = 5
"""Wrong codes after which such a login has to begin anew."""

PASSWORD: Final = "pwd"
SSO: Final = "sso"
FACTOR_ELSEWHERE: Final = "mfa"
OTP: Final = "otp"
RECOVERY: Final = "recovery"
PASSKEY: Final = "passkey"
"""How somebody logged in, as sessions and events say it."""

Mfa: TypeAlias = Literal["off", "owners", "admins", "all"]
MFA: Final[tuple[Mfa, ...]] = get_args(Mfa)
"""Whom a policy asks for a second factor, the stricter ones last."""
LocalLogin: TypeAlias = Literal["all", "owners-only"]
LOCAL_LOGIN: Final[tuple[LocalLogin, ...]] = get_args(LocalLogin)
"""Who logs in with a password or passkey of here, where people come from elsewhere."""
_ASKED: Final[dict[str, frozenset[Role]]] = {
    "off": frozenset(),
    "owners": frozenset({Role.OWNER}),
    "admins": frozenset({Role.OWNER, Role.ADMIN}),
    "all": frozenset(Role),
}
_LETTERS: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base32: none of them looks like another one."""
_LENGTH: Final = 10
_AS_TYPED: Final = str.maketrans({"o": "0", "i": "1", "l": "1", "-": None, " ": None})
_DIGITS: Final = re.compile(r"[0-9]{6}").fullmatch


@dataclass(frozen=True, slots=True)
class TotpKey:
    """A key of an authenticator app."""

    id: UUID
    account_id: UUID
    sealed: bytes = field(repr=False)
    created_at: datetime
    confirmed_at: datetime | None
    last_step: int


@dataclass(frozen=True, slots=True)
class Factors:
    """What a user has, and what is asked of the user."""

    totp_since: datetime | None
    recovery_codes_left: int
    passkeys: int
    required_from: datetime | None
    """From when on the user does not get in without a factor; `None` where none is asked for."""

    @property
    def any(self) -> bool:
        """Whether a login needs one."""
        return self.totp_since is not None or self.passkeys > 0

    def must_set_up(self, at: datetime) -> bool:
        """Whether the user gets in only by setting one up."""
        return not self.any and self.required_from is not None and self.required_from <= at


@dataclass(frozen=True, slots=True)
class Policy:
    """What a tenant asks of its people and of those of all tenants below."""

    tenant_id: UUID
    mfa: Mfa
    required_from: datetime
    updated_at: datetime
    earlier: Mapping[Role, datetime] = field(default_factory=dict)
    """From when on those are asked who were asked before others were."""
    local_login: LocalLogin = "all"

    def snapshot(self) -> SignInPolicySnapshot:
        """What events say of it."""
        off = self.mfa == "off"
        return SignInPolicySnapshot(
            mfa=self.mfa,
            mfa_required_from=None if off else self.required_from,
            local_login=self.local_login,
        )

    def asks(self, role: Role) -> bool:
        """Whether it asks a role for a second factor."""
        return role in _ASKED[self.mfa]

    def asked_from(self, role: Role) -> datetime | None:
        """From when on it asks a role; `None` where it does not."""
        if not self.asks(role):
            return None
        return min(self.earlier.get(role, self.required_from), self.required_from)

    def for_others(self, mfa: Mfa, required_from: datetime) -> Policy:
        """The policy when it asks others. Who is asked already gets no days for that."""
        after = replace(self, mfa=mfa, required_from=required_from, earlier={})
        known = {role: since for role in Role if (since := self.asked_from(role)) is not None}
        return replace(after, earlier={one: at for one, at in known.items() if after.asks(one)})

    def as_told(self, told: Policy) -> Policy:
        """The policy after the next change of it, of which only what events say is known."""
        if told.mfa != self.mfa:
            earlier = self.for_others(told.mfa, told.required_from).earlier
        elif told.snapshot().mfa_required_from != self.snapshot().mfa_required_from:
            earlier = {}
        else:
            earlier = self.earlier
        return replace(told, earlier=earlier)


def strictest(policies: Sequence[Policy]) -> Mfa:
    """Whom some policies together ask."""
    return max((one.mfa for one in policies), key=MFA.index, default="off")


def required_from(policies: Sequence[Policy], role: Role) -> datetime | None:
    """From when on a second factor is asked for: by the strictest of some policies."""
    asking = (one.asked_from(role) for one in policies)
    return min((since for since in asking if since is not None), default=None)


def new_recovery_code() -> str:
    """50 random bits, as they are shown."""
    code = "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
    return f"{code[:5]}-{code[5:]}"


def plain_code(typed: str) -> str:
    """What somebody typed, without what does not matter."""
    return typed.strip().lower().translate(_AS_TYPED) if not is_app_code(typed) else digits(typed)


def digits(typed: str) -> str:
    """A code of an app without its blanks."""
    return "".join(typed.split())


def is_app_code(typed: str) -> bool:
    """Whether it looks like a code of an authenticator app: six digits."""
    return _DIGITS(digits(typed)) is not None


def otp_needed() -> DomainError:
    """The password was right, and the account has a second factor."""
    return unauthenticated(
        "OTP_NEEDED",
        "a second factor is needed: give a code of your authenticator app, or a recovery code,"
        " as otp; in a browser, log in at /login",
    )


def setup_needed() -> DomainError:
    """The password was right, and the organisation asks for a second factor that is not there."""
    return unauthenticated(
        "SECOND_FACTOR_REQUIRED",
        "your organisation asks for a second factor: log in with a browser, at /login, and set one"
        " up",
    )


def wrong_code(at: datetime) -> DomainError:
    """The password was right, the code was not."""
    return unauthenticated(
        "WRONG_CODE",
        "the code is wrong, or was used before; codes of an app are right only when the clock of"
        f" your device is: here it is {at:%H:%M:%S} UTC",
    )


def challenge_over() -> DomainError:
    """The login of a browser took too long, or too many codes were wrong."""
    return unauthenticated("LOGIN_OVER", "log in again: it took too long, or codes were wrong")


def codes_first() -> DomainError:
    """A factor that is lost is replaced by a recovery code."""
    return failed_precondition(
        "RECOVERY_CODES_FIRST",
        "make recovery codes first, and keep them: they open your account when the app is lost",
    )
