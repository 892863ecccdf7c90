"""Directories: added, changed, deleted, tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from contract.events.identity.sources import DirectoryCreated, DirectoryDeleted, DirectoryUpdated
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import failed_precondition, invalid_field, not_found
from servicekit.etags import check_etag
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.outgoing.guard import Guard
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.pagination import Page
from servicekit.security.sealing import Sealer
from services.identity.directories import store
from services.identity.directories.asking import Settings, context_for, filter_fault
from services.identity.directories.domain import (
    GRACE_HOURS,
    MOST,
    READINGS,
    SYNC_MINUTES,
    SYNC_MINUTES_LEAST,
    Directory,
    Kind,
    Tls,
    check_mappings,
    check_urls,
    tls_of,
)
from services.identity.directories.threads import DirectoryThreads
from services.identity.sources import store as sources_store
from services.identity.sources.checks import check_name_free, check_rows_lead_below
from services.identity.sources.domain import RoleMapping, Source
from services.identity.sources.service import SourceAccounts


class Directories:
    """The use cases around directories."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        accounts: SourceAccounts,
        threads: DirectoryThreads,
        sealer: Sealer,
        clock: Clock,
        *,
        guard: Guard,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._accounts = accounts
        self._threads = threads
        self._sealer = sealer
        self._clock = clock
        self._guard = guard

    def settings(self, directory: Directory) -> Settings:
        """What a conversation with a directory needs.

        Raises:
            SealingError: the master key is not the one that sealed the password.
        """
        root = self._tenants.known(directory.source.tenant_id)
        return Settings(
            urls=directory.urls,
            starttls=directory.tls == "starttls",
            ca_pem=directory.ca_pem,
            bind_dn=directory.bind_dn,
            bind_password=self._sealer.open(directory.sealed_secrets).decode(),
            base_dn=directory.base_dn,
            group_base_dn=directory.group_base_dn,
            reading=directory.reading,
            groups=directory.groups,
            guard=self._guard,
            root=root is not None and root.kind == "root",
        )

    async def list(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> Page[Directory, UUID]:
        """Directories of one tenant or of the caller's subtree, behind a position."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        async with self._database.transaction(scope) as connection:
            return await store.list_directories(connection, scope, after, limit)

    async def get(self, call: Call, directory_id: UUID) -> Directory:
        """One directory of the caller's subtree.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            return await self._found(connection, scope, directory_id)

    async def create(
        self,
        call: Call,
        org_id: UUID | None,
        name: str,
        kind: Kind,
        bind_password: str,
        mappings: tuple[RoleMapping, ...],
        *,
        enabled: bool,
        sync_minutes: int,
        grace_hours: int,
        tls: Tls | None,
        given: dict[str, Any],
        reading: dict[str, Any],
    ) -> Directory:
        """Adds a directory.

        Args:
            tls: `None` for what the addresses say.
            given: the other attributes of a `Directory`.
            reading: those of a `Reading` that are not the kind's.

        Raises:
            DomainError: NOT_FOUND for the tenant; INVALID_ARGUMENT; ALREADY_EXISTS when another one
                of the tenant has the name; FAILED_PRECONDITION when the tenant has enough of them.
        """
        own = UUID(call.caller.tenant_id)
        tenant = await self._tenants.require(call.caller, org_id or own, to_add=True)
        at = self._clock()
        directory = Directory(
            source=Source(
                id=new_id(),
                tenant_id=tenant.id,
                kind="directory",
                name=name,
                enabled=enabled,
                grace=timedelta(hours=grace_hours or GRACE_HOURS),
                created_at=at,
                updated_at=at,
            ),
            kind=kind,
            tls=tls or tls_of(given["urls"]),
            sealed_secrets=self._sealer.seal(bind_password.encode()),
            reading=replace(READINGS[kind], **reading),
            sync_minutes=sync_minutes or SYNC_MINUTES,
            mappings=mappings,
            **given,
        )
        self._check(directory)
        scope = self._tenants.scope(own)
        async with self._database.transaction(scope) as connection:
            if await sources_store.count_sources(connection, tenant.id) >= MOST:
                raise failed_precondition(
                    "TOO_MANY_DIRECTORIES", f"the tenant has {MOST} of them; delete one first"
                )
            check_rows_lead_below(
                self._tenants, directory.source, directory.mappings, directory.mappings, "directory"
            )
            await check_name_free(connection, directory.source, "directory")
            first = at + timedelta(minutes=directory.sync_minutes)
            await store.insert(connection, directory, first)
            event = DirectoryCreated(id=directory.id, after=directory.snapshot())
            await self._outbox.append(connection, CloudEvent(event, tenant.id))
        return directory

    async def update(
        self,
        call: Call,
        directory_id: UUID,
        change: Callable[[Directory], Directory],
        bind_password: str | None,
    ) -> Directory:
        """Changes a directory; its users have at once no more than it gives from now on.

        Args:
            change: makes of the directory what it is to be.
            bind_password: another one; `None` to keep it.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT; ALREADY_EXISTS as `create`.
        """
        scope = await self._tenants.query_scope(call.caller)
        at = self._clock()
        async with self._database.transaction(scope) as connection:
            before = await self._found(connection, scope, directory_id, lock="FOR UPDATE")
            check_etag(before.etag)
            after = change(before)
            if bind_password is not None:
                after = replace(after, sealed_secrets=self._sealer.seal(bind_password.encode()))
            if after == before:
                return before
            self._check(after)
            if after.source.name != before.source.name:
                await check_name_free(connection, after.source, "directory")
            new = [row for row in after.mappings if row not in before.mappings]
            check_rows_lead_below(self._tenants, after.source, after.mappings, new, "directory")
            if bind_password is None and _leads_elsewhere(before, after):
                raise invalid_field(
                    "bindPassword",
                    "is required where urls, tls, caPem or bindDn change: it would be sent there",
                )
            if before.users and before.reading.id_attribute != after.reading.id_attribute:
                raise invalid_field(
                    "idAttribute", "cannot change while users come from the directory"
                )
            after = replace(
                after,
                source=replace(after.source, updated_at=max(at, _later(before))),
                sync_status="",
                sync_error="",
                sync_held=None,
            )
            await store.update(connection, after, at)
            await self._accounts.remap(connection, after.source, at)
            if before.source.enabled and not after.source.enabled:
                await self._accounts.end_sessions(connection, after.source, at)
                await self._accounts.end_tokens(connection, after.source)
            event = DirectoryUpdated(id=after.id, before=before.snapshot(), after=after.snapshot())
            await self._outbox.append(connection, CloudEvent(event, after.source.tenant_id))
        self._threads.worked(after.id)
        await self._tenants.follower.try_refresh()
        return after

    async def delete(self, call: Call, directory_id: UUID) -> Directory:
        """Deletes a directory; its users are disabled.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            directory = await self._found(connection, scope, directory_id, lock="FOR UPDATE")
            check_etag(directory.etag)
            await self._accounts.release(connection, directory.source, self._clock())
            await sources_store.delete_source(connection, directory.source)
            event = DirectoryDeleted(id=directory.id, before=directory.snapshot())
            await self._outbox.append(connection, CloudEvent(event, directory.source.tenant_id))
        await self._tenants.follower.try_refresh()
        return directory

    async def _found(
        self, connection: Connection, scope: Scope, directory_id: UUID, *, lock: str = ""
    ) -> Directory:
        found = await store.directory(connection, scope, directory_id, lock=lock)
        if found is None:
            raise not_found("directory", directory_id)
        return found

    def _check(self, directory: Directory) -> None:
        """Refuses what could never work.

        Raises:
            DomainError: INVALID_ARGUMENT.
        """
        check_urls(directory.urls, directory.tls)
        try:
            context_for(directory.ca_pem)
        except ValueError as broken:
            raise invalid_field("caPem", str(broken)) from broken
        if (fault := filter_fault(directory.reading.user_filter)) is not None:
            raise invalid_field("userFilter", fault)
        if directory.sync_minutes < SYNC_MINUTES_LEAST:
            raise invalid_field("syncMinutes", f"must be at least {SYNC_MINUTES_LEAST}")
        if timedelta(minutes=directory.sync_minutes) >= directory.source.grace:
            raise invalid_field("graceHours", "must be longer than syncMinutes")
        check_mappings(directory.mappings, directory.reading.group_mode)


def _leads_elsewhere(before: Directory, after: Directory) -> bool:
    """Whether the password of the account that searches would go to somebody else."""
    return (before.urls, before.tls, before.ca_pem, before.bind_dn) != (
        after.urls,
        after.tls,
        after.ca_pem,
        after.bind_dn,
    )


def _later(directory: Directory) -> Any:
    """A time behind the last change, so that the etag is another one."""
    return directory.source.updated_at + timedelta(microseconds=1)
