"""Credentials of programs that read a tenant's events from NATS."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from servicekit.call import Call
from servicekit.errors import failed_precondition, invalid_field, not_found
from servicekit.events import Event
from servicekit.ids import Clock, new_id
from servicekit.outbox import Outbox
from servicekit.postgres import Database
from servicekit.streams import SUBJECT_ROOT
from servicekit.tenants import TenantDirectory
from services.identity import credential_store as store
from services.identity.domain import EventCredential, new_secret, secret_hash

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
        self, call: Call, org_id: str, after: UUID | None, limit: int
    ) -> list[EventCredential]:
        """Credentials of one tenant or of the caller's subtree, behind a position."""
        scope = await self._directory.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.page(connection, scope, after, limit)

    async def create(
        self, call: Call, tenant_id: str, name: str, expires_at: datetime | None
    ) -> tuple[EventCredential, str]:
        """Adds a credential; answers it and its secret.

        Raises:
            DomainError: NOT_FOUND for the tenant; INVALID_ARGUMENT for a time that is over;
                FAILED_PRECONDITION when the tenant has enough of them, or NATS takes none.
        """
        if self._changed is None:
            raise failed_precondition(
                "NO_INTEGRATORS", "this installation gives no events to integrators"
            )
        at = self._clock()
        if expires_at is not None and expires_at <= at:
            raise invalid_field("expiresAt", "must be in the future")
        caller = call.caller
        tenant = await self._directory.require(caller, tenant_id or caller.tenant_id)
        credential = EventCredential(new_id(), tenant.id, name, at, caller.name, expires_at)
        secret = new_secret()
        scope = self._directory.scope(UUID(caller.tenant_id))
        async with self._database.transaction(scope) as connection:
            if await store.lock_and_count(connection, tenant.id, at) >= MOST:
                raise failed_precondition(
                    "TOO_MANY_CREDENTIALS", f"the tenant has {MOST} of them; revoke one first"
                )
            await store.insert(connection, credential, secret_hash(secret))
            await self._outbox.append(
                connection,
                Event(
                    "identity.event_credential_created",
                    tenant.id,
                    f"event-credentials/{credential.id}",
                    after=credential.audit(),
                ),
            )
        self._changed()
        return credential, secret

    async def revoke(self, call: Call, credential_id: str) -> EventCredential:
        """Revokes a credential; answers it, also when it was revoked before.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._directory.query_scope(call.caller, "")
        async with self._database.transaction(scope) as connection:
            before = await store.get(connection, UUID(credential_id))
            if before is None:
                raise not_found("event credential", credential_id)
            if before.revoked_at is not None:
                return before
            at = self._clock()
            after = replace(before, revoked_at=at)
            await store.revoke(connection, after.id, at)
            await self._outbox.append(
                connection,
                Event(
                    "identity.event_credential_revoked",
                    after.tenant_id,
                    f"event-credentials/{after.id}",
                    before=before.audit(),
                    after=after.audit(),
                ),
            )
        if self._changed is not None:
            self._changed()
        return after

    async def admit(self, user: str, secret: str) -> EventCredential | None:
        """The credential that a program shows to NATS, if it is one that works."""
        try:
            credential_id = UUID(user)
        except ValueError:
            return None
        at = self._clock()
        async with self._database.transaction() as connection:
            found = await store.secret_of(connection, credential_id)
            if found is None or str(credential_id) != user:
                return None
            credential, expected = found
            if not hmac.compare_digest(expected, secret_hash(secret)) or not credential.works(at):
                return None
            await store.note_use(connection, credential_id, at, _NOTE_EVERY)
        return credential

    async def readers(self) -> dict[str, frozenset[str]]:
        """The subjects that each working credential reads, by its id: its tenant's subtree."""
        async with self._database.transaction() as connection:
            working = await store.working(connection, self._clock())
        return {str(found): self._subjects(tenant_id) for found, tenant_id in working}

    def _subjects(self, tenant_id: UUID) -> frozenset[str]:
        tenants = self._directory.scope(tenant_id).tenant_ids
        if tenants is None:
            return frozenset({f"{SUBJECT_ROOT}.>"})
        return frozenset(f"{SUBJECT_ROOT}.{tenant}.>" for tenant in tenants)
