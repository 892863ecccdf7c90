"""What templates of a tenant are published with."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from servicekit.data.postgres import Connection
from services.policy.authoring.templates import Values
from services.policy.variables import store
from services.policy.vault import Vault


class ValuesInUse:
    """Reads values for a policy that is about to be stored; they stay while it is."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def __call__(
        self, connection: Connection, tenant_id: UUID, references: Collection[str]
    ) -> Values:
        """The values that a tenant has of these references."""
        return await store.values(connection, self._vault, tenant_id, references, to_keep=True)
