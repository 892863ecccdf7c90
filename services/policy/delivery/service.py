"""Delivery of policies to devices, from memory.

What is in force, and whom to serve again, is followed in the database's own feeds, and nowhere
else; a poll that is answered "not modified" touches neither the database nor another service.
Before anything is delivered, the feed is read and the poll decided again: a process that is a
second behind would deliver what was replaced. What devices report is written behind, many at a
time. With the database away, devices go on getting what is known.

A device's token is replaced when it is past half of its life. A released agent takes a new token
only from a 200 answer with a policy that verifies, so the token travels with

- the version in force, when the device has an older one or that one;
- else (the policy was deleted) with the very version that the device has, as it was signed then;
- else (the device has no policy and there is none) not at all: any document would be applied, an
  empty one switches SELinux off, and nobody wrote one. Such a device keeps polling with its token,
  expired or not, and gets a new one with its first policy. Only after half of a token's life, the
  other half and the 90 days of grace without any policy does it have to enroll again.

A device that falls short of an attestation gate gets the gate's other policy or nothing: the number
that it names may stand for what is kept from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from uuid import UUID

from evergreen.v1 import identity_pb2_grpc
from servicekit.call import Caller
from servicekit.data.postgres import Database, Scope
from servicekit.data.quarantine import place, write_readable
from servicekit.errors import DomainError
from servicekit.ids import Clock
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from services.policy.bounds import Hourly
from services.policy.delivery import store
from services.policy.delivery.domain import UNCHANGED, Decision, decide
from services.policy.delivery.store import Applied
from services.policy.delivery.tokens import DeviceTokens
from services.policy.keys.service import KeyRing
from services.policy.sightings.pace import Pace
from services.policy.sightings.service import Sightings
from services.policy.stamps.domain import NOTHING, Bundle, Standing, Targets
from services.policy.stamps.service import Stamps
from services.policy.syncs.service import Syncs
from services.policy.targets.places import Report
from services.policy.targets.service import Seats
from services.policy.versions import parse_version

log = logs.get(__name__)

_PLACE = place("policy", "write_behind")
_FLUSH_SECONDS = 0.5
_WRITE_AT_ONCE = 5000
_MOST_NOTED = 2_000_000
_MOST_UNWRITTEN = 200_000
_MOST_TRIES = 3
"""So often a poll is decided anew while others publish."""
DRAWS_AN_HOUR = 20
"""New numbers for one device: those of an organisation are bounded too, and two devices that lie
are not to have all of them."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a device gets: a policy, and a new token when it is time."""

    bundle: Bundle
    device_token: str | None = field(default=None, repr=False)
    compressible: bool = False
    """Whether its length tells nobody anything that he is not to know."""

    def envelope(self) -> bytes:
        """The released agent's ENVELOPE."""
        return self.bundle.envelope(self.device_token)


