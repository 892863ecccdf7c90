"""SCIM sources: added, changed, deleted, confirmed; and what is left undone, done later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from contract.events.identity.scim import (
    ScimHolding,
    ScimSourceConfirmed,
    ScimSourceCreated,
    ScimSourceDeleted,
    ScimSourceUpdated,
)
from servicekit.call import Call
from servicekit.data.postgres import SYSTEM, Connection, Database, Scope
from servicekit.data.quarantine import ROW_ERRORS, note, place
from servicekit.errors import failed_precondition, not_found
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from services.identity.api_tokens.ends import end_tokens_of_source
from services.identity.directories.domain import MOST
from services.identity.scim import people_store, standing_store, store
from services.identity.scim.domain import (
    MOST_NEW_ACCOUNTS,
    PENDING,
    UNLINKED,
    ListedPerson,
    ScimSource,
)
from services.identity.scim.settling import Settling
from services.identity.sources import store as sources_store
from services.identity.sources.checks import check_name_free, check_rows_lead_below
from services.identity.sources.domain import RoleMapping, Source, check_mappings
from services.identity.sources.service import SourceAccounts
from services.identity.tenants import store as tenants_store
from services.identity.users import store as users_store
from services.identity.users.domain import check_not_self

_PLACE = place("identity", "scim")
_NOBODY = UUID(int=0)
"""Before all people of a source."""
_REMAP_SECONDS = 10.0
"""How long a change of mappings waits for more than the first batch."""
_GRACE = timedelta(hours=1)
"""What a source needs to have and SCIM's does not use: it confirms nobody."""


