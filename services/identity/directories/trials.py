"""Directories tried step by step, so that an Owner sees what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from contract.events.identity.sources import DirectoryTest, DirectoryTested
from servicekit.call import Call
from servicekit.data.postgres import Database, Scope
from servicekit.errors import invalid_field
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.sealing import SealingError
from servicekit.texts import normal_email
from services.identity.authenticators.guesses import Standing
from services.identity.directories.asking import AwayError, Entry, Settings, WrongPasswordError
from services.identity.directories.domain import Directory
from services.identity.directories.service import Directories
from services.identity.directories.threads import DirectoryThreads
from services.identity.directories.tries import Tries, Try
from services.identity.sources.domain import Person, decide
from services.identity.sources.service import SourceAccounts

if TYPE_CHECKING:
    from services.identity.directories.ldap import Conversation


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a try."""

    step: str
    ok: bool
    detail: str


class Trials:
    """Tries directories."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        directories: Directories,
        accounts: SourceAccounts,
        threads: DirectoryThreads,
        tries: Tries,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._directories = directories
        self._accounts = accounts
        self._threads = threads
        self._tries = tries

    async def test(self, call: Call, directory_id: UUID, login: str, password: str) -> list[Step]:
        """Tries a directory, step by step; the last step may have failed.

        Args:
            login: what a person types as the address; empty to look for nobody.
            password: what the person types as the password; empty not to try it.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT; RESOURCE_EXHAUSTED when the directory has
                seen enough wrong passwords of the person, or too many wait for it.
        """
        if password and not login:
            raise invalid_field("email", "is required with a password")
        directory = await self._directories.get(call, directory_id)
        steps = await self._tried(directory, normal_email(login), password)
        failed = next((step for step in steps if not step.ok), None)
        event = DirectoryTested(
            id=directory.id,
            after=DirectoryTest(
                name=directory.source.name, ok=failed is None, last_step=steps[-1].step
            ),
        )
        scope = Scope.of(directory.source.tenant_id)
        async with self._database.transaction(scope) as connection:
            await self._outbox.append(connection, CloudEvent(event, directory.source.tenant_id))
        return steps

    async def _tried(self, directory: Directory, login: str, password: str) -> list[Step]:
        done: list[tuple[str, str]] = []
        try:
            settings = self._directories.settings(directory)
            if not login:
                await self._run(directory, settings, partial(_look_around, done))
                return _steps(done)
            entry, groups = await self._run(directory, settings, partial(_look, done, login))
            if entry is None:
                steps = _steps(done)
                return [*steps[:-1], replace(steps[-1], ok=False)]
            if password:
                await self._verify(directory, settings, login, entry, password)
                done.append(("password", "is right"))
        except SealingError as error:
            return [*_steps(done), Step("bind", False, str(error))]
        except AwayError as error:
            return [*_steps(done), Step(error.step, False, str(error))]
        except WrongPasswordError as error:
            return [*_steps(done), Step("password", False, f"is refused ({error.reason})")]
        steps = _steps(done)
        decision = decide(directory.mappings, groups)
        if decision is None:
            return [*steps, Step("role", False, "no row of roleMappings matches: no login")]
        tenant = self._tenants.known(decision.tenant_id)
        where = tenant.name if tenant is not None else str(decision.tenant_id)
        steps.append(Step("role", True, f"{decision.role.value} of {where}"))
        async with self._database.system_transaction(
            "an address is one in the whole system"
        ) as connection:
            person = Person(entry.subject, entry.email, groups)
            foreseen = await self._accounts.foresee(connection, directory.source, person)
        return [*steps, *(Step(*one) for one in foreseen)]

    async def _verify(
        self, directory: Directory, settings: Settings, login: str, entry: Entry, password: str
    ) -> None:
        """Tries a password, counted as that of a login."""
        begun: list[Try] = []
        sent = right = False

        def ask(conversation: Conversation) -> None:
            nonlocal sent, right
            sent = True
            conversation.verify(entry, password)
            right = True

        try:
            for who in (f"login:{login}", f"id:{entry.subject}"):
                begun.append(await self._tries.begin(directory.id, who, Standing.FAMILIAR))
            await self._run(directory, settings, ask)
        finally:
            if right or not sent:
                await self._tries.not_made(*begun)

    async def _run(
        self, directory: Directory, settings: Settings, work: Callable[[Conversation], T]
    ) -> T:
        # Turns are the tenant's: it has ten directories, and others try theirs, too.
        return await self._threads.run(directory.source.tenant_id, settings, work)


def _look_around(done: list[tuple[str, str]], conversation: Conversation) -> None:
    """Looks for anybody, and for the groups."""
    conversation.steps = done
    conversation.tell("search", f"{conversation.count()} people, or more")
    if (missing := conversation.missing_group()) is not None:
        raise AwayError("groups", f"{missing} is not there; check roleMappings")
    conversation.tell("groups", f"{conversation.count_groups()} mapped groups are there")


def _look(
    done: list[tuple[str, str]], login: str, conversation: Conversation
) -> tuple[Entry | None, frozenset[str]]:
    """Looks for a person, and for the person's groups."""
    conversation.steps = done
    entry = conversation.find(login)
    if entry is None:
        return None, frozenset()
    groups = conversation.groups_of([entry])[entry.subject]
    conversation.tell("groups", "; ".join(sorted(groups)) or "in no mapped group")
    if not entry.active:
        raise AwayError("password", "the account is disabled in the directory")
    return entry, groups


def _steps(done: Sequence[tuple[str, str]]) -> list[Step]:
    """What was done, each step once: a password is tried on a connection of its own."""
    found: dict[str, Step] = {}
    for step, detail in done:
        found.setdefault(step, Step(step, True, detail))
    return list(found.values())
