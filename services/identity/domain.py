"""Identity's types and rules; no infrastructure."""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from servicekit.access import Role
from servicekit.errors import failed_precondition, permission_denied

SESSION_TOKEN_LIFE: Final = timedelta(hours=1)
REFRESH_GRACE: Final = timedelta(seconds=30)
"""How long a refresh token still works after its first use: two tabs of a browser refresh at the
same moment, and an answer may be lost."""
INVITATION_LIFE: Final = timedelta(days=7)
_CODE_MAX: Final = 40


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant; `kind` is `root`, `reseller` or `org`."""

    id: UUID
    parent_id: UUID | None
    kind: str
    name: str
    code: str
    created_at: datetime
    updated_at: datetime

    def audit(self) -> dict[str, str | None]:
        """What audit entries say of it."""
        parent = str(self.parent_id) if self.parent_id else None
        return {"name": self.name, "code": self.code, "kind": self.kind, "parentId": parent}


@dataclass(frozen=True, slots=True)
class User:
    """A user; `status` is `active`, `invited` or `disabled`."""

    id: UUID
    tenant_id: UUID
    email: str
    role: Role
    status: str
    created_at: datetime

    def audit(self) -> dict[str, str]:
        """What audit entries say of the user."""
        return {
            "email": self.email,
            "role": self.role.value,
            "status": self.status,
            "tenantId": str(self.tenant_id),
        }


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs tokens for `users` or `devices`; `seed` is the private half."""

    key_id: str
    purpose: str
    public_key: bytes
    seed: bytes


@dataclass(frozen=True, slots=True)
class EventCredential:
    """What a program reads the events of a tenant, and of all below it, with."""

    id: UUID
    tenant_id: UUID
    name: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def works(self, at: datetime) -> bool:
        """Whether it opens a connection at a time."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)

    def audit(self) -> dict[str, str | None]:
        """What audit entries say of it."""
        return {
            "name": self.name,
            "tenantId": str(self.tenant_id),
            "expiresAt": _text(self.expires_at),
            "revokedAt": _text(self.revoked_at),
        }


def _text(at: datetime | None) -> str | None:
    return at.isoformat().replace("+00:00", "Z") if at else None


@dataclass(frozen=True, slots=True)
class OpenSession:
    """What a login or a refresh answers."""

    user: User
    token: str
    refresh_token: str
    expires_at: datetime


def normalise_email(email: str) -> str:
    """E-mail addresses are compared without case."""
    return unicodedata.normalize("NFC", email.strip()).lower()


def new_secret() -> str:
    """256 random bits, for tokens that people or programs hand back."""
    return secrets.token_urlsafe(32)


def secret_hash(secret: str) -> bytes:
    """What is stored of such a secret. It has too much entropy to be guessed from its hash."""
    return hashlib.sha256(secret.encode()).digest()


def code_from_name(name: str) -> str:
    """A tenant code that resembles the name."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    code = re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-")[:_CODE_MAX].strip("-")
    return code or "org"


def with_suffix(code: str) -> str:
    """The code with a random end, for when it is taken."""
    return f"{code}-{secrets.token_hex(2)}"


def kind_below(parent: Tenant, reseller: bool) -> str:
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


def check_may_manage(actor_role: Role | None, *roles: Role) -> None:
    """Only Owners make, change or disable Owners.

    Raises:
        DomainError: PERMISSION_DENIED.
    """
    if Role.OWNER in roles and actor_role is not Role.OWNER:
        raise permission_denied("OWNERS_MANAGE_OWNERS", "only an Owner may manage Owners")


def check_may_invite(actor_role: Role | None, user: User) -> None:
    """An Admin takes over nobody's account: an invitation voids the password that it replaces.

    Raises:
        DomainError: PERMISSION_DENIED for an Admin who invites an Admin that is not only invited.
    """
    if actor_role is not Role.OWNER and user.role is Role.ADMIN and user.status != "invited":
        raise permission_denied(
            "OWNERS_INVITE_ADMINS_AGAIN", "only an Owner may invite an Admin again"
        )


def check_not_self(actor_id: str, user: User) -> None:
    """Nobody locks themselves out.

    Raises:
        DomainError: FAILED_PRECONDITION.
    """
    if str(user.id) == actor_id:
        raise failed_precondition("NOT_YOURSELF", "you cannot do this to your own account")
