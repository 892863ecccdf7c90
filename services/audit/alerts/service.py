"""Lets people see alerts, and say when something is one and who is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from contract.events.audit import AlertRulesSnapshot, AlertRulesUpdated
from servicekit.call import Call
from servicekit.data.postgres import Database, Scope
from servicekit.errors import invalid_field
from servicekit.etags import check_etag
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.rpc.pagination import Page, TimePosition
from services.audit.alerts import rule_store, store
from services.audit.alerts.domain import Alert, RuleChange, Rules, changed
from services.audit.alerts.rulebook import effective

_OWN_ROLES: Final = ("Owner",)


@dataclass(frozen=True, slots=True)
class Recipients:
    """Who gets mails."""

    emails: tuple[str, ...]
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShownRules:
    """What counts for a tenant."""

    tenant: TenantNode
    rules: Rules

    @property
    def etag(self) -> str:
        """Changes with it."""
        return self.rules.etag_for(self.tenant.id)

    @property
    def is_own(self) -> bool:
        """Whether the tenant has said it itself."""
        return self.rules.revision > 0 and self.rules.tenant_id == self.tenant.id


class Alerts:
    """Alerts of tenants, and their rules.

    Args:
        database: the service's.
        outbox: takes events.
        tenants: the tree.
        clock: the time.
    """

    def __init__(
        self, database: Database, outbox: Outbox, tenants: TenantDirectory, clock: Clock
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._clock = clock

    async def list_alerts(
        self,
        call: Call,
        org_id: UUID | None,
        kind: str,
        is_open: bool | None,
        after: TimePosition | None,
        limit: int,
    ) -> Page[Alert, TimePosition]:
        """The alerts of the caller's subtree, or of a tenant in it and those below, newest first.

        Raises:
            DomainError: NOT_FOUND for a tenant that is not in the subtree.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_alerts(connection, scope, kind, is_open, after, limit)

    async def rules(self, call: Call, org_id: UUID | None) -> ShownRules:
        """What counts for a tenant of the caller's subtree; for the caller's own without.

        Raises:
            DomainError: NOT_FOUND.
        """
        node = await self._tenants.require(call.caller, org_id or UUID(call.caller.tenant_id))
        return ShownRules(node, await self._effective(node))

    async def update(
        self,
        call: Call,
        org_id: UUID | None,
        changes: Sequence[RuleChange],
        recipients: Recipients | None,
        *,
        inherit: bool,
    ) -> ShownRules:
        """Says when something is an alert for a tenant, and who is told. What is not given stays.

        Args:
            call: the call.
            org_id: the tenant; the caller's own when not given.
            changes: of rules.
            recipients: who gets mails; `None`: as before.
            inherit: whether the tenant says nothing any more, and what is said above it counts.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT with the field; ABORTED when its etag is
                another.
        """
        if inherit and (changes or recipients):
            raise invalid_field("inherit", "must not be given with rules or recipients")
        node = await self._tenants.require(call.caller, org_id or UUID(call.caller.tenant_id))
        above = await self._effective(node, without_own=True)
        async with self._database.transaction(Scope.of(node.id)) as connection:
            await rule_store.lock_rules(connection, node.id)
            own = (await rule_store.rules_of(connection, [node.id])).get(node.id)
            before = own or above
            check_etag(before.etag_for(node.id))
            if inherit:
                if own is None:
                    return ShownRules(node, above)
                after = above
                await rule_store.delete_rules(connection, node.id)
            else:
                after = replace(before, rules=changed(before, node.kind, changes, self._clock()))
                if recipients is not None:
                    after = replace(after, emails=recipients.emails, roles=recipients.roles)
                elif own is None and after != before:
                    # Whom a tenant above tells is not taken over.
                    after = replace(after, emails=(), roles=_OWN_ROLES)
                if after == before and (own or recipients is None):
                    return ShownRules(node, before)
                after = replace(
                    after,
                    tenant_id=node.id,
                    revision=before.revision + 1,
                    updated_at=self._clock(),
                    updated_by=call.caller.name,
                )
                await rule_store.store_rules(connection, after)
            event = AlertRulesUpdated(
                id=node.id,
                before=_snapshot(before, own is None),
                after=_snapshot(after, inherit),
            )
            await self._outbox.append(connection, CloudEvent(event, node.id))
        return ShownRules(node, after)

    async def _effective(self, node: TenantNode, *, without_own: bool = False) -> Rules:
        line = self._tenants.line(node.id) or [node]
        async with self._database.system_transaction(
            "rules of tenants above count below"
        ) as connection:
            said = await rule_store.rules_of(connection, [one.id for one in line])
        if without_own:
            said.pop(node.id, None)
        found = effective(node, line, said)
        # Whom a tenant above tells, and who said so, is no business of those below.
        if found.tenant_id == node.id:
            return found
        return replace(found, emails=(), updated_by="")


def _snapshot(rules: Rules, inherited: bool) -> AlertRulesSnapshot:
    return AlertRulesSnapshot(
        inherited=inherited,
        rules={name: rule.json() for name, rule in rules.rules.items()},
        emails=rules.emails,
        roles=rules.roles,
    )
