"""The tree of tenants, for whoever has the machine of the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from servicekit.data.postgres import Connection


@dataclass(frozen=True, slots=True)
class TenantLines:
    """Who is above whom, also of tenants that were deleted."""

    parents: Mapping[UUID, UUID | None]

    def of(self, tenant_id: UUID) -> list[UUID]:
        """A tenant behind all above it, the root first; one that is not known is below the root."""
        found: list[UUID] = []
        at: UUID | None = tenant_id
        while at is not None and at not in found:
            found.append(at)
            at = self.parents.get(at)
        line = found[::-1]
        roots = [one for one, parent in self.parents.items() if parent is None]
        return line if not roots or line[0] in roots else [*roots, *line]


async def tenant_lines(connection: Connection) -> TenantLines:
    """Reads the tree.

    Args:
        connection: in a transaction that sees all rows.
    """
    rows = await connection.fetch("SELECT id, parent_id FROM identity.tenant")
    return TenantLines({row["id"]: row["parent_id"] for row in rows})


async def tenant_named(connection: Connection, name: str) -> UUID | None:
    """The tenant with a code or an id; as `tenant_lines`."""
    found: UUID | None = await connection.fetchval(
        "SELECT id FROM identity.tenant WHERE id::text = lower($1) OR code = $1", name
    )
    return found
