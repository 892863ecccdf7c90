"""Providers: added, changed, deleted, shown on the sign-in page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from contract.events.identity.sources import (
    RefusedPerson,
    SsoLoginRefused,
    SsoProviderCreated,
    SsoProviderDeleted,
    SsoProviderUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import SYSTEM, Connection, Database, Scope
from servicekit.errors import (
    Code,
    DomainError,
    failed_precondition,
    invalid_field,
    not_found,
    permission_denied,
)
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.outgoing.wire import client_context
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from servicekit.security.sealing import Sealer
from servicekit.texts import normal_email
from services.identity.directories.domain import MOST
from services.identity.sources import store as sources_store
from services.identity.sources.checks import check_name_free, check_rows_lead_below
from services.identity.sources.domain import RoleMapping, Source, domain_of
from services.identity.sources.service import SourceAccounts
from services.identity.sso import store
from services.identity.sso.domain import (
    EMAIL_CLAIM,
    GROUPS_CLAIM,
    SCOPES,
    SESSION_HOURS,
    START,
    Provider,
    check_provider,
    scopes_of,
)

EndOfProvider = Callable[[Connection, UUID, datetime], Awaitable[object]]
"""Ends all sessions that a source opened."""


@dataclass(frozen=True, slots=True)
class Button:
    """A provider as the sign-in page shows it."""

    id: UUID
    name: str

    @property
    def start_url(self) -> str:
        """Where it leads."""
        return f"{START}?provider={self.id}"


class Providers:
    """The use cases around providers.

    Args:
        end_sessions: ends the sessions that a provider opened.
        insecure: whether a provider on this machine may be without TLS.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        accounts: SourceAccounts,
        sealer: Sealer,
        end_sessions: EndOfProvider,
        clock: Clock,
        *,
        insecure: bool,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._accounts = accounts
        self._sealer = sealer
        self._end_sessions = end_sessions
        self._clock = clock
        self._insecure = insecure

    def secret(self, provider: Provider) -> str:
        """The secret of the client.

        Raises:
            SealingError: the master key is not the one that sealed it.
        """
        return self._sealer.open(provider.sealed_secrets).decode()

    async def list(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> Page[Provider, UUID]:
        """Providers of one tenant or of the caller's subtree, behind a position."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_providers(connection, scope, after, limit)

    async def get(self, call: Call, provider_id: UUID) -> Provider:
        """One provider of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            return await self._found(connection, scope, provider_id)

    async def again(self, session_id: UUID) -> Button | None:
        """The provider that opened a session, and can ask its user once more."""
        async with self._database.system_transaction(
            "a provider may be of a tenant above"
        ) as connection:
            found = await store.of_session(connection, session_id)
        return Button(*found) if found else None

    async def buttons(self, org: str, email: str) -> Sequence[Button]:
        """What a sign-in page shows: the installation's providers, those of the organisation with
        a code and of those above it, and the one of an address's domain. Whether there is such a
        user plays no part.

        Args:
            org: the code of a tenant; empty for none.
            email: an address; empty for none.
        """
        domain = domain_of(normal_email(email))
        async with self._database.system_transaction(
            "who signs in is of no tenant yet"
        ) as connection:
            tenant_id = await store.tenant_of_code(connection, org) if org else None
            rows = await store.shown(connection, self.upwards(tenant_id), domain)
        return [Button(provider_id, name) for provider_id, name in rows]

    async def are_found_by_email(self) -> bool:
        """Whether there are providers that people find by their addresses."""
        async with self._database.system_transaction(
            "who signs in is of no tenant yet"
        ) as connection:
            return await store.has_domains(connection)

    async def create(
        self,
        call: Call,
        org_id: UUID | None,
        name: str,
        secret: str,
        mappings: tuple[RoleMapping, ...],
        *,
        enabled: bool,
        session_hours: int,
        scopes: Sequence[str],
        login_button: bool | None,
        given: dict[str, Any],
    ) -> Provider:
        """Adds a provider.

        Args:
            given: the other attributes of a `Provider`; empty claims are the usual ones.

        Raises:
            DomainError: NOT_FOUND for the tenant; INVALID_ARGUMENT; PERMISSION_DENIED for a button
                that everybody sees; ALREADY_EXISTS when another one of the tenant has the name;
                FAILED_PRECONDITION when the tenant has enough of them.
        """
        own = UUID(call.caller.tenant_id)
        tenant = await self._tenants.require(call.caller, org_id or own, to_add=True)
        at = self._clock()
        from_root = self._is_roots(call)
        provider = Provider(
            source=Source(
                id=new_id(),
                tenant_id=tenant.id,
                kind="sso",
                name=name,
                enabled=enabled,
                grace=timedelta(hours=session_hours or SESSION_HOURS),
                created_at=at,
                updated_at=at,
            ),
            sealed_secrets=self._sealer.seal(secret.encode()),
            scopes=scopes_of(scopes or SCOPES),
            login_button=from_root if login_button is None else login_button,
            mappings=mappings,
            **given,
        )
        provider = replace(
            provider,
            groups_claim=provider.groups_claim or GROUPS_CLAIM,
            email_claim=provider.email_claim or EMAIL_CLAIM,
        )
        self._check(provider)
        self._check_button(call, shown=provider.login_button)
        scope = self._tenants.scope(own)
        async with self._database.transaction(scope) as connection:
            if await sources_store.count_sources(connection, tenant.id) >= MOST:
                raise failed_precondition(
                    "TOO_MANY_PROVIDERS",
                    f"the tenant has {MOST} directories and providers; delete one first",
                )
            check_rows_lead_below(
                self._tenants, provider.source, provider.mappings, provider.mappings, "provider"
            )
            await check_name_free(connection, provider.source, "provider")
            await store.insert(connection, provider)
            event = SsoProviderCreated(id=provider.id, after=provider.snapshot())
            await self._outbox.append(connection, CloudEvent(event, tenant.id))
        return provider

    async def update(
        self,
        call: Call,
        provider_id: UUID,
        change: Callable[[Provider], Provider],
        secret: str | None,
    ) -> Provider:
        """Changes a provider; its users have at once no more than it gives from now on.

        Args:
            change: makes of the provider what it is to be.
            secret: another one; `None` to keep it.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT; PERMISSION_DENIED and ALREADY_EXISTS as
                `create`.
        """
        scope = await self._tenants.query_scope(call.caller)
        at = self._clock()
        async with self._database.transaction(scope) as connection:
            before = await self._found(connection, scope, provider_id, lock="FOR UPDATE")
            check_etag(before.etag)
            after = change(before)
            if secret is not None and secret != self.secret(before):
                after = replace(after, sealed_secrets=self._sealer.seal(secret.encode()))
            if after == before:
                return before
            self._check(after)
            if after.login_button != before.login_button:
                self._check_button(call, shown=after.login_button)
            renamed = after.source.name != before.source.name
            if renamed:
                await check_name_free(connection, after.source, "provider")
            if after.login_button and (renamed or _leads_elsewhere(before, after)):
                # Everybody reads the name, and is led there.
                self._check_button(call, shown=True)
            new = [row for row in after.mappings if row not in before.mappings]
            check_rows_lead_below(self._tenants, after.source, after.mappings, new, "provider")
            if secret is None and _leads_elsewhere(before, after):
                raise invalid_field(
                    "clientSecret",
                    "is required where issuer, clientId or caPem change: it would be sent there",
                )
            if before.users and before.issuer != after.issuer:
                raise invalid_field("issuer", "cannot change while users come from the provider")
            later = before.source.updated_at + timedelta(microseconds=1)
            after = replace(after, source=replace(after.source, updated_at=max(at, later)))
            await store.update(connection, after)
            if after.mappings != before.mappings:
                await self._accounts.remap(connection, after.source, at)
            if before.source.enabled and not after.source.enabled:
                await self._end_sessions(connection, after.id, at)
                await self._accounts.end_tokens(connection, after.source)
            event = SsoProviderUpdated(
                id=after.id, before=before.snapshot(), after=after.snapshot()
            )
            await self._outbox.append(connection, CloudEvent(event, after.source.tenant_id))
        await self._tenants.follower.try_refresh()
        return after

    async def delete(self, call: Call, provider_id: UUID) -> Provider:
        """Deletes a provider; its users are disabled.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        at = self._clock()
        async with self._database.transaction(scope) as connection:
            provider = await self._found(connection, scope, provider_id, lock="FOR UPDATE")
            check_etag(provider.etag)
            await self._end_sessions(connection, provider.id, at)
            await self._accounts.release(connection, provider.source, at)
            await sources_store.delete_source(connection, provider.source)
            event = SsoProviderDeleted(id=provider.id, before=provider.snapshot())
            await self._outbox.append(connection, CloudEvent(event, provider.source.tenant_id))
        await self._tenants.follower.try_refresh()
        return provider

    async def forget_used(self) -> None:
        """Deletes what works once and is too old to work."""
        async with self._database.system_transaction("what works once is nobody's") as connection:
            await store.forget_used(connection, self._clock())

    async def in_use(self, provider_id: UUID | None, domain: str) -> Provider:
        """A provider that is in use, of a tenant that is.

        Raises:
            DomainError: NOT_FOUND.
        """
        async with self._database.system_transaction(
            "who signs in is of no tenant yet"
        ) as connection:
            one = provider_id
            if one is None and domain:
                one = await sources_store.source_of_domain(connection, domain)
            found = await store.provider(connection, SYSTEM, one) if one is not None else None
        if found is not None and found.source.enabled:
            tenant = self._tenants.known(found.source.tenant_id)
            if tenant is not None and tenant.status == "active":
                return found
        raise DomainError(
            Code.NOT_FOUND,
            "NO_PROVIDER",
            "nobody signs in there; check the address, or ask your administrator",
        )

    def is_of_root(self, provider: Provider) -> bool:
        """Whether a provider is the root tenant's."""
        tenant = self._tenants.known(provider.source.tenant_id)
        return tenant is not None and tenant.kind == "root"

    async def tell_refusal(self, provider: Provider, email: str, reason: str) -> None:
        """Tells the log of a provider's tenant whom it did not let in, and why."""
        source = provider.source
        async with self._database.transaction(Scope.of(source.tenant_id)) as connection:
            event = SsoLoginRefused(
                id=source.id, after=RefusedPerson(email=email, reason=reason, source=source.id)
            )
            await self._outbox.append(
                connection, CloudEvent(event, source.tenant_id, source.actor, str(source.id))
            )

    def top_of(self, provider: Provider) -> UUID:
        """The tenant below the root that has a provider or is above the one that has; of the root's
        own providers the root."""
        line = self._tenants.line(provider.source.tenant_id)
        return line[:2][-1].id if line else provider.source.tenant_id

    def upwards(self, tenant_id: UUID | None) -> Sequence[UUID]:
        """A tenant and those above it."""
        found = []
        while tenant_id is not None:
            found.append(tenant_id)
            node = self._tenants.known(tenant_id)
            tenant_id = node.parent_id if node is not None else None
        return found

    async def _found(
        self, connection: Connection, scope: Scope, provider_id: UUID, *, lock: str = ""
    ) -> Provider:
        found = await store.provider(connection, scope, provider_id, lock=lock, counted=True)
        if found is None:
            raise not_found("provider", provider_id)
        return found

    def _check(self, provider: Provider) -> None:
        check_provider(provider, insecure=self._insecure)
        try:
            client_context(provider.ca_pem, "", "")
        except ValueError as broken:
            raise invalid_field("caPem", "must be certificates in PEM") from broken

    def _is_roots(self, call: Call) -> bool:
        own = self._tenants.known(UUID(call.caller.tenant_id))
        return own is not None and own.kind == "root"

    def _check_button(self, call: Call, *, shown: bool) -> None:
        """Nobody writes on the page that all organisations see but the root tenant's Owners.

        Raises:
            DomainError: PERMISSION_DENIED.
        """
        if shown and not self._is_roots(call):
            raise permission_denied(
                "BUTTONS_COME_FROM_ROOT",
                "only an Owner of the root tenant shows a button on everybody's sign-in page,"
                " renames it or leads it elsewhere; yours is at /login?org=CODE",
            )


def _leads_elsewhere(before: Provider, after: Provider) -> bool:
    """Whether the secret would go to somebody else."""
    return (before.issuer, before.client_id, before.ca_pem) != (
        after.issuer,
        after.client_id,
        after.ca_pem,
    )
