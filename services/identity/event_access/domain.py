"""Event credentials: their rules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from contract.events.identity.programs import EventCredentialSnapshot
from servicekit.etags import etag_of

CREDENTIAL_LIFE: Final = timedelta(days=365)
"""How long an event credential lives when nothing else is said."""
CREDENTIAL_LIFE_MAX: Final = timedelta(days=400)


@dataclass(frozen=True, slots=True)
class EventCredential:
    """What a program reads the events of a tenant, and of all below it, with."""

    id: UUID
    tenant_id: UUID
    name: str
    created_at: datetime
    created_by: str
    expires_at: datetime
    held_by: str
    """The e-mail address of the user with whom it ends."""
    holder_id: UUID | None = None
    orphaned_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def status(self, at: datetime) -> str:
        """What it is at a time; only an `active` one opens connections."""
        if self.revoked_at is not None:
            return "revoked"
        if at >= self.expires_at:
            return "expired"
        return "active" if self.orphaned_at is None else "orphaned"

    @property
    def etag(self) -> str:
        """Changes with every change of the credential, but not with its use or with time."""
        return etag_of(
            self.id,
            self.tenant_id,
            self.name,
            self.expires_at,
            self.revoked_at,
            self.held_by,
            self.holder_id,
            self.orphaned_at,
        )

    def snapshot(self) -> EventCredentialSnapshot:
        """What events say of it."""
        return EventCredentialSnapshot(
            name=self.name,
            tenant_id=self.tenant_id,
            expires_at=self.expires_at,
            revoked_at=self.revoked_at,
            held_by=self.held_by,
            orphaned_at=self.orphaned_at,
        )
