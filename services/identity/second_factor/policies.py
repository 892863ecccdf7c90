"""How people of a tenant log in: whom it asks for a second factor, and who has passwords here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final
from uuid import UUID

from contract.events.identity.sign_in import SignInPolicyUpdated
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import failed_precondition, invalid_field, not_found
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from services.identity.second_factor import store
from services.identity.second_factor.domain import LocalLogin, Mfa, Policy
from services.identity.second_factor.service import SecondFactors
from services.identity.sources import store as sources_store
from services.identity.tenants import store as tenants_store
from services.identity.users import store as users_store

_GRACE_DAYS: Final = 14


@dataclass(frozen=True, slots=True)
class FoundPolicy:
    """A tenant's policy, and what counts for its people."""

    own: Policy
    counting: Sequence[Policy]
    """Its own and those above it."""
    only_owners: bool
    """Whether only Owners log in with what they have here, at this moment."""
    local_only: int
    """Of the tenant and all below, how many others have nothing else."""


class SignInPolicies:
    """The use cases around them."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        factors: SecondFactors,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._factors = factors
        self._clock = clock

    async def get(self, call: Call, tenant_id: UUID) -> FoundPolicy:
        """A tenant's policy, and what counts for its people.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            return await self._found(connection, scope, tenant_id)

    async def update(
        self,
        call: Call,
        tenant_id: UUID,
        mfa: Mfa | None,
        grace_days: int | None,
        local_login: LocalLogin | None,
    ) -> FoundPolicy:
        """Changes a tenant's policy. The same again changes nothing.

        Args:
            mfa: whom to ask; `None` for those who are asked already.
            grace_days: how many days from now they get in without; `None` for the days that are
                left, or for the usual ones where others are asked. Where others are asked, the days
                are theirs alone.
            local_login: who logs in with what they have here; `None` for no change.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT when nothing is given; FAILED_PRECONDITION
                when the caller would be asked and has none.
        """
        if mfa is None and grace_days is None and local_login is None:
            raise invalid_field("mfa", "must be given, or graceDays, or localLogin")
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = (await self._found(connection, scope, tenant_id, for_update=True)).own
            at = self._clock()
            after = replace(before, updated_at=at)
            since = at + timedelta(days=_GRACE_DAYS if grace_days is None else grace_days)
            if mfa is not None and mfa != before.mfa:
                after = after.for_others(mfa, since)
            elif grace_days is not None:
                after = replace(after, required_from=since, earlier={})
            if after.snapshot() != before.snapshot():
                await self._check_own(connection, call, after)
            after = replace(after, local_login=local_login or before.local_login)
            if after.snapshot() != before.snapshot():
                await store.write_policy(connection, after)
                await self._outbox.append(
                    connection,
                    CloudEvent(
                        SignInPolicyUpdated(
                            id=tenant_id, before=before.snapshot(), after=after.snapshot()
                        ),
                        tenant_id,
                    ),
                )
            return await self._found(connection, scope, tenant_id)

    async def _found(
        self, connection: Connection, scope: Scope, tenant_id: UUID, *, for_update: bool = False
    ) -> FoundPolicy:
        tenant = await tenants_store.tenant(connection, scope, tenant_id, for_update=for_update)
        if tenant is None:
            raise not_found("tenant", tenant_id)
        counting = await store.policies(connection, tenant_id)
        nothing = Policy(tenant_id, "off", tenant.created_at, tenant.created_at)
        own = next((p for p in counting if p.tenant_id == tenant_id), nothing)
        only_owners = await sources_store.only_owners_log_in_here(connection, tenant_id)
        local_only = await sources_store.count_local_only(connection, tenant_id)
        return FoundPolicy(own, counting, only_owners, local_only)

    async def _check_own(self, connection: Connection, call: Call, policy: Policy) -> None:
        """Nobody locks themselves out by a rule that they do not keep.

        Raises:
            DomainError: FAILED_PRECONDITION.
        """
        caller = call.caller
        if policy.tenant_id != UUID(caller.tenant_id) or caller.role is None:
            return
        scope = Scope.of(policy.tenant_id)
        user = await users_store.user(connection, scope, UUID(caller.id))
        if not policy.asks(caller.role) or user is None:
            return
        if not (await self._factors.of(connection, user)).any:
            raise failed_precondition(
                "SET_UP_YOURS_FIRST",
                "this asks you, too, for a second factor: set one up first, at /auth/account",
            )
