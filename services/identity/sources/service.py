"""Accounts as their sources want them: made, changed, disabled and enabled again.

Only accounts whose origin is the source's kind are touched, and invited ones without a password,
which become such, but for Owners. So a source never reaches a local account that somebody can log
in with, and no local Owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeAlias
from uuid import UUID

from contract.access import Role
from contract.events.identity.users import (
    UserCreated,
    UserDeactivated,
    UserMovedAway,
    UserMovedIn,
    UserSnapshot,
    UserUpdated,
)
from servicekit.data.postgres import SYSTEM, Connection
from servicekit.errors import Code, DomainError
from servicekit.ids import new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.peers.tenants import TenantDirectory
from servicekit.texts import email_fault
from services.identity.api_tokens.ends import end_tokens_of, ended_of
from services.identity.sources import store
from services.identity.sources.domain import (
    USUAL,
    Decision,
    ExternalIdentity,
    NotAdmittedError,
    Person,
    RoleMapping,
    Source,
    Terms,
    decide,
    domain_of,
    ranks_below,
)
from services.identity.tenants import store as tenants_store
from services.identity.users import store as users_store
from services.identity.users.domain import User, unlinked
from services.identity.users.service import EndSessions, HoldCredentials, OrphanCredentials
from services.identity.users.store import Credentials

log = logs.get(__name__)

_Event: TypeAlias = UserCreated | UserUpdated | UserDeactivated | UserMovedAway | UserMovedIn


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of an account."""

    before: User
    after: User
    identity: ExternalIdentity
    person: Person | None
    """As the source knows the person now; `None` when it does not."""
    decision: Decision | None

    @property
    def loses(self) -> bool:
        """Whether somebody who could log in no longer can, or may do less, or is moved away."""
        before, after = self.before, self.after
        return before.status == "active" and (
            after.status == "disabled"
            or ranks_below(after.role, before.role)
            or after.tenant_id != before.tenant_id
        )

    @property
    def is_one(self) -> bool:
        """Whether there is anything to write but that the source was asked."""
        return (
            self.after != self.before
            or self.person is None
            or self.person.groups != self.identity.groups_seen
        )


_SENT: Final = Terms(login=False)
"""Of people whom a source sends without a login."""


@dataclass(frozen=True, slots=True)
class _Word:
    """What a source says of a person, and what comes of it."""

    person: Person
    decision: Decision | None
    at: datetime
    asked_at: datetime
    terms: Terms = USUAL


