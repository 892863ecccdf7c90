"""Logins with a provider: the way there, and what comes of the way back (OpenID Connect Core 1.0,
authorization code flow with PKCE).

A login belongs to the browser that began it: its state, nonce and PKCE verifier are in a sealed
cookie of that browser, for ten minutes, and work once in all replicas.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode, urlsplit, urlunsplit
from uuid import UUID

from prometheus_client import REGISTRY

from contract.events.identity import (
    AccountLinked,
    AccountUnlinked,
    EndedSessions,
    LinkedAccount,
    RefusedPerson,
    SessionsEnded,
    SsoLoginRefused,
)
from servicekit.data.postgres import SYSTEM, Connection, Database, Scope
from servicekit.errors import (
    Code,
    DomainError,
    failed_precondition,
    not_found,
    unauthenticated,
)
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.metrics import Outcomes
from servicekit.peers.tenants import TenantDirectory
from servicekit.security import jwt
from servicekit.security.digests import equal, sha256
from servicekit.security.sealing import Sealer, SealingError
from servicekit.security.tokens import new_secret
from servicekit.texts import normal_email
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
from services.identity.sso.asking import Asking, AwayError, printable, read_token
from services.identity.sso.claims import (
    ID_TOKEN_KINDS,
    LOGOUT_TOKEN_KINDS,
    Claims,
    RefusedError,
    check_id_token,
    check_logout,
    claims_of,
    lacks,
)
from services.identity.sso.domain import CALLBACK, SIGNED_OUT, Provider
from services.identity.sso.service import Button, Providers
from services.identity.users import store as users_store
from services.identity.users.domain import User

log = logs.get(__name__)

LIFE: Final = timedelta(minutes=10)
"""From the way there to the way back."""
_LEAVE_SECONDS: Final = 3.0
"""How long who signs out waits for a provider."""
_GOOGLE: Final = "https://accounts.google.com"
_LONGEST: Final = 4096
"""Of what comes back."""
_LOGINS: Final = Outcomes(
    REGISTRY,
    "evergreen_sso_logins",
    "Logins with single sign-on: ok, refused (no role, say), wrong (a token or a state is not"
    " taken), cancelled or away.",
)
_LOGOUTS: Final = Outcomes(
    REGISTRY, "evergreen_sso_logouts", "Back-channel logouts of providers: ok, refused or away."
)

_ANYBODYS: Final = frozenset({"CODE", "MIX_UP"})
"""What is wrong with what a browser brought: anybody can bring it, as often as they like."""
_AGAIN: Final = timedelta(minutes=10)
"""Between two entries of the log that say the same of a provider's answers."""

EndByProvider = Callable[[Connection, UUID, UUID, datetime, str], Awaitable[list[UUID]]]
"""Ends the sessions of a user that a source opened: user, source, time, and what the source calls
its session, empty for all; answers them."""


@dataclass(frozen=True, slots=True)
class Began:
    """A login that was begun: where the browser goes, and its cookie."""

    url: str
    cookie: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """A person whom a provider has just recognised."""

    provider: Provider
    claims: Claims
    return_to: str
    link: UUID | None
    """The account that the person wants to link, instead of logging in."""
    session: UUID | None
    """The session in which the person wants that."""
    asked_at: datetime
    """When the provider was asked."""

    @property
    def authenticated_at(self) -> datetime:
        """When the person showed who it is: as the provider says, or else now."""
        return min(self.claims.authenticated_at or self.asked_at, self.asked_at)


@dataclass(frozen=True, slots=True)
class _Ticket:
    """What the browser's cookie has, sealed."""

    provider_id: UUID
    state: str
    nonce: str
    verifier: str
    return_to: str
    expires_at: datetime
    link: UUID | None
    session: UUID | None
    changed_at: datetime
    """When the provider was changed last: it was begun with that one."""


