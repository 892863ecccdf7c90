"""E-mail domains: assigned by the tenant above, used by the tenant itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from uuid import UUID

from contract.events.identity.sources import (
    EmailDomainAssigned,
    EmailDomainDeleted,
    EmailDomainUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import failed_precondition, invalid_field, not_found, permission_denied
from servicekit.etags import check_etag
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.rpc.pagination import Page
from services.identity.email_domains import store
from services.identity.email_domains.domain import EmailDomain
from services.identity.sources import store as sources_store

MOST: Final = 100
"""E-mail domains that a tenant may have."""


class EmailDomains:
    """The use cases around e-mail domains."""

    def __init__(
        self, database: Database, outbox: Outbox, tenants: TenantDirectory, clock: Clock
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._clock = clock

    async def list(
        self, call: Call, org_id: UUID | None, after: str | None, limit: int
    ) -> Page[EmailDomain, str]:
        """Domains of one tenant or of the caller's subtree, behind a position."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_domains(connection, scope, after, limit)

    async def assign(self, call: Call, name: str, org_id: UUID) -> EmailDomain:
        """Assigns a domain to a tenant below the caller's.

        Raises:
            DomainError: NOT_FOUND for the tenant; PERMISSION_DENIED for the own one;
                ALREADY_EXISTS when the domain is assigned; FAILED_PRECONDITION when the tenant has
                enough of them, or another one has users with such addresses.
        """
        caller = call.caller
        tenant = await self._tenants.require(caller, org_id, to_add=True)
        self._check_above(call, tenant)
        await self._check_unused(tenant.id, name)
        domain = EmailDomain(name, tenant.id, None, caller.name, self._clock())
        scope = self._tenants.scope(UUID(caller.tenant_id))
        async with self._database.transaction(scope) as connection:
            if await store.count(connection, tenant.id) >= MOST:
                raise failed_precondition(
                    "TOO_MANY_DOMAINS", f"the tenant has {MOST} of them; take one back first"
                )
            await store.insert(connection, domain)
            event = EmailDomainAssigned(id=tenant.id, after=domain.snapshot())
            await self._outbox.append(connection, CloudEvent(event, tenant.id))
        return domain

    async def update(self, call: Call, name: str, source_id: UUID | None) -> EmailDomain:
        """Says which source of the domain's tenant people with such addresses log in with.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT for another tenant's source.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await self._found(connection, scope, name)
            check_etag(before.etag)
            if source_id is not None:
                of_tenant = Scope.of(before.tenant_id)
                source = await sources_store.source(
                    connection, of_tenant, source_id, lock="FOR SHARE"
                )
                if source is None or source.kind == "scim":
                    raise invalid_field(
                        "sourceId",
                        "must be a directory or provider of the tenant that has the domain",
                    )
            after = replace(before, source_id=source_id)
            if after == before:
                return before
            await store.set_source(connection, after)
            event = EmailDomainUpdated(
                id=after.tenant_id, before=before.snapshot(), after=after.snapshot()
            )
            await self._outbox.append(connection, CloudEvent(event, after.tenant_id))
        return after

    async def delete(self, call: Call, name: str) -> EmailDomain:
        """Takes a domain back from a tenant below the caller's.

        Raises:
            DomainError: NOT_FOUND; PERMISSION_DENIED for the own one.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            domain = await self._found(connection, scope, name)
            check_etag(domain.etag)
            tenant = await self._tenants.require(call.caller, domain.tenant_id)
            self._check_above(call, tenant)
            await store.delete(connection, domain)
            event = EmailDomainDeleted(id=tenant.id, before=domain.snapshot())
            await self._outbox.append(connection, CloudEvent(event, tenant.id))
        return domain

    @staticmethod
    def _check_above(call: Call, tenant: TenantNode) -> None:
        """Nobody says which addresses are the own ones, but the root, above which nobody is.

        Raises:
            DomainError: PERMISSION_DENIED.
        """
        if str(tenant.id) == call.caller.tenant_id and tenant.kind != "root":
            raise permission_denied(
                "DOMAINS_COME_FROM_ABOVE",
                "only an Owner of a tenant above assigns an organisation's e-mail domains",
            )

    async def _check_unused(self, tenant_id: UUID, name: str) -> None:
        """Refuses a domain in which another organisation has users: their addresses would lead into
        this one's directory. Users of the tenants above and below do not count.

        Raises:
            DomainError: FAILED_PRECONDITION.
        """
        async with self._database.system_transaction(
            "addresses are unique in the whole system"
        ) as connection:
            if await store.is_used_elsewhere(connection, tenant_id, name):
                raise failed_precondition(
                    "DOMAIN_IN_USE",
                    "domain: another organisation has users with such addresses; assign it to a"
                    " tenant above both, or change their addresses",
                )

    @staticmethod
    async def _found(connection: Connection, scope: Scope, name: str) -> EmailDomain:
        found = await store.domain(connection, scope, name.strip().lower(), for_update=True)
        if found is None:
            raise not_found("e-mail domain", name)
        return found
