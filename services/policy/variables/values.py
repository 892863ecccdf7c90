"""What templates of a tenant are published with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from uuid import UUID

from servicekit.data.postgres import Connection
from servicekit.peers.tenants import TenantDirectory
from services.policy.authoring.templates import ORG_NAMES, Values
from services.policy.variables import store
from services.policy.vault import Vault


class ValuesInUse:
    """Reads what templates of a tenant may name."""

    def __init__(self, vault: Vault, tenants: TenantDirectory) -> None:
        self._vault = vault
        self._tenants = tenants

    async def __call__(
        self,
        connection: Connection,
        tenant_id: UUID,
        references: Collection[str],
        *,
        to_keep: bool = True,
    ) -> Values:
        """The values that a tenant has of these references.

        Args:
            connection: of the tenant.
            tenant_id: the tenant.
            references: as templates have them.
            to_keep: they stay until the transaction ends: a policy is about to be stored.
        """
        found = await store.values(connection, self._vault, tenant_id, references, to_keep=to_keep)
        node = self._tenants.known(tenant_id)
        if node is None:
            return found
        of = {**found.of, "org.code": node.code, "org.name": node.name}
        # Devices are those of organisations: nobody is below one.
        left = frozenset[str]() if node.kind == "org" else found.open | ORG_NAMES
        return replace(found, of=of, open=left)
