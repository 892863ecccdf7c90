"""Logins with a directory: who asks which one, and what comes of its answer.

An account with a password here never asks a directory, and one without never has its password
stored: a login goes one way or the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prometheus_client import REGISTRY

from contract.events.identity.sources import DirectoryLoginRefused, RefusedPerson
from servicekit.data.postgres import SYSTEM, Connection, Database, Scope
from servicekit.errors import DomainError, failed_precondition, unauthenticated
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.metrics import Outcomes
from servicekit.security.sealing import SealingError
from services.identity.authenticators.guesses import Standing
from services.identity.directories import store
from services.identity.directories.asking import (
    AwayError,
    Budget,
    Entry,
    Settings,
    WrongPasswordError,
)
from services.identity.directories.domain import Directory
from services.identity.directories.service import Directories
from services.identity.directories.threads import DirectoryThreads, away
from services.identity.directories.tries import Tries, Try
from services.identity.sources import store as sources_store
from services.identity.sources.breaker import PAUSE_SECONDS
from services.identity.sources.domain import NotAdmittedError, Person, domain_of
from services.identity.sources.service import SourceAccounts, may_come_from_elsewhere
from services.identity.tenants import store as tenants_store
from services.identity.users.domain import User
from services.identity.users.store import Credentials

if TYPE_CHECKING:
    from services.identity.directories.ldap import Conversation

log = logs.get(__name__)

_LOGINS: Final = Outcomes(
    REGISTRY,
    "evergreen_directory_logins",
    "Logins with a directory: ok, wrong, refused (no role, say), slowed (enough wrong tries) or"
    " away.",
)
_DISABLED: Final = frozenset({"AD_533", "AD_701"})
_LOCKED: Final = frozenset({"AD_775", "PPOLICY_1"})
_TO_CHANGE: Final = frozenset({"AD_532", "AD_773", "PPOLICY_0", "PPOLICY_2"})


class RefusedByDirectoryError(Exception):
    """A directory refused a password; `reason` is for the audit log, `told` for who tried."""

    def __init__(self, reason: str, told: DomainError | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.told = told


@dataclass(frozen=True, slots=True)
class Recognised:
    """A person whose password a directory has just taken."""

    directory: Directory
    person: Person
    asked_at: datetime


@dataclass(slots=True)
class _Asked:
    """A directory that is asked for a person, and how far that got."""

    directory: Directory
    settings: Settings
    budget: Budget
    at: datetime
    sent: bool = False
    """Whether it may have seen the password,"""
    right: bool = False
    """and took it."""


class DirectoryLogins:
    """What `Sessions` asks of directories."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        directories: Directories,
        accounts: SourceAccounts,
        threads: DirectoryThreads,
        tries: Tries,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._directories = directories
        self._accounts = accounts
        self._threads = threads
        self._tries = tries
        self._clock = clock

    async def route(
        self, connection: Connection, found: Credentials | None, email: str
    ) -> Directory | None:
        """The directory that a login asks; `None` when it is decided here.

        Args:
            connection: sees all rows.
            found: the account with the address, if there is one.
            email: the address, normalised.
        """
        source_id: UUID | None = None
        if found is None:
            source_id = await sources_store.source_of_domain(connection, domain_of(email))
        elif found.user.origin == "directory":
            source_id = found.user.source_id
        elif found.hashes is None and may_come_from_elsewhere(found.user):
            source_id = await sources_store.source_of_domain(connection, domain_of(email))
        if source_id is None:
            return None
        directory = await store.directory(connection, SYSTEM, source_id)
        if directory is None or not directory.source.enabled:
            return None
        if found is not None and not await tenants_store.below(
            connection, directory.source.tenant_id, {found.user.tenant_id}
        ):
            return None
        return directory

    async def verify(
        self, directory: Directory, email: str, password: str, standing: Standing
    ) -> Recognised:
        """Asks a directory whether a password is right.

        Raises:
            RefusedByDirectoryError: it is not.
            DomainError: UNAVAILABLE when the directory does not answer; RESOURCE_EXHAUSTED when
                it has seen enough wrong passwords of the person.
        """
        try:
            self._threads.check(directory.id)
            settings = self._settings(directory)
        except DomainError:
            _LOGINS.note("away")
            raise
        asked = _Asked(directory, settings, Budget.of_login(self._threads.seconds), self._clock())
        begun: list[Try] = []
        try:
            person = await self._ask(asked, email, password, standing, begun)
        except AwayError as error:
            self._threads.failed(directory.id)
            if asked.right or not asked.sent:
                await self._tries.not_made(*begun)
            raise self._away(directory, error) from None
        except WrongPasswordError as error:
            self._threads.worked(directory.id)
            _LOGINS.note("wrong")
            told = _told(error.reason, standing)
            raise RefusedByDirectoryError(error.reason, told) from None
        except DomainError as error:
            # It was not asked for the password, or has too many who ask.
            if error.reason == "TOO_MANY_DIRECTORY_TRIES":
                _LOGINS.note("slowed")
            await self._tries.not_made(*begun)
            raise
        self._threads.worked(directory.id)
        # The password was right: wrong ones before it count no more.
        await self._tries.succeeded(*begun)
        return Recognised(directory, person, asked.at)

    async def _ask(
        self, asked: _Asked, email: str, password: str, standing: Standing, begun: list[Try]
    ) -> Person:
        """The person with an address and a password.

        Args:
            begun: takes the tries that were counted.
        """
        directory_id = asked.directory.id
        begun.append(await self._tries.begin(directory_id, f"login:{email}", standing))
        entry = await self._threads.run(
            directory_id, asked.settings, lambda ldap: ldap.find(email), asked.budget
        )
        if entry is None:
            await self._as_nobody(asked)
            raise WrongPasswordError("UNKNOWN")
        try:
            # Somebody with two addresses has two names and one account to lock.
            one = await self._tries.begin(directory_id, f"id:{entry.subject}", standing, known=True)
            begun.append(one)
        except DomainError:
            if standing is not Standing.STRANGE:
                raise
            # A stranger is not told that there is such a person.
            await self._as_nobody(asked)
            raise WrongPasswordError("SLOWED") from None
        return await self._bind(asked, entry, password)

    async def _as_nobody(self, asked: _Asked) -> None:
        """Takes the time that a wrong password would take: whether there is a person with an
        address is nobody's to find out."""
        await self._threads.run(
            asked.directory.id, asked.settings, lambda ldap: ldap.verify_nobody(), asked.budget
        )

    async def _bind(self, asked: _Asked, entry: Entry, password: str) -> Person:
        async with self._database.system_transaction(
            "a person is known by the directory's own id"
        ) as connection:
            known = await sources_store.identity(connection, asked.directory.id, entry.subject)
        before = known.groups_seen if known is not None else frozenset()

        def ask(ldap: Conversation) -> Person | WrongPasswordError:
            asked.sent = True
            try:
                ldap.verify(entry, password)
            except WrongPasswordError as wrong:
                return wrong
            asked.right = True
            groups = ldap.groups_of([entry])[entry.subject]
            # A group that is gone, or cannot be seen, takes nothing from its members.
            lost = before - groups if groups else asked.settings.groups
            if (missing := ldap.missing_group(lost)) is not None:
                raise AwayError("groups", f"the group {missing} is not there")
            return Person(entry.subject, entry.email, groups)

        answer = await self._threads.run(asked.directory.id, asked.settings, ask, asked.budget)
        if isinstance(answer, WrongPasswordError):
            raise answer
        if not entry.active:
            raise WrongPasswordError("DISABLED")
        return answer

    def _settings(self, directory: Directory) -> Settings:
        try:
            return self._directories.settings(directory)
        except SealingError as broken:
            raise self._away(directory, AwayError("bind", str(broken))) from None

    @staticmethod
    def _away(directory: Directory, error: AwayError) -> DomainError:
        _LOGINS.note("away")
        log.warning(
            "directory not reached",
            directory=str(directory.id),
            step=error.step,
            error=str(error),
        )
        return away(PAUSE_SECONDS)

    async def admit(self, connection: Connection, recognised: Recognised) -> User:
        """The account of a person, made or changed as the mappings want it now.

        Args:
            connection: sees all rows. What is done is committed by the caller, whatever is raised.

        Raises:
            NotAdmittedError: the person gets no login.
        """
        directory = recognised.directory
        now = await store.directory(connection, SYSTEM, directory.id, lock="FOR SHARE")
        if now is None or not now.source.enabled:
            raise NotAdmittedError("DISABLED")
        if now.source.updated_at != directory.source.updated_at:
            # It was asked as another one; groups that were not asked for count for nothing, and
            # the person may be none whom it still knows.
            raise NotAdmittedError("CHANGED")
        return await self._accounts.admit(
            connection,
            now.source,
            recognised.person,
            self._clock(),
            min(recognised.asked_at, self._clock()),
        )

    @staticmethod
    def admitted() -> None:
        """Counts a login that came of it."""
        _LOGINS.note("ok")

    async def not_admitted(self, recognised: Recognised, email: str, reason: str) -> DomainError:
        """Tells the log of the directory's tenant who got no login, and why; answers what the
        person is told."""
        if reason == "CHANGED":
            _LOGINS.note("away")
            return away(1.0)
        _LOGINS.note("refused")
        source = recognised.directory.source
        async with self._database.transaction(Scope.of(source.tenant_id)) as connection:
            event = DirectoryLoginRefused(
                id=source.id, after=RefusedPerson(email=email, reason=reason, source=source.id)
            )
            await self._outbox.append(
                connection, CloudEvent(event, source.tenant_id, source.actor, str(source.id))
            )
        if reason == "DISABLED":
            return unauthenticated("ACCOUNT_DISABLED", "your account is disabled")
        return unauthenticated(
            "NO_ROLE",
            "your organisation's directory knows you, but gives you no role here; ask an Owner",
        )

    async def check_confirmed(self, connection: Connection, user: User) -> None:
        """Refuses to go on with a session whose user's source is silent for too long, or not in
        use any more.

        Raises:
            DomainError: UNAUTHENTICATED.
        """
        if user.origin == "local":
            return
        at = self._clock()
        for known in await sources_store.identities_of(connection, user.id):
            source = await sources_store.source(connection, SYSTEM, known.source_id)
            # SCIM tells what somebody is, and not that somebody is still here.
            confirms = source is not None and source.enabled and source.kind != "scim"
            if source is not None and confirms and known.seen_at + source.grace > at:
                return
        raise unauthenticated(
            "SOURCE_SILENT",
            "your organisation's directory has not confirmed your account for too long; log in"
            " again",
        )


def _told(reason: str, standing: Standing) -> DomainError | None:
    """What a person is told beside that the login failed; only what the directory itself said.

    That an account is locked, directories say whatever the password is: strangers are not told.
    """
    if reason in _DISABLED or reason == "DISABLED":
        return unauthenticated("ACCOUNT_DISABLED", "your account is disabled in the directory")
    if reason in _LOCKED and standing is not Standing.STRANGE:
        return unauthenticated(
            "ACCOUNT_LOCKED", "your account is locked in your organisation's directory"
        )
    if reason in _TO_CHANGE:
        return unauthenticated(
            "PASSWORD_EXPIRED", "change your password at your organisation first, then log in"
        )
    return None


def password_is_elsewhere() -> DomainError:
    """A user from a directory has no password here."""
    return failed_precondition(
        "PASSWORD_ELSEWHERE",
        "your password is your organisation's; change it there",
    )
