"""Lets Owners say for how long logs are kept, and set and release legal holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from contract.events.audit import (
    LegalHold,
    LegalHoldReleased,
    LegalHoldSet,
    RetentionSnapshot,
    RetentionUpdated,
)
from contract.events.base import Action
from servicekit.call import Call
from servicekit.data.postgres import Database, Scope
from servicekit.errors import DomainError, failed_precondition, invalid_field
from servicekit.etags import check_etag, etag_of
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from services.audit.log import store as chains
from services.audit.log.domain import Base
from services.audit.retention import store
from services.audit.retention.domain import Hold, InForce, Rule, in_force, is_above, length

_ABOVE: Final = "FROM_ABOVE"


@dataclass(frozen=True, slots=True)
class Shown:
    """What counts for a log, and what is pruned of it."""

    org_name: str
    rule: Rule
    in_force: InForce
    base: Base | None

    @property
    def etag(self) -> str:
        """Changes with the tenant's own words."""
        return _etag(self.rule)


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be said; `None`: as before."""

    keep_years: int | None
    inherit: bool
    """Whether nothing is said of years any more."""
    legal_hold: bool | None
    hold_reason: str

    def check(self) -> None:
        """Checks that it fits together.

        Raises:
            DomainError: INVALID_ARGUMENT with the field.
        """
        if self.inherit and self.keep_years is not None:
            raise invalid_field("inherit", "must not be given with keepYears")
        reason = self.hold_reason
        if self.legal_hold and not reason.strip():
            raise invalid_field("holdReason", "must say why, where a hold is set")
        if reason and not self.legal_hold:
            raise invalid_field("holdReason", "must not be given, where no hold is set")
        if not reason.isprintable():
            raise invalid_field("holdReason", "must have only characters that can be printed")


class Retention:
    """What tenants say of their logs.

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

    async def get(self, call: Call, org_id: UUID | None) -> Shown:
        """What counts for a tenant of the caller's subtree; for the caller's own without.

        Raises:
            DomainError: NOT_FOUND; UNAVAILABLE before the tenants above are known.
        """
        return await self._shown(await self._named(call, org_id))

    async def update(self, call: Call, org_id: UUID | None, change: Change) -> Shown:
        """Says for how long a log is kept, or sets or releases a hold.

        Raises:
            DomainError: as `get`; INVALID_ARGUMENT with the field; ABORTED when its etag is
                another; FAILED_PRECONDITION for what a tenant above has set.
        """
        change.check()
        tenant_id = await self._named(call, org_id)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            before = await store.lock_rule(connection, tenant_id)
            check_etag(_etag(before))
            after = self._hold(call, self._kept(call, before, change), change)
            if after != before:
                after = replace(
                    after,
                    revision=before.revision + 1,
                    updated_at=self._clock(),
                    updated_by=call.caller.name,
                )
                await store.store_rule(connection, after)
                for event in _events(before, after):
                    await self._outbox.append(connection, CloudEvent(event, tenant_id, call=call))
        return await self._shown(tenant_id)

    async def _named(self, call: Call, org_id: UUID | None) -> UUID:
        wanted = org_id or UUID(call.caller.tenant_id)
        # The log of a tenant that was deleted is kept, too.
        return (await self._tenants.require(call.caller, wanted, deleted=True)).id

    async def _shown(self, tenant_id: UUID) -> Shown:
        line = [node.id for node in self._tenants.whole_line(tenant_id)]
        async with self._database.system_transaction(
            "what tenants above say of logs counts below"
        ) as connection:
            said = await store.rules(connection, line)
            base = await chains.base(connection, tenant_id)
        node = self._tenants.known(tenant_id)
        return Shown(
            org_name=node.name if node is not None else "",
            rule=said.get(tenant_id, Rule(tenant_id)),
            in_force=in_force(line, said),
            base=base,
        )

    def _kept(self, call: Call, rule: Rule, change: Change) -> Rule:
        """Puts the caller's word in the place of its own and of those below it.

        Those of tenants above stay, also where the caller's is longer: it can be shortened again
        down to theirs.
        """
        wanted = change.keep_years
        if wanted is None and not change.inherit:
            return rule
        years = {one: said for one, said in rule.years.items() if self._is_above(call, rule, one)}
        longest = max(map(length, years.values()), default=length(None))
        if length(wanted) < longest:
            raise _from_above("keeps the log longer")
        if wanted is not None and length(wanted) > longest:
            years[UUID(call.caller.tenant_id)] = wanted
        return replace(rule, years=years)

    def _hold(self, call: Call, rule: Rule, change: Change) -> Rule:
        hold = rule.hold
        if change.legal_hold is None:
            return rule
        reason, own = change.hold_reason.strip(), UUID(call.caller.tenant_id)
        is_above = hold is not None and self._is_above(call, rule, hold.set_from)
        # With the same words, one above the tenant that set it makes the hold its own.
        if (hold.reason if hold else "") == reason and (
            hold is None or is_above or hold.set_from == own
        ):
            return rule
        if is_above:
            raise _from_above("has set the legal hold")
        if not change.legal_hold:
            return replace(rule, hold=None)
        return replace(rule, hold=Hold(reason, own, call.caller.name, self._clock()))

    def _is_above(self, call: Call, rule: Rule, said_from: UUID) -> bool:
        """Whether a tenant that said something of a log is above the caller's."""
        line = [node.id for node in self._tenants.whole_line(rule.tenant_id)]
        return is_above(line, said_from, UUID(call.caller.tenant_id))


def _from_above(what: str) -> DomainError:
    return failed_precondition(_ABOVE, f"a tenant above yours {what}; ask its Owners")


def _etag(rule: Rule) -> str:
    return etag_of(rule.tenant_id, rule.revision, rule.updated_at)


def _events(before: Rule, after: Rule) -> list[Action]:
    events: list[Action] = []
    tenant_id = after.tenant_id
    if after.years != before.years:
        events.append(
            RetentionUpdated(id=tenant_id, before=_snapshot(before), after=_snapshot(after))
        )
    if after.hold is not None and after.hold != before.hold:
        was = _legal_hold(before.hold) if before.hold else None
        events.append(LegalHoldSet(id=tenant_id, before=was, after=_legal_hold(after.hold)))
    elif before.hold is not None and after.hold is None:
        events.append(LegalHoldReleased(id=tenant_id, before=_legal_hold(before.hold)))
    return events


def _snapshot(rule: Rule) -> RetentionSnapshot:
    return RetentionSnapshot(keep_years=rule.keep_years, keep_from=rule.keep_from)


def _legal_hold(hold: Hold) -> LegalHold:
    return LegalHold(reason=hold.reason, held_from=hold.set_from)
