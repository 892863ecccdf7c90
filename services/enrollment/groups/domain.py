"""Groups of devices: their rules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.enrollment import ChangedMembers, GroupMembersChanged, GroupSnapshot
from servicekit.errors import DomainError, already_exists, failed_precondition
from servicekit.etags import etag_of

MOST_GROUPS: Final = 1_000
"""Of an organisation."""
MOST_TERMS: Final = 5_000
"""Comparisons in all filters of an organisation: each device that changes is asked them."""
MOST_MEMBERS: Final = 100_000
"""That a group lists."""
PRIORITY_STEP: Final = 10
"""Between the priorities that groups get when none is given, so that others fit between."""
MOST_TOMBSTONES: Final = 10_000
"""Deleted groups of an organisation whose names are known; the latest stay."""
MAX_PRIORITY: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Group:
    """A group of an organisation's devices; `filter` is `None` where members are listed."""

    id: UUID
    tenant_id: UUID
    name: str
    alias: str
    description: str
    priority: int
    filter: str | None
    filter_terms: int
    created_at: datetime
    updated_at: datetime
    revision: int = 1
    computing_after: UUID | None = None
    """While devices are still to be computed: behind which one."""
    deleted_at: datetime | None = None
    deleted_by: str | None = None

    @property
    def is_listed(self) -> bool:
        """Whether its members are listed."""
        return self.filter is None

    @property
    def state(self) -> str:
        """`computing` while a change of its filter is on its way through the devices."""
        return "ready" if self.computing_after is None else "computing"

    @property
    def etag(self) -> str:
        """Changes with every change of the group, but not with its members."""
        return etag_of(
            self.id,
            self.name,
            self.alias,
            self.description,
            self.priority,
            self.filter,
            self.deleted_at,
        )

    def snapshot(self) -> GroupSnapshot:
        """What events say of it."""
        return GroupSnapshot(
            name=self.name,
            alias=self.alias,
            org_id=self.tenant_id,
            description=self.description,
            priority=self.priority,
            filter=self.filter,
        )


@dataclass(frozen=True, slots=True)
class Counted:
    """A group, and how many devices are in it; `waiting` are listed and not enrolled."""

    group: Group
    members: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Member:
    """A device in a group, or a serial number that the group lists and no device has."""

    serial: str
    is_listed: bool
    device_id: UUID | None = None
    model: str = ""
    status: str = ""
    added_by: str = ""
    added_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    """The groups that a device is in, as of a revision."""

    group_ids: tuple[UUID, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Moved:
    """A device whose groups changed."""

    device_id: UUID
    tenant_id: UUID
    serial: str
    before: tuple[UUID, ...]
    after: tuple[UUID, ...]


_TOLD_SERIALS: Final = 100


def members_changed(
    group: Group, added: Collection[str], removed: Collection[str]
) -> GroupMembersChanged:
    """The event of serial numbers that came onto a group's list, or left it."""
    return GroupMembersChanged(
        id=group.id,
        after=ChangedMembers(
            alias=group.alias,
            added=len(added),
            removed=len(removed),
            added_serials=tuple(sorted(added)[:_TOLD_SERIALS]),
            removed_serials=tuple(sorted(removed)[:_TOLD_SERIALS]),
        ),
    )


def alias_taken() -> DomainError:
    """Another group of the organisation has the alias."""
    return already_exists("ALIAS_TAKEN", "alias: already in use by another group")


def priority_taken() -> DomainError:
    """Another group of the organisation has the priority."""
    return already_exists("PRIORITY_TAKEN", "priority: already in use by another group")


def too_many(what: str, most: int) -> DomainError:
    """A bound of the organisation is reached."""
    return failed_precondition("TOO_MANY_GROUPS", f"an organisation has at most {most} {what}")


def has_policies(names: Sequence[str]) -> DomainError:
    """Devices would get something else, and nobody said so."""
    return failed_precondition(
        "GROUP_HAS_POLICIES",
        f"in force for the group: {', '.join(names)}; withdraw these policies, or publish them for"
        " other groups, before the group is deleted",
    )


def not_listed() -> DomainError:
    """The group's members follow from its filter."""
    return failed_precondition(
        "GROUP_HAS_FILTER", "the group's members follow from its filter; change the filter"
    )
