"""Logins with a provider: the way there, and what comes of the way back (OpenID Connect Core 1.0,
authorization code flow with PKCE).

A login belongs to the browser that began it: its state, nonce and PKCE verifier are in a sealed
cookie of that browser, for ten minutes, and work once in all replicas.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from servicekit.data.postgres import Database
from servicekit.errors import DomainError, failed_precondition, unauthenticated
from servicekit.ids import Clock
from servicekit.security import jwt
from servicekit.security.digests import equal, sha256
from servicekit.security.sealing import Sealer, SealingError
from servicekit.security.tokens import new_secret
from servicekit.texts import normal_email
from services.identity.sources.domain import domain_of
from services.identity.sso import store
from services.identity.sso.asking import Asking, AwayError, printable, read_token
from services.identity.sso.claims import (
    ID_TOKEN_KINDS,
    Claims,
    RefusedError,
    check_id_token,
    claims_of,
    lacks,
)
from services.identity.sso.domain import CALLBACK, Provider, changed, with_parameters
from services.identity.sso.outcomes import LOGINS
from services.identity.sso.service import Providers

LIFE: Final = timedelta(minutes=10)
"""From the way there to the way back."""
_GOOGLE: Final = "https://accounts.google.com"
_LONGEST: Final = 4096
"""Of what comes back."""
_ANYBODYS: Final = frozenset({"CODE", "MIX_UP"})
"""What is wrong with what a browser brought: anybody can bring it, as often as they like."""
_AGAIN: Final = timedelta(minutes=10)
"""Between two entries of the log that say the same of a provider's answers."""


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
    """Logins that begin here and come back.

    Args:
        sealer: seals the cookies.
        public_url: where providers send people back to.
    """

    def __init__(
        self,
        database: Database,
        providers: Providers,
        asking: Asking,
        sealer: Sealer,
        public_url: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._providers = providers
        self._asking = asking
        self._sealer = sealer
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
        provider = await self._providers.in_use(provider_id, domain_of(email))
        async with self._asking.turn(provider, self._providers.top_of(provider)):
            document = await self._asking.document(
                provider, root=self._providers.is_of_root(provider)
            )
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
        return Began(with_parameters(document.authorization_endpoint, asked), self._seal(ticket))

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
        provider = await self._providers.in_use(ticket.provider_id, "")
        try:
            if provider.id != provider_id:
                raise _mixed_up()
            if provider.source.updated_at != ticket.changed_at:
                raise changed()
            async with self._asking.turn(provider, self._providers.top_of(provider)):
                claims = await self._recognise(provider, ticket, query, at)
        except RefusedError as refused:
            raise await self._refused(provider, refused) from None
        except DomainError:
            LOGINS.note("away")
            raise
        self._asking.worked(provider)
        return Arrival(provider, claims, ticket.return_to, ticket.link, ticket.session, at)

    async def _recognise(
        self, provider: Provider, ticket: _Ticket, query: Mapping[str, str], at: datetime
    ) -> Claims:
        root = self._providers.is_of_root(provider)
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
            LOGINS.note("cancelled")
            return unauthenticated(
                "SSO_CANCELLED", f"your organisation's sign-in did not let you in: {refused}"
            )
        LOGINS.note("wrong")
        if refused.reason not in _ANYBODYS and self._is_new(provider, refused.reason):
            await self._providers.tell_refusal(provider, "", refused.reason)
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

    def _redirect_uri(self, provider: Provider) -> str:
        return self._public_url + CALLBACK.format(provider=provider.id)

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


def _mixed_up() -> RefusedError:
    return RefusedError("MIX_UP", "another provider has answered")


def _stale() -> DomainError:
    LOGINS.note("wrong")
    return unauthenticated(
        "SSO_STALE",
        "this sign-in was not begun in this browser, took too long, or was used already; sign in"
        " again",
    )


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
