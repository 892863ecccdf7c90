"""Sources of accounts: their rules. Which kind a source is makes no difference here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from contract.access import Role
from contract.events.identity.users import UserOrigin
from servicekit.errors import invalid_field

EVERYBODY: Final = "*"
"""The group that every person of a source is in."""
BY_PROVIDER: Final = frozenset({"sso", "scim"})
"""Origins of users who sign in with a provider, and have no password that is asked for."""
_GUARD_LEAST: Final = 5
_GUARD_SHARE: Final = 0.2
_RANK: Final = {Role.AUDITOR: 0, Role.ADMIN: 1, Role.OWNER: 2}


@dataclass(frozen=True, slots=True)
class Source:
    """Where accounts come from."""

    id: UUID
    tenant_id: UUID
    kind: UserOrigin
    name: str
    enabled: bool
    grace: timedelta
    """How long its users stay logged in after it last confirmed them."""
    created_at: datetime
    updated_at: datetime

    @property
    def actor(self) -> str:
        """How audit entries name it."""
        return f"{self.kind}:{self.id}"


@dataclass(frozen=True, slots=True)
class RoleMapping:
    """What the members of a group may do, and where."""

    group: str
    role: Role
    tenant_id: UUID


@dataclass(frozen=True, slots=True)
class Decision:
    """What the groups of a person come to."""

    role: Role
    tenant_id: UUID
    groups: tuple[str, ...]
    """Those that decided."""


def ranks_below(role: Role, other: Role) -> bool:
    """Whether a role may do less than another one."""
    return _RANK[role] < _RANK[other]


def decide(rows: Sequence[RoleMapping], groups: Collection[str]) -> Decision | None:
    """The first row that matches decides the tenant, the highest role of that tenant's rows the
    role; `None` when no row matches: then there is no login.

    Args:
        rows: in their order.
        groups: those of the rows' groups that the person is in, spelt as in the rows.
    """
    matching = [row for row in rows if row.group == EVERYBODY or row.group in groups]
    if not matching:
        return None
    tenant_id = matching[0].tenant_id
    deciding = [row for row in matching if row.tenant_id == tenant_id]
    role = max((row.role for row in deciding), key=_RANK.__getitem__)
    return Decision(role, tenant_id, tuple(dict.fromkeys(row.group for row in deciding)))


def most_losses(users: int) -> int:
    """From how many of its users a source may take access within a day by itself."""
    return max(_GUARD_LEAST, int(users * _GUARD_SHARE))


def check_mappings(rows: Sequence[RoleMapping]) -> None:
    """Refuses rows that can never match, or give everybody everything.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    seen = set()
    for number, row in enumerate(rows):
        if not row.group:
            raise invalid_field(f"roleMappings[{number}].group", "must not be blank")
        if row.group == EVERYBODY and row.role is Role.OWNER:
            raise invalid_field(
                f"roleMappings[{number}].role", "must not be Owner where the group is everybody (*)"
            )
        key = (row.group, row.role, row.tenant_id)
        if key in seen:
            raise invalid_field(f"roleMappings[{number}]", "is there twice")
        seen.add(key)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody, as a source knows them."""

    subject: str
    """The source's own id, which stays when name and address change."""
    email: str
    """Normalised; empty when the source has none."""
    groups: frozenset[str]
    """Those of the mapped groups that the person is in, nested ones included."""


@dataclass(frozen=True, slots=True)
class ExternalIdentity:
    """Which account a person of a source has."""

    source_id: UUID
    subject: str
    account_id: UUID
    tenant_id: UUID
    groups_seen: frozenset[str]
    seen_at: datetime
    asked_at: datetime | None = None
    """When the source was asked for what is known here."""
    lost_at: datetime | None = None
    """When a sync last took access from the person, which was not given back since."""

    def is_newer(self, asked_at: datetime, at: datetime) -> bool:
        """Whether what is known is newer than the answer to a question; one that a clock dates
        ahead of now is not."""
        return self.asked_at is not None and asked_at < self.asked_at <= at


@dataclass(frozen=True, slots=True)
class Origin:
    """Which source has recognised a user who logs in, and what it calls its own session."""

    source_id: UUID
    sid: str = ""
    authenticated_at: datetime | None = None
    """When the source asked the user, if that was earlier than the login."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a source's people are admitted; as directories', where nothing is said."""

    makes_accounts: bool = True
    """Whether somebody without an account gets one, if the address is of the source's domains."""
    takes_invited: bool = False
    """Whether who was invited is admitted with an address of any domain: it was verified."""
    decision: Decision | None = None
    """What stands in the place of what the rows decide."""
    login: bool = True
    """Whether the person logs in now."""
    keeps: bool = False
    """Whether that is what the account is already: then as it is once nobody else changes it."""


USUAL: Final = Terms()


class NotAdmittedError(Exception):
    """A source knows a person who gets no login all the same; `reason` is UPPER_SNAKE."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def domain_of(email: str) -> str:
    """The domain of a normalised address; empty when it has none."""
    return email.rpartition("@")[2] if "@" in email else ""
