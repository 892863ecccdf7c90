"""Tenants, and what is told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal, TypeAlias
from uuid import UUID

from contract.events.base import AT, EMAIL, ID, TENANT_ID, Action, Since

TenantKind: TypeAlias = Literal["root", "reseller", "org"]
TenantStatus: TypeAlias = Literal["active", "archived", "deleting", "deleted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSnapshot:
    """A tenant."""

    name: str
    code: str
    kind: TenantKind
    parent_id: UUID | None
    language: Annotated[
        str, Since("0.3.0"), "The language of mails; empty for that of the tenant above."
    ] = ""
    time_zone: Annotated[
        str, Since("0.3.0"), "The time zone of mails (IANA); empty for that of the tenant above."
    ] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantStanding:
    """A tenant, and whether it is in use."""

    name: str
    code: str
    kind: TenantKind
    parent_id: UUID | None
    status: TenantStatus
    purge_at: Annotated[datetime | None, "When it is deleted, unless it is restored before."]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCodes:
    """The codes that pre-shared keys of a tenant may begin with."""

    name: str
    code: str
    old_codes: Annotated[tuple[str, ...], "Codes that it had before and that still work."]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRemains:
    """What stays of a deleted tenant."""

    name: str
    code: str
    kind: TenantKind
    parent_id: UUID
    erased_rows: Annotated[Mapping[str, object], "Rows that each service deleted."]


@dataclass(frozen=True, slots=True, kw_only=True)
class MailTest:
    """How a try of the mail server went."""

    address: str
    ok: bool
    error: Annotated[str, "The step, and the codes of the server's answer."] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantAction(Action):
    """What happened to a tenant, or for all of it."""

    RESOURCE: ClassVar[str] = "tenants/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCreated(TenantAction):
    """A tenant was added."""

    NAME: ClassVar[str] = "identity.tenant_created"
    after: TenantSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantUpdated(TenantAction):
    """A tenant's name or code was changed."""

    NAME: ClassVar[str] = "identity.tenant_updated"
    before: TenantSnapshot
    after: TenantSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantCodeDropped(TenantAction):
    """An old code of a tenant works no longer."""

    NAME: ClassVar[str] = "identity.tenant_code_dropped"
    before: TenantCodes
    after: TenantCodes


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantArchived(TenantAction):
    """A tenant was archived: its devices and users are out, its data stays for a while."""

    NAME: ClassVar[str] = "identity.tenant_archived"
    before: TenantStanding
    after: TenantStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRestored(TenantAction):
    """An archived tenant was restored."""

    NAME: ClassVar[str] = "identity.tenant_restored"
    before: TenantStanding
    after: TenantStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDeletionRequested(TenantAction):
    """An archived tenant is being deleted. An event of the tenant above it."""

    NAME: ClassVar[str] = "identity.tenant_deletion_requested"
    before: TenantStanding
    after: TenantStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantDeleted(TenantAction):
    """Nothing is left of a tenant but its name. An event of the tenant above it."""

    NAME: ClassVar[str] = "identity.tenant_deleted"
    before: TenantStanding
    after: TenantRemains


@dataclass(frozen=True, slots=True, kw_only=True)
class MailTested(TenantAction):
    """An Owner of the root tenant had a mail sent for a try."""

    NAME: ClassVar[str] = "identity.mail_tested"
    after: MailTest


_TENANT: Final = TenantSnapshot(
    name="North school",
    code="north",
    kind="org",
    parent_id=TENANT_ID,
)
_IN_USE: Final = TenantStanding(
    name="North school",
    code="north",
    kind="org",
    parent_id=TENANT_ID,
    status="active",
    purge_at=None,
)
_ARCHIVED: Final = replace(_IN_USE, status="archived", purge_at=AT)
_CODES: Final = TenantCodes(name="North school", code="north", old_codes=())
_DELETING: Final = replace(_ARCHIVED, status="deleting")
EXAMPLES: Final[tuple[Action, ...]] = (
    TenantCreated(id=ID, after=_TENANT),
    TenantUpdated(id=ID, before=_TENANT, after=_TENANT),
    TenantCodeDropped(id=ID, before=replace(_CODES, old_codes=("nord",)), after=_CODES),
    TenantArchived(id=ID, before=_IN_USE, after=_ARCHIVED),
    TenantRestored(id=ID, before=_ARCHIVED, after=_IN_USE),
    TenantDeletionRequested(id=ID, before=_ARCHIVED, after=_DELETING),
    TenantDeleted(
        id=ID,
        before=_DELETING,
        after=TenantRemains(
            name="North school",
            code="north",
            kind="org",
            parent_id=TENANT_ID,
            erased_rows={"identity": 12, "enrollment": 340, "telemetry": 90210},
        ),
    ),
    MailTested(id=ID, after=MailTest(address=EMAIL, ok=False, error="CONNECTION_REFUSED")),
)
"""One of each."""
