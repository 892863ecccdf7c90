"""Syncs: directories compared with the accounts that come from them.

A pass asks for everybody whom it knows, and changes something only when every answer came. One
replica does it at a time. When it would disable many it is held until an Owner confirms it: a
filter that was changed by mistake, or a directory that answers with nothing, locks nobody out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prometheus_client import REGISTRY

from contract.events.identity import (
    DirectorySync,
    DirectorySyncConfirmed,
    DirectorySyncFailed,
    DirectorySyncHeld,
)
from servicekit.call import Call
from servicekit.data.postgres import SYSTEM, Connection, Database
from servicekit.errors import DomainError, aborted, failed_precondition
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.observability.metrics import Outcomes
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.sealing import SealingError
from services.identity.directories import store
from services.identity.directories.asking import AwayError
from services.identity.directories.domain import Directory
from services.identity.directories.service import Directories
from services.identity.directories.threads import DirectoryThreads
from services.identity.sources import store as sources_store
from services.identity.sources.domain import Person
from services.identity.sources.service import GUARD_LEAST, GUARD_SHARE, Change, SourceAccounts

if TYPE_CHECKING:
    from services.identity.directories.ldap import Conversation

log = logs.get(__name__)

_LOOK_SECONDS: Final = 15.0
_AT_ONCE: Final = 2
_SECONDS: Final = 120.0
"""What a pass may take as a whole."""
_ASKED_SECONDS: Final = 45.0
"""The same, of one that an Owner waits for."""
_SYNCS: Final = Outcomes(
    REGISTRY,
    "evergreen_directory_syncs",
    "Syncs of directories: ok, failed (nothing was changed) or held (an Owner has to confirm).",
)


class Syncs:
    """Syncs when their time comes, and when an Owner asks."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        directories: Directories,
        accounts: SourceAccounts,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._directories = directories
        self._accounts = accounts
        self._clock = clock
        # Apart from logins: those do not wait for a pass.
        self._threads = DirectoryThreads(_AT_ONCE, _SECONDS, "directory-syncs")

    async def run(self) -> None:
        """Syncs what is due, for as long as the service lives."""
        outage = Repeated(log, "syncs of directories wait")
        while True:
            try:
                await self.once()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def once(self) -> None:
        """Syncs what is due."""
        async with self._database.system_transaction(
            "directories of all tenants are due"
        ) as connection:
            due = await store.due(connection, self._clock(), _AT_ONCE)
        for result in await asyncio.gather(
            *(self._pass(directory_id) for directory_id in due), return_exceptions=True
        ):
            if isinstance(result, BaseException):
                raise result

    async def sync(self, call: Call, directory_id: UUID, *, confirm: bool) -> Directory:
        """Syncs a directory of the caller's subtree, now.

        Args:
            confirm: whether to do what was held, if it disables no more than was said.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when nothing is held or the directory is
                not in use; ABORTED when a sync is under way.
        """
        directory = await self._directories.get(call, directory_id)
        if not directory.source.enabled:
            raise failed_precondition("DIRECTORY_DISABLED", "the directory is not enabled")
        if confirm and directory.sync_status != "held":
            raise failed_precondition("NOTHING_HELD", "no sync waits to be confirmed")
        allowed = (directory.sync_held or 0) if confirm else None
        if not await self._pass(directory_id, allowed=allowed, seconds=_ASKED_SECONDS):
            raise aborted("SYNC_UNDER_WAY", "a sync of the directory is under way; try again")
        return await self._directories.get(call, directory_id)

    async def _pass(
        self, directory_id: UUID, *, allowed: int | None = None, seconds: float = _SECONDS
    ) -> bool:
        """One pass; answers whether it was this one's turn."""
        async with self._database.dedicated() as connection:
            if not await store.try_lock(connection, directory_id):
                return False
            try:
                await self._compare(directory_id, allowed, seconds)
            finally:
                await store.unlock(connection, directory_id)
        await self._tenants.follower.try_refresh()
        return True

    async def _compare(self, directory_id: UUID, allowed: int | None, seconds: float) -> None:
        async with self._database.system_transaction(
            "a directory's people are asked for by their ids"
        ) as connection:
            directory = await store.directory(connection, SYSTEM, directory_id)
            if directory is None or not directory.source.enabled:
                return
            known = await sources_store.identities(connection, directory_id)
        subjects = [one.subject for one in known]
        try:
            people = await self._ask(directory, subjects, seconds)
        except (AwayError, SealingError) as error:
            await self._note_failure(directory, str(error))
            return
        except DomainError as error:
            await self._note_failure(directory, error.message)
            return
        await self._take(directory, people, frozenset(subjects), allowed)

    async def _ask(
        self, directory: Directory, subjects: Sequence[str], seconds: float
    ) -> dict[str, Person]:
        def ask(ldap: Conversation) -> dict[str, Person]:
            if (missing := ldap.missing_group()) is not None:
                raise AwayError("groups", f"the group {missing} is not there")
            entries = [e for e in ldap.people(subjects).values() if e.active]
            groups = ldap.groups_of(entries)
            return {e.subject: Person(e.subject, e.email, groups[e.subject]) for e in entries}

        settings = self._directories.settings(directory)
        return await self._threads.run(directory.id, settings, ask, seconds)

    async def _take(
        self,
        asked: Directory,
        people: dict[str, Person],
        subjects: frozenset[str],
        allowed: int | None,
    ) -> None:
        at = self._clock()
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            directory = await store.directory(connection, SYSTEM, asked.id, lock="FOR UPDATE")
            if directory is None or directory.source.updated_at != asked.source.updated_at:
                return  # it was changed meanwhile: the next pass asks as it is now
            source = directory.source
            changes = [
                change
                for change in await self._accounts.changes(connection, source, people)
                # Who logged in for the first time meanwhile was not asked for.
                if change.identity.subject in subjects
            ]
            disables = sum(change.disables for change in changes)
            most = _most(changes) if allowed is None else max(allowed, _most(changes))
            if disables > most:
                await self._hold(connection, directory, changes, disables, at)
                return
            await self._accounts.apply(connection, source, changes, at)
            if allowed is not None:
                event = DirectorySyncConfirmed(
                    id=source.id,
                    after=DirectorySync(name=source.name, error="", deactivates=disables),
                )
                await self._outbox.append(connection, CloudEvent(event, source.tenant_id))
            await self._write(connection, replace(directory, sync_status="ok"), at)
        _SYNCS.note("ok")

    async def _hold(
        self,
        connection: Connection,
        directory: Directory,
        changes: Sequence[Change],
        disables: int,
        at: datetime,
    ) -> None:
        """Changes nothing; those who stay as they are, are confirmed all the same."""
        source = directory.source
        same = [c.identity.subject for c in changes if c.person is not None and c.after == c.before]
        await sources_store.confirm(connection, source.id, same, at)
        if directory.sync_status != "held":
            event = DirectorySyncHeld(
                id=source.id,
                after=DirectorySync(name=source.name, error="", deactivates=disables),
            )
            await self._outbox.append(
                connection, CloudEvent(event, source.tenant_id, source.actor, str(source.id))
            )
        log.warning("directory sync held", directory=str(source.id), deactivates=disables)
        _SYNCS.note("held")
        await self._write(connection, replace(directory, sync_status="held"), at, held=disables)

    async def _note_failure(self, asked: Directory, error: str) -> None:
        at = self._clock()
        log.warning("directory sync failed", directory=str(asked.id), error=error)
        _SYNCS.note("failed")
        async with self._database.system_transaction(
            "a directory's own pass is noted"
        ) as connection:
            directory = await store.directory(connection, SYSTEM, asked.id, lock="FOR UPDATE")
            if directory is None or directory.source.updated_at != asked.source.updated_at:
                return
            source = directory.source
            if directory.sync_status != "failed":
                event = DirectorySyncFailed(
                    id=source.id,
                    after=DirectorySync(name=source.name, error=error, deactivates=0),
                )
                await self._outbox.append(
                    connection, CloudEvent(event, source.tenant_id, source.actor, str(source.id))
                )
            await self._write(connection, replace(directory, sync_status="failed"), at, error=error)

    async def _write(
        self,
        connection: Connection,
        directory: Directory,
        at: datetime,
        *,
        error: str = "",
        held: int | None = None,
    ) -> None:
        # Not all at the same minute.
        wait = timedelta(minutes=directory.sync_minutes) * random.uniform(0.9, 1.1)  # noqa: S311
        noted = replace(directory, sync_error=error, sync_held=held)
        await store.note_sync(connection, noted, at, at + wait)


def _most(changes: Sequence[Change]) -> int:
    """How many users a pass may disable by itself."""
    active = sum(change.before.status == "active" for change in changes)
    return max(GUARD_LEAST, int(active * GUARD_SHARE))
