"""Says how a publish would come to devices, and which freezes it meets; nothing is written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, seeing_all
from servicekit.errors import invalid_field, not_found
from servicekit.ids import Clock
from servicekit.observability import logs
from servicekit.peers.tenants import TenantDirectory
from services.policy.authoring import store as authoring_store
from services.policy.rollouts import store
from services.policy.rollouts.outlook import Outlook, outlook
from services.policy.rollouts.plans import Plan, checked
from services.policy.rollouts.service import Rollouts, check_groups, check_start, only_of_orgs
from services.policy.rollouts.settings import InEffect, Settings
from services.policy.targets.domain import PolicyTargets
from services.policy.vault import Vault

log = logs.get(__name__)
_PATIENCE: Final = 2.0
"""Seconds that the answer to a publish waits for a count beside it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What would be published. A new policy is of `org_id`; `None` leaves what is stored."""

    policy_id: UUID | None = None
    org_id: UUID | None = None
    targets: PolicyTargets | None = None
    withdraw: bool = False
    plan: Plan | None = None
    urgent: bool = False
    starts_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """How it would come to devices."""

    outlook: Outlook | None
    """`None` for to all at once."""
    default_plan_of: UUID | None
    """The tenant whose default plan it is."""
    freeze: str
    """The name of the freeze that is on; empty for none."""
    frozen_orgs: int
    """Organisations below that are in a freeze of their own, and get it all the same."""


class Outlooks:
    """The use cases."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        tenants: TenantDirectory,
        rollouts: Rollouts,
        clock: Clock,
    ) -> None:
        self._database = database
        self._vault = vault
        self._tenants = tenants
        self._rollouts = rollouts
        self._clock = clock

    async def of(self, call: Call, asked: Asked) -> Found:
        """How something would come to devices that the caller may publish.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT for a plan that cannot be.
        """
        now = self._clock()
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            tenant_id, targets = asked.org_id, asked.targets or PolicyTargets()
            if asked.policy_id is not None:
                policy = await authoring_store.get_policy(
                    connection, self._vault, scope, asked.policy_id
                )
                if policy is None:
                    raise not_found("policy", asked.policy_id)
                tenant_id = policy.tenant_id
                targets = policy.targets if asked.targets is None else asked.targets
            assert tenant_id is not None
            async with seeing_all(connection, "what tenants above say counts, too"):
                effect = await self._rollouts.in_effect(connection, tenant_id)
                frozen = await self._frozen_below(connection, tenant_id, now)
            found = await self._outlook(connection, tenant_id, targets, asked, effect, now)
        freeze = effect.freeze(now)
        return Found(
            found,
            effect.default_plan_of if found is not None and asked.plan is None else None,
            "" if freeze is None else freeze.name,
            frozen,
        )

    async def frozen_orgs(self, tenant_id: UUID) -> int | None:
        """How many organisations below a tenant are in a freeze of their own; `None` where the
        tenant is an organisation, and where they cannot be counted now.

        Never fails: what is published stays so, and an error would have its caller do it again.
        """
        if self._is_org(tenant_id):
            return None
        try:
            async with (
                asyncio.timeout(_PATIENCE),
                self._database.system_transaction(
                    "what tenants below say of freezes is counted"
                ) as connection,
            ):
                return await self._frozen_below(connection, tenant_id, self._clock())
        except Exception as error:
            log.warning(
                "freezes below not counted", tenant=str(tenant_id), error=type(error).__name__
            )
            return None

    async def _outlook(
        self,
        connection: Connection,
        tenant_id: UUID,
        targets: PolicyTargets,
        asked: Asked,
        effect: InEffect,
        now: datetime,
    ) -> Outlook | None:
        is_org = self._is_org(tenant_id)
        if asked.plan is not None:
            if asked.withdraw:
                raise invalid_field("plan", "must not be given for a withdrawal")
            if not is_org:
                raise only_of_orgs()
            await check_groups(connection, tenant_id, checked(asked.plan))
        check_start(asked.starts_at, now)
        plan = None if asked.withdraw or not is_org else effect.plan(asked.plan)
        if plan is None:
            return None
        plan = checked(plan)
        return outlook(
            plan.approved_first() if effect.require_approval else plan,
            await store.kinds(connection, tenant_id, targets),
            effect,
            max(now, asked.starts_at or now),
            urgent=asked.urgent,
        )

    async def _frozen_below(self, connection: Connection, tenant_id: UUID, now: datetime) -> int:
        """As `frozen_orgs`; the transaction sees all tenants."""
        below = [node.id for node in self._tenants.subtree(tenant_id) if node.id != tenant_id]
        above = [node.id for node in self._tenants.line(tenant_id)]
        if not below:
            return 0
        said = await store.settings(connection, [*above, *below])
        frozen: set[UUID] = set()
        for one in below:
            if one in said and said[one].freezes:
                frozen |= {
                    org.id
                    for org in self._tenants.subtree(one)
                    if org.kind == "org" and self._is_frozen(org.id, above, said, now)
                }
        return len(frozen)

    def _is_frozen(
        self, org_id: UUID, above: Sequence[UUID], said: dict[UUID, Settings], now: datetime
    ) -> bool:
        """Whether an organisation is in a freeze that nobody above a tenant says."""
        line = [said.get(node.id, Settings(node.id)) for node in self._tenants.line(org_id)]
        own = tuple(day for one in line if one.tenant_id not in above for day in one.freezes)
        return replace(InEffect.of(line), freezes=own).freeze(now) is not None

    def _is_org(self, tenant_id: UUID) -> bool:
        node = self._tenants.known(tenant_id)
        return node is not None and node.kind == "org"
