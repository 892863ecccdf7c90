"""What a source has said of people, done to their accounts.

A source that would take access from many within a day does not: those users wait until an Owner
confirms it. A script that goes wrong over there locks nobody out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from contract.events.identity.scim import ScimHolding, ScimSourceHeld
from servicekit.data.postgres import Connection
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from services.identity.scim import people_store, standing_store, store, ways_in
from services.identity.scim.domain import (
    DISABLED,
    HELD,
    INACTIVE,
    MOST_NEW_ACCOUNTS,
    MOST_REMAPPED,
    NO_ROLE,
    PENDING,
    UNLINKED,
)
from services.identity.sources import store as sources_store
from services.identity.sources.domain import Person, Source, most_losses
from services.identity.sources.service import Change, SourceAccounts

log = logs.get(__name__)

_DAY: Final = timedelta(days=1)


class Settling:
    """Brings accounts to what their sources say, in the transactions of callers."""

    def __init__(self, outbox: Outbox, accounts: SourceAccounts) -> None:
        self._outbox = outbox
        self._accounts = accounts

    async def settle(
        self,
        connection: Connection,
        source: Source,
        person_ids: Sequence[UUID],
        at: datetime,
        *,
        allowed: int = 0,
    ) -> None:
        """Makes, changes and disables the accounts of people.

        Args:
            connection: sees all rows; it has the source locked.
            person_ids: of whom.
            allowed: from how many an Owner has let access be taken; zero for nobody's word. While
                somebody is held, nothing else lets access be taken.
        """
        await self._remap_first(connection, source, person_ids, at)
        standings = [
            one
            for one in await standing_store.standings(connection, source.id, person_ids)
            # A person taken out of the source stays out until the source sends the person anew.
            if one.problem != UNLINKED or one.deleted
        ]
        people = {
            str(one.id): Person(str(one.id), one.email, one.groups)
            for one in standings
            if one.present
        }
        subjects = [str(one.id) for one in standings]
        known = {
            one.subject for one in await sources_store.identities(connection, source.id, subjects)
        }
        seen = await self._accounts.changes(connection, source, people, sorted(known))
        held = await self._change(connection, source, people, seen, at, allowed)
        reasons = {
            change.identity.subject: HELD if change.identity.subject in held else _reason(change)
            for change in seen
        }
        new = [person for subject, person in people.items() if subject not in known]
        reasons |= await self._accounts.bring(connection, source, new, at, MOST_NEW_ACCOUNTS)
        problems = {}
        for one in standings:
            subject = str(one.id)
            if subject in known:
                # Who is not among those that may change is the source's no more.
                problems[one.id] = reasons.get(subject, "OTHER_ACCOUNT")
            else:
                problems[one.id] = reasons.get(subject, PENDING) if one.present else INACTIVE
        await standing_store.write_problems(connection, problems)
        gone = [
            str(one.id)
            for one in standings
            if one.deleted and str(one.id) in known and str(one.id) not in held
        ]
        await ways_in.close(connection, self._outbox, source, gone, at)
        await self.note_held(connection, source)

    async def remap(self, connection: Connection, source: Source, at: datetime) -> bool:
        """Brings a batch of people to changed mappings; answers whether there are more.

        What the mappings take is no word of the source: nobody has to confirm it. Those who wait
        for that go on waiting.

        Args:
            connection: as for `settle`.
        """
        done = await store.remapped_to(connection, source.id)
        if done is None:
            return False
        people = await people_store.people_after(connection, source.id, done, MOST_REMAPPED)
        await self.settle(connection, source, people, at)
        more = len(people) == MOST_REMAPPED
        await store.note_remapped(connection, source.id, people[-1] if more else None)
        return more

    async def _remap_first(
        self, connection: Connection, source: Source, person_ids: Sequence[UUID], at: datetime
    ) -> None:
        """Takes from people what changed mappings do not give them any more, before the source's
        word counts: that would be held."""
        done = await store.remapped_to(connection, source.id)
        if done is None:
            return
        subjects = [str(one) for one in person_ids if one > done]
        await self._accounts.remap(connection, source, at, subjects)

    async def _change(
        self,
        connection: Connection,
        source: Source,
        people: dict[str, Person],
        seen: Sequence[Change],
        at: datetime,
        allowed: int,
    ) -> frozenset[str]:
        """Changes accounts that are there; answers who has to wait."""
        changing = {one.identity.subject for one in seen if one.after != one.before}
        others = {
            one.identity.subject: groups
            for one in seen
            if one.identity.subject not in changing
            and (groups := _groups(one)) != one.identity.groups_seen
        }
        # No account changes by that, and nobody has to wait for it.
        await standing_store.write_groups_seen(connection, source.id, others, at)
        if not changing:
            return frozenset()
        subjects = sorted(changing)
        changes = await self._accounts.changes(
            connection, source, people, subjects, for_update=True
        )
        losing = frozenset(one.identity.subject for one in changes if one.loses)
        if losing:
            most = allowed
            waiting = {str(one) for one in await standing_store.held_people(connection, source.id)}
            if not allowed and not (waiting - set(subjects) or waiting & losing):
                users, lost = await standing_store.guarded(connection, source.id, at - _DAY)
                most = most_losses(users) - len(lost - losing)
            if len(losing) <= most:
                losing = frozenset()
        done = [one for one in changes if one.identity.subject not in losing]
        await self._accounts.apply(connection, source, done, at, at)
        return losing

    async def note_held(self, connection: Connection, source: Source) -> None:
        """Notes from how many a source would take access by now."""
        before = await store.held(connection, source.id)
        users = len(await standing_store.held_people(connection, source.id)) or None
        if users == before:
            return
        await store.hold(connection, source.id, users)
        if before is None and users is not None:
            log.warning("SCIM source held", source=str(source.id))
            event = ScimSourceHeld(id=source.id, after=ScimHolding(name=source.name, users=users))
            await self._outbox.append(
                connection, CloudEvent(event, source.tenant_id, source.actor, str(source.id))
            )


def _groups(change: Change) -> frozenset[str]:
    """The mapped groups that somebody is in by now."""
    return change.person.groups if change.person is not None else frozenset()


def _reason(change: Change) -> str:
    if change.person is None:
        return INACTIVE
    if change.decision is None:
        return NO_ROLE
    return DISABLED if change.after.status == "disabled" else ""
