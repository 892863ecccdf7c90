"""Tenants: their rules."""

from __future__ import annotations

import re
import secrets
import unicodedata
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.identity.tenants import (
    TenantCodes,
    TenantKind,
    TenantSnapshot,
    TenantStanding,
    TenantStatus,
)
from servicekit.errors import aborted, failed_precondition
from servicekit.etags import etag_of

MOST_OLD_CODES: Final = 10
"""Old codes of a tenant; nobody else can have them, and the tokens of each are counted."""
_CODE_MAX: Final = 40


@dataclass(frozen=True, slots=True)
class OldCode:
    """A code that a tenant had before and that still works.

    `active_tokens` are the enrollment tokens that were handed out with it and still admit devices;
    `None` where nobody counted.
    """

    code: str
    since: datetime
    replaced_at: datetime
    active_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant, or what stays of one that was deleted."""

    id: UUID
    parent_id: UUID | None
    kind: TenantKind
    name: str
    code: str
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None = None
    archived_by: str = ""
    archived_with: UUID | None = None
    """The tenant that was archived, with this one below it."""
    purge_at: datetime | None = None
    deletion_requested_at: datetime | None = None
    deletion_requested_by: str = ""
    deleted_at: datetime | None = None
    old_codes: tuple[OldCode, ...] = ()
    language: str = ""
    """Of mails to its people; empty where the tenant above says it."""
    time_zone: str = ""
    """Likewise, of times in them (IANA)."""

    @property
    def status(self) -> TenantStatus:
        """`active`, `archived`, `deleting` or `deleted`."""
        if self.deleted_at is not None:
            return "deleted"
        if self.deletion_requested_at is not None:
            return "deleting"
        return "active" if self.archived_at is None else "archived"

    @property
    def etag(self) -> str:
        """Changes with every change of the tenant."""
        return etag_of(self.id, self.parent_id, self.kind, self.name, self.code, self.updated_at)

    def snapshot(self) -> TenantSnapshot:
        """What events say of it."""
        return TenantSnapshot(
            name=self.name,
            code=self.code,
            kind=self.kind,
            parent_id=self.parent_id,
            language=self.language,
            time_zone=self.time_zone,
        )

    def standing(self) -> TenantStanding:
        """What events say of it that is archived, restored or deleted."""
        return TenantStanding(
            name=self.name,
            code=self.code,
            kind=self.kind,
            parent_id=self.parent_id,
            status=self.status,
            purge_at=self.purge_at,
        )

    def codes(self) -> TenantCodes:
        """What events say of its codes."""
        old = tuple(old.code for old in self.old_codes)
        return TenantCodes(name=self.name, code=self.code, old_codes=old)


@dataclass(frozen=True, slots=True)
class Objects:
    """What tenants have; the events of devices are counted up to a number."""

    tenants: int
    users: int
    event_credentials: int
    devices: int
    enrollment_tokens: int
    policies: int
    events: int

    @property
    def count(self) -> int:
        """What is confirmed: all but the events."""
        return (
            self.tenants
            + self.users
            + self.event_credentials
            + self.devices
            + self.enrollment_tokens
            + self.policies
        )


def check_confirmed(objects: Objects, expected: int | None, *, always: bool) -> None:
    """Nobody touches more than they saw.

    Args:
        objects: what is touched.
        expected: the number that was confirmed.
        always: whether a number is needed for a tenant alone, too.

    Raises:
        DomainError: FAILED_PRECONDITION without a number, ABORTED with another one.
    """
    if expected is None:
        if always or objects.count > 1:
            raise failed_precondition(
                "COUNT_NEEDED",
                f"expectedCount: is needed; this touches {objects.count} objects",
            )
    elif expected != objects.count:
        raise aborted(
            "COUNT_CHANGED",
            f"expectedCount: this touches {objects.count} objects, not {expected};"
            " nothing was changed",
        )


def check_may_close(tenant: Tenant, caller_tenant: UUID) -> None:
    """A tenant is archived, restored or deleted by Owners above it.

    Raises:
        DomainError: FAILED_PRECONDITION.
    """
    if tenant.kind == "root":
        raise failed_precondition("ROOT_STAYS", "the root tenant cannot be archived or deleted")
    if tenant.id == caller_tenant:
        raise failed_precondition(
            "NOT_YOUR_OWN_TENANT", "an Owner of a tenant above this one has to do it"
        )
    if tenant.status == "deleting":
        raise failed_precondition("TENANT_DELETING", f"{tenant.name} is being deleted")


def renamed(
    tenant: Tenant,
    name: str | None,
    code: str | None,
    at: datetime,
    *,
    language: str | None = None,
    time_zone: str | None = None,
) -> Tenant:
    """The tenant with another name, code, language or time zone; the code that it had is an old one
    from then on.

    Equal to `tenant` when nothing changes.

    Raises:
        DomainError: FAILED_PRECONDITION when it has too many old codes.
    """
    old_codes = tenant.old_codes
    if code is not None and code != tenant.code:
        since = max((old.replaced_at for old in old_codes), default=tenant.created_at)
        kept = tuple(old for old in old_codes if old.code != code)
        if len(kept) >= MOST_OLD_CODES:
            raise failed_precondition(
                "TOO_MANY_OLD_CODES",
                f"code: {len(kept)} old codes still work; drop one before you change it again",
            )
        old_codes = (*kept, OldCode(tenant.code, since, at))
    after = replace(
        tenant,
        name=tenant.name if name is None else name,
        code=tenant.code if code is None else code,
        old_codes=old_codes,
        language=tenant.language if language is None else language,
        time_zone=tenant.time_zone if time_zone is None else time_zone,
    )
    return after if after == tenant else replace(after, updated_at=at)


def code_from_name(name: str) -> str:
    """A tenant code that resembles the name."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    code = re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-")[:_CODE_MAX].strip("-")
    return code or "org"


def with_suffix(code: str) -> str:
    """The code with a random end, for when it is taken."""
    return f"{code}-{secrets.token_hex(2)}"


def kind_below(parent: Tenant, reseller: bool) -> TenantKind:
    """The kind of a new tenant below `parent`.

    Raises:
        DomainError: FAILED_PRECONDITION when the tree does not allow it: resellers stand below
            the root, organisations below the root or a reseller.
    """
    if parent.kind == "org":
        raise failed_precondition(
            "NO_TENANT_BELOW_ORG", "parentId: an organisation has no tenants below it"
        )
    if reseller and parent.kind != "root":
        raise failed_precondition(
            "RESELLER_BELOW_ROOT", "parentId: a reseller stands below the root"
        )
    return "reseller" if reseller else "org"
