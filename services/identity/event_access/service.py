"""Credentials of programs that read a tenant's events from NATS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from contract.events.identity.programs import (
    EventCredentialCreated,
    EventCredentialOrphaned,
    EventCredentialRevoked,
    EventCredentialTakenOver,
)
from contract.subjects import SUBJECT_ROOT
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import failed_precondition, invalid_field, not_found
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from servicekit.security.digests import equal
from servicekit.security.tokens import new_secret, secret_hash
from services.identity.event_access import store
from services.identity.event_access.domain import (
    CREDENTIAL_LIFE,
    CREDENTIAL_LIFE_MAX,
    EventCredential,
)
from services.identity.users.domain import User

MOST: Final = 20
"""Working credentials that a tenant may have; each costs NATS a consumer on each stream."""
_NOTE_EVERY: Final = timedelta(minutes=1)


class EventCredentials:
    """The use cases around event credentials."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        directory: TenantDirectory,
        changed: Callable[[], None] | None,
        clock: Clock,
    ) -> None:
        """`changed` is called after each change; `None` where NATS takes no integrators."""
        self._database = database
        self._outbox = outbox
        self._directory = directory
        self._changed = changed
        self._clock = clock

    async def list(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> Page[EventCredential, UUID]:
        """Credentials of one tenant or of the caller's subtree, behind a position."""
        scope = await self._directory.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_credentials(connection, scope, after, limit)

    async def create(
        self, call: Call, tenant_id: UUID | None, name: str, expires_at: datetime | None
    ) -> tuple[EventCredential, str]:
        """Adds a credential; answers it and its secret.

        Raises:
            DomainError: NOT_FOUND for the tenant; INVALID_ARGUMENT for a time that is over or too
                far; FAILED_PRECONDITION when the tenant has enough of them, or NATS takes none.
        """
        if self._changed is None:
            raise failed_precondition(
                "NO_INTEGRATORS", "this installation does not offer events to integrators"
            )
        at = self._clock()
        expires = expires_at or at + CREDENTIAL_LIFE
        if expires <= at:
            raise invalid_field("expiresAt", "must be in the future")
        if expires > at + CREDENTIAL_LIFE_MAX:
            raise invalid_field(
                "expiresAt", f"must be at most {CREDENTIAL_LIFE_MAX.days} days away"
            )
        caller = call.caller
        own = UUID(caller.tenant_id)
        tenant = await self._directory.require(caller, tenant_id or own, to_add=True)
        credential = EventCredential(
            id=new_id(),
            tenant_id=tenant.id,
            name=name,
            created_at=at,
            created_by=caller.name,
            expires_at=expires,
            held_by=caller.name,
            holder_id=UUID(caller.id),
        )
        secret = new_secret()
        scope = self._directory.scope(own)
        async with self._database.transaction(scope) as connection:
            if await store.lock_and_count(connection, tenant.id, at) >= MOST:
                raise failed_precondition(
                    "TOO_MANY_CREDENTIALS", f"the tenant has {MOST} of them; revoke one first"
                )
            await store.insert(connection, credential, secret_hash(secret))
            await self._outbox.append(
                connection,
                CloudEvent(
                    EventCredentialCreated(id=credential.id, after=credential.snapshot()),
                    tenant.id,
                ),
            )
        self._changed()
        return credential, secret

    async def take_over(self, call: Call, credential_id: UUID) -> EventCredential:
        """Makes the caller a credential's holder; one that was orphaned works again.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION for one that was revoked or has expired.
        """
        caller = call.caller
        scope = await self._directory.query_scope(caller)
        async with self._database.transaction(scope) as connection:
            before = await store.credential(connection, scope, credential_id, for_update=True)
            if before is None:
                raise not_found("event credential", credential_id)
            check_etag(before.etag)
            if (status := before.status(self._clock())) in {"revoked", "expired"}:
                raise failed_precondition("CREDENTIAL_ENDED", f"it is {status}; make a new one")
            after = replace(
                before, holder_id=UUID(caller.id), held_by=caller.name, orphaned_at=None
            )
            if after == before:
                return before
            await store.take_over(connection, after.id, UUID(caller.id), after.held_by)
            await self._outbox.append(
                connection,
                CloudEvent(
                    EventCredentialTakenOver(
                        id=after.id, before=before.snapshot(), after=after.snapshot()
                    ),
                    after.tenant_id,
                ),
            )
        if self._changed is not None:
            self._changed()
        return after

    async def revoke(self, call: Call, credential_id: UUID) -> EventCredential:
        """Revokes a credential; answers it, also when it was revoked before.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._directory.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            before = await store.credential(connection, scope, credential_id, for_update=True)
            if before is None:
                raise not_found("event credential", credential_id)
            check_etag(before.etag)
            if before.revoked_at is not None:
                return before
            at = self._clock()
            after = replace(before, revoked_at=at)
            await store.revoke(connection, after.id, at)
            await self._outbox.append(
                connection,
                CloudEvent(
                    EventCredentialRevoked(
                        id=after.id, before=before.snapshot(), after=after.snapshot()
                    ),
                    after.tenant_id,
                ),
            )
        if self._changed is not None:
            self._changed()
        return after

    async def orphan(
        self, connection: Connection, holder: User, at: datetime, but: Scope | None = None
    ) -> None:
        """Ends the credentials of a user who leaves, in the transaction in which that happens.

        The gatekeeper cuts their connections.

        Args:
            but: the tenants that the user still sees; their credentials go on.
        """
        if but is not None and but.tenant_ids is None:
            return
        for after in await store.orphan(connection, holder.id, holder.email, at, but):
            orphaned = EventCredentialOrphaned(
                id=after.id,
                before=replace(after, orphaned_at=None).snapshot(),
                after=after.snapshot(),
            )
            await self._outbox.append(connection, CloudEvent(orphaned, after.tenant_id))

    async def admit(self, user: str, secret: str) -> EventCredential | None:
        """The credential that a program shows to NATS, if it is one that works."""
        try:
            credential_id = UUID(user)
        except ValueError:
            return None
        at = self._clock()
        async with self._database.system_transaction(
            "a login to NATS names no tenant"
        ) as connection:
            found = await store.working_one(connection, credential_id, at)
            if found is None or str(credential_id) != user:
                return None
            credential, expected = found
            if not equal(expected, secret_hash(secret)):
                return None
            await store.note_use(connection, credential_id, at, _NOTE_EVERY)
        return credential

    async def readers(self) -> dict[str, frozenset[str]]:
        """The subjects that each working credential reads, by its id: its tenant's subtree."""
        async with self._database.system_transaction(
            "integrators of all tenants read events"
        ) as connection:
            working = await store.working(connection, self._clock())
        return {str(found): self._subjects(tenant_id) for found, tenant_id in working}

    def _subjects(self, tenant_id: UUID) -> frozenset[str]:
        tenants = self._directory.scope(tenant_id).tenant_ids
        if tenants is None:
            return frozenset({f"{SUBJECT_ROOT}.>"})
        return frozenset(f"{SUBJECT_ROOT}.{tenant}.>" for tenant in tenants)
