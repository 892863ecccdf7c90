"""Administration of variables and secrets: one transaction a use case, with its event."""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from contract.events.base import Action
from contract.events.policy import (
    PolicyVariableCreated,
    PolicyVariableDeleted,
    PolicyVariableUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import not_found
from servicekit.etags import check_etag
from servicekit.feeds.changes import Changes
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from servicekit.security.sealing import SealingError
from services.policy.authoring import store as authoring_store
from services.policy.authoring.domain import Policy
from services.policy.authoring.publishing import Publishing
from services.policy.authoring.service import PolicyService
from services.policy.variables import store
from services.policy.variables.domain import (
    MOST_VARIABLES,
    Use,
    Variable,
    check_value,
    still_used,
    too_many,
)
from services.policy.vault import Vault, of_variable


@dataclass(frozen=True, slots=True)
class Shown:
    """A variable with the policies that name it."""

    variable: Variable
    uses: list[Use]
    sealed_when_published: bool = False
    """Whether what is published with a secret is stored sealed, too."""


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
        clock: Clock,
    ) -> None:
        self._database = database
        self._vault = vault
        self._outbox = outbox
        self._tenants = tenants
        self._changes = changes
        self._policies = policies
        self._clock = clock

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
            return self._shown(variable, await store.uses(connection, variable))

    async def create(
        self, call: Call, org_id: UUID, name: str, value: str, *, is_secret: bool
    ) -> Shown:
        """Adds a variable or secret to a tenant.

        Raises:
            DomainError: NOT_FOUND for the tenant; INVALID_ARGUMENT for the value; ALREADY_EXISTS;
                FAILED_PRECONDITION when the tenant has too many.
        """
        tenant = await self._tenants.require(call.caller, org_id, to_add=True)
        async with self._database.transaction(Scope.of(tenant.id)) as connection:
            variable = await self.created(
                connection, call, tenant.id, name, value, is_secret=is_secret
            )
        return self._shown(variable, [])

    async def created(
        self,
        connection: Connection,
        call: Call,
        tenant_id: UUID,
        name: str,
        value: str,
        *,
        is_secret: bool = False,
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
            fingerprint=self._fingerprint(tenant_id, id_, value) if is_secret else "",
            revision=1,
            updated_at=self._clock(),
            updated_by=call.caller.name,
        )
        if await store.count(connection, tenant_id) >= MOST_VARIABLES:
            raise too_many()
        await store.put(connection, self._vault, variable, value)
        await self._tell(
            connection, variable, PolicyVariableCreated(id=id_, after=variable.snapshot())
        )
        return variable

    async def changed(
        self, connection: Connection, call: Call, before: Variable, value: str
    ) -> Variable:
        """Gives a variable that is locked another value, and publishes nothing."""
        check_value(value, is_secret=before.is_secret)
        after = self._changed(call, before, value)
        await store.put(connection, self._vault, after, value)
        updated = PolicyVariableUpdated(
            id=after.id, before=before.snapshot(), after=after.snapshot()
        )
        await self._tell(connection, after, updated)
        return after

    async def update(
        self, call: Call, variable_id: UUID, value: str, publishing: Publishing | None = None
    ) -> Shown:
        """Gives a variable another value.

        Args:
            publishing: how the policies that name it and are in force are published with the
                value; `None` for not at all. Those with unpublished changes are not, nor those
                that devices have or get with it already. So the same value once more changes
                nothing but what still waits for it.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT for the value, also where a policy that is
                published could not have it; what a publish raises. Nothing is changed then.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            variable = await _found(connection, scope, variable_id)
            # In the order of a publish: its policy first.
            await store.uses(connection, variable, for_update=True)
            before = await _found(connection, scope, variable_id, for_update=True)
            check_etag(before.etag)
            check_value(value, is_secret=before.is_secret)
            after = before
            if not await self._has(connection, before, value):
                after = self._changed(call, before, value)
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
        if rollouts:
            await self._changes.catch_up()
        return self._shown(after, uses)

    def _shown(self, variable: Variable, uses: list[Use]) -> Shown:
        return Shown(variable, uses, variable.is_secret and self._vault.seals)

    def _changed(self, call: Call, before: Variable, value: str) -> Variable:
        is_secret = before.is_secret
        return replace(
            before,
            value=None if is_secret else value,
            fingerprint=self._fingerprint(before.tenant_id, before.id, value) if is_secret else "",
            revision=before.revision + 1,
            updated_at=self._clock(),
            updated_by=call.caller.name,
        )

    async def delete(self, call: Call, variable_id: UUID) -> None:
        """Deletes a variable that no policy names.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION while a policy names it.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            variable = await _found(connection, scope, variable_id, for_update=True)
            check_etag(variable.etag)
            await self.deleted(connection, variable)

    async def deleted(self, connection: Connection, variable: Variable) -> None:
        """Deletes a variable that is locked.

        Raises:
            DomainError: FAILED_PRECONDITION while a policy names it.
        """
        if uses := await store.uses(connection, variable):
            raise still_used(uses)
        await store.delete(connection, variable)
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

    def _fingerprint(self, tenant_id: UUID, variable_id: UUID, value: str) -> str:
        return self._vault.fingerprint(of_variable(tenant_id, variable_id), value)

    async def _tell(self, connection: Connection, variable: Variable, event: Action) -> None:
        await self._outbox.append(connection, CloudEvent(event, variable.tenant_id))


async def _found(
    connection: Connection, scope: Scope, variable_id: UUID, *, for_update: bool = False
) -> Variable:
    variable = await store.get(connection, scope, variable_id, for_update=for_update)
    if variable is None:
        raise not_found("policy variable", variable_id)
    return variable
