"""API tokens, service accounts, event credentials, and the keys that sign tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal, TypeAlias
from uuid import UUID

from contract.access import Role
from contract.events.base import (
    AT,
    EMAIL,
    ID,
    TENANT_ID,
    Action,
    KeyRotation,
    Since,
    resources,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCredentialSnapshot:
    """A credential that reads events; never its secret."""

    name: str
    tenant_id: UUID
    expires_at: datetime | None
    revoked_at: datetime | None
    held_by: Annotated[str, Since("0.2.0")]
    orphaned_at: Annotated[datetime | None, Since("0.2.0")]


ApiTokenEnd: TypeAlias = Literal["revoked", "rotated", "holder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenSnapshot:
    """An API token; never what opens anything."""

    name: str
    tenant_id: UUID
    role: Role
    scopes: tuple[str, ...]
    held_by: Annotated[str, "The user, by the e-mail address, or the service account, by its name."]
    service_account_id: UUID | None
    expires_at: datetime
    ends_at: Annotated[datetime, "Until when it works: earlier, where somebody ended it."]
    ended_because: Annotated[
        ApiTokenEnd | None,
        "Who or what ended it: somebody, a rotation, or that its holder may no longer do what it"
        " may.",
    ]
    source_id: Annotated[UUID | None, Since("0.3.0"), "The SCIM source that it is for."] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountSnapshot:
    """A program that calls the API."""

    name: str
    role: Role
    tenant_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class _EventCredentialAction(Action):
    RESOURCE: ClassVar[str] = "event-credentials/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _ApiTokenAction(Action):
    RESOURCE: ClassVar[str] = "tokens/{id}"

    @property
    def related(self) -> Sequence[str]:
        """The service account that holds it."""
        held = getattr(self, "after", None) or getattr(self, "before", None)
        return resources("service-accounts", [getattr(held, "service_account_id", None)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _ServiceAccountAction(Action):
    RESOURCE: ClassVar[str] = "service-accounts/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCredentialCreated(_EventCredentialAction):
    """A credential that reads events was made."""

    NAME: ClassVar[str] = "identity.event_credential_created"
    after: EventCredentialSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCredentialRevoked(_EventCredentialAction):
    """A credential that reads events was revoked; its connections are cut."""

    NAME: ClassVar[str] = "identity.event_credential_revoked"
    before: EventCredentialSnapshot
    after: EventCredentialSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCredentialOrphaned(_EventCredentialAction):
    """The holder of a credential that reads events was disabled; its connections are cut."""

    NAME: ClassVar[str] = "identity.event_credential_orphaned"
    before: EventCredentialSnapshot
    after: EventCredentialSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCredentialTakenOver(_EventCredentialAction):
    """A credential that reads events got another holder; one that was orphaned works again."""

    NAME: ClassVar[str] = "identity.event_credential_taken_over"
    before: EventCredentialSnapshot
    after: EventCredentialSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenCreated(_ApiTokenAction):
    """An API token was made."""

    NAME: ClassVar[str] = "identity.api_token_created"
    after: ApiTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenRotated(_ApiTokenAction):
    """An API token got a successor, and works on for as long as was asked for."""

    NAME: ClassVar[str] = "identity.api_token_rotated"
    before: ApiTokenSnapshot
    after: ApiTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenRevoked(_ApiTokenAction):
    """An API token was ended before its time."""

    NAME: ClassVar[str] = "identity.api_token_revoked"
    before: ApiTokenSnapshot
    after: ApiTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenExpiresSoon(_ApiTokenAction):
    """An API token without a successor expires within two weeks."""

    NAME: ClassVar[str] = "identity.api_token_expires_soon"
    after: ApiTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTokenExpired(_ApiTokenAction):
    """An API token has expired."""

    NAME: ClassVar[str] = "identity.api_token_expired"
    after: ApiTokenSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountCreated(_ServiceAccountAction):
    """A service account was made."""

    NAME: ClassVar[str] = "identity.service_account_created"
    after: ServiceAccountSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountUpdated(_ServiceAccountAction):
    """A service account got another name or role."""

    NAME: ClassVar[str] = "identity.service_account_updated"
    before: ServiceAccountSnapshot
    after: ServiceAccountSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountDeleted(_ServiceAccountAction):
    """A service account was deleted; its API tokens have ended."""

    NAME: ClassVar[str] = "identity.service_account_deleted"
    before: ServiceAccountSnapshot


_CREDENTIAL: Final = EventCredentialSnapshot(
    name="SIEM",
    tenant_id=TENANT_ID,
    expires_at=AT,
    revoked_at=None,
    held_by=EMAIL,
    orphaned_at=None,
)
_ORPHAN: Final = replace(_CREDENTIAL, orphaned_at=AT)
_TOKEN: Final = ApiTokenSnapshot(
    name="Nightly report",
    tenant_id=TENANT_ID,
    role=Role.ADMIN,
    scopes=("devices:read", "policies:write"),
    held_by=EMAIL,
    service_account_id=None,
    expires_at=AT,
    ends_at=AT,
    ended_because=None,
)
_SERVICE_ACCOUNT: Final = ServiceAccountSnapshot(
    name="Inventory sync", role=Role.ADMIN, tenant_id=TENANT_ID
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRotated(KeyRotation):
    """The next key that signs tokens was made."""

    NAME: ClassVar[str] = "identity.key_rotated"


EXAMPLES: Final[tuple[Action, ...]] = (
    EventCredentialCreated(id=ID, after=_CREDENTIAL),
    EventCredentialRevoked(id=ID, before=_CREDENTIAL, after=replace(_CREDENTIAL, revoked_at=AT)),
    EventCredentialOrphaned(id=ID, before=_CREDENTIAL, after=_ORPHAN),
    EventCredentialTakenOver(
        id=ID, before=_ORPHAN, after=replace(_CREDENTIAL, held_by="owner@school.example")
    ),
    ApiTokenCreated(id=ID, after=_TOKEN),
    ApiTokenRotated(id=ID, before=_TOKEN, after=replace(_TOKEN, ended_because="rotated")),
    ApiTokenRevoked(id=ID, before=_TOKEN, after=replace(_TOKEN, ended_because="revoked")),
    ApiTokenExpiresSoon(id=ID, after=_TOKEN),
    ApiTokenExpired(id=ID, after=_TOKEN),
    ServiceAccountCreated(id=ID, after=_SERVICE_ACCOUNT),
    ServiceAccountUpdated(
        id=ID, before=_SERVICE_ACCOUNT, after=replace(_SERVICE_ACCOUNT, role=Role.AUDITOR)
    ),
    ServiceAccountDeleted(id=ID, before=_SERVICE_ACCOUNT),
    KeyRotated.example("users"),
)
"""One of each."""
