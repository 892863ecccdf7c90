"""Puts together what devices are to have, whenever a layer changes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from typing import Final
from uuid import UUID

from prometheus_client import Counter, Gauge

from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database
from servicekit.errors import DomainError
from servicekit.ids import new_id
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.security.digests import sha256
from services.policy.authoring.filling import as_published, filled, made_with
from services.policy.authoring.layering import InForce, together, with_locks
from services.policy.editions import store
from services.policy.keys.service import KeyRing
from services.policy.layers.below import below
from services.policy.layers.merging import Level, Source
from services.policy.stamps import store as stamps_store
from services.policy.stamps.domain import (
    Content,
    Document,
    Part,
    Targets,
    recipe_of,
    versions_of,
)
from services.policy.stamps.service import Stamps
from services.policy.targets.domain import MOST_PROFILES
from services.policy.targets.service import Seats
from services.policy.variables import store as variables_store
from services.policy.vault import Vault
from services.policy.versions import Version

log = logs.get(__name__)

_LOOK_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.05
_AT_ONCE: Final = 100
"""So many organisations are made before it is looked whether others wait that come first."""
_LOOKED_AT_ONCE: Final = 100
"""So many organisations are looked at before polls are answered in between."""
_TOGETHER: Final = 20
"""So many editions are made in a transaction; a publish of their organisations waits for it."""
_MOST_MADE: Final = 16
"""Documents that are kept for the next organisation; one can have half a megabyte."""
_AGAIN_SECONDS: Final = 60.0
"""So long an organisation waits for which it failed."""
_MOST_FAILED: Final = 3
"""After so many in a row the others wait for the next turn: the database may be away."""
_LEVELS: Final = {"root": Level.ROOT, "reseller": Level.RESELLER, "org": Level.ORG}
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
    ) -> None:
        self._database = database
        self._stamps = stamps
        self._seats = seats
        self._keys = keys
        self._vault = vault
        self._tenants = tenants
        self._not_before: dict[UUID, float] = {}
        self._changed: set[UUID] = set()
        self._waits: dict[UUID, None] = {}
        """The organisations for which something is to be made, in their order."""
        self._first: dict[UUID, None] = {}
        """Those of them that changed something themselves."""
        self._tree = -1
        self._news = asyncio.Event()
        self._made: OrderedDict[str, tuple[Content, Document]] = OrderedDict()
        """What organisations without a version of their own have in common, by its recipe."""
        stamps.on_change.append(self._note)

    async def layers(
        self, connection: Connection, tenant_id: UUID, targets: Targets = ()
    ) -> list[InForce]:
        """What is in force for a tenant and those above it, the root's first.

        Args:
            targets: groups and devices of the tenant whose policies count, too, and rollouts whose
                versions count in place of those in force; or a gate whose other policy counts in
                place of all of the tenant.

        Raises:
            DomainError: UNAVAILABLE while not all tenants above are known.
        """
        line = self._tenants.whole_line(tenant_id)
        levels = {node.id: level_of(node) for node in line}
        layers = [
            InForce(source_of(levels[one.tenant_id], one), one.own)
            for one in await store.assigned(connection, self._vault, [node.id for node in line])
        ]
        layers = await self._filled(connection, line, layers)
        if not targets:
            return layers
        other = await store.otherwise(connection, self._vault, tenant_id, targets)
        if other is not None:
            layers = [one for one in layers if one.source.tenant_id != tenant_id]
            source = replace(
                source_of(Level.GATE, other.assigned),
                target_id=other.gate_id,
                target_name=other.alias,
            )
            return [*layers, InForce(source, other.assigned.own)]
        rolled = await store.rolled_out(connection, self._vault, tenant_id, targets)
        if rolled is not None:
            layers = [one for one in layers if one.source.tenant_id != tenant_id]
            layers.append(InForce(source_of(levels[tenant_id], rolled), rolled.own))
        for bound in await store.bound(connection, self._vault, tenant_id, targets):
            source = source_of(Level.DEVICE if bound.is_device else Level.GROUP, bound.assigned)
            named = replace(source, target_id=bound.target_id, target_name=bound.alias)
            layers.append(InForce(named, bound.assigned.own))
        return layers

    async def _filled(
        self, connection: Connection, line: Sequence[TenantNode], layers: list[InForce]
    ) -> list[InForce]:
        """Layers with the values that tenants below have of their own."""
        names = {name for one in layers if one.own.open for name in one.own.open.names}
        if not names:
            return layers
        at = {node.id: number for number, node in enumerate(line)}
        own = await variables_store.own_values(connection, self._vault, at.keys(), names)
        values = {tenant_id: some.values for tenant_id, some in own.items()}
        found: list[InForce] = []
        for one in layers:
            under = line[at[one.source.tenant_id] + 1 :]
            revisions = ((n.id, own[n.id].revision) for n in reversed(under) if n.id in own)
            found.append(filled(one, below(under, revisions), values))
        return found

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
        made = made_with(above)
        await store.put(connection, tenant_id, recipe, version.version, None, filled=made)

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
                await self._put_together(connection, org_id, targets)
        except DomainError as away:
            log.info("layers wait", tenant=str(org_id), error=away.message)

    async def settle(self, connection: Connection, org_id: UUID) -> None:
        """Puts together what the devices of an organisation are to have of what is in force now.

        Args:
            connection: of a transaction that sees all tenants.
        """
        await self._put_together(connection, org_id)

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
        waiting = [
            one
            for one in dict.fromkeys([*self._first, *self._waits])
            if self._not_before.get(one, 0.0) <= now
        ]
        WAITING.set(len(self._waits))
        HELD.set(sum(one.held for one in self._stamps.known.values()))
        for start in range(0, min(len(waiting), _AT_ONCE), _TOGETHER):
            if not await self._make(waiting[start : min(start + _TOGETHER, _AT_ONCE)]):
                return
        if len(waiting) > _AT_ONCE:
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
        for number, org in enumerate({*look, *moved}):
            if number % _LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)
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
            room = _TOGETHER
            for org_id in orgs:
                node = self._tenants.known(org_id)
                wanted = [] if node is None or node.going else [*self._to_make(org_id)]
                for targets in wanted[:room]:
                    await self._put_together(connection, org_id, targets)
                if len(wanted) > room:
                    break
                room -= len(wanted)
                done.append(org_id)
        for org_id in done:
            self._not_before.pop(org_id, None)
            self._waits.pop(org_id, None)
            self._first.pop(org_id, None)
        if len(done) < len(orgs):
            # The rest of what an organisation needs, when it was looked whether others come first.
            await self._stamps.follower.try_refresh()
            self._news.set()
        return True

    def _put_off(self, org_id: UUID, error: Exception) -> None:
        """Lets the others go on where it failed."""
        if isinstance(error, DomainError):
            log.info("layers wait", tenant=str(org_id), error=error.message)
        else:
            log.error("layers not put together", tenant=str(org_id), exc_info=error)
        FAILED.inc()
        self._not_before[org_id] = asyncio.get_running_loop().time() + _AGAIN_SECONDS
        self._first.pop(org_id, None)
        self._waits.pop(org_id, None)
        self._waits[org_id] = None

    async def _put_together(
        self, connection: Connection, org_id: UUID, targets: Targets = ()
    ) -> None:
        """Stores and stamps what devices of an organisation are to have."""
        counter = await stamps_store.lock_counter(connection, org_id)
        layers = await self.layers(connection, org_id, targets)
        recipe = recipe_of(named(layers))
        before = await store.get_stored(connection, org_id, targets)
        if before is not None and before.recipe == recipe:
            return
        own = next((one.source.version for one in layers if one.source.whose == org_id), None)

        profile = new_id() if before is None else before.profile
        apart = profile if targets and _says_secrets(layers, org_id) else None
        made = made_with(layers)
        # Numbers do not tell whether a value is the one above, or what it was before.
        is_refilled = made != ("" if before is None else before.filled)
        if apart is not None and (
            before is None
            or is_refilled
            or versions_of(before.recipe, {org_id, *targets})
            != versions_of(recipe, {org_id, *targets})
        ):
            await stamps_store.end_apart(connection, org_id, profile)

        async def put(content: Content | None, problem: str = "") -> None:
            if targets:
                await store.put_profile(
                    connection,
                    org_id,
                    targets,
                    recipe,
                    content,
                    problem,
                    profile,
                    apart=apart is not None,
                    filled=made,
                )
            else:
                await store.put(connection, org_id, recipe, own, content, problem, made)

        if not layers:
            await put(None)
            return
        problem = ""
        try:
            content, document = self._encoded(org_id, recipe, layers)
        except DomainError as unfit:
            log.warning("layers do not fit", tenant=str(org_id), error=unfit.message)
            problem = unfit.message
            kept = await self._wanted(connection, org_id, before)
            had = await self._held(connection, org_id, layers, kept)
            if had is None:
                await put(None, problem)
                return
            content, document = had
        if is_refilled and not problem:
            await stamps_store.end_standing(connection, org_id, content, apart)
        elif (
            own is not None
            and apart is None
            and await store.stamped_content(connection, org_id, own) == content
        ):
            await put(None if not targets else content, problem)
            return
        await stamps_store.insert_document(connection, self._vault, content, document)
        if await stamps_store.newest_standing(connection, org_id, content, apart) is None:
            await self._stamps.stamp(
                connection,
                org_id,
                content,
                document.body,
                counter,
                "layers",
                shared=not targets,
                apart=apart,
            )
        elif not targets:
            await stamps_store.share(connection, org_id, content)
        await put(content, problem)

    async def _held(
        self,
        connection: Connection,
        org_id: UUID,
        layers: Sequence[InForce],
        kept: Content | None,
    ) -> tuple[Content, Document] | None:
        """What devices get of layers that do not fit; `None` where there is nothing to give."""
        had = None
        if kept is not None:
            had = (await stamps_store.documents(connection, self._vault, [kept])).get(kept)
        try:
            body = with_locks(as_published(layers), None if had is None else had.body).body
        except DomainError:
            return None if kept is None or had is None else (kept, had)
        if kept is not None and had is not None and body == had.body:
            return kept, had
        # What was kept may have values of tenants below.
        is_filled = any(one.source.filled for one in layers)
        return self._signed(org_id if is_filled else layers[-1].source.tenant_id, body)

    def _encoded(
        self, org_id: UUID, recipe: str, layers: Sequence[InForce]
    ) -> tuple[Content, Document]:
        """The signed document that layers make; organisations that only inherit share it."""
        key = f"{self._keys.signer.public.id}{recipe}"
        if (found := self._made.get(key)) is not None:
            self._made.move_to_end(key)
            return found
        found = self._signed(self._owner(org_id, layers), together(layers))
        self._made[key] = found
        if len(self._made) > _MOST_MADE:
            self._made.popitem(last=False)
        return found

    def _owner(self, org_id: UUID, layers: Sequence[InForce]) -> UUID:
        """Whose a document is: the lowest tenant's of those that have a say in it."""
        say = {one.source.tenant_id for one in layers} | {one.filled_by for one in layers}
        return [node.id for node in self._tenants.whole_line(org_id) if node.id in say][-1]

    def _signed(self, owner: UUID, body: bytes) -> tuple[Content, Document]:
        signer = self._keys.signer
        return (
            Content(owner, sha256(body)),
            Document(body, signer.sign(body), signer.public.id),
        )

    async def _wanted(
        self, connection: Connection, org_id: UUID, before: store.Stored | None
    ) -> Content | None:
        """What the devices were to have until now, at least as all of the organisation."""
        if before is not None and before.content is not None:
            return before.content
        org = (await stamps_store.standings(connection, [org_id])).get(org_id)
        return None if org is None or org.want is None else org.want.content


def _says_secrets(layers: Sequence[InForce], org_id: UUID) -> bool:
    """Whether tenants above an organisation have a say in networks, which have secrets."""
    return any(one.source.tenant_id != org_id and one.own.says_networks for one in layers)


def source_of(level: Level, one: store.Assigned) -> Source:
    """A version in force as a layer's source."""
    return Source(level, one.tenant_id, one.policy_id, one.policy_name, one.version)


def level_of(node: TenantNode) -> Level:
    """Where a tenant's policies stand among layers."""
    return _LEVELS[node.kind]


def named(layers: Sequence[InForce]) -> list[Part]:
    """Layers as `recipe_of` takes them."""
    found: list[Part] = []
    for one in layers:
        source = one.source
        assert source.policy_id is not None
        found.append(Part(source.whose, source.policy_id, source.version, source.filled))
    return found