class SsoLogins:
    """What pages and `Sessions` ask of providers.

    Args:
        sealer: seals the cookies.
        end_sessions: ends sessions that a provider opened.
        public_url: where providers send people back to.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        providers: Providers,
        accounts: SourceAccounts,
        asking: Asking,
        sealer: Sealer,
        end_sessions: EndByProvider,
        public_url: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._providers = providers
        self._accounts = accounts
        self._asking = asking
        self._sealer = sealer
        self._end_sessions = end_sessions
        self._public_url = public_url.rstrip("/")
        self._clock = clock
        self._said: dict[tuple[UUID, str], datetime] = {}

    async def begin(
        self,
        provider_id: UUID | None,
        email: str,
        return_to: str,
        *,
        link: UUID | None = None,
        session: UUID | None = None,
        again: bool = False,
    ) -> Began:
        """Where a browser goes to log in.

        Args:
            provider_id: the provider; `None` for the one of the address's domain.
            email: the person's address, for the provider to begin with; may be empty.
            return_to: where the person wants to be afterwards.
            link: the account that is to be linked.
            session: the session in which it is.
            again: whether the provider is to ask the person once more, whatever it remembers.

        Raises:
            DomainError: NOT_FOUND when there is no such provider in use; UNAVAILABLE when it does
                not answer.
        """
        if not self._public_url:
            raise failed_precondition(
                "NO_PUBLIC_URL", "single sign-on needs EVERGREEN_PUBLIC_URL; tell the operator"
            )
        email = normal_email(email) if email else ""
        provider = await self._open_provider(provider_id, domain_of(email))
        async with self._asking.turn(provider, self._providers.top_of(provider)):
            document = await self._asking.document(provider, root=self._is_roots(provider))
        ticket = _Ticket(
            provider.id,
            new_secret(),
            new_secret(),
            new_secret(),
            return_to,
            self._clock() + LIFE,
            link,
            session,
            provider.source.updated_at,
        )
        asked = {
            "response_type": "code",
            "client_id": provider.client_id,
            "redirect_uri": self._redirect_uri(provider),
            "scope": " ".join(provider.scopes),
            "state": ticket.state,
            "nonce": ticket.nonce,
            "code_challenge": _unpadded(sha256(ticket.verifier.encode())),
            "code_challenge_method": "S256",
        }
        if email:
            asked["login_hint"] = email
        if provider.hosted_domain:
            asked["hd"] = provider.hosted_domain
        if again:
            # Google knows no other prompt, and does not say when it asked.
            asked["prompt"] = "select_account" if provider.issuer == _GOOGLE else "login"
            asked["max_age"] = "0"
        return Began(_with(document.authorization_endpoint, asked), self._seal(ticket))

    async def leave(self, session_id: UUID) -> str:
        """Where a browser goes to sign out at the provider that opened its session, too (OpenID
        Connect RP-Initiated Logout 1.0); empty for nowhere.

        The provider asks the person itself: it is shown no token, which would have to be kept.
        """
        async with self._database.system_transaction(
            "a provider may be of a tenant above"
        ) as connection:
            provider_id = await store.to_leave(connection, session_id)
        if provider_id is None:
            return ""
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                provider = await self._open_provider(provider_id, "")
                async with self._asking.turn(provider, self._providers.top_of(provider)):
                    document = await self._asking.document(provider, root=self._is_roots(provider))
        except (DomainError, TimeoutError):
            # The session here is over whatever the provider does.
            return ""
        if not document.end_session_endpoint:
            return ""
        asked = {
            "client_id": provider.client_id,
            "post_logout_redirect_uri": self._public_url + SIGNED_OUT,
        }
        return _with(document.end_session_endpoint, asked)

    async def arrive(self, provider_id: UUID, query: Mapping[str, str], cookie: str) -> Arrival:
        """Who comes back from a provider.

        Args:
            provider_id: whose address the browser came back to.
            query: what the provider sent along.
            cookie: the browser's.

        Raises:
            DomainError: UNAUTHENTICATED when it is not this browser's login, or not a good one;
                UNAVAILABLE when the provider does not answer.
        """
        ticket = self._ticket(cookie, query.get("state", ""))
        at = self._clock()
        mark = self._sealer.mark(f"state\0{ticket.state}")
        async with self._database.system_transaction("a state is nobody's") as connection:
            first = await store.use(connection, mark, ticket.expires_at)
        if not first:
            raise _stale()
        provider = await self._open_provider(ticket.provider_id, "")
        try:
            if provider.id != provider_id:
                raise _mixed_up()
            if provider.source.updated_at != ticket.changed_at:
                raise _changed()
            async with self._asking.turn(provider, self._providers.top_of(provider)):
                claims = await self._recognise(provider, ticket, query, at)
        except RefusedError as refused:
            raise await self._refused(provider, refused) from None
        except DomainError:
            _LOGINS.note("away")
            raise
        self._asking.worked(provider)
        return Arrival(provider, claims, ticket.return_to, ticket.link, ticket.session, at)

    async def _recognise(
        self, provider: Provider, ticket: _Ticket, query: Mapping[str, str], at: datetime
    ) -> Claims:
        root = self._is_roots(provider)
        document = await self._asking.document(provider, root=root)
        said = query.get("iss")
        if (said is None and document.says_issuer) or said not in {None, provider.issuer}:
            # Another provider has answered in the place of this one (RFC 9207).
            raise _mixed_up()
        if error := query.get("error", ""):
            raise RefusedError("CANCELLED", f"the provider says {printable(error)}")
        code = query.get("code", "")
        if not 0 < len(code) <= _LONGEST:
            raise RefusedError("CODE", "there is no code")
        try:
            secret = self._providers.secret(provider)
        except SealingError as broken:
            raise AwayError("token", str(broken)) from broken
        body = await self._asking.token(
            provider,
            secret,
            document,
            {
                "code": code,
                "redirect_uri": self._redirect_uri(provider),
                "code_verifier": ticket.verifier,
            },
            root=root,
        )
        decoded = await self._verified(provider, read_token(body, "id_token"), root=root)
        token = check_id_token(provider, decoded, ticket.nonce, at)
        more = None
        if document.userinfo_endpoint and lacks(provider, token):
            access = read_token(body, "access_token")
            more = await self._asking.userinfo(provider, document, access, root=root)
        return claims_of(provider, token, more)

    async def _verified(self, provider: Provider, token: str, *, root: bool) -> dict[str, Any]:
        """What an ID token says; keys that are not known yet are fetched."""
        keys = await self._asking.keys(provider, root=root)
        try:
            try:
                return jwt.decode_foreign(token, keys, ID_TOKEN_KINDS)
            except jwt.UnknownKeyError:
                newer = await self._asking.keys(provider, root=root, behind=keys, wait=True)
                return jwt.decode_foreign(token, newer, ID_TOKEN_KINDS)
        except ValueError as wrong:
            raise RefusedError("SIGNATURE", str(wrong)) from wrong

    async def _refused(self, provider: Provider, refused: RefusedError) -> DomainError:
        """Notes that an answer was not taken; answers what the person is told."""
        if refused.reason == "CANCELLED":
            _LOGINS.note("cancelled")
            return unauthenticated(
                "SSO_CANCELLED", f"your organisation's sign-in did not let you in: {refused}"
            )
        _LOGINS.note("wrong")
        if refused.reason not in _ANYBODYS and self._is_new(provider, refused.reason):
            await self._tell_refusal(provider, "", refused.reason)
        return unauthenticated(
            "SSO_NOT_TAKEN",
            "your organisation's sign-in gave an answer that cannot be used"
            f" ({refused.reason}); try again, or tell your administrator",
        )

    def _is_new(self, provider: Provider, reason: str) -> bool:
        """Whether the log does not say so already."""
        at = self._clock()
        self._said = {key: since for key, since in self._said.items() if since > at - _AGAIN}
        return self._said.setdefault((provider.id, reason), at) == at

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
        _LOGINS.note("ok")

    async def not_admitted(self, arrival: Arrival, reason: str) -> DomainError:
        """Tells the log of the provider's tenant who got no login, and why; answers what the
        person is told."""
        _LOGINS.note("refused")
        await self._tell_refusal(arrival.provider, arrival.claims.email, reason)
        if reason == "CHANGED":
            return _changed()
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
            raise _changed()
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

    async def log_out(self, provider_id: UUID, token: str) -> int:
        """Ends the sessions that a provider says are over (OpenID Connect Back-Channel Logout 1.0);
        answers how many.

        Raises:
            DomainError: NOT_FOUND for the provider; INVALID_ARGUMENT when the token is not taken;
                UNAVAILABLE when the provider's keys cannot be had.
        """
        async with self._database.system_transaction("a provider is asked by its id") as connection:
            provider = await store.provider(connection, SYSTEM, provider_id)
        if provider is None:
            raise not_found("provider", provider_id)
        at = self._clock()
        try:
            async with self._asking.turn(provider, self._providers.top_of(provider)):
                decoded = await self._logout_token(provider, token)
            logout = check_logout(provider, decoded, at)
        except RefusedError as refused:
            _LOGOUTS.note("refused")
            raise DomainError(
                Code.INVALID_ARGUMENT, refused.reason, f"the logout token is not taken: {refused}"
            ) from None
        except DomainError:
            _LOGOUTS.note("away")
            raise
        mark = self._sealer.mark(f"logout\0{provider.id}\0{logout.id}")
        ended = 0
        async with self._database.system_transaction("a provider's sessions end") as connection:
            if not await store.use(connection, mark, logout.expires_at):
                _LOGOUTS.note("refused")
                raise DomainError(
                    Code.INVALID_ARGUMENT, "REPLAYED", "the logout token was used before"
                )
            for user_id in await self._whose(connection, provider, logout.subject, logout.sid):
                ended += await self._end(connection, provider, user_id, logout.sid, at)
        _LOGOUTS.note("ok")
        if ended:
            await self._tenants.follower.try_refresh()
        return ended

    async def _logout_token(self, provider: Provider, token: str) -> dict[str, Any]:
        root = self._is_roots(provider)
        keys = await self._asking.keys(provider, root=root)
        try:
            try:
                return jwt.decode_foreign(token, keys, LOGOUT_TOKEN_KINDS)
            except jwt.UnknownKeyError:
                # Anybody may send one: nobody waits, and keys are fetched once in a while.
                newer = await self._asking.keys(provider, root=root, behind=keys)
                return jwt.decode_foreign(token, newer, LOGOUT_TOKEN_KINDS)
        except ValueError as wrong:
            raise RefusedError("SIGNATURE", str(wrong)) from wrong

    @staticmethod
    async def _whose(
        connection: Connection, provider: Provider, subject: str, sid: str
    ) -> list[UUID]:
        """The accounts that a logout is about; with both, the subject has to be the session's."""
        if subject:
            known = await sources_store.identity(connection, provider.id, subject)
            return [known.account_id] if known is not None else []
        return await store.accounts_of_sid(connection, provider.id, sid)

    async def _end(
        self, connection: Connection, provider: Provider, user_id: UUID, sid: str, at: datetime
    ) -> int:
        ended = await self._end_sessions(connection, user_id, provider.id, at, sid)
        user = await users_store.user(connection, SYSTEM, user_id)
        if not ended or user is None:
            return 0
        event = SessionsEnded(
            id=user.id,
            after=EndedSessions(
                email=user.email,
                count=len(ended),
                session_id=ended[0] if len(ended) == 1 else None,
                by="backchannel",
            ),
        )
        source = provider.source
        await self._outbox.append(
            connection, CloudEvent(event, user.tenant_id, source.actor, str(source.id))
        )
        return len(ended)

    async def _tell_refusal(self, provider: Provider, email: str, reason: str) -> None:
        source = provider.source
        async with self._database.transaction(Scope.of(source.tenant_id)) as connection:
            event = SsoLoginRefused(
                id=source.id, after=RefusedPerson(email=email, reason=reason, source=source.id)
            )
            await self._outbox.append(
                connection, CloudEvent(event, source.tenant_id, source.actor, str(source.id))
            )

    async def _open_provider(self, provider_id: UUID | None, domain: str) -> Provider:
        """A provider that is in use, of a tenant that is.

        Raises:
            DomainError: NOT_FOUND.
        """
        async with self._database.system_transaction(
            "who signs in is of no tenant yet"
        ) as connection:
            one = provider_id
            if one is None and domain:
                one = await sources_store.source_of_domain(connection, domain)
            found = await store.provider(connection, SYSTEM, one) if one is not None else None
        if found is not None and found.source.enabled:
            tenant = self._tenants.known(found.source.tenant_id)
            if tenant is not None and tenant.status == "active":
                return found
        raise DomainError(
            Code.NOT_FOUND,
            "NO_PROVIDER",
            "nobody signs in there; check the address, or ask your administrator",
        )

    def _redirect_uri(self, provider: Provider) -> str:
        return self._public_url + CALLBACK.format(provider=provider.id)

    def _is_roots(self, provider: Provider) -> bool:
        tenant = self._tenants.known(provider.source.tenant_id)
        return tenant is not None and tenant.kind == "root"

    def _seal(self, ticket: _Ticket) -> str:
        said = {
            "p": str(ticket.provider_id),
            "s": ticket.state,
            "n": ticket.nonce,
            "v": ticket.verifier,
            "r": ticket.return_to,
            "e": ticket.expires_at.isoformat(),
            "l": str(ticket.link or ""),
            "i": str(ticket.session or ""),
            "u": ticket.changed_at.isoformat(),
        }
        return _unpadded(self._sealer.seal(json.dumps(said).encode()))

    def _ticket(self, cookie: str, state: str) -> _Ticket:
        """What the browser's cookie says, if it belongs to the state that came back.

        Raises:
            DomainError: UNAUTHENTICATED.
        """
        if not cookie or len(cookie) > _LONGEST or not cookie.isascii():
            raise _stale()
        try:
            padded = cookie + "=" * (-len(cookie) % 4)
            said = json.loads(self._sealer.open(base64.urlsafe_b64decode(padded)))
        except (SealingError, ValueError):
            raise _stale() from None
        ticket = _Ticket(
            UUID(said["p"]),
            said["s"],
            said["n"],
            said["v"],
            said["r"],
            datetime.fromisoformat(said["e"]),
            UUID(said["l"]) if said["l"] else None,
            UUID(said["i"]) if said["i"] else None,
            datetime.fromisoformat(said["u"]),
        )
        if not equal(ticket.state.encode(), state.encode()) or ticket.expires_at <= self._clock():
            raise _stale()
        return ticket


_LINKED: Final = frozenset({"local", "scim"})
"""Origins of users of whom a provider changes nothing."""


def _changed() -> DomainError:
    return DomainError(Code.UNAVAILABLE, "PROVIDER_CHANGED", "the provider was changed; try again")


def _mixed_up() -> RefusedError:
    return RefusedError("MIX_UP", "another provider has answered")


def _stale() -> DomainError:
    _LOGINS.note("wrong")
    return unauthenticated(
        "SSO_STALE",
        "this sign-in was not begun in this browser, took too long, or was used already; sign in"
        " again",
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


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _with(url: str, asked: Mapping[str, str]) -> str:
    """An address with further parameters."""
    parts = urlsplit(url)
    query = "&".join(filter(None, (parts.query, urlencode(asked))))
    return urlunsplit(parts._replace(query=query))
