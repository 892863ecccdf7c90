"""E-mail domains: their rules."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from contract.events.identity.sources import EmailDomainSnapshot
from servicekit.etags import etag_of


@dataclass(frozen=True, slots=True)
class EmailDomain:
    """A domain, whose it is, and the source that people with such addresses log in with."""

    domain: str
    tenant_id: UUID
    source_id: UUID | None
    assigned_by: str
    created_at: datetime

    @property
    def etag(self) -> str:
        """Changes with every change of the domain."""
        return etag_of(self.domain, self.tenant_id, self.source_id)

    def snapshot(self) -> EmailDomainSnapshot:
        """What events say of it."""
        return EmailDomainSnapshot(
            domain=self.domain, tenant_id=self.tenant_id, source_id=self.source_id
        )
