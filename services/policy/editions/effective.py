"""Shows what devices are to have of all policies, and whether they have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Database, Scope
from servicekit.errors import not_found
from servicekit.peers.tenants import TenantDirectory
from services.policy.delivery import store as delivery_store
from services.policy.editions import store
from services.policy.editions.domain import Effective, explained
from services.policy.editions.making import named
from services.policy.editions.service import Editions
from services.policy.gate import restrictions
from services.policy.gate.domain import Restriction
from services.policy.stamps import store as stamps_store
from services.policy.stamps.domain import Standing, recipe_of
from services.policy.syncs import store as syncs_store
from services.policy.targets import store as targets_store
from services.policy.targets.service import Seats


class EffectivePolicies:
    """The use cases of readers."""

    def __init__(
        self, database: Database, tenants: TenantDirectory, editions: Editions, seats: Seats
    ) -> None:
        self._database = database
        self._tenants = tenants
        self._editions = editions
        self._seats = seats

    async def of_org(self, call: Call, org_id: UUID | None, group_ids: Sequence[UUID]) -> Effective:
        """What the devices of an organisation are to have that are in some groups.

        Args:
            org_id: the caller's own where there is none.
            group_ids: none for devices without policies of groups.

        Raises:
            DomainError: NOT_FOUND, also for a group; INVALID_ARGUMENT when it is no organisation.
        """
        asked = org_id or UUID(call.caller.tenant_id)
        org = await self._tenants.require_org(call.caller, asked)
        if group_ids:
            await self._seats.fresh()
            async with self._database.transaction(Scope.of(org.id)) as connection:
                known = await targets_store.known_groups(connection, org.id, group_ids)
            for group_id in group_ids:
                if group_id not in known:
                    raise not_found("group", str(group_id))
        return await self._of(org.id, None, None, group_ids)

    async def of_device(self, call: Call, device_id: UUID) -> Effective:
        """What a device is to have, and whether it has it.

        Raises:
            DomainError: NOT_FOUND when the caller's subtree has no such device.
        """
        scope = await self._tenants.query_scope(call.caller)
        await self._seats.fresh()
        async with self._database.transaction(scope) as connection:
            found = await syncs_store.device_tenant(connection, scope, device_id)
            if found is None:
                raise not_found("device", str(device_id))
            applied = await delivery_store.applied_version(connection, device_id)
            groups = await targets_store.groups_of(connection, device_id)
            restriction = await restrictions.restriction_of(connection, device_id)
        return await self._of(found[0], device_id, applied, groups, restriction)

    async def _of(
        self,
        org_id: UUID,
        device_id: UUID | None,
        has: int | None,
        group_ids: Sequence[UUID],
        restriction: Restriction | None = None,
    ) -> Effective:
        async with self._database.system_transaction(
            "layers are of the tenants above"
        ) as connection:
            wanted = [*group_ids, *([] if device_id is None else [device_id])]
            targets = await store.bound_among(connection, org_id, wanted)
            if restriction is not None:
                targets = (restriction.gate_id,)
            elif device_id is not None:
                targets = self._seats.with_rollouts(org_id, device_id, targets)
            layers = await self._editions.layers(connection, org_id, targets)
            stored = (await store.get_stored(connection, [org_id])).get((org_id, targets))
            org = (await stamps_store.standings(connection, [org_id]))[org_id]
            if targets:
                made = await stamps_store.profile(connection, org_id, targets, org.last)
                org = made or Standing(None, org.last, targets)
        names = {node.id: node.name for node in self._tenants.line(org_id)}
        recipe = recipe_of(named(layers))
        # A version alone needs nothing, and neither does no version.
        alone = not targets and all(one.source.tenant_id == org_id for one in layers)
        waits = not alone if stored is None else stored.recipe != recipe
        return replace(
            explained(org_id, layers, names),
            device_id=device_id,
            applied=has or 0,
            wanted=0 if org.want is None else org.want.newest,
            state=_state(org, device_id, has or 0, waits, stored),
            reason="" if stored is None else stored.problem,
            restriction=restriction,
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
