"""Puts together what the devices of every organisation are to have, whenever a layer changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from prometheus_client import Gauge

from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database
from servicekit.errors import DomainError
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import Cursor
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.security.digests import sha256
from services.policy.authoring.layering import InForce, encoded, folded
from services.policy.editions import store
from services.policy.editions.store import recipe_of
from services.policy.keys.service import KeyRing
from services.policy.layers.merging import Level, Source
from services.policy.stamps import store as stamps_store
from services.policy.stamps.domain import Content, Document
from services.policy.stamps.service import Stamps
from services.policy.versions import Version

log = logs.get(__name__)

_LOOK_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 60.0
"""So long an organisation waits for which it failed."""
_LEVELS: Final = {"root": Level.ROOT, "reseller": Level.RESELLER, "org": Level.ORG}
WAITING: Final = Gauge(
    "evergreen_policy_editions_waiting",
    "Organisations for which a changed layer is still to be put together.",
)


class Editions:
    """The layers of all organisations, and what is made of them. The service runs its tasks."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        stamps: Stamps,
        keys: KeyRing,
        tenants: TenantDirectory,
    ) -> None:
        self._database = database
        self._stamps = stamps
        self._keys = keys
        self._tenants = tenants
        self._assigned: dict[UUID, tuple[UUID, int]] = {}
        self._recipes: dict[UUID, str] = {}
        self._not_before: dict[UUID, float] = {}
        self.follower = changes.follower("layers of policies", self._fetch)

    async def layers(self, connection: Connection, tenant_id: UUID) -> list[InForce]:
        """What is in force for a tenant and those above it, the root's first."""
        line = self._tenants.line(tenant_id)
        levels = {node.id: _level(node) for node in line}
        found = await store.assigned(connection, [node.id for node in line])
        return [
            InForce(
                Source(
                    levels[one.tenant_id],
                    one.tenant_id,
                    one.policy_id,
                    one.policy_name,
                    one.version,
                ),
                one.own,
            )
            for one in found
        ]

    async def above(self, connection: Connection, tenant_id: UUID) -> list[InForce]:
        """What is in force for those above a tenant; the connection sees their rows."""
        found = await self.layers(connection, tenant_id)
        return [one for one in found if one.source.tenant_id != tenant_id]

    async def published(
        self, connection: Connection, tenant_id: UUID, above: Sequence[InForce], version: Version
    ) -> None:
        """Notes that an organisation's own version has all that its devices are to have."""
        node = self._tenants.known(tenant_id)
        if node is None or node.kind != "org":
            return
        recipe = recipe_of(
            [*_named(above), (version.tenant_id, version.policy_id, version.version)]
        )
        await store.put(connection, tenant_id, recipe, version.version, None)

    async def run(self) -> None:
        """Puts together what has changed, for as long as the service lives."""
        outage = Repeated(log, "layers of policies not put together")
        while True:
            begin_background_call()
            try:
                waiting = self._waiting()
                WAITING.set(len(waiting))
                for org_id in waiting:
                    if not await self._make(org_id):
                        break
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_LOOK_SECONDS)

    def _waiting(self) -> list[UUID]:
        """The organisations whose layers are other ones than those that were put together."""
        if not self.follower.synced:
            return []
        now = asyncio.get_running_loop().time()
        return [
            org
            for org in self._tenants.organisations()
            if self.is_waiting(org) and self._not_before.get(org, 0.0) <= now
        ]

    def is_waiting(self, org_id: UUID) -> bool:
        """Whether an organisation's layers are other ones than those that were put together."""
        line = [node.id for node in self._tenants.line(org_id)]
        layers = [(tenant, *self._assigned[tenant]) for tenant in line if tenant in self._assigned]
        known = self._recipes.get(org_id)
        if known is None:
            # A version alone needs nothing, and neither does no version.
            return any(tenant != org_id for tenant, _, _ in layers)
        return known != recipe_of(layers)

    async def _make(self, org_id: UUID) -> bool:
        """Makes one edition; answers whether there is any sense in going on with the next one."""
        try:
            async with self._database.system_transaction(
                "layers are of the tenants above"
            ) as connection:
                if not await store.try_lead(connection):
                    return False
                made = await self._put_together(connection, org_id)
        except DomainError as away:
            log.info("layers wait", tenant=str(org_id), error=away.message)
            return False
        except Exception:
            # The other organisations go on.
            log.exception("layers not put together", tenant=str(org_id))
            self._not_before[org_id] = asyncio.get_running_loop().time() + _AGAIN_SECONDS
            return True
        self._recipes[org_id] = made
        return True

    async def _put_together(self, connection: Connection, org_id: UUID) -> str:
        """Stores and stamps what the organisation's devices are to have; answers the recipe."""
        counter = await stamps_store.lock_counter(connection, org_id)
        layers = await self.layers(connection, org_id)
        recipe = recipe_of(_named(layers))
        before = await store.get_stored(connection, org_id)
        if before is not None and before.recipe == recipe:
            return recipe
        own = next((one.source.version for one in layers if one.source.tenant_id == org_id), None)
        if not layers:
            await store.put(connection, org_id, recipe, own, None)
            return recipe
        try:
            body = encoded(folded(layers))
        except DomainError as apart:
            log.warning("layers do not fit", tenant=str(org_id), error=apart.message)
            held = await self._wanted(connection, org_id, before)
            await store.put(connection, org_id, recipe, own, held, apart.message)
            return recipe
        content = Content(layers[-1].source.tenant_id, sha256(body))
        if own is not None and await store.stamped_content(connection, org_id, own) == content:
            await store.put(connection, org_id, recipe, own, None)
            return recipe
        signer = self._keys.signer
        document = Document(body, signer.sign(body), signer.public.id)
        await stamps_store.insert_document(connection, content, document)
        if await stamps_store.newest_standing(connection, org_id, content) is None:
            await self._stamps.stamp(connection, org_id, content, body, counter, "layers")
        await store.put(connection, org_id, recipe, own, content)
        return recipe

    async def _wanted(
        self, connection: Connection, org_id: UUID, before: store.Stored | None
    ) -> Content | None:
        """What the organisation's devices were to have until now."""
        if before is not None and before.content is not None:
            return before.content
        org = (await stamps_store.standings(connection, [org_id])).get(org_id)
        return None if org is None or org.want is None else org.want.content

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        async with self._database.system_transaction("the feed tells of all tenants") as connection:
            page, found = await store.changed_since(connection, Cursor.parse(cursor))
        for tenant_id, (assigned, recipe) in found.items():
            if assigned is None:
                self._assigned.pop(tenant_id, None)
            else:
                self._assigned[tenant_id] = assigned
            if recipe is None:
                self._recipes.pop(tenant_id, None)
            else:
                self._recipes[tenant_id] = recipe
        return str(page.cursor), page.more


def _level(node: TenantNode) -> Level:
    return _LEVELS[node.kind]


def _named(layers: Sequence[InForce]) -> list[tuple[UUID, UUID, int]]:
    found: list[tuple[UUID, UUID, int]] = []
    for one in layers:
        assert one.source.policy_id is not None
        found.append((one.source.tenant_id, one.source.policy_id, one.source.version))
    return found
