"""Users: made, changed, moved, gone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final, Literal, TypeAlias
from uuid import UUID

from contract.access import Role
from contract.events.base import EMAIL, ID, TENANT_ID, Action, Since

UserStatus: TypeAlias = Literal["active", "invited", "disabled", "deleted"]
UserOrigin: TypeAlias = Literal["local", "directory", "sso", "scim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSnapshot:
    """A user."""

    email: str
    role: Role
    status: UserStatus
    tenant_id: UUID
    origin: Annotated[UserOrigin, Since("0.2.0"), "Where the user comes from."] = "local"
    groups: Annotated[
        tuple[str, ...],
        Since("0.2.0"),
        "The groups of the directory or provider that decided role and tenant.",
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UserAction(Action):
    """What happened to a user, or what a user did."""

    RESOURCE: ClassVar[str] = "users/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserCreated(UserAction):
    """A user was added."""

    NAME: ClassVar[str] = "identity.user_created"
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserUpdated(UserAction):
    """A user got another role or e-mail address."""

    NAME: ClassVar[str] = "identity.user_updated"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMovedAway(UserAction):
    """A user left the tenant for another one. An event of the tenant that was left."""

    NAME: ClassVar[str] = "identity.user_moved_away"
    before: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserMovedIn(UserAction):
    """A user came to the tenant from another one. An event of the tenant that was entered."""

    NAME: ClassVar[str] = "identity.user_moved_in"
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDeleted(UserAction):
    """A deactivated user was deleted; the e-mail address is free again."""

    NAME: ClassVar[str] = "identity.user_deleted"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserDeactivated(UserAction):
    """A user was disabled."""

    NAME: ClassVar[str] = "identity.user_deactivated"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserReactivated(UserAction):
    """An administrator no longer keeps a user of a directory out."""

    NAME: ClassVar[str] = "identity.user_reactivated"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class UserInvited(UserAction):
    """A user was invited (again)."""

    NAME: ClassVar[str] = "identity.user_invited"
    before: UserSnapshot
    after: UserSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordReset(UserAction):
    """An operator ended a user's password on the server's machine; the user is invited anew."""

    NAME: ClassVar[str] = "identity.password_reset"
    before: UserSnapshot
    after: UserSnapshot


_USER: Final = UserSnapshot(email=EMAIL, role=Role.ADMIN, status="active", tenant_id=TENANT_ID)
EXAMPLES: Final[tuple[Action, ...]] = (
    UserCreated(id=ID, after=_USER),
    UserUpdated(id=ID, before=_USER, after=_USER),
    UserMovedAway(id=ID, before=_USER),
    UserMovedIn(id=ID, after=_USER),
    UserDeactivated(id=ID, before=_USER, after=_USER),
    UserDeleted(
        id=ID,
        before=replace(_USER, status="disabled"),
        after=replace(_USER, status="deleted"),
    ),
    UserReactivated(
        id=ID,
        before=replace(_USER, status="disabled", origin="directory"),
        after=replace(_USER, status="disabled", origin="directory"),
    ),
    UserInvited(id=ID, before=_USER, after=_USER),
    PasswordReset(id=ID, before=_USER, after=replace(_USER, status="invited")),
)
"""One of each."""