class Delivery:
    """Answers devices. Its feeds and tasks are run by the service."""

    def __init__(
        self,
        database: Database,
        stamps: Stamps,
        seats: Seats,
        make: Callable[[UUID, Targets], Awaitable[None]],
        syncs: Syncs,
        sightings: Sightings,
        pace: Pace,
        outbox: Outbox,
        identity: identity_pb2_grpc.IdentityInternalServiceAsyncStub,
        keys: KeyRing,
        clock: Clock,
    ) -> None:
        self._database = database
        self._keys = keys
        self._tokens = DeviceTokens(database, outbox, identity, clock)
        self._draws = Hourly(DRAWS_AN_HOUR, clock)
        self._clock = clock
        self._stamps = stamps
        self._standings = stamps.standings
        self._seats = seats
        self._places = seats.of
        self._staged = seats.staged
        self._sightings = sightings
        self._pace = pace
        self._make = make
        self._syncs = syncs
        self._asked = syncs.asked
        self._unwritten: dict[str, Applied] = {}
        self._something_to_write = asyncio.Event()

    async def in_force(
        self,
        tenant_id: UUID,
        device_id: UUID | None,
        group_ids: Sequence[UUID] | None,
        key_id: str = "",
    ) -> Bundle | None:
        """What a device that enrolls now gets.

        Args:
            group_ids: the groups that it is in, where the registry says so with the question.
            key_id: the key that it pins; empty for the first one of the installation.
        """
        await self._stamps.fresh()
        if group_ids is None and self._seats.matter(tenant_id):
            await self._seats.fresh()
        org = self._standings.get(str(tenant_id), NOTHING)
        if targets := self._seats.targets(tenant_id, device_id, group_ids):
            # One that cannot be put together now has what all devices have, until its first polls.
            made = await self._made(tenant_id, targets)
            if made.want is not None or made.restricted:
                org = made
        want = org.want
        bundle = None if want is None else await self._stamps.bundle(tenant_id, want.newest)
        return bundle if bundle is None or not key_id else self._stamps.signed(bundle, key_id)

    async def _made(self, tenant_id: UUID, targets: Targets) -> Standing:
        """How it stands with devices that may be the first ones with these policies."""
        found = self._seats.standing(tenant_id, targets)
        if found.want is None:
            await self._make(tenant_id, targets)
            await self._stamps.fresh()
            found = self._seats.standing(tenant_id, targets)
        return found

    def poll(self, device: Caller, current_version: str) -> Decision:
        """Notes what the calling device has, and decides what it is answered.

        Raises:
            DomainError: UNAUTHENTICATED when its token expired too long ago.
        """
        now = self._clock()
        has = parse_version(current_version)
        org = self._standing(device)
        decision = decide(device, has, org, device.id in self._asked, now)
        rightful = org.want is not None and has in org.want.versions
        if org.stage is not None:
            self._sightings.saw(device, org.stage, now, has_it=rightful)
        self._note_applied(device, has, now, rightful=rightful)
        return decision

    async def deliver(self, device: Caller, decision: Decision) -> Delivered | None:
        """What `poll` decided on, as far as it can be had; `None` for "not modified"."""
        if decision is UNCHANGED:
            return None
        bundle, decision = await self._bundle(device, decision.has)
        if bundle is None:
            return None
        org = self._standing(device)
        is_wanted = org.want is not None and bundle.version in org.want.versions
        if org.stage is not None and is_wanted:
            self._sightings.gave(device, org.stage, self._clock())
        token = await self._tokens.renewed(device) if decision.new_token else None
        if token is None and decision.only_with_token:
            return None
        if decision.fulfils_sync:
            self._syncs.serve(device.id, self._clock())
            self._something_to_write.set()
        return Delivered(
            bundle,
            token,
            compressible=token is None
            and is_wanted
            and self._tells_nothing(UUID(device.tenant_id), org, bundle),
        )

    def _tells_nothing(self, tenant_id: UUID, org: Standing, bundle: Bundle) -> bool:
        """Whether a document has no secret of one tenant beside what another one writes.

        Who publishes guesses, and sees how long the answers become, would find the secret out.
        """
        return self._seats.is_alone(tenant_id, org) or not bundle.document.holds_secrets()

    async def has_called(self, device_id: str, token_version: int) -> bool:
        """Whether a device asked for its policy with a token of this generation."""
        report = self._places.report(device_id)
        if report is not None and report.token_version >= token_version:
            return True
        async with self._database.system_transaction("the request names no tenant") as connection:
            return await store.has_called(connection, UUID(device_id), token_version)

    async def load(self) -> None:
        """Reads everything once, before the first call."""
        await self._stamps.follower.refresh()
        await self._seats.follower.refresh()
        await self._seats.restrictions.refresh()
        await self._syncs.follower.refresh()

    async def write_behind(self) -> None:
        """Writes what devices reported, for as long as the service lives, and once more after."""
        try:
            while True:
                self._something_to_write.clear()
                if not (self._unwritten or self._syncs.has_served):
                    await self._something_to_write.wait()
                await asyncio.sleep(_FLUSH_SECONDS)
                await self._flush()
        except asyncio.CancelledError:
            # Whatever becomes of the last reports, the service stops; devices report again.
            try:
                await self._flush()
            except Exception:
                log.exception("last reports not written")
            raise

    async def _bundle(self, device: Caller, has: int) -> tuple[Bundle | None, Decision]:
        """What a device gets by what is known now, and the decision that led to it."""
        tenant_id = UUID(device.tenant_id)
        late: tuple[UUID, ...] = ()
        for _ in range(_MOST_TRIES):
            is_fresh = await self._stamps.fresh()
            if self._seats.matter(tenant_id):
                is_fresh = await self._seats.fresh() and is_fresh
            if is_fresh:
                await self._keys.fresh()
            if self._keys.are_several and not self._seats.matter(tenant_id):
                # It may have enrolled anew, with another key.
                await self._seats.fresh()
            org = self._standing(device, late)
            decision = self._decide(device, has, org)
            if decision is UNCHANGED:
                return None, decision
            if more := await self._late(device, org, has):
                late = (*late, *more)
                continue
            number: int | None = decision.version
            if decision.edition is not None and not number:
                # A view that may be old would bring back what was replaced.
                may_draw = is_fresh and self._draws.take(device.id)
                number = await self._stamps.draw(tenant_id, org, has) if may_draw else None
                if number is None and self._standing(device, late) is not org:
                    continue
            if number is None:
                # It keeps what it has; a new token travels with that, but not to a restricted one.
                decision = self._decide(device, has, replace(org, want=None))
                if decision is UNCHANGED:
                    return None, decision
                number = has
            # A number that a device names proves nothing of what it may have.
            is_wanted = decision.edition is not None
            bundle = await self._stamps.bundle(tenant_id, number, shared=not is_wanted)
            if bundle is None and not is_wanted and await self._had_by_right(device, number):
                bundle = await self._stamps.bundle(tenant_id, number)
            return self._signed(device, bundle), decision
        return None, UNCHANGED

    def _signed(self, device: Caller, bundle: Bundle | None) -> Bundle | None:
        """The same with the signature of the key that a device pins, which takes no other."""
        if bundle is None:
            return None
        signed = self._stamps.signed(bundle, self._seats.key_of(device.id))
        if signed is None:
            # ListPolicyKeyDevices shows it; it would be told at each of its polls.
            log.debug("policy not delivered: key retired", device=device.id)
        return signed

    async def _had_by_right(self, device: Caller, number: int) -> bool:
        """Whether a number stood for what a device was to have when it reported it."""
        try:
            async with self._database.transaction(Scope.of(UUID(device.tenant_id))) as connection:
                return await store.is_rightful(
                    connection, UUID(device.tenant_id), UUID(device.id), number
                )
        except DomainError as away:
            log.info("reports cannot be read", error=away.message)
            return False

    async def _late(self, device: Caller, org: Standing, has: int) -> tuple[UUID, ...]:
        """The rollouts that bring a device something, of which others have all turns now."""
        if org.stage is None or not org.stage.paced or org.want is None:
            return ()
        return () if has in org.want.versions else await self._pace.late(device, org.stage.paced)

    def _standing(self, device: Caller, late: Collection[UUID] = ()) -> Standing:
        """How it stands with a device, by what is in memory.

        Args:
            late: rollouts that bring it nothing for now.
        """
        seat = self._places.get(device.id)
        if self._staged and (staged := self._staged.get(device.tenant_id)) is not None:
            return staged.choose(device.id, seat, late)
        if seat is not None and seat.standing is not None:
            return seat.standing
        return self._standings.get(device.tenant_id, NOTHING)

    def _decide(self, device: Caller, has: int, org: Standing) -> Decision:
        return decide(device, has, org, device.id in self._asked, self._clock())

    def _note_applied(self, device: Caller, version: int, now: datetime, *, rightful: bool) -> None:
        noted = self._places.report(device.id)
        if (
            noted is not None
            and noted.version == version
            and noted.token_version == device.token_version
            and (noted.rightful == rightful or not rightful)
        ):
            return
        if len(self._unwritten) >= _MOST_UNWRITTEN and device.id not in self._unwritten:
            # The database has been away for long; the device's next poll will tell it again.
            return
        if self._places.reports >= _MOST_NOTED:
            # Everybody is noted again; what the database has already, is not written.
            self._places.forget_reports()
        self._places.note(device.id, Report(version, device.token_version, rightful))
        self._unwritten[device.id] = Applied(
            UUID(device.id), UUID(device.tenant_id), version, device.token_version, now, rightful
        )
        self._something_to_write.set()

    async def _flush(self) -> None:
        await self._syncs.flush()
        applied = dict(islice(self._unwritten.items(), _WRITE_AT_ONCE))
        if not applied:
            return

        async def write(some: Sequence[Applied]) -> None:
            async with self._database.system_transaction("a batch spans tenants") as connection:
                await store.write_applied(connection, some)

        try:
            await write_readable(
                _PLACE, list(applied.values()), write, lambda entry: entry.device_id
            )
        except DomainError as away:
            # It waits in memory, one entry a device, and is written when the database is back.
            log.info("reports postponed", waiting=len(applied), error=away.message)
            return
        for device_id, entry in applied.items():
            # A newer report may have come meanwhile.
            if self._unwritten.get(device_id) is entry:
                del self._unwritten[device_id]
