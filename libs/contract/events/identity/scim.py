"""SCIM sources, and the people and groups that they send."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final
from uuid import UUID

from contract.access import Role
from contract.events.base import EMAIL, ID, TENANT_ID, Action
from contract.events.identity.sources import MappedRole


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceSnapshot:
    """A SCIM source."""

    name: str
    tenant_id: UUID
    enabled: bool
    role_mappings: tuple[MappedRole, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimHolding:
    """From how many users a SCIM source takes access, or would."""

    name: str
    users: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimPerson:
    """A person as a SCIM source says it."""

    source: UUID
    user_name: str
    email: str
    active: bool
    external_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimGroup:
    """A group as a SCIM source says it."""

    source: UUID
    display_name: str
    external_id: str
    members: Annotated[int, "How many people are in it."]
    added: Annotated[tuple[UUID, ...], "Who came in, at most 100 of them."] = ()
    removed: Annotated[tuple[UUID, ...], "Who left, at most 100 of them."] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScimSourceAction(Action):
    RESOURCE: ClassVar[str] = "scim-sources/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScimPersonAction(Action):
    RESOURCE: ClassVar[str] = "scim-people/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScimGroupAction(Action):
    RESOURCE: ClassVar[str] = "scim-groups/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceCreated(_ScimSourceAction):
    """A SCIM source was added."""

    NAME: ClassVar[str] = "identity.scim_source_created"
    after: ScimSourceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceUpdated(_ScimSourceAction):
    """A SCIM source was changed."""

    NAME: ClassVar[str] = "identity.scim_source_updated"
    before: ScimSourceSnapshot
    after: ScimSourceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceDeleted(_ScimSourceAction):
    """A SCIM source was deleted, and its users were disabled."""

    NAME: ClassVar[str] = "identity.scim_source_deleted"
    before: ScimSourceSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceHeld(_ScimSourceAction):
    """A SCIM source would take access from many users: an Owner has to confirm."""

    NAME: ClassVar[str] = "identity.scim_source_held"
    after: ScimHolding


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimSourceConfirmed(_ScimSourceAction):
    """An Owner let a SCIM source take access from those who were held."""

    NAME: ClassVar[str] = "identity.scim_source_confirmed"
    after: ScimHolding


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimPersonCreated(_ScimPersonAction):
    """A SCIM source sent a person."""

    NAME: ClassVar[str] = "identity.scim_person_created"
    after: ScimPerson


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimPersonUpdated(_ScimPersonAction):
    """A SCIM source changed a person."""

    NAME: ClassVar[str] = "identity.scim_person_updated"
    before: ScimPerson
    after: ScimPerson


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimPersonDeleted(_ScimPersonAction):
    """A SCIM source has a person no more."""

    NAME: ClassVar[str] = "identity.scim_person_deleted"
    before: ScimPerson


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimGroupCreated(_ScimGroupAction):
    """A SCIM source sent a group."""

    NAME: ClassVar[str] = "identity.scim_group_created"
    after: ScimGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimGroupUpdated(_ScimGroupAction):
    """A SCIM source changed a group or its members."""

    NAME: ClassVar[str] = "identity.scim_group_updated"
    before: ScimGroup
    after: ScimGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ScimGroupDeleted(_ScimGroupAction):
    """A SCIM source has a group no more."""

    NAME: ClassVar[str] = "identity.scim_group_deleted"
    before: ScimGroup


_SCIM_SOURCE: Final = ScimSourceSnapshot(
    name="Entra",
    tenant_id=TENANT_ID,
    enabled=True,
    role_mappings=(MappedRole(group="eg-admins", role=Role.ADMIN, tenant_id=TENANT_ID),),
)
_SCIM_PERSON: Final = ScimPerson(
    source=ID, user_name=EMAIL, email=EMAIL, active=True, external_id="5f1c"
)
_SCIM_GROUP: Final = ScimGroup(source=ID, display_name="eg-admins", external_id="77ab", members=3)
EXAMPLES: Final[tuple[Action, ...]] = (
    ScimSourceCreated(id=ID, after=_SCIM_SOURCE),
    ScimSourceUpdated(id=ID, before=_SCIM_SOURCE, after=replace(_SCIM_SOURCE, enabled=False)),
    ScimSourceDeleted(id=ID, before=_SCIM_SOURCE),
    ScimSourceHeld(id=ID, after=ScimHolding(name="Entra", users=40)),
    ScimSourceConfirmed(id=ID, after=ScimHolding(name="Entra", users=40)),
    ScimPersonCreated(id=ID, after=_SCIM_PERSON),
    ScimPersonUpdated(id=ID, before=_SCIM_PERSON, after=replace(_SCIM_PERSON, active=False)),
    ScimPersonDeleted(id=ID, before=_SCIM_PERSON),
    ScimGroupCreated(id=ID, after=_SCIM_GROUP),
    ScimGroupUpdated(id=ID, before=_SCIM_GROUP, after=replace(_SCIM_GROUP, members=4, added=(ID,))),
    ScimGroupDeleted(id=ID, before=_SCIM_GROUP),
)
"""One of each."""