class SourceAccounts:
    """What sources do to accounts, in the transactions of their callers."""

    def __init__(
        self,
        outbox: Outbox,
        tenants: TenantDirectory,
        end_sessions: EndSessions,
        orphan_credentials: OrphanCredentials,
        hold_credentials: HoldCredentials,
    ) -> None:
        self._outbox = outbox
        self._tenants = tenants
        self._end_sessions = end_sessions
        self._orphan_credentials = orphan_credentials
        self._hold_credentials = hold_credentials

    async def admit(
        self,
        connection: Connection,
        source: Source,
        person: Person,
        at: datetime,
        asked_at: datetime | None = None,
        terms: Terms = USUAL,
    ) -> User:
        """The account of a person whom a source has just recognised, as its mappings want it now.

        A user who lost the last role is disabled; the caller commits that, although this raises.

        Args:
            connection: sees the source's subtree and all accounts by their addresses.
            source: locked against changes.
            asked_at: when the source was asked; where something newer is known, that stands.

        Raises:
            NotAdmittedError: NO_ROLE, DISABLED, EMAIL, EMAIL_DOMAIN, NOT_INVITED, OTHER_ACCOUNT, or
                CHANGED when the account was changed in this moment.
        """
        rows = await self._rows(connection, source)
        decision = terms.decision or decide(rows, person.groups)
        word = _Word(person, decision, at, asked_at or at, terms)
        user = await self._as_before(connection, source, word)
        if user is None:
            await users_store.take_turns(connection)
            user = await self._admit(connection, source, word)
        return user

    async def foresee(
        self, connection: Connection, source: Source, person: Person
    ) -> list[tuple[str, bool, str]]:
        """What a login of a person with a role would come to, for the user who tries a source.

        Args:
            connection: sees all accounts by their addresses.

        Returns:
            steps of `domain` and `account`, whether they are fine, and what was found; the last one
            may have failed.
        """
        known = await store.identity(connection, source.id, person.subject)
        if known is not None:
            account = await users_store.user(connection, SYSTEM, known.account_id)
            if account is None or account.origin != source.kind:
                return [("account", False, "the account here is no longer the directory's")]
            if account.status == "disabled" and account.disabled_by == "admin":
                said = f"{account.email} was deactivated here: reactivate the user"
                return [("account", False, said)]
            return [("account", True, f"{account.email}, {account.status}")]
        domain = domain_of(person.email)
        if not domain or email_fault(person.email) is not None:
            return [("domain", False, "the person has no address that can be used")]
        if await store.source_of_domain(connection, domain) != source.id:
            said = f"{domain} does not lead to this directory: assign and use it"
            return [("domain", False, said)]
        steps = [("domain", True, f"{domain} leads to this directory")]
        found = await users_store.credentials_by_email(connection, person.email, person.email)
        if found is None:
            return [*steps, ("account", True, "is made with the first login")]
        if await self._is_free(connection, source, found):
            return [*steps, ("account", True, "takes the place of the invitation")]
        if found.user.kept_from_sources:
            said = f"{person.email} was taken out of a source, and has to accept an invitation"
            return [*steps, ("account", False, said)]
        said = f"somebody else has {person.email} here, or is invited as an Owner"
        return [*steps, ("account", False, said)]

    async def _is_free(self, connection: Connection, source: Source, found: Credentials) -> bool:
        """Whether a source may take an account over by its address."""
        return (
            may_come_from_elsewhere(found.user)
            and found.hashes is None
            and not await store.identities_of(connection, found.user.id)
            and bool(
                await tenants_store.below(connection, source.tenant_id, {found.user.tenant_id})
            )
        )

    async def _as_before(self, connection: Connection, source: Source, word: _Word) -> User | None:
        """The account of a person where nothing changes: no other login waits for that. `None`
        where something may.

        Raises:
            NotAdmittedError: CHANGED.
        """
        known = await store.identity(connection, source.id, word.person.subject)
        if known is None or word.decision is None:
            return None
        seen = await users_store.user(connection, SYSTEM, known.account_id)
        if seen is None or seen.origin != source.kind or seen.status != "active":
            return None
        change = await self._change(connection, source, known, seen, word.person, word.decision)
        if change.after != seen:
            return None
        # Not after a wait for the turn to change users: its holder may wait for the row.
        now = await users_store.user(connection, SYSTEM, seen.id, for_update=True)
        if now is None or replace(now, last_login_at=seen.last_login_at) != seen:
            raise NotAdmittedError("CHANGED")
        if known.is_newer(word.asked_at, word.at):
            await store.note_login(connection, known, word.at)
        else:
            await self._note(connection, seen, source, word, lost_at=known.lost_at, login=True)
        return seen

    async def _admit(self, connection: Connection, source: Source, word: _Word) -> User:
        """As `admit`, when it is this one's turn to change users."""
        known = await store.identity(connection, source.id, word.person.subject)
        if known is None:
            return await self._welcome(connection, source, word)
        account = await users_store.user(connection, SYSTEM, known.account_id, for_update=True)
        if account is None or account.origin != source.kind:
            raise NotAdmittedError("OTHER_ACCOUNT")
        if known.is_newer(word.asked_at, word.at):
            if account.status != "active":
                raise NotAdmittedError("DISABLED")
            await store.note_login(connection, known, word.at)
            return account
        if word.terms.keeps:
            below = await tenants_store.below(connection, source.tenant_id, {account.tenant_id})
            if account.tenant_id not in below:
                raise NotAdmittedError("OTHER_ACCOUNT")
            word = replace(word, decision=Decision(account.role, account.tenant_id, ()))
        change = await self._change(connection, source, known, account, word.person, word.decision)
        await self._apply(connection, source, change, word.at)
        if word.decision is None:
            raise NotAdmittedError("NO_ROLE")
        if change.after.status != "active":
            raise NotAdmittedError("DISABLED")
        await self._note(connection, change.after, source, word, lost_at=None, login=True)
        return change.after

    async def changes(
        self,
        connection: Connection,
        source: Source,
        people: Mapping[str, Person],
        subjects: Sequence[str] | None = None,
        *,
        for_update: bool = False,
    ) -> list[Change]:
        """What a source's accounts become, if it knows these people, by their subjects, and no
        others.

        Args:
            subjects: whose accounts; `None` for those of all.
            for_update: whether they are about to be changed: then it is this one's turn to do
                so, and they are locked.
        """
        if for_update:
            await users_store.take_turns(connection)
        rows = await self._rows(connection, source)
        found = []
        identities = await store.identities(connection, source.id, subjects)
        accounts = await users_store.users_by_id(
            connection, [one.account_id for one in identities], for_update=for_update
        )
        for known in identities:
            account = accounts.get(known.account_id)
            if account is None or account.origin != source.kind:
                continue
            person = people.get(known.subject)
            decision = decide(rows, person.groups) if person is not None else None
            found.append(await self._change(connection, source, known, account, person, decision))
        return found

    async def apply(
        self,
        connection: Connection,
        source: Source,
        changes: Sequence[Change],
        at: datetime,
        asked_at: datetime,
    ) -> None:
        """Does what `changes` found for an update.

        Args:
            asked_at: when the source was asked.
        """
        same = []
        for change in changes:
            known, person = change.identity, change.person
            await self._apply(connection, source, change, at)
            gained = change.before.status == "disabled" and change.after.status == "active"
            lost_at = at if change.loses else None if gained else known.lost_at
            if person is None:
                await store.miss(connection, replace(known, lost_at=lost_at), at, asked_at)
            elif change.is_one:
                word = _Word(person, change.decision, at, asked_at)
                await self._note(
                    connection, change.after, source, word, lost_at=lost_at, login=False
                )
            else:
                same.append(known.subject)
        await store.confirm(connection, source.id, same, at, asked_at)

    async def bring(
        self,
        connection: Connection,
        source: Source,
        people: Sequence[Person],
        at: datetime,
        most: int,
    ) -> dict[str, str]:
        """Makes the accounts of people whom a source sends without a login, or takes over those
        that they were invited to.

        Args:
            connection: sees all rows.
            people: whom the source has sent no account for before.
            most: how many accounts are tried.

        Returns:
            why people have no account, by their subjects: as `NotAdmittedError` says; empty for
            those who have one. Those beyond the most are not there.
        """
        if not people:
            return {}
        rows = await self._rows(connection, source)
        decided = [(person, decide(rows, person.groups)) for person in people]
        found = {person.subject: "NO_ROLE" for person, decision in decided if decision is None}
        tried = [(person, decision) for person, decision in decided if decision is not None][:most]
        if tried:
            await users_store.take_turns(connection)
        for person, decision in tried:
            word = _Word(person, decision, at, at, _SENT)
            try:
                async with connection.transaction():
                    await self._welcome(connection, source, word)
            except NotAdmittedError as refused:
                found[person.subject] = refused.reason
            except DomainError as error:
                if error.code is not Code.ALREADY_EXISTS:
                    raise
                # Somebody else took the address in this moment.
                found[person.subject] = "OTHER_ACCOUNT"
            else:
                found[person.subject] = ""
        return found

    async def is_taken(
        self, connection: Connection, source: Source, subject: str, email: str
    ) -> bool:
        """Whether an address is somebody's who is not this person of a source, and whom the source
        may not take over.

        Args:
            connection: sees all rows.
        """
        if not await self._answers_for(connection, source, email):
            # It is not said who is anywhere else: the person gets no account anyway.
            return False
        found = await users_store.credentials_by_email(connection, email, email)
        if found is None:
            return False
        known = await store.identity(connection, source.id, subject)
        if known is not None and known.account_id == found.user.id:
            return False
        return not await self._is_free(connection, source, found)

    async def remap(
        self,
        connection: Connection,
        source: Source,
        at: datetime,
        subjects: Sequence[str] | None = None,
    ) -> None:
        """After a change of mappings: what they no longer give is taken at once.

        New rows only count for groups that were seen before; the others wait for the source.

        Args:
            subjects: from whom; `None` for all.
        """
        people = {
            known.subject: Person(known.subject, "", known.groups_seen)
            for known in await store.identities(connection, source.id, subjects)
        }
        found = await self.changes(connection, source, people, subjects)
        changed = [one.identity.subject for one in found if one.after != one.before]
        if not changed:
            return
        for change in await self.changes(connection, source, people, changed, for_update=True):
            after = change.after
            if change.before.status == "disabled":
                # The source was not asked: nobody comes back.
                after = replace(after, status="disabled", disabled_by=change.before.disabled_by)
            await self._apply(connection, source, replace(change, after=after), at)

    async def release(self, connection: Connection, source: Source, at: datetime) -> None:
        """Before a source goes: its accounts are disabled, and local ones without a password."""
        await users_store.take_turns(connection)
        for known in await store.identities(connection, source.id):
            account = await users_store.user(connection, SYSTEM, known.account_id, for_update=True)
            if account is not None and account.origin == source.kind:
                await self._let_go(connection, source, account, at)

    async def unlink(
        self, connection: Connection, source: Source, account: User, at: datetime
    ) -> None:
        """Takes an account out of its source: it is disabled, and local without a password, and no
        provider opens it any more. No source takes it over before somebody accepts an invitation.

        Args:
            account: locked, when it was this one's turn to change users.
        """
        await self._let_go(connection, source, replace(account, kept_from_sources=True), at)
        links = await users_store.forget_links(connection, account.id)
        await self._outbox.append(
            connection, *(CloudEvent(one, account.tenant_id) for one in unlinked(account, links))
        )

    async def _let_go(
        self, connection: Connection, source: Source, account: User, at: datetime
    ) -> None:
        after = replace(
            account,
            origin="local",
            source_id=None,
            status="disabled",
            disabled_by=account.disabled_by or "source",
        )
        await self._write(connection, source, account, after, (), at, by_source=False)

    async def end_sessions(self, connection: Connection, source: Source, at: datetime) -> None:
        """Ends the sessions of everybody who comes from a source."""
        for known in await store.identities(connection, source.id):
            await self._end_sessions(connection, known.account_id, at)

    async def end_tokens(self, connection: Connection, source: Source) -> None:
        """Ends the API tokens of everybody who comes from a source."""
        known = await store.identities(connection, source.id)
        accounts = await users_store.users_by_id(connection, [one.account_id for one in known])
        for account in accounts.values():
            if account.origin == source.kind:
                await self._outbox.append(connection, *await end_tokens_of(connection, account.id))

    async def _rows(self, connection: Connection, source: Source) -> list[RoleMapping]:
        """The mappings that lead into the source's subtree: others count for nothing.

        The database is asked: a replica may not have heard of a new tenant yet, and nobody loses
        a role by that.
        """
        rows = await store.mappings(connection, source.id)
        leads_to = {row.tenant_id for row in rows}
        below = await tenants_store.below(connection, source.tenant_id, leads_to)
        return [row for row in rows if row.tenant_id in below]

    async def _welcome(self, connection: Connection, source: Source, word: _Word) -> User:
        """The account of a person whom the source has not sent before: a new one, or the one that
        was invited by the address."""
        person, decision, at, terms = word.person, word.decision, word.at, word.terms
        if decision is None:
            raise NotAdmittedError("NO_ROLE")
        if not person.email or email_fault(person.email) is not None:
            raise NotAdmittedError("EMAIL")
        answers = await self._answers_for(connection, source, person.email)
        found = await users_store.credentials_by_email(connection, person.email, person.email)
        if not answers and not (found is not None and terms.takes_invited):
            raise NotAdmittedError("EMAIL_DOMAIN")
        if found is None:
            if not terms.makes_accounts:
                raise NotAdmittedError("NOT_INVITED")
            user = User(
                id=new_id(),
                tenant_id=decision.tenant_id,
                email=person.email,
                role=decision.role,
                status="active",
                created_at=at,
                origin=source.kind,
                source_id=source.id,
            )
            await users_store.insert_user(connection, user)
            await self._note(connection, user, source, word, lost_at=None, login=terms.login)
            event = UserCreated(id=user.id, after=self._snapshot(user, decision.groups))
            await self._tell(connection, source, (event, user.tenant_id))
            return user
        invited = found.user
        if not await self._is_free(connection, source, found):
            raise NotAdmittedError("OTHER_ACCOUNT")
        before = await users_store.user(connection, SYSTEM, invited.id, for_update=True)
        if before is None or before != invited:
            raise NotAdmittedError("OTHER_ACCOUNT")
        if terms.keeps:
            decision = Decision(before.role, before.tenant_id, ())
        user = replace(
            before,
            origin=source.kind,
            source_id=source.id,
            status="active",
            role=decision.role,
            tenant_id=decision.tenant_id,
        )
        await users_store.end_invitation(connection, before, at)
        await self._write(connection, source, before, user, decision.groups, at)
        await self._note(connection, user, source, word, lost_at=None, login=terms.login)
        return user

    async def _answers_for(self, connection: Connection, source: Source, email: str) -> bool:
        """Whether a source may say that somebody has an address.

        A directory and a provider, where people log in, may for the domains that name them. What
        SCIM sends logs in elsewhere: all domains of its tenant, and of those below, are its own.
        """
        domain = domain_of(email)
        if source.kind != "scim":
            return await store.source_of_domain(connection, domain) == source.id
        tenant_id = await store.tenant_of_domain(connection, domain)
        return tenant_id is not None and bool(
            await tenants_store.below(connection, source.tenant_id, {tenant_id})
        )

    async def _change(
        self,
        connection: Connection,
        source: Source,
        known: ExternalIdentity,
        before: User,
        person: Person | None,
        decision: Decision | None,
    ) -> Change:
        after = before
        if decision is None:
            if before.status == "active":
                after = replace(before, status="disabled", disabled_by="source")
        else:
            after = replace(before, role=decision.role, tenant_id=decision.tenant_id)
            if before.status == "disabled" and before.disabled_by == "source":
                after = replace(after, status="active", disabled_by=None)
        if person is not None and person.email and person.email != before.email:
            after = replace(after, email=await self._address(connection, source, before, person))
        return Change(before, after, known, person, decision)

    async def _address(
        self, connection: Connection, source: Source, account: User, person: Person
    ) -> str:
        """The address of a person, if the source may say it; else the one that the account has."""
        if (
            email_fault(person.email) is None
            and await self._answers_for(connection, source, person.email)
            and await users_store.credentials_by_email(connection, person.email, person.email)
            is None
        ):
            return person.email
        return account.email

    async def _apply(
        self, connection: Connection, source: Source, change: Change, at: datetime
    ) -> None:
        if change.after != change.before:
            groups = change.decision.groups if change.decision is not None else ()
            await self._write(connection, source, change.before, change.after, groups, at)

    async def _write(
        self,
        connection: Connection,
        source: Source,
        before: User,
        after: User,
        groups: tuple[str, ...],
        at: datetime,
        *,
        by_source: bool = True,
    ) -> None:
        """Writes what became of an account; its sessions, which say what was, end."""
        try:
            async with connection.transaction():
                await users_store.update_user(connection, before, after, at)
        except DomainError:
            # Somebody else took the address in this moment: it stays, and is tried again.
            after = replace(after, email=before.email)
            await users_store.update_user(connection, before, after, at)
        await self._end_sessions(connection, after.id, at)
        old, new = self._snapshot(before, ()), self._snapshot(after, groups)
        if after.tenant_id != before.tenant_id:
            await store.follow_account(connection, after.id, after.tenant_id)
            seen = self._tenants.scope(after.tenant_id)
            await self._orphan_credentials(connection, before, at, seen)
            await self._tell(
                connection,
                source,
                (UserMovedAway(id=after.id, before=old), before.tenant_id),
                (UserMovedIn(id=after.id, after=new), after.tenant_id),
                by_source=by_source,
            )
        elif after.status == "disabled" and before.status != "disabled":
            event = UserDeactivated(id=after.id, before=old, after=new)
            await self._tell(connection, source, (event, after.tenant_id), by_source=by_source)
        else:
            changed = UserUpdated(id=after.id, before=old, after=new)
            await self._tell(connection, source, (changed, after.tenant_id), by_source=by_source)
        await self._outbox.append(connection, *await ended_of(connection, after.id))
        if after.status == "disabled":
            await self._orphan_credentials(connection, after, at, None)
        if after.email != before.email:
            await self._hold_credentials(connection, after.id, before.email, after.email)

    async def _tell(
        self,
        connection: Connection,
        source: Source,
        *events: tuple[_Event, UUID],
        by_source: bool = True,
    ) -> None:
        actor = (source.actor, str(source.id)) if by_source else ("", "")
        await self._outbox.append(
            connection,
            *(CloudEvent(event, tenant_id, *actor) for event, tenant_id in events),
        )

    async def _note(
        self,
        connection: Connection,
        user: User,
        source: Source,
        word: _Word,
        *,
        lost_at: datetime | None,
        login: bool,
    ) -> None:
        person = word.person
        seen = ExternalIdentity(
            source_id=source.id,
            subject=person.subject,
            account_id=user.id,
            tenant_id=user.tenant_id,
            groups_seen=person.groups,
            seen_at=word.at,
            asked_at=word.asked_at,
            lost_at=lost_at,
        )
        login_at = word.at if login else None
        await store.write_identity(connection, seen, person.email, login_at=login_at)

    @staticmethod
    def _snapshot(user: User, groups: tuple[str, ...]) -> UserSnapshot:
        return replace(user.snapshot(), groups=groups)


def may_come_from_elsewhere(user: User) -> bool:
    """Whether a local account is one that a source may take over by its address: invited, and no
    Owner, who is to have a password here for the day when a source does not answer. One that was
    taken out of a source waits for who accepts the invitation."""
    return (
        user.origin == "local"
        and user.status == "invited"
        and user.role is not Role.OWNER
        and not user.kept_from_sources
    )
