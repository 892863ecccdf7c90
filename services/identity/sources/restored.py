"""What a restore has to know of sources of accounts, of e-mail domains and of links.

Nobody comes in by what was changed, deleted or taken back since the backup: an Owner looks at a
source, and opens it again; a person links the own account again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.identity.scim import ScimSourceDeleted, ScimSourceUpdated
from contract.events.identity.sources import (
    AccountUnlinked,
    DirectoryDeleted,
    DirectoryUpdated,
    EmailDomainDeleted,
    EmailDomainUpdated,
    SsoProviderDeleted,
    SsoProviderUpdated,
)
from servicekit.data.backup import Connection, Recorded

_CHANGED: Final = frozenset(
    {
        DirectoryUpdated.NAME,
        DirectoryDeleted.NAME,
        SsoProviderUpdated.NAME,
        SsoProviderDeleted.NAME,
        ScimSourceUpdated.NAME,
        ScimSourceDeleted.NAME,
    }
)
_OTHER_DOMAINS: Final = frozenset({EmailDomainUpdated.NAME, EmailDomainDeleted.NAME})


@dataclass(slots=True)
class KnownSources:
    """What is known of sources since the backup."""

    sources: dict[UUID, datetime] | None = None
    """When each was changed last; `None` where the database that is replaced cannot be read."""
    domains: set[tuple[str, UUID, UUID | None]] | None = None
    """Domains with their tenants and sources; likewise."""
    changed: set[UUID] = field(default_factory=set)
    """Sources that the audit log says were changed or deleted."""
    tenants: set[UUID] = field(default_factory=set)
    """Tenants of whose domains it says so."""
    links: set[tuple[UUID, UUID]] | None = None
    """Sources and accounts that they open; `None` as with `sources`."""
    unlinked: set[UUID] = field(default_factory=set)
    """Accounts of which the audit log says that a link was taken back."""

    async def read(self, connection: Connection) -> None:
        """Takes what a database knows that is about to be replaced."""
        if not await _there(connection):
            return
        sources = await connection.fetch("SELECT id, updated_at FROM identity.source")
        self.sources = {row["id"]: row["updated_at"] for row in sources}
        self.domains = {
            (row["domain"], row["tenant_id"], row["source_id"])
            for row in await connection.fetch(
                "SELECT domain, tenant_id, source_id FROM identity.email_domain"
            )
        }
        links = await connection.fetch(
            "SELECT source_id, account_id FROM identity.external_identity"
        )
        self.links = {(row["source_id"], row["account_id"]) for row in links}

    def learn(self, entry: Recorded) -> None:
        """Takes an entry of the audit log."""
        if entry.action in _CHANGED:
            self.changed.add(UUID(entry.name))
        elif entry.action in _OTHER_DOMAINS:
            self.tenants.add(UUID(entry.name))
        elif entry.action == AccountUnlinked.NAME:
            self.unlinked.add(UUID(entry.name))


async def close_sources(connection: Connection, known: KnownSources) -> None:
    """Lets nobody in by what was changed since."""
    # An older archive has no such tables.
    if not await _there(connection):
        return
    sources = await connection.fetch("SELECT id, updated_at FROM identity.source WHERE enabled")
    await connection.execute(
        "UPDATE identity.source SET enabled = false, updated_at = now() WHERE id = ANY ($1)",
        [
            row["id"]
            for row in sources
            if row["id"] in known.changed
            or (known.sources is not None and known.sources.get(row["id"]) != row["updated_at"])
        ],
    )
    domains = await connection.fetch(
        "SELECT domain, tenant_id, source_id FROM identity.email_domain WHERE source_id IS NOT NULL"
    )
    await connection.execute(
        "UPDATE identity.email_domain SET source_id = NULL WHERE domain = ANY ($1)",
        [
            row["domain"]
            for row in domains
            if row["tenant_id"] in known.tenants
            or (known.domains is not None and tuple(row) not in known.domains)
        ],
    )
    # Those with another way in, or another source: the others are opened by nothing else.
    links = await connection.fetch(
        "SELECT i.source_id, i.account_id FROM identity.external_identity i"
        " JOIN identity.account a ON a.id = i.account_id"
        " JOIN identity.source s ON s.id = i.source_id"
        " WHERE a.origin = 'local' OR (a.origin = 'scim' AND s.kind = 'sso')"
    )
    await connection.executemany(
        "DELETE FROM identity.external_identity WHERE source_id = $1 AND account_id = $2",
        [
            tuple(row)
            for row in links
            if row["account_id"] in known.unlinked
            or (known.links is not None and tuple(row) not in known.links)
        ],
    )
    has_leases = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attname = 'sync_until'"
        " AND attrelid = 'identity.directory'::regclass)"
    )
    if has_leases:
        # No pass is under way, and the next one is due.
        await connection.execute(
            "UPDATE identity.directory SET sync_until = NULL, sync_pass = NULL,"
            " sync_asked = false, sync_next_at = now()"
        )


async def _there(connection: Connection) -> bool:
    found = await connection.fetchval("SELECT to_regclass('identity.source')")
    return found is not None
