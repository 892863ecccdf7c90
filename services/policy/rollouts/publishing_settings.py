"""Lets administrators say how their tenants publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Final
from uuid import UUID

from contract.events.policy import PolicySettingsUpdated
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope, seeing_all
from servicekit.errors import invalid_field, permission_denied
from servicekit.etags import check_etag
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.times import zone_of
from services.policy.rollouts import store
from services.policy.rollouts.plans import Plan, checked
from services.policy.rollouts.service import Rollouts, check_groups
from services.policy.rollouts.settings import (
    InEffect,
    Settings,
    checked_freezes,
    may_decide_alone,
)

_PLAN: Final = "defaultPlan.plan"


@dataclass(frozen=True, slots=True)
class PlanChange:
    """Another default plan; `None` for none from now on."""

    plan: Plan | None


class PublishingSettings:
    """The use cases."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        rollouts: Rollouts,
        clock: Clock,
    ) -> None:
        self._rollouts = rollouts
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._clock = clock

    async def get(self, call: Call, org_id: UUID | None) -> tuple[Settings, InEffect]:
        """What a tenant of the caller's subtree says, the caller's own without; and what counts.

        Raises:
            DomainError: NOT_FOUND.
        """
        asked = org_id or UUID(call.caller.tenant_id)
        tenant = await self._tenants.require(call.caller, asked)
        async with self._database.transaction(Scope.of(tenant.id)) as connection:
            found = await store.settings(connection, [tenant.id])
            effect = await self._in_effect(connection, tenant.id)
        return found.get(tenant.id, Settings(tenant.id)), effect

    async def update(
        self,
        call: Call,
        org_id: UUID | None,
        *,
        time_zone: str | None,
        require_approval: bool | None,
        freezes: Sequence[tuple[str, str, str]] | None,
        default_plan: PlanChange | None = None,
    ) -> tuple[Settings, InEffect]:
        """Says how a tenant publishes; what is `None` stays. What changes nothing writes nothing.

        Answers what counts for its publishes then, too. Nothing is read once it is committed: it
        could fail for what has happened.

        Args:
            freezes: names, first and last days of all of them.
            default_plan: how publishes without a plan come to devices from now on.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT with the field; ABORTED when its etag is
                another; PERMISSION_DENIED when it takes a second person or a freeze away, and the
                caller is no Owner.
        """
        asked = org_id or UUID(call.caller.tenant_id)
        tenant = await self._tenants.require(call.caller, asked)
        if time_zone and zone_of(time_zone) is None:
            raise invalid_field("timeZone", "must be a time zone such as Europe/Berlin")
        days = None if freezes is None else checked_freezes(freezes)
        plan = None if default_plan is None else _checked(default_plan.plan, tenant)
        async with self._database.transaction(Scope.of(tenant.id)) as connection:
            if plan is not None:
                await check_groups(connection, tenant.id, plan, _PLAN)
            before = await store.lock_settings(connection, tenant.id)
            check_etag(before.etag)
            after = replace(
                before,
                time_zone=before.time_zone if time_zone is None else time_zone,
                require_approval=before.require_approval
                if require_approval is None
                else require_approval,
                freezes=before.freezes if days is None else days,
                default_plan=before.default_plan if default_plan is None else plan,
            )
            if after == before:
                return before, await self._in_effect(connection, tenant.id)
            # In no time zone it is an earlier day.
            today = (self._clock() - timedelta(days=1)).date()
            if after.loosens(before, today) and not may_decide_alone(call.caller, tenant.id):
                raise permission_denied(
                    "OWNER_NEEDED",
                    "to publish without a second person, or in a freeze, an Owner has to agree, or"
                    " somebody of a tenant above; API tokens cannot",
                )
            after = replace(after, updated_at=self._clock())
            await store.write_settings(connection, after)
            event = PolicySettingsUpdated(
                id=tenant.id, before=before.snapshot(), after=after.snapshot()
            )
            await self._outbox.append(connection, CloudEvent(event, tenant.id))
            return after, await self._in_effect(connection, tenant.id)

    def today(self, effect: InEffect) -> date:
        """The day by which freezes count."""
        return self._clock().astimezone(effect.zone).date()

    async def _in_effect(self, connection: Connection, tenant_id: UUID) -> InEffect:
        """What counts for publishes of a tenant that the caller may see."""
        async with seeing_all(connection, "what tenants above say counts, too"):
            return await self._rollouts.in_effect(connection, tenant_id)


def _checked(plan: Plan | None, tenant: TenantNode) -> Plan | None:
    if plan is None:
        return None
    if tenant.kind != "org":
        for index, batch in enumerate(plan.batches):
            if batch.group_ids:
                raise invalid_field(
                    f"{_PLAN}.batches[{index}].groupIds",
                    "only organisations have groups; give percents",
                )
    return checked(plan, _PLAN)
