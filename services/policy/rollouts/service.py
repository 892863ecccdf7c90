"""Rolls versions out: starts rollouts, and lets administrators steer them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

from contract.events.base import Action
from contract.events.policy import (
    RolloutApproved,
    RolloutBatchOpened,
    RolloutBatchPassed,
    RolloutCanceled,
    RolloutCompleted,
    RolloutCreated,
    RolloutPaused,
    RolloutResumed,
    RolloutRolledBack,
    RolloutStarted,
    RolloutStopped,
    RolloutSuperseded,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope, seeing_all
from servicekit.errors import (
    DomainError,
    failed_precondition,
    invalid_field,
    not_found,
    permission_denied,
)
from servicekit.etags import check_etag
from servicekit.feeds.changes import Changes
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from services.policy.authoring import store as authoring_store
from services.policy.authoring.domain import Policy, same_json
from services.policy.authoring.layering import own_of_version
from services.policy.authoring.publishing import Publishing
from services.policy.editions.service import Editions
from services.policy.rollouts import domain, store
from services.policy.rollouts.domain import (
    MOST_LIVE,
    MOST_OPEN,
    Happened,
    Rollout,
    RolloutDevice,
    State,
    Step,
)
from services.policy.rollouts.plans import Plan, checked
from services.policy.rollouts.settings import InEffect, Settings, may_decide_alone
from services.policy.stamps.numbers import lock_counter
from services.policy.targets.store import known_groups
from services.policy.vault import Vault
from services.policy.versions import Version

_TOLD_DEVICES: Final = 20
_LATEST_START: Final = timedelta(days=366)
_EVENTS: Final[dict[Happened, Callable[..., Action]]] = {
    Happened.CREATED: RolloutCreated,
    Happened.APPROVED: RolloutApproved,
    Happened.STARTED: RolloutStarted,
    Happened.BATCH_OPENED: RolloutBatchOpened,
    Happened.BATCH_PASSED: RolloutBatchPassed,
    Happened.PAUSED: RolloutPaused,
    Happened.RESUMED: RolloutResumed,
    Happened.STOPPED: RolloutStopped,
    Happened.ROLLED_BACK: RolloutRolledBack,
    Happened.COMPLETED: RolloutCompleted,
    Happened.SUPERSEDED: RolloutSuperseded,
    Happened.CANCELED: RolloutCanceled,
}
_NAMES_DEVICES: Final = {Happened.STOPPED, Happened.ROLLED_BACK}


class Rollouts:
    """The use cases of administrators, and what publishing asks of rollouts."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        outbox: Outbox,
        tenants: TenantDirectory,
        editions: Editions,
        changes: Changes,
        clock: Clock,
    ) -> None:
        self._database = database
        self._vault = vault
        self._outbox = outbox
        self._tenants = tenants
        self._editions = editions
        self._changes = changes
        self._clock = clock

    # What publishing asks

    async def plan_for(
        self, connection: Connection, policy: Policy, publishing: Publishing
    ) -> object:
        """How a version is to come to devices, as `authoring.publishing.Stages` has it."""
        plan = publishing.plan
        assert plan is None or isinstance(plan, Plan)
        node = self._tenants.known(policy.tenant_id)
        is_org = node is not None and node.kind == "org"
        if plan is not None and not is_org:
            raise only_of_orgs()
        async with seeing_all(connection, "what tenants above say counts, too"):
            effect = await self.in_effect(connection, policy.tenant_id)
        if plan is not None:
            return checked(plan)
        if not publishing.urgent and not (effect.require_approval and is_org):
            # Nobody thought of batches, that hold in a freeze and go on behind it.
            effect.check(self._clock())
        return effect.plan(None, at_once=publishing.at_once) if is_org else None

    async def check_free(self, connection: Connection, policy: Policy) -> None:
        """Checks for rollouts that run, as `authoring.publishing.Stages` has it."""
        for one in await store.concerned(connection, policy.tenant_id, policy.id, policy.targets):
            is_asked = one.state is State.AWAITING_APPROVAL and not one.live
            if one.is_open and not (is_asked and one.policy_id == policy.id):
                raise _running(one, "wait for its end, or cancel it")

    async def begin(
        self,
        connection: Connection,
        call: Call,
        policy: Policy,
        version: Version,
        plan: object,
        publishing: Publishing,
    ) -> UUID:
        """Rolls a stored version out, as `authoring.publishing.Stages` has it."""
        assert isinstance(plan, Plan)
        try:
            await check_groups(connection, policy.tenant_id, plan)
        except DomainError as broken:
            if publishing.plan is not None:
                raise
            raise _default_is_broken() from broken
        now = self._clock()
        check_start(publishing.starts_at, now)
        async with seeing_all(connection, "what tenants above say counts, too"):
            effect = await self.in_effect(connection, policy.tenant_id)
        before = await store.concerned(connection, policy.tenant_id, policy.id, policy.targets)
        if publishing.plan is not None and not publishing.supersede:
            for one in before:
                if one.is_open:
                    raise _running(one, "cancel it, or give `supersede`")
        for one in before:
            await self.put(connection, one, domain.superseded(one, now, keep=True))
        await self._check_open_ones(connection, policy.tenant_id)
        rollout = Rollout(
            id=new_id(),
            tenant_id=policy.tenant_id,
            policy_id=policy.id,
            policy_name=policy.name,
            version=version.version,
            targets=policy.targets,
            base=await store.base_of(connection, policy.tenant_id, policy.targets),
            plan=plan.approved_first() if effect.require_approval else plan,
            note=publishing.note,
            urgent=publishing.urgent,
            salt=uuid4().bytes,
            state=State.SCHEDULED,
            created_at=now,
            created_by=UUID(call.caller.id),
            created_by_name=call.caller.name,
            starts_at=publishing.starts_at or now,
        )
        if rollout.needs_approval:
            rollout = domain.in_state(rollout, State.AWAITING_APPROVAL)
        await store.insert(connection, rollout)
        await self._tell(connection, rollout, Happened.CREATED)
        if step := domain.judged(
            rollout, domain.Counts(), now, may_open=may_serve(rollout, effect, now)
        ):
            await self.put(connection, rollout, step)
        return rollout.id

    async def make_way(
        self, connection: Connection, policy: Policy, *, for_publish: bool = True
    ) -> bool:
        """Ends rollouts that are in the way, as `authoring.publishing.Stages` has it."""
        found = await store.concerned(
            connection, policy.tenant_id, policy.id, policy.targets if for_publish else None
        )
        reason = "PUBLISHED" if for_publish else "WITHDRAWN"
        for one in found:
            step = domain.superseded(one, self._clock(), keep=False, reason=reason)
            await self.put(connection, one, step)
        return bool(found)

    async def is_live(self, connection: Connection, policy: Policy) -> bool:
        """Whether devices have or get a version, as `authoring.publishing.Stages` has it."""
        found = await store.concerned(connection, policy.tenant_id, policy.id, None)
        return any(one.live for one in found)

    async def check_withdrawal(
        self, connection: Connection, policy: Policy, *, urgent: bool
    ) -> None:
        """Refuses it in a freeze, as `authoring.publishing.Stages` has it."""
        if not urgent:
            async with seeing_all(connection, "what tenants above say counts, too"):
                effect = await self.in_effect(connection, policy.tenant_id)
            effect.check(self._clock())

    async def check_enforcement(self, connection: Connection, call: Call, tenant_id: UUID) -> None:
        """Refuses it in a freeze, and of one person, as `gate.service.Publishing` has it."""
        async with seeing_all(connection, "what tenants above say counts, too"):
            effect = await self.in_effect(connection, tenant_id)
        effect.check(self._clock())
        if effect.require_approval and not may_decide_alone(call.caller, tenant_id):
            raise permission_denied(
                "OWNER_NEEDED",
                "where a second person approves publishes, an Owner has to enforce the gate, or"
                " somebody of a tenant above; API tokens cannot",
            )

    async def check_values(
        self, connection: Connection, call: Call, tenant_id: UUID, *, urgent: bool
    ) -> None:
        """Refuses it in a freeze, and of one person, as `variables.above.Deciding` has it."""
        async with seeing_all(connection, "what tenants above say counts, too"):
            effect = await self.in_effect(connection, tenant_id)
        if not urgent:
            effect.check(self._clock())
        if effect.require_approval and not may_decide_alone(call.caller, tenant_id):
            raise permission_denied(
                "OWNER_NEEDED",
                "a policy above takes the value, and devices get it at once: where a second person"
                " approves publishes, an Owner has to change it, or somebody of a tenant above; API"
                " tokens cannot",
            )

    async def check_end(self, connection: Connection, call: Call, tenant_id: UUID) -> None:
        """Refuses it to others than Owners, as `gate.service.Publishing` has it."""
        async with seeing_all(connection, "what tenants above say counts, too"):
            effect = await self.in_effect(connection, tenant_id)
        is_bound = effect.require_approval or effect.freeze(self._clock()) is not None
        if is_bound and not may_decide_alone(call.caller, tenant_id):
            raise permission_denied(
                "OWNER_NEEDED",
                "in a freeze, and where a second person approves publishes, an Owner has to end an"
                " enforced gate, or somebody of a tenant above; API tokens cannot",
            )

    async def goes_on(self, connection: Connection, policy: Policy, *, urgent: bool) -> bool:
        """Whether a rollout is under way, as `authoring.publishing.Stages` has it."""
        found = await _open_one(connection, policy)
        return (
            found is not None
            and found.state not in {State.PAUSED, State.STOPPED}
            and (found.urgent or not urgent)
        )

    async def waits(self, connection: Connection, policy: Policy) -> bool:
        """Whether a version waits for its first approval, as `authoring.publishing.Stages` has
        it."""
        found = await _open_one(connection, policy)
        return found is not None and found.state is State.AWAITING_APPROVAL and not found.live

    async def brings(self, connection: Connection, policy: Policy) -> int | None:
        """The version of a policy that is on its way, as `authoring.publishing.Stages` has it."""
        found = await _open_one(connection, policy)
        return None if found is None else found.version

    # What administrators ask

    async def list_rollouts(
        self,
        call: Call,
        org_id: UUID | None,
        policy_id: UUID | None,
        before: UUID | None,
        limit: int,
        *,
        only_open: bool,
    ) -> Page[Rollout, UUID]:
        """The rollouts of an org, or of the caller's whole subtree, the newest first."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.of_policies(
                connection, scope, policy_id, before, limit, only_open=only_open
            )

    async def get(self, call: Call, rollout_id: UUID) -> Rollout:
        """One rollout, with what is counted now.

        Raises:
            DomainError: NOT_FOUND when the caller's subtree has no such rollout.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            rollout = await _found(connection, scope, rollout_id)
            if not rollout.live:
                return rollout
            counts = await store.count(connection, rollout, self._clock())
        known = rollout.counts or domain.Counts()
        return replace(rollout, counts=replace(counts, expected=known.expected))

    async def devices(
        self, call: Call, rollout_id: UUID, state: str, after: UUID | None, limit: int
    ) -> Page[RolloutDevice, UUID]:
        """How the devices of a rollout do that were seen.

        Raises:
            DomainError: as `get`.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            rollout = await _found(connection, scope, rollout_id)
            return await store.devices(connection, rollout, self._clock(), state, after, limit)

    async def approve(self, call: Call, rollout_id: UUID) -> Rollout:
        """Lets a rollout begin, or go on with its next batch.

        Raises:
            DomainError: FAILED_PRECONDITION when nothing waits, or the caller asked for it.
        """
        caller = call.caller
        return await self._act(
            call, rollout_id, lambda one, _: domain.approved(one, UUID(caller.id), caller.name)
        )

    async def pause(self, call: Call, rollout_id: UUID, reason: str) -> Rollout:
        """Gives it to no more devices for now."""
        return await self._act(call, rollout_id, lambda one, _: domain.paused(one, reason))

    async def resume(self, call: Call, rollout_id: UUID, reason: str) -> Rollout:
        """Goes on; after a stop what devices did so far counts no more."""
        return await self._act(call, rollout_id, lambda one, _: domain.resumed(one, reason))

    async def advance(self, call: Call, rollout_id: UUID, reason: str) -> Rollout:
        """Opens the next batch at once; behind the last one the rollout is complete.

        Raises:
            DomainError: FAILED_PRECONDITION in a freeze and outside of windows, too.
        """
        return await self._act(
            call,
            rollout_id,
            lambda one, now: domain.advanced(one, reason, now),
            gives_to_more=True,
        )

    async def cancel(self, call: Call, rollout_id: UUID, reason: str) -> Rollout:
        """Ends it; devices that have it keep it until the next publish."""
        return await self._act(call, rollout_id, lambda one, now: domain.canceled(one, reason, now))

    async def roll_back(self, call: Call, rollout_id: UUID, reason: str) -> Rollout:
        """Ends it; devices that have it get what is in force."""
        return await self._act(
            call, rollout_id, lambda one, now: domain.rolled_back(one, reason, now)
        )

    async def _act(
        self,
        call: Call,
        rollout_id: UUID,
        act: Callable[[Rollout, datetime], Step],
        *,
        gives_to_more: bool = False,
    ) -> Rollout:
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            found = await _found(connection, scope, rollout_id)
            rollout = await store.lock(connection, found)
            if rollout is None:
                raise not_found("rollout", rollout_id)
            check_etag(rollout.etag)
            now = self._clock()
            step = act(rollout, now)
            starts = Happened.STARTED in step.happened
            if starts and not await self._has_room(connection, rollout):
                raise _too_many(f"{MOST_LIVE} rollouts that have begun")
            if gives_to_more:
                await self._check_open(connection, rollout, now)
            after = await self.put(connection, rollout, step)
        await self._changes.catch_up()
        return after

    # What the worker needs, too

    async def in_effect(self, connection: Connection, tenant_id: UUID) -> InEffect:
        """What counts for publishing in a tenant; the transaction sees all tenants."""
        line = [node.id for node in self._tenants.line(tenant_id)] or [tenant_id]
        found = await store.settings(connection, line)
        return InEffect.of([found.get(one, Settings(one)) for one in line])

    async def put(self, connection: Connection, before: Rollout, step: Step) -> Rollout:
        """Stores what becomes of a rollout, whose row is locked, and tells of it.

        Where too many run already, one that is about to start waits.
        """
        if Happened.STARTED in step.happened and not await self._has_room(connection, before):
            return before
        after = step.after
        goes_on = after.live and after.state in {State.RUNNING, State.AWAITING_APPROVAL}
        if goes_on:
            async with seeing_all(connection, "what tenants above say counts, too"):
                effect = await self.in_effect(connection, after.tenant_id)
            goes_on = may_serve(after, effect, self._clock())
        after = domain.serving(after, self._clock(), serves=goes_on)
        if step.excuses:
            await store.excuse(connection, after)
        if after.state is State.COMPLETED and before.state is not State.COMPLETED:
            await self._complete(connection, after)
        looked = replace(before, counts=after.counts, suspected_at=after.suspected_at)
        if after != looked:
            if not domain.is_edge(looked, after):
                after = replace(after, revision=before.revision + 1)
            await store.update(connection, after)
        elif after != before:
            await store.write_look(connection, after)
        for happened in step.happened:
            await self._tell(connection, after, happened)
        return after

    async def _check_open(self, connection: Connection, rollout: Rollout, now: datetime) -> None:
        async with seeing_all(connection, "what tenants above say counts, too"):
            effect = await self.in_effect(connection, rollout.tenant_id)
        if rollout.urgent:
            return
        effect.check(now)
        if not rollout.plan.is_open(now, effect.zone):
            raise failed_precondition(
                "OUTSIDE_WINDOWS", "no more devices get the version outside of the plan's windows"
            )

    async def _complete(self, connection: Connection, rollout: Rollout) -> None:
        """Puts the version in force for all that it is for."""
        scope = Scope.of(rollout.tenant_id)
        await lock_counter(connection, rollout.tenant_id)
        version = await authoring_store.get_version(
            connection, self._vault, rollout.tenant_id, rollout.version
        )
        policy = await authoring_store.get_policy(
            connection, self._vault, scope, rollout.policy_id, for_update=True
        )
        if version is None or policy is None:
            raise failed_precondition("POLICY_DELETED", "the policy was deleted")
        await authoring_store.put_version_in_force(connection, self._vault, version)
        if not rollout.targets:
            async with seeing_all(connection, "layers are of the tenants above"):
                await self._editions.settle(connection, rollout.tenant_id)
        is_same = (
            same_json(version.authored, policy.authored)
            and own_of_version(version).merging == policy.merging
            and version.targets == policy.targets.text()
        )
        await authoring_store.update_policy(
            connection,
            self._vault,
            replace(policy, published_version=version.version, changed_since_publish=not is_same),
            self._clock(),
        )

    async def _has_room(self, connection: Connection, rollout: Rollout) -> bool:
        """Whether a rollout can start; for it the oldest ones whose devices keep something are
        forgotten. The org's counter is locked."""
        found = await store.live(connection, rollout.tenant_id)
        live = [one for one in found if one.live and one.id != rollout.id]
        kept = [one for one in live if not one.is_open]
        too_many = max(0, len(live) + 1 - MOST_LIVE)
        if too_many > len(kept):
            return False
        for one in kept[:too_many]:
            await self.put(connection, one, Step(domain.forgotten(one)))
        return True

    async def _check_open_ones(self, connection: Connection, tenant_id: UUID) -> None:
        found = await store.live(connection, tenant_id)
        if sum(one.is_open for one in found) >= MOST_OPEN:
            raise _too_many(f"{MOST_OPEN} rollouts that are not at their end")

    async def _tell(self, connection: Connection, rollout: Rollout, happened: Happened) -> None:
        devices: tuple[UUID, ...] = ()
        if happened in _NAMES_DEVICES:
            devices = await store.unwell(connection, rollout, self._clock(), _TOLD_DEVICES)
        event = _EVENTS[happened](id=rollout.id, after=rollout.snapshot(devices))
        await self._outbox.append(connection, CloudEvent(event, rollout.tenant_id))


