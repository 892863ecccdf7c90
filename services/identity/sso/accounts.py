"""The accounts of people whom a provider has recognised: admitted, linked, and links taken back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.identity.sources import AccountLinked, AccountUnlinked, LinkedAccount
from servicekit.data.postgres import SYSTEM, Connection, Database, Scope
from servicekit.errors import DomainError, failed_precondition, not_found, unauthenticated
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.peers.tenants import TenantDirectory
from services.identity.sources import store as sources_store
from services.identity.sources.domain import (
    Decision,
    ExternalIdentity,
    NotAdmittedError,
    Person,
    Terms,
    domain_of,
)
from services.identity.sources.service import SourceAccounts
from services.identity.sso import store
from services.identity.sso.claims import Claims
from services.identity.sso.domain import Provider, changed
from services.identity.sso.logins import Arrival
from services.identity.sso.outcomes import LOGINS
from services.identity.sso.service import Button, Providers
from services.identity.users import store as users_store
from services.identity.users.domain import User

log = logs.get(__name__)

_LINKED: Final = frozenset({"local", "scim"})
"""Origins of users of whom a provider changes nothing."""

EndByProvider = Callable[[Connection, UUID, UUID, datetime, str], Awaitable[list[UUID]]]
"""Ends the sessions of a user that a source opened: user, source, time, and what the source calls
its session, empty for all; answers them."""


class SsoAccounts:
    """What becomes of accounts.

    Args:
        end_sessions: ends sessions that a provider opened.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        providers: Providers,
        accounts: SourceAccounts,
        end_sessions: EndByProvider,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._providers = providers
        self._accounts = accounts
        self._end_sessions = end_sessions
        self._clock = clock

    async def admit(self, connection: Connection, arrival: Arrival) -> User:
        """The account of a person, made or changed as the mappings want it now.

        Args:
            connection: sees all rows. What is done is committed by the caller, whatever is raised.

        Raises:
            NotAdmittedError: the person gets no login.
        """
        provider, claims = arrival.provider, arrival.claims
        now = await store.provider(connection, SYSTEM, provider.id, lock="FOR SHARE")
        if now is None or not now.source.enabled:
            raise NotAdmittedError("DISABLED")
        if now.source.updated_at != provider.source.updated_at:
            # It was asked as another one; groups that were not looked for count for nothing.
            raise NotAdmittedError("CHANGED")
        account_id = await store.known_account(connection, now.id, claims.subject)
        if account_id is None:
            return await self._welcome(connection, now, arrival)
        user = await users_store.user(connection, SYSTEM, account_id)
        if user is not None and user.origin in _LINKED:
            return await self._linked(connection, now, claims, user)
        decision = None
        if now.keeps_roles:
            if user is None or not self._is_below(now, user):
                raise NotAdmittedError("OTHER_ACCOUNT")
            decision = Decision(user.role, user.tenant_id, ())
        groups = claims.groups
        if groups is None and not now.keeps_roles:
            # It did not say that there are none: those that it said last stand, and its rows with
            # everybody (*). Nobody changes them meanwhile.
            await users_store.take_turns(connection)
            known = await sources_store.identity(connection, now.id, claims.subject)
            groups = known.groups_seen if known is not None else frozenset()
            if now.groups:
                log.warning("provider told no groups", provider=str(now.id))
        # Somebody else's address may stand there.
        email = "" if claims.email_verified is False else claims.email
        person = Person(claims.subject, email, groups or frozenset())
        terms = Terms(decision=decision, keeps=now.keeps_roles)
        try:
            return await self._accounts.admit(
                connection, now.source, person, self._clock(), arrival.asked_at, terms
            )
        except NotAdmittedError:
            # What was told counts, also when it lets nobody in: else a login that tells no groups
            # would go back to those of before.
            await store.note_groups(connection, now.id, person.subject, sorted(person.groups))
            raise

    async def _welcome(self, connection: Connection, provider: Provider, arrival: Arrival) -> User:
        """The account of somebody whom the provider has not sent before: the one that was invited
        by the address, or a new one."""
        claims = arrival.claims
        if claims.email_verified is False:
            raise NotAdmittedError("EMAIL_UNVERIFIED")
        sent = await self._sent_by_scim(connection, provider, claims)
        if sent is not None:
            return sent
        decision = None
        if provider.keeps_roles:
            found = await users_store.credentials_by_email(connection, claims.email, claims.email)
            if found is None:
                raise NotAdmittedError("NOT_INVITED")
            if not self._is_below(provider, found.user):
                raise NotAdmittedError("OTHER_ACCOUNT")
            decision = Decision(found.user.role, found.user.tenant_id, ())
        terms = Terms(
            makes_accounts=provider.just_in_time,
            takes_invited=claims.email_verified is True,
            decision=decision,
            keeps=provider.keeps_roles,
        )
        person = Person(claims.subject, claims.email, claims.groups or frozenset())
        return await self._accounts.admit(
            connection, provider.source, person, self._clock(), arrival.asked_at, terms
        )

    async def _sent_by_scim(
        self, connection: Connection, provider: Provider, claims: Claims
    ) -> User | None:
        """The account of somebody whom SCIM has sent, linked with the first login; `None` for
        everybody else. SCIM decides role and organisation, whatever groups the provider tells.

        Raises:
            NotAdmittedError: the address is not verified, or the account is not this person's.
        """
        email = claims.email
        found = await users_store.credentials_by_email(connection, email, email)
        if found is None or found.user.origin != "scim":
            return None
        if claims.email_verified is not True:
            domain = domain_of(email)
            if await sources_store.source_of_domain(connection, domain) != provider.id:
                raise NotAdmittedError("EMAIL_DOMAIN")
        # Nobody else links the same person meanwhile, nor has the address gone to somebody else.
        await users_store.take_turns(connection)
        now = await users_store.credentials_by_email(connection, email, email)
        if now is None or now.user.id != found.user.id:
            raise NotAdmittedError("CHANGED")
        known = await sources_store.identities_of(connection, found.user.id)
        kinds = [await sources_store.source(connection, SYSTEM, one.source_id) for one in known]
        if any(one is None or one.kind != "scim" for one in kinds):
            # Another person of this provider, or of another one, is linked.
            raise NotAdmittedError("OTHER_ACCOUNT")
        user = await self._linked(connection, provider, claims, found.user)
        event = AccountLinked(id=user.id, after=_linked(user, provider))
        source = provider.source
        await self._outbox.append(
            connection, CloudEvent(event, user.tenant_id, source.actor, str(source.id))
        )
        return user

    async def _linked(
        self, connection: Connection, provider: Provider, claims: Claims, seen: User
    ) -> User:
        """The account of somebody who has a password here, or whom SCIM has sent: nothing of it
        is changed."""
        user = await users_store.user(connection, SYSTEM, seen.id, for_update=True)
        if user is None or user.origin not in _LINKED or not self._is_below(provider, user):
            raise NotAdmittedError("OTHER_ACCOUNT")
        if user.status != "active":
            raise NotAdmittedError("DISABLED")
        await self._note_identity(connection, provider, claims, user, login=True)
        return user

    async def _note_identity(
        self,
        connection: Connection,
        provider: Provider,
        claims: Claims,
        user: User,
        *,
        login: bool,
    ) -> None:
        at = self._clock()
        seen = ExternalIdentity(
            source_id=provider.id,
            subject=claims.subject,
            account_id=user.id,
            tenant_id=user.tenant_id,
            groups_seen=claims.groups or frozenset(),
            seen_at=at,
        )
        await sources_store.write_identity(
            connection, seen, claims.email, login_at=at if login else None
        )

    def _is_below(self, provider: Provider, user: User) -> bool:
        scope = self._tenants.scope(provider.source.tenant_id)
        return scope.tenant_ids is None or user.tenant_id in scope.tenant_ids

    @staticmethod
    def admitted() -> None:
        """Counts a login that came of it."""
        LOGINS.note("ok")

    async def not_admitted(self, arrival: Arrival, reason: str) -> DomainError:
        """Tells the log of the provider's tenant who got no login, and why; answers what the
        person is told."""
        LOGINS.note("refused")
        await self._providers.tell_refusal(arrival.provider, arrival.claims.email, reason)
        if reason == "CHANGED":
            return changed()
        if reason == "DISABLED":
            return unauthenticated("ACCOUNT_DISABLED", "your account is disabled")
        if reason == "EMAIL_UNVERIFIED":
            return unauthenticated(
                "SSO_EMAIL_UNVERIFIED",
                "your organisation's sign-in has not verified your e-mail address",
            )
        return unauthenticated(
            "SSO_NO_ACCOUNT",
            "your organisation's sign-in knows you, but you have no account here that it opens;"
            " ask an Owner of your organisation",
        )

    async def link(self, connection: Connection, arrival: Arrival) -> User:
        """Links a person of a provider with the account of somebody who is logged in.

        Raises:
            DomainError: FAILED_PRECONDITION when that cannot be.
        """
        provider, claims = arrival.provider, arrival.claims
        assert arrival.link is not None
        source = await sources_store.source(connection, SYSTEM, provider.id, lock="FOR SHARE")
        # Nobody else links the same person meanwhile.
        await users_store.take_turns(connection)
        user = await users_store.user(connection, SYSTEM, arrival.link, for_update=True)
        if source is None or not source.enabled or user is None or user.status != "active":
            raise not_found("provider", provider.id)
        if source.updated_at != provider.source.updated_at:
            raise changed()
        self._check_linkable(provider, user)
        known = await sources_store.identity(connection, provider.id, claims.subject)
        mine = await sources_store.identities_of(connection, user.id)
        if known is not None and known.account_id == user.id:
            return user
        if known is not None or any(one.source_id == provider.id for one in mine):
            raise failed_precondition(
                "ALREADY_LINKED",
                "that account of your organisation, or yours here, is linked already",
            )
        await self._note_identity(connection, provider, claims, user, login=False)
        event = AccountLinked(id=user.id, after=_linked(user, provider))
        await self._outbox.append(connection, _by(user, event))
        return user

    async def unlink(self, user_id: UUID, tenant_id: UUID, provider_id: UUID) -> None:
        """Takes a link back; the sessions that it opened end.

        Raises:
            DomainError: NOT_FOUND when there is none; FAILED_PRECONDITION for a user who comes
                from a provider.
        """
        at = self._clock()
        async with self._database.system_transaction(
            "a provider may be of a tenant above"
        ) as connection:
            user = await users_store.user(connection, Scope.of(tenant_id), user_id, for_update=True)
            provider = await store.provider(connection, SYSTEM, provider_id)
            if user is None or provider is None:
                raise not_found("provider", provider_id)
            self._check_linkable(provider, user)
            if not await sources_store.forget_identity(connection, provider.id, user.id):
                raise not_found("provider", provider_id)
            await self._end_sessions(connection, user.id, provider.id, at, "")
            event = AccountUnlinked(id=user.id, before=_linked(user, provider))
            await self._outbox.append(connection, _by(user, event))
        await self._tenants.follower.try_refresh()

    async def linkable(self, user_id: UUID, tenant_id: UUID) -> list[tuple[Button, bool]]:
        """The providers that a local account may be linked with, and whether it is; none for
        others."""
        async with self._database.system_transaction(
            "a provider may be of a tenant above"
        ) as connection:
            user = await users_store.user(connection, Scope.of(tenant_id), user_id)
            if user is None or user.origin != "local":
                return []
            known = await sources_store.identities_of(connection, user_id)
            linked = {one.source_id for one in known}
            rows = await store.of_tenants(connection, self._providers.upwards(tenant_id))
        return [(Button(one, name), one in linked) for one, name in rows]

    def _check_linkable(self, provider: Provider, user: User) -> None:
        """Nobody who runs a provider below gets into an account above.

        Raises:
            DomainError: FAILED_PRECONDITION.
        """
        if user.origin != "local" or not self._is_below(provider, user):
            raise failed_precondition(
                "NOT_LINKABLE",
                "only an account with a password here is linked, with a provider of its own"
                " organisation or of one above",
            )


def _linked(user: User, provider: Provider) -> LinkedAccount:
    return LinkedAccount(email=user.email, source=provider.id, provider=provider.source.name)


def _by(user: User, event: AccountLinked | AccountUnlinked) -> CloudEvent:
    return CloudEvent(
        event,
        user.tenant_id,
        actor=user.email,
        actor_id=str(user.id),
        actor_role=user.role.value,
    )
