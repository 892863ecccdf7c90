"""Users: their rules."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from contract.access import Role
from contract.events.identity.sources import AccountUnlinked, LinkedAccount
from contract.events.identity.users import UserOrigin, UserSnapshot, UserStatus
from servicekit.errors import DomainError, failed_precondition, permission_denied
from servicekit.etags import etag_of
from servicekit.texts import normal_email

INVITATION_LIFE: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Invitation:
    """What is shown once to the user who invites."""

    token: str = field(repr=False)
    mail: Literal["queued", "off", "full"]
    """Whether the link goes to the invited person by mail, too: it waits for the mail server; the
    installation sends none; or too many of the organisation wait, or were made today."""


@dataclass(frozen=True, slots=True)
class User:
    """A user."""

    id: UUID
    tenant_id: UUID
    email: str
    role: Role
    status: UserStatus
    created_at: datetime
    activated: bool = False
    """Whether the user has ever been active; a new or a disabled one may have been."""
    last_login_at: datetime | None = None
    """`None` where it is not known: never, or before release 0.2.0."""
    deleted_at: datetime | None = None
    deleted_by: str = ""
    origin: UserOrigin = "local"
    source_id: UUID | None = None
    """The directory or provider that the user comes from."""
    disabled_by: str | None = None
    """`admin` or `source`; what an admin disabled, no source enables."""
    kept_from_sources: bool = False
    """Whether an Owner has taken the account out of a source, and nobody accepted it since."""

    @property
    def etag(self) -> str:
        """Changes with every change of what the API shows of the user."""
        elsewhere = (self.origin, self.disabled_by) if self.origin != "local" else ()
        return etag_of(
            self.id, self.tenant_id, self.email, self.role.value, self.status, *elsewhere
        )

    def snapshot(self) -> UserSnapshot:
        """What events say of the user."""
        return UserSnapshot(
            email=self.email,
            role=self.role,
            status=self.status,
            tenant_id=self.tenant_id,
            origin=self.origin,
        )


def spellings(email: str) -> tuple[str, str]:
    """How an address that somebody typed may be stored: as the last release did, and plainly.

    The last release kept compatible characters, such as full-width letters, as they came.
    """
    return unicodedata.normalize("NFC", email.strip()).lower(), normal_email(email)


def check_may_manage(actor_role: Role | None, *roles: Role) -> None:
    """Only Owners make, change or disable Owners.

    Raises:
        DomainError: PERMISSION_DENIED.
    """
    if Role.OWNER in roles and actor_role is not Role.OWNER:
        raise permission_denied("OWNERS_MANAGE_OWNERS", "only an Owner may manage Owners")


def check_may_invite(actor_role: Role | None, user: User) -> None:
    """An Admin takes over nobody's account: an invitation hands a session to its bearer.

    What the user is now does not count, for an Admin may change it: the role, or active to
    disabled.

    Raises:
        DomainError: PERMISSION_DENIED for an Admin who invites a user who was ever active.
    """
    if actor_role is not Role.OWNER and (user.activated or user.status == "active"):
        raise permission_denied(
            # Reasons are part of the interface: this one is older than the rule for all roles.
            "OWNERS_INVITE_ADMINS_AGAIN",
            "only an Owner may invite a user who has set a password: the invitation replaces it",
        )


def check_may_readdress(actor_role: Role | None, actor_id: str, user: User) -> None:
    """An Admin takes over nobody's account: a lost password is set anew through the address.

    Raises:
        DomainError: PERMISSION_DENIED for an Admin, of another user who was ever active.
    """
    if str(user.id) != actor_id and actor_role is not Role.OWNER and user.activated:
        raise permission_denied(
            "OWNERS_CORRECT_ADDRESSES",
            "only an Owner may correct the address of another user who has set a password, for"
            " everybody who reads mail there can set a new one",
        )


def check_may_readdress_by_token(by_token: bool) -> None:
    """The owner of the address can set a new password, which no API token may.

    Raises:
        DomainError: PERMISSION_DENIED.
    """
    if by_token:
        raise permission_denied(
            "TOKEN_MAY_NOT", "API tokens may not correct e-mail addresses; log in"
        )


def check_may_raise_by_token(by_token: bool, before: User, after: User) -> None:
    """What a user may do is not taken back when the API token ends that gave it.

    Raises:
        DomainError: PERMISSION_DENIED.
    """
    if not by_token:
        return
    rising = (Role.AUDITOR, Role.ADMIN, Role.OWNER).index
    if after.tenant_id != before.tenant_id or rising(after.role) > rising(before.role):
        raise permission_denied(
            "TOKEN_MAY_NOT",
            "API tokens may not move users, nor give them a higher role; log in",
        )


def may_invite(actor_role: Role | None, user: User) -> bool:
    """Whether one may invite a user again."""
    try:
        check_may_manage(actor_role, user.role)
        check_may_invite(actor_role, user)
    except DomainError:
        return False
    return True


def invitation_link(public_url: str, token: str) -> str | None:
    """What the invited person opens; `None` where the public address is not known."""
    if not public_url:
        return None
    # Behind "#", so that no server's log and no other site gets to know it.
    return f"{public_url.rstrip('/')}/auth/accept#token={token}"


def unlinked(user: User, links: Iterable[tuple[UUID, str]]) -> list[AccountUnlinked]:
    """What is told of links that have ended: of each the source, and its name."""
    return [
        AccountUnlinked(
            id=user.id, before=LinkedAccount(email=user.email, source=source, provider=name)
        )
        for source, name in links
    ]


def check_local(user: User) -> None:
    """Role, tenant, address and password of a user from elsewhere are decided there.

    Raises:
        DomainError: FAILED_PRECONDITION.
    """
    if user.origin != "local":
        raise failed_precondition(
            "SOURCE_DECIDES",
            "the user comes from a directory or provider, which decides role, organisation,"
            " address and password: change groups there, or the role mappings here",
        )


def check_not_self(actor_id: str, user: User) -> None:
    """Nobody locks themselves out.

    Raises:
        DomainError: FAILED_PRECONDITION.
    """
    if str(user.id) == actor_id:
        raise failed_precondition("NOT_YOURSELF", "you cannot do this to your own account")
