"""The tree of tenants, for whoever has the machine of the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.errors import failed_precondition

_ALL: Final = (
    "(SELECT id, parent_id, code, false AS is_deleted FROM identity.tenant"
    " UNION ALL SELECT id, parent_id, code, true FROM identity.tenant_tombstone) AS t"
)


@dataclass(frozen=True, slots=True)
class TenantLines:
    """Who is above whom, also of tenants that were deleted."""

    parents: Mapping[UUID, UUID | None]

    def of(self, tenant_id: UUID) -> list[UUID]:
        """A tenant behind all above it, the root first.

        Of one that is not known, as after a restore of before it was made, all others may be above.

        Raises:
            DomainError: FAILED_PRECONDITION when no root is known.
        """
        found: list[UUID] = []
        at: UUID | None = tenant_id
        while at is not None and at not in found:
            found.append(at)
            at = self.parents.get(at)
        line = found[::-1]
        roots = [one for one, parent in self.parents.items() if parent is None]
        if not roots:
            raise failed_precondition("TENANTS_UNKNOWN", "identity has no root tenant")
        if line[0] in roots:
            return line
        return [*roots, *(self.parents.keys() - {*roots, *line}), *line]


async def tenant_lines(connection: Connection) -> TenantLines:
    """Reads the tree.

    Args:
        connection: in a transaction that sees all rows.
    """
    rows = await connection.fetch(f"SELECT t.id, t.parent_id FROM {_ALL}")
    return TenantLines({row["id"]: row["parent_id"] for row in rows})


async def tenant_named(connection: Connection, name: str) -> UUID | None:
    """The tenant with a code or an id, also one that was deleted; as `tenant_lines`.

    A code means a tenant that is there, before the last one that was deleted and had it.
    """
    found: UUID | None = await connection.fetchval(
        f"SELECT t.id FROM {_ALL} WHERE t.id::text = lower($1) OR t.code = $1"
        " ORDER BY t.id::text = lower($1) DESC, t.is_deleted, t.id DESC LIMIT 1",
        name,
    )
    return found
