"""Administration of variables and secrets: one transaction a use case, with its event."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from contract.events.base import Action
from contract.events.policy import (
    PolicyVariableCreated,
    PolicyVariableDeleted,
    PolicyVariableUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import invalid_field, not_found
from servicekit.etags import check_etag
from servicekit.feeds.changes import Changes
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from servicekit.security.sealing import SealingError
from services.policy.authoring import store as authoring_store
from services.policy.authoring.agent_rules import MAX_FINDINGS
from services.policy.authoring.domain import Policy
from services.policy.authoring.publishing import Publishing
from services.policy.authoring.service import PolicyService
from services.policy.bounds import Hourly
from services.policy.variables import store
from services.policy.variables.above import MOST_LOOKED_AT, Above
from services.policy.variables.domain import (
    MOST_VARIABLES,
    Advice,
    Taking,
    Use,
    Variable,
    check_value,
    still_needed,
    still_used,
    too_many,
    too_many_refused,
)
from services.policy.vault import Vault, of_variable

REFUSED_AN_HOUR: Final = 10
"""New values of one secret that are refused for what would follow from them. They change nothing,
and the value that there is already is not refused: by so many tries nobody guesses it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A variable with the policies that name it."""

    variable: Variable
    uses: list[Use]
    sealed_when_published: bool = False
    """Whether what is published with a secret is stored sealed, too."""
    above: Sequence[Taking] = ()
    """The policies of tenants above that take it in place of their own value."""
    advice: Sequence[Advice] = ()
    """Advice on a value that was given."""


class Variables:
    """The use cases."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        outbox: Outbox,
        tenants: TenantDirectory,
        changes: Changes,
        policies: PolicyService,
        above: Above,
        clock: Clock,
    ) -> None:
        self._database = database
        self._vault = vault
        self._outbox = outbox
        self._tenants = tenants
        self._changes = changes
        self._policies = policies
        self._above = above
        self._clock = clock
        self._refused = Hourly(REFUSED_AN_HOUR, clock)

    async def list_variables(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> Page[Variable, UUID]:
        """The variables of a tenant, or of the caller's whole subtree."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_variables(connection, scope, after, limit)

    async def get(self, call: Call, variable_id: UUID) -> Shown:
        """One variable, with the policies that name it."""
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            variable = await _found(connection, scope, variable_id)
            return await self._shown(connection, variable, await store.uses(connection, variable))

    async def create(
        self,
        call: Call,
        org_id: UUID,
        name: str,
        value: str,
        *,
        is_secret: bool,
        overridable: bool = False,
        urgent: bool = False,
    ) -> Shown:
        """Adds a variable or secret to a tenant.

        Args:
            overridable: tenants below may have a value of their own in its place.
            urgent: also in a freeze, where policies above take it.

        Raises:
            DomainError: NOT_FOUND for the tenant; INVALID_ARGUMENT for the value; ALREADY_EXISTS;
                FAILED_PRECONDITION when the tenant has too many, and in a freeze.
        """
        tenant = await self._tenants.require(call.caller, org_id, to_add=True)
        async with self._database.transaction(Scope.of(tenant.id)) as connection:
            variable = await self.created(
                connection,
                call,
                tenant.id,
                name,
                value,
                is_secret=is_secret,
                overridable=overridable,
                urgent=urgent,
            )
            return await self._shown(connection, variable, [], is_given=True)

    async def created(
        self,
        connection: Connection,
        call: Call,
        tenant_id: UUID,
        name: str,
        value: str,
        *,
        is_secret: bool = False,
        overridable: bool = False,
        urgent: bool = False,
    ) -> Variable:
        """As `create`, in a transaction of the tenant and without its checks of the caller."""
        check_value(value, is_secret=is_secret)
        id_ = new_id()
        variable = Variable(
            id=id_,
            tenant_id=tenant_id,
            name=name,
            is_secret=is_secret,
            value=None if is_secret else value,
            fingerprint=self._fingerprint(tenant_id, id_, 1, value) if is_secret else "",
            revision=1,
            updated_at=self._clock(),
            updated_by=call.caller.name,
            overridable=overridable,
        )
        if await store.count(connection, tenant_id) >= MOST_VARIABLES:
            raise too_many()
        await self._put(connection, call, variable, value, urgent=urgent)
        await self._tell(
            connection, variable, PolicyVariableCreated(id=id_, after=variable.snapshot())
        )
        return variable

    async def changed(
        self,
        connection: Connection,
        call: Call,
        before: Variable,
        value: str,
        *,
        overridable: bool,
    ) -> Variable:
        """Gives a variable that is locked another value, and publishes nothing.

        Args:
            overridable: whether tenants below may have a value of their own in its place.
        """
        check_value(value, is_secret=before.is_secret)
        after = replace(self._changed(call, before, value), overridable=overridable)
        if value == before.value:
            await store.put(connection, self._vault, after, value)
        else:
            await self._put(connection, call, after, value)
        updated = PolicyVariableUpdated(
            id=after.id, before=before.snapshot(), after=after.snapshot()
        )
        await self._tell(connection, after, updated)
        return after

    async def update(
        self,
        call: Call,
        variable_id: UUID,
        value: str,
        publishing: Publishing | None = None,
        *,
        overridable: bool | None = None,
        urgent: bool = False,
    ) -> Shown:
        """Gives a variable another value.

        Args:
            value: empty for the one that it has, where `overridable` is given.
            overridable: whether tenants below may have a value of their own in its place; counts
                with the next publish of each policy. `None` leaves it.
            urgent: also in a freeze, where policies above take it.
            publishing: how the policies that name it and are in force are published with the
                value; `None` for not at all. Those with unpublished changes are not, nor those
                that devices have or get with it already. So the same value once more changes
                nothing but what still waits for it.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT for the value, also where a policy that is
                published could not have it; what a publish raises; RESOURCE_EXHAUSTED when too many
                values of a secret were refused of late. Nothing is changed then.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            variable = await _found(connection, scope, variable_id)
            # In the order of a publish: its policy first.
            await store.uses(connection, variable, for_update=True)
            before = await _found(connection, scope, variable_id, for_update=True)
            check_etag(before.etag)
            is_counted = await self._may_be_refused(connection, before, value, publishing)
            if is_counted and not self._refused.take(str(before.id)):
                raise too_many_refused()
            is_given = bool(value)
            if not value and overridable is not None:
                value = await store.value_of(connection, self._vault, before)
            check_value(value, is_secret=before.is_secret)
            after = before
            if not await self._has(connection, before, value):
                after = self._changed(call, before, value)
                await self._put(connection, call, after, value, urgent=urgent)
            if overridable not in {None, after.overridable}:
                after = replace(
                    self._changed(call, before, value), overridable=not after.overridable
                )
                await store.put(connection, self._vault, after, value)
            rollouts: dict[UUID, UUID | None] = {}
            if publishing is not None:
                for use in await store.uses(connection, after):
                    if use.in_force and not use.changed_since_publish:
                        policy = await self._published(connection, call, after, use, publishing)
                        if policy is not None:
                            rollouts[policy.id] = policy.rollout_id
            uses = [
                replace(use, rollout_id=rollouts.get(use.policy_id))
                for use in await store.uses(connection, after)
            ]
            if after is not before or rollouts:
                updated = PolicyVariableUpdated(
                    id=after.id, before=before.snapshot(), after=after.snapshot(len(rollouts))
                )
                await self._tell(connection, after, updated)
            shown = await self._shown(connection, after, uses, is_given=is_given)
        if is_counted:
            self._refused.give_back(str(before.id))
        if rollouts:
            await self._changes.catch_up()
        return shown

    async def open_above(self, connection: Connection, tenant_id: UUID) -> set[str]:
        """The names of secrets that policies of tenants above take from a tenant."""
        return await self._above.open_names(connection, tenant_id)

    async def _may_be_refused(
        self,
        connection: Connection,
        variable: Variable,
        value: str,
        publishing: Publishing | None,
    ) -> bool:
        """Whether a secret may keep its value, because of what would follow from another one."""
        if not variable.is_secret or not value:
            return False
        return publishing is not None or bool(await self._above.taking(connection, variable))

    async def _shown(
        self,
        connection: Connection,
        variable: Variable,
        uses: list[Use],
        *,
        is_given: bool = False,
    ) -> Shown:
        above = await self._above.taking(connection, variable)
        advice: list[Advice] = []
        if is_given:
            # Of one that was not, advice would tell about the value.
            with suppress(SealingError):
                advice = await self._advice(connection, variable, uses[:MOST_LOOKED_AT])
                advice += await self._above.advice(connection, self._vault, variable, above)
        is_sealed = variable.is_secret and self._vault.seals
        return Shown(variable, uses, is_sealed, above, advice[:MAX_FINDINGS])

    async def _advice(
        self, connection: Connection, variable: Variable, uses: list[Use]
    ) -> list[Advice]:
        """Advice on a value, of the policies of its tenant that name it."""
        found: list[Advice] = []
        scope = Scope.of(variable.tenant_id)
        for use in uses:
            policy = await authoring_store.get_policy(connection, self._vault, scope, use.policy_id)
            if policy is not None and len(found) < MAX_FINDINGS:
                found += [
                    Advice(use.name, each)
                    for each in await self._policies.advice(connection, policy, variable.reference)
                ]
        return found

    async def _put(
        self,
        connection: Connection,
        call: Call,
        variable: Variable,
        value: str,
        *,
        urgent: bool = False,
    ) -> None:
        """Stores a value, which devices get at once where policies above take it."""
        taken = await self._above.check_change(connection, call, variable, urgent=urgent)
        await store.put(connection, self._vault, variable, value)
        if taken and (problem := await self._above.misfit(connection, variable.tenant_id)):
            raise invalid_field("value", problem)

    def _changed(self, call: Call, before: Variable, value: str) -> Variable:
        is_secret, revision = before.is_secret, before.revision + 1
        return replace(
            before,
            value=None if is_secret else value,
            fingerprint=self._fingerprint(before.tenant_id, before.id, revision, value)
            if is_secret
            else "",
            revision=revision,
            updated_at=self._clock(),
            updated_by=call.caller.name,
        )

    async def delete(self, call: Call, variable_id: UUID, *, urgent: bool = False) -> None:
        """Deletes a variable that no policy of its tenant names.

        Args:
            urgent: also in a freeze, where policies above take it.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION while a policy names it, where the value of
                the tenant above does not fit in its place, and in a freeze.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            variable = await _found(connection, scope, variable_id, for_update=True)
            check_etag(variable.etag)
            await self.deleted(connection, call, variable, urgent=urgent)

    async def deleted(
        self, connection: Connection, call: Call, variable: Variable, *, urgent: bool = False
    ) -> None:
        """Deletes a variable that is locked.

        Raises:
            DomainError: FAILED_PRECONDITION while a policy names it, where the value of the tenant
                above does not fit in its place, and in a freeze.
        """
        if uses := await store.uses(connection, variable):
            raise still_used(uses)
        taken = await self._above.check_change(connection, call, variable, urgent=urgent)
        await store.delete(connection, variable)
        if taken and (problem := await self._above.misfit(connection, variable.tenant_id)):
            raise still_needed(problem)
        deleted = PolicyVariableDeleted(id=variable.id, before=variable.snapshot())
        await self._tell(connection, variable, deleted)

    async def _published(
        self,
        connection: Connection,
        call: Call,
        variable: Variable,
        use: Use,
        publishing: Publishing,
    ) -> Policy | None:
        """A policy with the value that is set now; `None` where devices have or get it already."""
        scope = Scope.of(variable.tenant_id)
        policy = await authoring_store.get_policy(
            connection, self._vault, scope, use.policy_id, for_update=True
        )
        if policy is None or await self._policies.has_values(connection, policy):
            return None
        return await self._policies.published(connection, call, policy, publishing)

    async def _has(self, connection: Connection, variable: Variable, value: str) -> bool:
        """Whether a variable has a value; one that does not open is set anew."""
        try:
            return await store.value_of(connection, self._vault, variable) == value
        except SealingError:
            return False

    def _fingerprint(self, tenant_id: UUID, variable_id: UUID, revision: int, value: str) -> str:
        # Another one for each value that is set: nobody finds a former one by guesses.
        place = f"{of_variable(tenant_id, variable_id)}/{revision}"
        return self._vault.fingerprint(place, value)

    async def _tell(self, connection: Connection, variable: Variable, event: Action) -> None:
        await self._outbox.append(connection, CloudEvent(event, variable.tenant_id))


async def _found(
    connection: Connection, scope: Scope, variable_id: UUID, *, for_update: bool = False
) -> Variable:
    variable = await store.get(connection, scope, variable_id, for_update=for_update)
    if variable is None:
        raise not_found("policy variable", variable_id)
    return variable
