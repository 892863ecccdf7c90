"""SCIM sources, their people and groups: their rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from contract.events.identity.scim import ScimGroup, ScimPerson, ScimSourceSnapshot
from contract.events.identity.sources import MappedRole
from servicekit.errors import Code, DomainError
from servicekit.etags import etag_of
from servicekit.texts import email_fault, normal_email
from services.identity.sources.domain import RoleMapping, Source

BASE: Final = "/scim/v2"
MOST_PEOPLE: Final = 20_000
"""People of one source."""
MOST_GROUPS: Final = 1_000
"""Groups of one source."""
MOST_EVENT_MEMBERS: Final = 100
"""Members that one event names."""
MOST_NEW_ACCOUNTS: Final = 100
"""Accounts that one transaction makes; the others follow."""
MOST_REMAPPED: Final = 200
"""People that one transaction brings to other mappings; the others follow."""

INACTIVE: Final = "INACTIVE"
NO_ROLE: Final = "NO_ROLE"
HELD: Final = "HELD"
DISABLED: Final = "DISABLED"
PENDING: Final = "PENDING"
UNLINKED: Final = "UNLINKED"
"""Why a person has no account that can be used, beside what `NotAdmittedError` says."""


@dataclass(frozen=True, slots=True)
class ScimSource:
    """A source that sends people and groups."""

    source: Source
    mappings: tuple[RoleMapping, ...]
    held: int = 0
    """From how many users it would take access."""
    people: int = 0
    groups: int = 0
    users: int = 0
    remaining: int = 0
    """Of how many people the accounts are still to be brought to other mappings."""

    @property
    def id(self) -> UUID:
        """The source's id."""
        return self.source.id

    @property
    def etag(self) -> str:
        """Changes with every change of the source."""
        return etag_of(self.id, self.source.updated_at, self.source.enabled)

    def snapshot(self) -> ScimSourceSnapshot:
        """What events say of it."""
        return ScimSourceSnapshot(
            name=self.source.name,
            tenant_id=self.source.tenant_id,
            enabled=self.source.enabled,
            role_mappings=tuple(
                MappedRole(group=row.group, role=row.role, tenant_id=row.tenant_id)
                for row in self.mappings
            ),
        )


@dataclass(frozen=True, slots=True)
class ScimUser:
    """A person as a source says it."""

    id: UUID
    source_id: UUID
    tenant_id: UUID
    user_name: str
    external_id: str
    active: bool
    attributes: Mapping[str, Any]
    """`name`, `displayName` and `emails` in their JSON form."""
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None
    problem: str = ""

    @property
    def user_key(self) -> str:
        """What tells user names apart."""
        return self.user_name.casefold()

    @property
    def email(self) -> str:
        """What the account's address is to be: the user name, if that is an address, or else the
        primary one of the person's; empty when there is none that can be used."""
        emails = self.attributes.get("emails", [])
        first = sorted(emails, key=lambda one: not one.get("primary", False))
        for address in (self.user_name, *(one.get("value", "") for one in first[:1])):
            plain = normal_email(address)
            if email_fault(plain) is None:
                return plain
        return ""

    @property
    def version(self) -> str:
        """The weak etag of the resource."""
        return _version(self.id, self.updated_at)

    def snapshot(self) -> ScimPerson:
        """What events say of the person."""
        return ScimPerson(
            source=self.source_id,
            user_name=self.user_name,
            email=self.email,
            active=self.active,
            external_id=self.external_id,
        )


@dataclass(frozen=True, slots=True)
class ScimGroupRow:
    """A group as a source says it, without its members."""

    id: UUID
    source_id: UUID
    tenant_id: UUID
    display_name: str
    external_id: str
    created_at: datetime
    updated_at: datetime
    members: int = 0

    @property
    def name_key(self) -> str:
        """What tells groups apart."""
        return self.display_name.casefold()

    @property
    def version(self) -> str:
        """The weak etag of the resource."""
        return _version(self.id, self.updated_at)

    def snapshot(self) -> ScimGroup:
        """What events say of the group."""
        return ScimGroup(
            source=self.source_id,
            display_name=self.display_name,
            external_id=self.external_id,
            members=self.members,
        )


@dataclass(frozen=True, slots=True)
class ListedPerson:
    """Somebody, for administrators."""

    person: ScimUser
    account_id: UUID | None
    groups: tuple[str, ...]


def _version(resource_id: UUID, updated_at: datetime) -> str:
    return f'W/"{etag_of(resource_id, updated_at)}"'


def refused(scim_type: str, message: str) -> DomainError:
    """The request is not taken (RFC 7644, section 3.12, table 9).

    Args:
        scim_type: `invalidFilter`, `invalidSyntax`, `invalidPath`, `invalidValue`, `noTarget`,
            `mutability` or `tooMany`.
    """
    return DomainError(
        Code.INVALID_ARGUMENT, "SCIM_REFUSED", message, metadata={"scimType": scim_type}
    )


def taken(attribute: str) -> DomainError:
    """Another one has this already; whose it is, is not told."""
    return DomainError(
        Code.ALREADY_EXISTS,
        "UNIQUENESS",
        f"{attribute}: already in use",
        metadata={"scimType": "uniqueness"},
    )


def is_text(value: str) -> bool:
    """Whether a text can be stored: JSON can write half of a pair of surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
