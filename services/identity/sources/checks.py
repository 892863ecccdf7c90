"""What every source is checked for before it is written, of whichever kind it is."""

from __future__ import annotations

from collections.abc import Sequence

from servicekit.data.postgres import Connection
from servicekit.errors import already_exists, invalid_field
from servicekit.peers.tenants import TenantDirectory
from services.identity.sources import store
from services.identity.sources.domain import RoleMapping, Source


async def check_name_free(connection: Connection, source: Source, what: str) -> None:
    """Refuses a name that another source of the kind has in the tenant: commands go by names.

    Sources that have the same name from before go on, and keep it.

    Args:
        what: the source in words.

    Raises:
        DomainError: ALREADY_EXISTS.
    """
    await store.take_turns(connection, source.tenant_id)
    if await store.has_name(connection, source):
        raise already_exists("NAME_TAKEN", f"name: already in use by another {what}")


def check_rows_lead_below(
    tenants: TenantDirectory,
    source: Source,
    rows: Sequence[RoleMapping],
    new: Sequence[RoleMapping],
    what: str,
) -> None:
    """Refuses new rows that lead out of a source's own subtree.

    Args:
        what: the source in words.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    scope = tenants.scope(source.tenant_id)
    for number, row in enumerate(rows):
        node = tenants.known(row.tenant_id)
        inside = scope.tenant_ids is None or row.tenant_id in scope.tenant_ids
        if row in new and (node is None or not inside or node.status != "active"):
            raise invalid_field(
                f"roleMappings[{number}].orgId",
                f"must be the {what}'s tenant, or one below it that is in use",
            )
