"""API tokens and service accounts: their rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias
from urllib.parse import quote
from uuid import UUID

from contract.access import SCOPES, Role
from contract.events.identity.programs import ApiTokenEnd, ApiTokenSnapshot, ServiceAccountSnapshot
from servicekit.errors import invalid_field, permission_denied
from servicekit.etags import etag_of
from services.identity.token_keys.tokens import API_TOKEN_LIFE_MAX

LIFE: Final = timedelta(days=90)
"""How long a token lives when nothing else is said."""
LEAST_LIFE: Final = timedelta(minutes=5)
MOST_OVERLAP: Final = timedelta(hours=72)
SOON: Final = timedelta(days=14)
"""So long before its end a token that is not replaced yet is told of."""
MOST_OF_HOLDER: Final = 50
"""Working tokens of a user or a service account."""
MOST_OF_PERSON: Final = 100
"""Tokens of a user that have not expired, those that were ended before included: nobody alone takes
all that the tenant may have."""
MOST_OF_TENANT: Final = 1_000
"""Tokens of a tenant that have not expired, those that were ended before included: every service
has them in memory."""
MOST_SERVICE_ACCOUNTS: Final = 200
"""Of a tenant."""
CONFIRMED_WITHIN: Final = timedelta(days=30)
"""A user who comes from a directory or a provider, and whom that has not confirmed for so long, has
no tokens any more."""
KEPT_FOR: Final = timedelta(days=30)
"""After it has expired a token is listed so long."""

Status: TypeAlias = Literal["active", "expired", "revoked", "rotated", "ended"]
_RANKS: Final = {Role.AUDITOR: 1, Role.ADMIN: 2, Role.OWNER: 3}


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A program that calls the API, and belongs to a tenant and to nobody in it."""

    id: UUID
    tenant_id: UUID
    name: str
    role: Role
    created_at: datetime
    created_by: str
    deleted_at: datetime | None = None
    deleted_by: str = ""

    @property
    def etag(self) -> str:
        """Changes with every change of the service account."""
        return etag_of(self.id, self.name, self.role.value, self.deleted_at is not None)

    def snapshot(self) -> ServiceAccountSnapshot:
        """What events say of the service account."""
        return ServiceAccountSnapshot(name=self.name, role=self.role, tenant_id=self.tenant_id)


@dataclass(frozen=True, slots=True)
class ApiToken:
    """An API token, without what opens anything."""

    id: UUID
    tenant_id: UUID
    name: str
    role: Role
    scopes: tuple[str, ...]
    held_by: str
    """The e-mail address of the user, or the name of the service account or the SCIM source, that
    it acts for."""
    created_at: datetime
    created_by: str
    expires_at: datetime
    ends_at: datetime
    """Until when it works: `expires_at`, unless it was ended before."""
    account_id: UUID | None = None
    service_account_id: UUID | None = None
    ended_because: ApiTokenEnd | None = None
    replaced_by: UUID | None = None
    last_used_at: datetime | None = None
    last_used_from: str = ""
    source_id: UUID | None = None
    """The SCIM source that it is for."""

    @property
    def holder_id(self) -> UUID:
        """The id of the user, the service account or the SCIM source that it acts for."""
        holder = self.account_id or self.service_account_id or self.source_id
        assert holder is not None
        return holder

    @property
    def etag(self) -> str:
        """Changes with every change of the token, but not with its use or with time."""
        return etag_of(self.id, self.held_by, self.ended_because or "", self.ends_at.timestamp())

    def status(self, at: datetime) -> Status:
        """What it is at a time; only an `active` one opens anything."""
        if at < self.ends_at:
            return "active"
        if self.ended_because is None:
            return "expired"
        return "ended" if self.ended_because == "holder" else self.ended_because

    def snapshot(self) -> ApiTokenSnapshot:
        """What events say of the token."""
        return ApiTokenSnapshot(
            name=self.name,
            tenant_id=self.tenant_id,
            role=self.role,
            scopes=self.scopes,
            held_by=self.held_by,
            service_account_id=self.service_account_id,
            expires_at=self.expires_at,
            ends_at=self.ends_at,
            ended_because=self.ended_because,
            source_id=self.source_id,
        )

    def claims(self) -> Mapping[str, str]:
        """What the token itself says (`servicekit.call.TOKEN_CLAIMS`)."""
        who = f"service account {self.held_by}" if self.service_account_id else self.held_by
        said = {
            "knd": "token",
            "sub": str(self.id),
            "own": str(self.holder_id),
            "who": quote(who, safe="@ "),
            "nam": quote(self.name, safe=" "),
            "scp": " ".join(self.scopes),
            "tid": str(self.tenant_id),
        }
        if self.source_id is not None:
            # Nobody's who may call anything else, whatever reads it.
            return said | {"knd": "scim"}
        return said | {"role": self.role.value}


def is_at_most(role: Role, most: Role) -> bool:
    """Whether a role may do nothing that another one may not."""
    return _RANKS[role] <= _RANKS[most]


def check_role(role: Role, *most: Role | None) -> None:
    """Nobody makes what may do more than they may.

    Raises:
        DomainError: PERMISSION_DENIED.
    """
    for one in most:
        if one is None or not is_at_most(role, one):
            raise permission_denied(
                "ROLE_TOO_HIGH", f"role: must be at most {one.value if one else 'your own'}"
            )


SCIM_SCOPES: Final = ("scim",)
"""What the token of a SCIM source may do: what its kind says, and nothing that a scope does."""


def checked_scopes(scopes: Iterable[str], role: Role) -> tuple[str, ...]:
    """Scopes in their order, each once.

    Raises:
        DomainError: INVALID_ARGUMENT for one that there is not, for none, and for one that the role
            can do nothing with.
    """
    wanted = set(scopes)
    if not wanted:
        raise invalid_field("scopes", "must name at least one scope, such as devices:read")
    if unknown := sorted(wanted.difference(SCOPES)):
        raise invalid_field("scopes", f"{unknown[0][:60]!r} is none; there are {', '.join(SCOPES)}")
    if role is Role.AUDITOR and (writes := sorted(s for s in wanted if s.endswith(":write"))):
        raise invalid_field("scopes", f"an Auditor's token cannot write: {writes[0]}")
    return tuple(scope for scope in SCOPES if scope in wanted)


def checked_expiry(expires_at: datetime | None, at: datetime, life: timedelta = LIFE) -> datetime:
    """When a token that is made now ends.

    Raises:
        DomainError: INVALID_ARGUMENT for a time that is too near or too far.
    """
    expires = (expires_at or at + life).replace(microsecond=0)
    if expires < at + LEAST_LIFE:
        raise invalid_field("expiresAt", "must be at least five minutes away")
    if expires > at + API_TOKEN_LIFE_MAX:
        raise invalid_field("expiresAt", f"must be at most {API_TOKEN_LIFE_MAX.days} days away")
    return expires