class ScimSources:
    """The use cases around SCIM sources."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        accounts: SourceAccounts,
        settling: Settling,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._accounts = accounts
        self._settling = settling
        self._clock = clock

    async def list(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> Page[ScimSource, UUID]:
        """Sources of one tenant or of the caller's subtree, behind a position."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_sources(connection, scope, after, limit)

    async def get(self, call: Call, source_id: UUID) -> ScimSource:
        """One source of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            return await self._found(connection, scope, source_id)

    async def people(
        self, call: Call, source_id: UUID, after: UUID | None, limit: int
    ) -> Page[ListedPerson, UUID]:
        """People of a source of the caller's subtree, behind a position.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            await self._found(connection, scope, source_id)
            return await people_store.listed_people(connection, source_id, after, limit)

    async def create(
        self,
        call: Call,
        org_id: UUID | None,
        name: str,
        mappings: tuple[RoleMapping, ...],
        *,
        enabled: bool,
    ) -> ScimSource:
        """Adds a source.

        Raises:
            DomainError: NOT_FOUND for the tenant; INVALID_ARGUMENT; ALREADY_EXISTS when another one
                of the tenant has the name; FAILED_PRECONDITION when the tenant has enough of them.
        """
        own = UUID(call.caller.tenant_id)
        tenant = await self._tenants.require(call.caller, org_id or own, to_add=True)
        at = self._clock()
        source = ScimSource(
            source=Source(
                id=new_id(),
                tenant_id=tenant.id,
                kind="scim",
                name=name,
                enabled=enabled,
                grace=_GRACE,
                created_at=at,
                updated_at=at,
            ),
            mappings=mappings,
        )
        check_mappings(mappings)
        async with self._database.transaction(self._tenants.scope(own)) as connection:
            if await sources_store.count_sources(connection, tenant.id) >= MOST:
                raise failed_precondition(
                    "TOO_MANY_SOURCES",
                    f"the tenant has {MOST} directories, providers and SCIM sources; delete one"
                    " first",
                )
            check_rows_lead_below(self._tenants, source.source, mappings, mappings, "source")
            await check_name_free(connection, source.source, "SCIM source")
            await store.insert_source(connection, source)
            event = ScimSourceCreated(id=source.id, after=source.snapshot())
            await self._outbox.append(connection, CloudEvent(event, tenant.id))
        return source

    async def update(
        self, call: Call, source_id: UUID, change: Callable[[ScimSource], ScimSource]
    ) -> ScimSource:
        """Changes a source; other mappings take and give at once.

        Args:
            change: makes of the source what it is to be.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT; ALREADY_EXISTS as `create`.
        """
        scope = await self._tenants.query_scope(call.caller)
        at = self._clock()
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            before = await self._found(connection, scope, source_id, lock="FOR UPDATE")
            check_etag(before.etag)
            after = change(before)
            if after == before:
                return before
            check_mappings(after.mappings)
            if after.source.name != before.source.name:
                await check_name_free(connection, after.source, "SCIM source")
            new = [row for row in after.mappings if row not in before.mappings]
            check_rows_lead_below(self._tenants, after.source, after.mappings, new, "source")
            later = before.source.updated_at + timedelta(microseconds=1)
            after = replace(after, source=replace(after.source, updated_at=max(at, later)))
            await store.update_source(connection, after)
            event = ScimSourceUpdated(id=after.id, before=before.snapshot(), after=after.snapshot())
            await self._outbox.append(connection, CloudEvent(event, after.source.tenant_id))
            more = after.mappings != before.mappings
            if more:
                await store.note_remapped(connection, after.id, _NOBODY)
                more = await self._settling.remap(connection, after.source, at)
            after = await self._found(connection, scope, source_id)
        if more:
            await self._remap_on(source_id)
            after = await self.get(call, source_id)
        await self._tenants.follower.try_refresh()
        return after

    async def _remap_on(self, source_id: UUID) -> None:
        """Carries a change of mappings on, for a while; `go_on` does the rest."""
        until = asyncio.get_running_loop().time() + _REMAP_SECONDS
        while await self._remap(source_id):
            if asyncio.get_running_loop().time() > until:
                return

    async def _remap(self, source_id: UUID) -> bool:
        """Carries a change of mappings out for some more people; answers whether there are more."""
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            source = await store.source(connection, SYSTEM, source_id, lock="FOR UPDATE")
            if source is None:
                return False
            return await self._settling.remap(connection, source.source, self._clock())

    async def unlink(self, call: Call, source_id: UUID, user_id: UUID) -> ScimSource:
        """Takes a user out of a source: the account is local again, and disabled until it is
        invited or deleted. The source changes it no more.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION for oneself.
        """
        scope = await self._tenants.query_scope(call.caller)
        at = self._clock()
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            source = await self._found(connection, scope, source_id, lock="FOR UPDATE")
            await users_store.take_turns(connection)
            user = await users_store.user(connection, scope, user_id, for_update=True)
            subject = await sources_store.subject(connection, source_id, user_id)
            if user is None or user.origin != "scim" or subject is None:
                raise not_found("user of the SCIM source", user_id)
            check_not_self(call.caller.id, user)
            await self._accounts.unlink(connection, source.source, user, at)
            await standing_store.write_problems(connection, {UUID(subject): UNLINKED})
            await self._settling.note_held(connection, source.source)
            after = await self._found(connection, scope, source_id)
        await self._tenants.follower.try_refresh()
        return after

    async def delete(self, call: Call, source_id: UUID) -> ScimSource:
        """Deletes a source with its tokens; its users are disabled.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        at = self._clock()
        async with self._database.system_transaction(
            "its users may have moved below"
        ) as connection:
            source = await self._found(connection, scope, source_id, lock="FOR UPDATE")
            check_etag(source.etag)
            await self._outbox.append(
                connection, *await end_tokens_of_source(connection, source.id)
            )
            await self._accounts.release(connection, source.source, at)
            await sources_store.delete_source(connection, source.source)
            event = ScimSourceDeleted(id=source.id, before=source.snapshot())
            await self._outbox.append(connection, CloudEvent(event, source.source.tenant_id))
        await self._tenants.follower.try_refresh()
        return source

    async def confirm(self, call: Call, source_id: UUID, users: int) -> ScimSource:
        """Lets a source take access from those who were held.

        Args:
            users: from how many at most.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when nobody is held, or more are.
        """
        scope = await self._tenants.query_scope(call.caller)
        at = self._clock()
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            source = await self._found(connection, scope, source_id, lock="FOR UPDATE")
            held = await standing_store.held_people(connection, source_id)
            if not held:
                raise failed_precondition("NOTHING_HELD", "nobody is held")
            if len(held) > users:
                raise failed_precondition(
                    "MORE_HELD", f"{len(held)} users would lose access by now; confirm that number"
                )
            event = ScimSourceConfirmed(
                id=source.id, after=ScimHolding(name=source.source.name, users=len(held))
            )
            await self._outbox.append(connection, CloudEvent(event, source.source.tenant_id))
            await self._settling.settle(connection, source.source, held, at, allowed=len(held))
            await sources_store.forget_losses(connection, source_id)
            after = await self._found(connection, scope, source_id)
        await self._tenants.follower.try_refresh()
        return after

    async def go_on(self) -> None:
        """Carries on changes of mappings, makes accounts that wait for their turn, looks again at
        those who are held and at those whose problem others have solved, and forgets people of whom
        nothing is left."""
        async with self._database.system_transaction(
            "sources of all tenants have something left to do"
        ) as connection:
            await people_store.forget_gone(connection)
            await standing_store.note_disabled(connection)
            left = await store.unsettled(connection)
        for source_id in left:
            try:
                while await self._remap(source_id):
                    pass
                while await self._go_on(source_id):
                    pass
            except ROW_ERRORS as error:
                # The others go on; this one is tried again at the next look.
                note(_PLACE, source_id, error)

    async def _go_on(self, source_id: UUID) -> bool:
        """Does a part of what a source has left; answers whether there is more of it."""
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            source = await store.source(connection, SYSTEM, source_id, lock="FOR UPDATE")
            if source is None or not source.source.enabled:
                return False
            waiting = await standing_store.people_with(
                connection, source_id, PENDING, MOST_NEW_ACCOUNTS
            )
            own = await tenants_store.below(
                connection,
                source.source.tenant_id,
                await standing_store.tenants_of_domains(connection),
            )
            freed = await standing_store.freed_people(
                connection, source_id, sorted(own), MOST_NEW_ACCOUNTS
            )
            held = await standing_store.held_people(connection, source_id)
            people = [*waiting, *freed, *held]
            await self._settling.settle(connection, source.source, people, self._clock())
        if waiting or freed:
            await self._tenants.follower.try_refresh()
        return len(waiting) == MOST_NEW_ACCOUNTS

    async def _found(
        self, connection: Connection, scope: Scope, source_id: UUID, *, lock: str = ""
    ) -> ScimSource:
        found = await store.source(connection, scope, source_id, lock=lock)
        if found is None:
            raise not_found("SCIM source", source_id)
        return found
