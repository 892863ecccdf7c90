"""Puts together what devices are to have, whenever a layer changes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence, Set
from contextlib import suppress
from itertools import chain, islice
from typing import Final
from uuid import UUID

from prometheus_client import Counter, Gauge

from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database
from servicekit.errors import DomainError
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.peers.tenants import TenantDirectory
from services.policy.authoring.filling import made_with
from services.policy.authoring.layering import InForce
from services.policy.editions import store
from services.policy.editions.making import Frozen, Maker, Place, named
from services.policy.keys.service import KeyRing
from services.policy.stamps.domain import Part, Targets, recipe_of
from services.policy.stamps.service import Stamps
from services.policy.targets.domain import MOST_PROFILES
from services.policy.targets.service import Seats
from services.policy.vault import Vault
from services.policy.versions import Version

log = logs.get(__name__)

_LOOK_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.05
_AT_ONCE: Final = 120
"""So many organisations are made before it is looked whether others wait that come first."""
_LOOKED_AT_ONCE: Final = 100
"""So many organisations are looked at before polls are answered in between."""
_TOGETHER: Final = 60
"""So many editions are made in a transaction; a publish of their organisations waits for it."""
_AGAIN_SECONDS: Final = 60.0
"""So long an organisation waits for which it failed."""
_MOST_FAILED: Final = 3
"""After so many in a row the others wait for the next turn: the database may be away."""
WAITING: Final = Gauge(
    "evergreen_policy_editions_waiting",
    "Organisations for which a changed layer is still to be put together.",
)
HELD: Final = Gauge(
    "evergreen_policy_editions_held",
    "Organisations whose layers do not fit together, so that not all of them counts.",
)
FAILED: Final = Counter(
    "evergreen_policy_editions_failed_total",
    "Tries to put together the layers of an organisation that failed.",
)


class Editions:
    """The layers of all devices, and what is made of them. The service runs its task."""

    def __init__(
        self,
        database: Database,
        stamps: Stamps,
        seats: Seats,
        keys: KeyRing,
        vault: Vault,
        tenants: TenantDirectory,
        frozen: Frozen,
    ) -> None:
        self._database = database
        self._stamps = stamps
        self._seats = seats
        self._tenants = tenants
        self._maker = Maker(stamps, keys, vault, tenants, frozen)
        self._not_before: dict[UUID, float] = {}
        self._changed: set[UUID] = set()
        self._waits: dict[UUID, None] = {}
        """The organisations for which something is to be made, in their order."""
        self._first: dict[UUID, None] = {}
        """Those of them that changed something themselves."""
        self._renamed: set[UUID] = set()
        """Those that have a new name and wait for the end of a freeze, or another change."""
        self._tree = -1
        self._news = asyncio.Event()
        stamps.on_change.append(self._note)

    async def layers(
        self, connection: Connection, tenant_id: UUID, targets: Targets = ()
    ) -> list[InForce]:
        """What is in force for a tenant and those above it, as `Maker.layers` has it.

        Raises:
            DomainError: UNAVAILABLE while not all tenants above are known.
        """
        return await self._maker.layers(connection, tenant_id, targets)

    async def of_several(
        self, connection: Connection, tenant_ids: Collection[UUID]
    ) -> dict[UUID, list[InForce]]:
        """What is in force for all devices of tenants, as `Maker.for_all` has it.

        Raises:
            DomainError: UNAVAILABLE while not all tenants above are known.
        """
        return await self._maker.for_all(connection, tenant_ids)

    async def above(
        self, connection: Connection, tenant_id: UUID, *, targeted: bool
    ) -> list[InForce]:
        """What is in force above a tenant, or with `targeted` above groups and devices of it."""
        found = await self.layers(connection, tenant_id)
        return [one for one in found if targeted or one.source.tenant_id != tenant_id]

    async def published(
        self, connection: Connection, tenant_id: UUID, above: Sequence[InForce], version: Version
    ) -> None:
        """Notes that an organisation's own version has all that its devices are to have."""
        node = self._tenants.known(tenant_id)
        if node is None or node.kind != "org":
            return
        own = Part(version.tenant_id, version.policy_id, version.version)
        recipe = recipe_of([*named(above), own])
        made = store.Made(tenant_id, recipe, None, version.version, filled=made_with(above))
        await store.put(connection, [made])

    async def run(self) -> None:
        """Puts together what has changed, for as long as the service lives."""
        outage = Repeated(log, "layers of policies not put together")
        loop = asyncio.get_running_loop()
        while True:
            begin_background_call()
            try:
                await self._make_all()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            looked = loop.time()
            if not self._changed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), _LOOK_SECONDS)
            self._news.clear()
            # However much there is to make.
            await asyncio.sleep(max(0.0, looked + _PAUSE_SECONDS - loop.time()))

    async def make(self, org_id: UUID, targets: Targets) -> None:
        """Puts together what devices need now, if that is possible."""
        known = self._stamps.known.get(org_id)
        profiles = {} if known is None else known.profiles
        rollouts = set() if known is None else {one.id for one in known.rollouts}
        # Those of rollouts are bounded by their own number, and forgotten after them.
        lasting = sum(rollouts.isdisjoint(one) for one in profiles)
        if targets not in profiles and lasting >= MOST_PROFILES:
            log.warning("too many sets of policies", tenant=str(org_id))
            return
        try:
            async with self._database.system_transaction(
                "layers are of the tenants above"
            ) as connection:
                await self._maker.make(connection, [(org_id, targets)])
        except DomainError as away:
            log.info("layers wait", tenant=str(org_id), error=away.message)

    async def settle(self, connection: Connection, org_id: UUID) -> None:
        """Puts together what the devices of an organisation are to have of what is in force now.

        Args:
            connection: of a transaction that sees all tenants.
        """
        await self._maker.make(connection, [(org_id, ())])

    def is_waiting(self, org_id: UUID) -> bool:
        """Whether something of an organisation is made of other layers than those in force."""
        return next(self._to_make(org_id), None) is not None

    def _to_make(self, org_id: UUID) -> Iterator[Targets]:
        """What is to be made for an organisation: for all of its devices, or with targets."""
        layers = self._seats.layers(org_id)
        known = self._stamps.known.get(org_id)
        recipe = None if known is None else known.recipe
        if recipe is None:
            # A version alone needs nothing, and neither does no version.
            if any(one.whose != org_id for one in layers):
                yield ()
        elif recipe != recipe_of(layers):
            yield ()
        for targets in self._seats.in_use(org_id)[:MOST_PROFILES]:
            made = None if known is None else known.profiles.get(targets)
            if made is None or made.recipe != self._seats.recipe(org_id, targets):
                yield targets

    def _note(self, changed: Set[UUID]) -> None:
        self._changed |= changed
        self._news.set()

    async def _make_all(self) -> None:
        await self._look()
        now = asyncio.get_running_loop().time()
        others = (one for one in self._waits if one not in self._first)
        ready = (one for one in chain(self._first, others) if self._not_before.get(one, 0.0) <= now)
        waiting = list(islice(ready, _AT_ONCE + 1))
        WAITING.set(len(self._waits))
        more = len(waiting) > _AT_ONCE
        waiting = waiting[:_AT_ONCE]
        while waiting:
            if not await self._make(waiting[:_TOGETHER]):
                return
            before = waiting
            waiting = [
                one
                for one in waiting
                if one in self._waits and self._not_before.get(one, 0.0) <= now
            ]
            if waiting == before:
                # A part of what the first one needs is made.
                break
        if waiting or more:
            self._news.set()

    async def _look(self) -> None:
        """Finds out for which organisations something is to be made."""
        followers = (self._stamps.follower, self._seats.follower, self._tenants.follower)
        if not all(follower.synced for follower in followers):
            return
        changed, self._changed = self._changed, set()
        moved = self._seats.moved()
        if self._tree != self._tenants.revision:
            self._tree = self._tenants.revision
            self._seats.settle_all()
            changed.clear()
            moved = set()
            look = self._tenants.organisations()
        else:
            nodes = {one: self._tenants.known(one) for one in changed}
            if any(node is not None and node.kind != "org" for node in nodes.values()):
                look = [
                    org
                    for org in self._tenants.organisations()
                    if any(node.id in changed for node in self._tenants.line(org))
                ]
            else:
                look = [one for one, node in nodes.items() if node is not None and not node.going]
        if look:
            HELD.set(sum(one.held for one in self._stamps.known.values()))
        for number, org in enumerate({*look, *moved}):
            if number % _LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if org in self._renamed:
                self._renamed.discard(org)
                self._not_before.pop(org, None)
            if not self.is_waiting(org):
                self._waits.pop(org, None)
                self._first.pop(org, None)
            elif org not in self._waits:
                self._waits[org] = None
                if org in changed or org in moved:
                    self._first[org] = None

    async def _make(self, orgs: Sequence[UUID]) -> bool:
        """Makes what organisations need, in one transaction; answers whether to go on.

        Where that fails, each is tried alone, so that one does not stop the others.
        """
        try:
            return await self._make_together(orgs)
        except Exception as error:
            if len(orgs) == 1:
                self._put_off(orgs[0], error)
                return False
        failed = 0
        for org_id in orgs:
            failed = 0 if await self._make([org_id]) else failed + 1
            if failed == _MOST_FAILED:
                return False
        return True

    async def _make_together(self, orgs: Sequence[UUID]) -> bool:
        done: list[UUID] = []
        async with self._database.system_transaction(
            "layers are of the tenants above"
        ) as connection:
            if not await store.try_lead(connection):
                return False
            places: list[Place] = []
            for org_id in orgs:
                node = self._tenants.known(org_id)
                wanted = [] if node is None or node.going else [*self._to_make(org_id)]
                room = _TOGETHER - len(places)
                if len(wanted) <= room:
                    done.append(org_id)
                elif places:
                    # In the next transaction.
                    break
                places += [(org_id, targets) for targets in wanted[:room]]
            waits = await self._maker.make(connection, places)
        self._renamed |= waits
        for org_id in waits:
            self._try_later(org_id)
        for org_id in done:
            if org_id in waits:
                continue
            self._not_before.pop(org_id, None)
            self._waits.pop(org_id, None)
            self._first.pop(org_id, None)
        if not done:
            # The rest of what an organisation needs, when it was looked whether others come first.
            await self._stamps.follower.try_refresh()
        return True

    def _put_off(self, org_id: UUID, error: Exception) -> None:
        """Lets the others go on where it failed."""
        if isinstance(error, DomainError):
            log.info("layers wait", tenant=str(org_id), error=error.message)
        else:
            log.error("layers not put together", tenant=str(org_id), exc_info=error)
        FAILED.inc()
        self._try_later(org_id)

    def _try_later(self, org_id: UUID) -> None:
        self._not_before[org_id] = asyncio.get_running_loop().time() + _AGAIN_SECONDS
        self._first.pop(org_id, None)
        self._waits.pop(org_id, None)
        self._waits[org_id] = None
