"""Shows what devices are to have of all policies, and whether they have it."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Database
from servicekit.errors import not_found
from servicekit.peers.tenants import TenantDirectory
from services.policy.delivery import store as delivery_store
from services.policy.editions import store
from services.policy.editions.domain import Effective, explained
from services.policy.editions.service import Editions
from services.policy.stamps import store as stamps_store
from services.policy.stamps.domain import Standing
from services.policy.syncs import store as syncs_store


class EffectivePolicies:
    """The use cases of readers."""

    def __init__(self, database: Database, tenants: TenantDirectory, editions: Editions) -> None:
        self._database = database
        self._tenants = tenants
        self._editions = editions

    async def of_org(self, call: Call, org_id: UUID | None) -> Effective:
        """What the devices of an organisation are to have; of the caller's own without an id."""
        asked = org_id or UUID(call.caller.tenant_id)
        org = await self._tenants.require_org(call.caller, asked)
        return await self._of(org.id, None, None)

    async def of_device(self, call: Call, device_id: UUID) -> Effective:
        """What a device is to have, and whether it has it.

        Raises:
            DomainError: NOT_FOUND when the caller's subtree has no such device.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            found = await syncs_store.device_tenant(connection, scope, device_id)
            if found is None:
                raise not_found("device", str(device_id))
            applied = await delivery_store.applied_version(connection, device_id)
        return await self._of(found[0], device_id, applied)

    async def _of(self, org_id: UUID, device_id: UUID | None, has: int | None) -> Effective:
        async with self._database.system_transaction(
            "layers are of the tenants above"
        ) as connection:
            layers = await self._editions.layers(connection, org_id)
            stored = await store.get_stored(connection, org_id)
            org = (await stamps_store.standings(connection, [org_id]))[org_id]
        names = {node.id: node.name for node in self._tenants.line(org_id)}
        waits = self._editions.is_waiting(org_id)
        return replace(
            explained(org_id, layers, names),
            device_id=device_id,
            applied=has or 0,
            wanted=0 if org.want is None else org.want.newest,
            state=_state(org, device_id, has or 0, waits, stored),
            reason="" if stored is None else stored.problem,
        )


def _state(
    org: Standing, device_id: UUID | None, has: int, waits: bool, stored: store.Stored | None
) -> str:
    if waits:
        return "PENDING"
    if stored is not None and stored.problem:
        return "HELD"
    if org.want is None:
        return "ORPHANED" if has else "NONE"
    if device_id is None or has in org.want.versions:
        return "CURRENT"
    return "AHEAD" if has > org.last else "PENDING"
