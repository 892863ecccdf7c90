"""Administration of variables and secrets: one transaction a use case, with its event."""

from __future__ import annotations

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

NOW: Final = "NOW"


@dataclass(frozen=True, slots=True)
class Shown:
    """A variable with the policies that name it."""

    variable: Variable
    uses: list[Use]


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
            return Shown(variable, await store.uses(connection, variable))

    async def create(
        self, call: Call, org_id: UUID, name: str, value: str, *, is_secret: bool
    ) -> Shown:
        """Adds a variable or secret to a tenant.

        Raises:
            DomainError: NOT_FOUND for the tenant; INVALID_ARGUMENT for the value; ALREADY_EXISTS;
                FAILED_PRECONDITION when the tenant has too many.
        """
        tenant = await self._tenants.require(call.caller, org_id, to_add=True)
        check_value(value, is_secret=is_secret)
        id_ = new_id()
        variable = Variable(
            id=id_,
            tenant_id=tenant.id,
            name=name,
            is_secret=is_secret,
            value=None if is_secret else value,
            fingerprint=self._fingerprint(tenant.id, id_, value) if is_secret else "",
            revision=1,
            updated_at=self._clock(),
            updated_by=call.caller.name,
        )
        async with self._database.transaction(Scope.of(tenant.id)) as connection:
            if await store.count(connection, tenant.id) >= MOST_VARIABLES:
                raise too_many()
            await store.put(connection, self._vault, variable, value)
            created = PolicyVariableCreated(id=id_, after=variable.snapshot())
            await self._tell(connection, variable, created)
        return Shown(variable, [])

    async def update(
        self, call: Call, variable_id: UUID, value: str, *, publish: bool, urgent: bool = False
    ) -> Shown:
        """Gives a variable another value; the one that it has changes nothing.

        Args:
            publish: the policies that name it and are in force are published with the new value,
                but for those with unpublished changes.
            urgent: freezes and windows do not count for that.

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
            if await self._has(connection, before, value):
                return Shown(before, await store.uses(connection, before))
            after = replace(
                before,
                value=None if before.is_secret else value,
                fingerprint=self._fingerprint(before.tenant_id, before.id, value)
                if before.is_secret
                else "",
                revision=before.revision + 1,
                updated_at=self._clock(),
                updated_by=call.caller.name,
            )
            await store.put(connection, self._vault, after, value)
            uses = await store.uses(connection, after)
            published = 0
            for use in uses if publish else ():
                if use.in_force and not use.changed_since_publish:
                    await self._publish(connection, call, after, use, urgent=urgent)
                    published += 1
            updated = PolicyVariableUpdated(
                id=after.id, before=before.snapshot(), after=after.snapshot(published)
            )
            await self._tell(connection, after, updated)
        if published:
            await self._changes.catch_up()
        return Shown(after, uses)

    async def delete(self, call: Call, variable_id: UUID) -> None:
        """Deletes a variable that no policy names.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION while a policy names it.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            variable = await _found(connection, scope, variable_id, for_update=True)
            check_etag(variable.etag)
            if uses := await store.uses(connection, variable):
                raise still_used(uses)
            await store.delete(connection, variable)
            deleted = PolicyVariableDeleted(id=variable.id, before=variable.snapshot())
            await self._tell(connection, variable, deleted)

    async def _publish(
        self, connection: Connection, call: Call, variable: Variable, use: Use, *, urgent: bool
    ) -> None:
        scope = Scope.of(variable.tenant_id)
        policy = await authoring_store.get_policy(
            connection, self._vault, scope, use.policy_id, for_update=True
        )
        if policy is not None:
            publishing = Publishing(urgent=urgent, keeps_rollouts=True)
            await self._policies.published(connection, call, policy, publishing)

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
