"""Syncs: directories compared with the accounts that come from them.

A pass asks for everybody whom it knows, and changes something only when every answer came. One
replica does it at a time: it has the directory by a lease, and holds no connection to the database
while it asks. When it would take access from many it is held until an Owner confirms it: a filter
that was changed by mistake, or a directory that answers with nothing, locks nobody out.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prometheus_client import REGISTRY

from contract.events.identity.sources import (
    DirectorySync,
    DirectorySyncConfirmed,
    DirectorySyncFailed,
    DirectorySyncHeld,
)
from servicekit.call import Call
from servicekit.data.postgres import SYSTEM, Connection, Database
from servicekit.errors import DomainError, aborted, failed_precondition
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.observability.metrics import Outcomes
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.sealing import SealingError
from services.identity.directories import store
from services.identity.directories.asking import AwayError, Budget
from services.identity.directories.domain import Directory, SyncStatus
from services.identity.directories.service import Directories
from services.identity.directories.threads import DirectoryThreads
from services.identity.sources import store as sources_store
from services.identity.sources.domain import ExternalIdentity, Person, most_losses
from services.identity.sources.service import Change, SourceAccounts

if TYPE_CHECKING:
    from services.identity.directories.ldap import Conversation

log = logs.get(__name__)

_LOOK_SECONDS: Final = 15.0
_WORKERS: Final = 4
"""Passes that a replica has under way by itself; the half of them takes no directory whose last
sync has failed."""
_ASKED_AT_ONCE: Final = 4
"""The same, of those that Owners wait for."""
_SECONDS: Final = 120.0
"""What a pass may ask for as a whole."""
_ASKED_SECONDS: Final = 45.0
"""The same, of one that an Owner waits for."""
_LEASE: Final = timedelta(minutes=5)
"""For how long a pass has its directory; the rest is for writing."""
_CHUNK: Final = 100
"""Users that are changed in one transaction."""
_DAY: Final = timedelta(days=1)
_SYNCS: Final = Outcomes(
    REGISTRY,
    "evergreen_directory_syncs",
    "Syncs of directories: ok, failed (nothing was changed) or held (an Owner has to confirm).",
)


class _OverError(Exception):
    """A pass has its directory no longer: it was changed, or another pass has begun."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a directory says of those whom it was asked for."""

    people: dict[str, Person]
    """By their subjects; those who may not log in are not among them."""
    unclear: frozenset[str]
    """Of whom it said nothing that can be read: they stay as they are."""
    anybody: bool
    """Whether it knows anybody at all."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass: which directory, since when, and what an Owner allows."""

    id: UUID
    directory_id: UUID
    seconds: float
    asked_at: datetime
    allowed: int | None


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
        # Apart from logins, and from each other: none waits for another's pass.
        self._threads = DirectoryThreads(_WORKERS, _SECONDS, "directory-syncs")
        self._asked_threads = DirectoryThreads(_ASKED_AT_ONCE, _ASKED_SECONDS, "asked-syncs")

    async def run(self) -> None:
        """Syncs what is due, for as long as the service lives."""
        try:
            async with asyncio.TaskGroup() as workers:
                for number in range(_WORKERS):
                    workers.create_task(self._work(failed_too=number % 2 == 0))
        finally:
            self._threads.close()
            self._asked_threads.close()

    async def _work(self, *, failed_too: bool) -> None:
        outage = Repeated(log, "syncs of directories wait")
        while True:
            worked = False
            try:
                worked = await self._one(failed_too=failed_too)
                outage.worked()
            except Exception as error:
                outage.failed(error)
            if not worked:
                await asyncio.sleep(_LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311

    async def _one(self, *, failed_too: bool) -> bool:
        """Syncs the directory that is due for the longest; answers whether there was one."""
        at, number = self._clock(), new_id()
        async with self._database.system_transaction(
            "directories of all tenants are due"
        ) as connection:
            directory_id = await store.take_due(
                connection, number, at, at + _LEASE, _unevenness(), failed_too=failed_too
            )
        if directory_id is None:
            return False
        await self._had(_Pass(number, directory_id, _SECONDS, at, None), self._threads)
        return True

    async def sync(self, call: Call, directory_id: UUID, *, confirm: bool) -> Directory:
        """Syncs a directory of the caller's subtree, now.

        Args:
            confirm: whether to do what was held, if it takes access from no more users than was
                said.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION when nothing is held or the directory is
                not in use; ABORTED when a sync is under way, of the directory or one that an Owner
                of the tenant has asked for; RESOURCE_EXHAUSTED when too many are.
        """
        directory = await self._directories.get(call, directory_id)
        if not directory.source.enabled:
            raise failed_precondition("DIRECTORY_DISABLED", "the directory is not enabled")
        if confirm and directory.sync_status != "held":
            raise failed_precondition("NOTHING_HELD", "no sync waits to be confirmed")
        at, number = self._clock(), new_id()
        async with self._database.system_transaction(
            "a directory's own pass is noted"
        ) as connection:
            taken = await store.take(connection, directory, number, at, at + _LEASE, _unevenness())
        if not taken:
            raise aborted("SYNC_UNDER_WAY", "a sync is under way; try again")
        allowed = (directory.sync_held or 0) if confirm else None
        begun = _Pass(number, directory_id, _ASKED_SECONDS, at, allowed)
        await self._had(begun, self._asked_threads)
        return await self._directories.get(call, directory_id)

    async def _had(self, begun: _Pass, threads: DirectoryThreads) -> None:
        """Has a pass, whose directory was taken, and gives the directory back."""
        try:
            await self._compared(begun, threads)
        except _OverError:
            log.info("directory sync overtaken", directory=str(begun.directory_id))
        finally:
            async with self._database.system_transaction(
                "a directory's own pass is noted"
            ) as connection:
                await store.give_back(connection, begun.directory_id, begun.id)
        await self._tenants.follower.try_refresh()

    async def _compared(self, begun: _Pass, threads: DirectoryThreads) -> None:
        try:
            await self._compare(begun, threads)
        except (DomainError, _OverError):
            raise
        except Exception as error:
            # Whatever the directory said that nobody expected: its own syncs fail by it, and only
            # those.
            log.exception("directory sync failed unexpectedly")
            await self._note_failure(begun, f"the answer cannot be taken: {type(error).__name__}")

    async def _compare(self, begun: _Pass, threads: DirectoryThreads) -> None:
        async with self._database.system_transaction(
            "a directory's people are asked for by their ids"
        ) as connection:
            directory = await store.directory(connection, SYSTEM, begun.directory_id)
            if directory is None or not directory.source.enabled:
                return
            known = await sources_store.identities(connection, begun.directory_id)
        subjects = [one.subject for one in known]
        try:
            answer = await self._ask(directory, subjects, begun.seconds, threads)
        except (AwayError, SealingError) as error:
            await self._note_failure(begun, str(error))
            return
        await self._take(begun, answer, [one for one in subjects if one not in answer.unclear])

    async def _ask(
        self,
        directory: Directory,
        subjects: Sequence[str],
        seconds: float,
        threads: DirectoryThreads,
    ) -> _Answer:
        def ask(ldap: Conversation) -> _Answer:
            if (missing := ldap.missing_group()) is not None:
                raise AwayError("groups", f"the group {missing} is not there")
            found, unclear = ldap.people(subjects)
            entries = [entry for entry in found.values() if entry.active]
            groups = ldap.groups_of(entries)
            people = {e.subject: Person(e.subject, e.email, groups[e.subject]) for e in entries}
            return _Answer(people, unclear, bool(found) or ldap.anybody())

        settings = self._directories.settings(directory)
        budget = Budget.of_sync(seconds, len(subjects))
        return await threads.run(directory.id, settings, ask, budget)

    async def _take(self, begun: _Pass, answer: _Answer, subjects: Sequence[str]) -> None:
        at = self._clock()
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            directory = await self._still(connection, begun)
            source = directory.source
            known = await sources_store.identities(connection, source.id)
            changes = [
                change
                # Who logged in for the first time meanwhile was not asked for.
                for change in await self._accounts.changes(
                    connection, source, answer.people, subjects
                )
                if not change.identity.is_newer(begun.asked_at, at)
            ]
            losses = sum(change.loses for change in changes)
            if losses > _most(begun, answer, changes, known, at):
                await self._hold(connection, begun, directory, changes, losses, at)
                return
        changed = [change.identity.subject for change in changes if change.is_one]
        for chunk in _chunks(changed):
            await self._apply(begun, answer.people, chunk)
        async with self._database.system_transaction(
            "a directory's own pass is noted"
        ) as connection:
            directory = await self._still(connection, begun)
            same = [change.identity.subject for change in changes if not change.is_one]
            await sources_store.confirm(connection, source.id, same, at, begun.asked_at)
            if begun.allowed is not None:
                await sources_store.forget_losses(connection, source.id)
                event = DirectorySyncConfirmed(
                    id=source.id,
                    after=DirectorySync(name=source.name, error="", deactivates=losses),
                )
                await self._outbox.append(connection, CloudEvent(event, source.tenant_id))
            unclear = len(answer.unclear)
            said = f"{unclear} people cannot be read, and stay as they are" if unclear else ""
            await self._write(connection, begun, "ok", error=said)
        _SYNCS.note("ok")

    async def _apply(
        self, begun: _Pass, people: dict[str, Person], subjects: Sequence[str]
    ) -> None:
        """Changes some users, as they are now."""
        at = self._clock()
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            source = (await self._still(connection, begun)).source
            changes = [
                change
                for change in await self._accounts.changes(
                    connection, source, people, subjects, for_update=True
                )
                if not change.identity.is_newer(begun.asked_at, at)
            ]
            await self._accounts.apply(connection, source, changes, at, begun.asked_at)

    async def _still(self, connection: Connection, begun: _Pass) -> Directory:
        """The directory, as it was when the pass began, and so until the transaction ends.

        Raises:
            _OverError: the pass has it no longer.
        """
        directory = await store.directory(connection, SYSTEM, begun.directory_id, lock="FOR SHARE")
        if directory is None or directory.sync_pass != begun.id:
            raise _OverError
        return directory

    async def _hold(
        self,
        connection: Connection,
        begun: _Pass,
        directory: Directory,
        changes: Sequence[Change],
        losses: int,
        at: datetime,
    ) -> None:
        """Changes nothing; those who stay as they are, are confirmed all the same."""
        source = directory.source
        same = [c.identity.subject for c in changes if not c.is_one]
        await sources_store.confirm(connection, source.id, same, at, begun.asked_at)
        if directory.sync_status != "held":
            event = DirectorySyncHeld(
                id=source.id,
                after=DirectorySync(name=source.name, error="", deactivates=losses),
            )
            await self._outbox.append(
                connection, CloudEvent(event, source.tenant_id, source.actor, str(source.id))
            )
        log.warning("directory sync held", directory=str(source.id), users=losses)
        _SYNCS.note("held")
        await self._write(connection, begun, "held", held=losses)

    async def _note_failure(self, begun: _Pass, error: str) -> None:
        log.warning("directory sync failed", directory=str(begun.directory_id), error=error)
        _SYNCS.note("failed")
        async with self._database.system_transaction(
            "a directory's own pass is noted"
        ) as connection:
            directory = await self._still(connection, begun)
            source = directory.source
            if directory.sync_status != "failed":
                event = DirectorySyncFailed(
                    id=source.id,
                    after=DirectorySync(name=source.name, error=error, deactivates=0),
                )
                await self._outbox.append(
                    connection, CloudEvent(event, source.tenant_id, source.actor, str(source.id))
                )
            await self._write(connection, begun, "failed", error=error)

    async def _write(
        self,
        connection: Connection,
        begun: _Pass,
        status: SyncStatus,
        *,
        error: str = "",
        held: int | None = None,
    ) -> None:
        await store.note_sync(
            connection, begun.directory_id, begun.id, self._clock(), status, error, held
        )


def _unevenness() -> float:
    """By what the time until the next sync is multiplied: not all at the same minute."""
    return random.uniform(0.9, 1.1)  # noqa: S311


def _most(
    begun: _Pass,
    answer: _Answer,
    changes: Sequence[Change],
    known: Sequence[ExternalIdentity],
    at: datetime,
) -> int:
    """From how many users a pass may take access.

    What other passes took within a day counts, too: many small steps are one large one. A directory
    that knows nobody at all takes nothing by itself.
    """
    taken = {one.subject for one in known if one.lost_at is not None and one.lost_at > at - _DAY}
    if not answer.people and not answer.anybody:
        most = 0
    else:
        active = {change.identity.subject for change in changes if change.before.status == "active"}
        most = most_losses(len(active | taken))
        now = {change.identity.subject for change in changes if change.loses}
        most -= len(taken - now)
    return max(most, begun.allowed or 0)


def _chunks(subjects: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(subjects), _CHUNK):
        yield subjects[start : start + _CHUNK]