def may_serve(rollout: Rollout, effect: InEffect, now: datetime) -> bool:
    """Whether devices get a rollout's version at a time: outside of freezes, within windows."""
    return rollout.urgent or (effect.freeze(now) is None and rollout.plan.is_open(now, effect.zone))


def _too_many(what: str) -> DomainError:
    return failed_precondition(
        "TOO_MANY_ROLLOUTS", f"an organisation has at most {what} at a time; end one"
    )


def _running(rollout: Rollout, what_to_do: str) -> DomainError:
    return failed_precondition(
        "ROLLOUT_RUNNING",
        f"version {rollout.version} of {rollout.policy_name} is being rolled out to these"
        f" devices; {what_to_do}",
    )


async def _open_one(connection: Connection, policy: Policy) -> Rollout | None:
    """The latest rollout of a policy that is not at its end."""
    page = await store.of_policies(
        connection, Scope.of(policy.tenant_id), policy.id, None, 1, only_open=True
    )
    return page.items[0] if page.items else None


async def _found(connection: Connection, scope: Scope, rollout_id: UUID) -> Rollout:
    rollout = await store.get(connection, scope, rollout_id)
    if rollout is None:
        raise not_found("rollout", rollout_id)
    return rollout


def only_of_orgs() -> DomainError:
    """A plan for a policy of a tenant above organisations."""
    return invalid_field("plan", "only policies of organisations are rolled out in batches")


def check_start(starts_at: datetime | None, now: datetime) -> None:
    """Refuses a rollout that begins too late.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    if starts_at is not None and starts_at > now + _LATEST_START:
        raise invalid_field("startsAt", f"must be within {_LATEST_START.days} days")


def _default_is_broken() -> DomainError:
    return failed_precondition(
        "DEFAULT_PLAN",
        "the default plan has a batch of a group that is deleted: change the settings, or publish"
        " with a plan",
    )


async def check_groups(
    connection: Connection, tenant_id: UUID, plan: Plan, field: str = "plan"
) -> None:
    """Refuses a plan with groups that an organisation does not have.

    Raises:
        DomainError: INVALID_ARGUMENT with the first one's place.
    """
    for index, batch in enumerate(plan.batches):
        known: Sequence[UUID] = ()
        if batch.group_ids:
            known = tuple(await known_groups(connection, tenant_id, batch.group_ids))
        for at, group_id in enumerate(batch.group_ids):
            if group_id not in known:
                raise invalid_field(
                    f"{field}.batches[{index}].groupIds[{at}]", "is no group of the organisation"
                )
