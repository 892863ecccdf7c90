"""Questions to providers: few at a time, each within its time and its size, never redirected.

The connection is made by the guard, to the address that it has looked at. What a provider says of
itself is kept for an hour, in memory; its keys are fetched again when a token names another one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID

from servicekit.errors import Code, DomainError, exhausted
from servicekit.observability import logs
from servicekit.outgoing.addresses import FORBIDDEN, Named, NotConnectedError
from servicekit.outgoing.guard import Guard
from servicekit.outgoing.http import Backend
from servicekit.outgoing.wire import certificate_reason, client_context
from servicekit.security import jwt
from services.identity.sources.breaker import PAUSE_SECONDS, Breaker
from services.identity.sso.claims import RefusedError
from services.identity.sso.domain import Provider, url_fault

if TYPE_CHECKING:
    import httpcore

log = logs.get(__name__)

_SECONDS: Final = 10.0
"""For one question, with its connection."""
_MOST_BYTES: Final = 256 << 10
_MOST_HEAD: Final = 64 << 10
_MOST_KEYS: Final = 50
_LONGEST_TOKEN: Final = 64 << 10
_KEPT_SECONDS: Final = 3600.0
_MOST_KEPT: Final = 1000
"""Providers."""
REFETCH_SECONDS: Final = 10.0
"""Between two times that keys are fetched."""
_SIDE_BY_SIDE: Final = 8
"""Logins with one provider that ask it,"""
_WAITING: Final = 16
"""and those that wait for it."""
_OF_TENANT: Final = 24
"""Logins with the providers of one tenant that ask,"""
_OF_TOP: Final = 32
"""those with the providers of a tenant below the root and of all below it,"""
_ALL: Final = 64
"""and those with all."""
_LOOPBACK: Final = ("127.0.0.0/8", "::1/128")
_REASONS: Final = {
    "NAME_NOT_FOUND": "its name has no address",
    "CONNECTION_REFUSED": "nothing listens there",
    "NO_CONNECTION": "no connection is possible",
    FORBIDDEN: "its address is none that providers may have; the operator can allow it",
    "PROXY_REFUSED": "the proxy refuses the connection",
    "CERTIFICATE_EXPIRED": "its certificate has expired",
    "CERTIFICATE_NOT_YET_VALID": "its certificate is not valid yet",
    "CERTIFICATE_OF_ANOTHER_NAME": "its certificate is for another name",
    "CERTIFICATE_UNKNOWN": "its certificate is signed by a CA that is not known; give caPem",
}


class AwayError(Exception):
    """A provider does not answer as one; `step` says how far it came, the text why.

    `counts` is false where anybody may have brought that about, with a code that is none: then
    nobody else is kept from the provider.
    """

    def __init__(self, step: str, text: str, *, counts: bool = True) -> None:
        super().__init__(text)
        self.step = step
        self.counts = counts


def _busy() -> DomainError:
    return exhausted("PROVIDER_BUSY", "too many people sign in there at once; try again")


def away(retry_after: float) -> DomainError:
    """A provider does not answer; who logs in is told so, and when to come back."""
    return DomainError(
        Code.UNAVAILABLE,
        "PROVIDER_AWAY",
        "your organisation's sign-in does not answer; try again later",
        retry_after=retry_after,
    )


@dataclass(frozen=True, slots=True)
class Document:
    """What a provider says of itself (OpenID Connect Discovery 1.0)."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str
    end_session_endpoint: str
    secret_in_body: bool
    """Whether the secret goes into the body: the provider takes no other way."""
    says_issuer: bool
    """Whether it says who it is when a browser comes back (RFC 9207)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: Mapping[str, Any]
    date: datetime | None


@dataclass(slots=True)
class _Kept:
    """What is kept of a provider, as it was at a time of its own."""

    updated_at: datetime
    document: Document
    document_at: float
    keys: tuple[jwt.ForeignKey, ...] = ()
    keys_at: float = 0.0


class Asking:
    """Asks providers.

    Args:
        guard: says what may be connected to.
        insecure: whether a provider on this machine may be without TLS.
    """

    def __init__(self, guard: Guard, *, insecure: bool) -> None:
        self._guard = guard
        self._insecure = insecure
        self._breaker = Breaker()
        self._turns: dict[UUID, asyncio.Semaphore] = {}
        self._fetches: dict[UUID, asyncio.Lock] = {}
        self._waiting: Counter[UUID] = Counter()
        self._running: Counter[tuple[str, UUID | None]] = Counter()
        self._kept: OrderedDict[UUID, _Kept] = OrderedDict()

    @asynccontextmanager
    async def turn(self, provider: Provider, top: UUID) -> AsyncIterator[None]:
        """A place among those who ask a provider; what goes wrong is counted.

        Args:
            top: the tenant below the root that has the provider, or is above the one that has.

        Raises:
            DomainError: UNAVAILABLE when it has failed again and again, or does so now;
                RESOURCE_EXHAUSTED when too many wait for it.
        """
        one = provider.id
        if (left := self._breaker.left(one)) > 0:
            raise away(max(1.0, left))
        try:
            async with self.place(provider, top):
                yield
        except (AwayError, TimeoutError) as error:
            step = "address"
            counts = True
            if isinstance(error, AwayError):
                step, counts = error.step, error.counts
            if counts:
                self._breaker.failed(one)
            log.warning("provider not reached", provider=str(one), step=step, error=str(error))
            raise away(PAUSE_SECONDS) from None

    @asynccontextmanager
    async def place(self, provider: Provider, top: UUID) -> AsyncIterator[None]:
        """A place among those who ask a provider, for a while.

        Args:
            top: as for `turn`.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when too many wait for it.
            TimeoutError: the while is over.
        """
        one = provider.id
        if self._waiting[one] >= _SIDE_BY_SIDE + _WAITING:
            raise _busy()
        turns = self._turns.setdefault(one, asyncio.Semaphore(_SIDE_BY_SIDE))
        self._waiting[one] += 1
        try:
            async with asyncio.timeout(2 * _SECONDS), turns:
                with self._running_place(provider.source.tenant_id, top):
                    yield
        finally:
            self._waiting[one] -= 1
            if self._waiting[one] <= 0:
                del self._waiting[one]
                self._turns.pop(one, None)

    @contextmanager
    def _running_place(self, tenant_id: UUID, top: UUID) -> Iterator[None]:
        """A place among those who ask now; those who wait for a slow provider take none."""
        bounds = {("tenant", tenant_id): _OF_TENANT, ("top", top): _OF_TOP, ("all", None): _ALL}
        if any(self._running[place] >= most for place, most in bounds.items()):
            raise _busy()
        self._running.update(bounds.keys())
        try:
            yield
        finally:
            self._running.subtract(bounds.keys())
            for place in bounds:
                if self._running[place] <= 0:
                    del self._running[place]

    def worked(self, provider: Provider) -> None:
        """Notes that a provider has answered."""
        self._breaker.worked(provider.id)

    async def document(self, provider: Provider, *, root: bool) -> Document:
        """What a provider says of itself, at most an hour old.

        Raises:
            AwayError: it does not answer, or is none that works.
        """
        async with self._fetches.setdefault(provider.id, asyncio.Lock()):
            kept = self._known(provider)
            if kept is None:
                answer = await self.get(provider, well_known(provider.issuer), root=root)
                document = self.read_document(provider, answer)
                kept = _Kept(provider.source.updated_at, document, _now())
                self._kept[provider.id] = kept
                while len(self._kept) > _MOST_KEPT:
                    gone, _ = self._kept.popitem(last=False)
                    self._fetches.pop(gone, None)
            return kept.document

    async def keys(
        self,
        provider: Provider,
        *,
        root: bool,
        behind: tuple[jwt.ForeignKey, ...] | None = None,
        wait: bool = False,
    ) -> tuple[jwt.ForeignKey, ...]:
        """The keys of a provider, at most an hour old.

        Args:
            behind: keys that are not enough; `None` when any are asked for.
            wait: whether to wait until they may be fetched again, if they were just now.

        Raises:
            AwayError: it does not answer, or has none.
        """
        document = await self.document(provider, root=root)
        async with self._fetches.setdefault(provider.id, asyncio.Lock()):
            kept = self._kept.get(provider.id)
            if kept is None:
                raise AwayError("keys", "it was changed meanwhile")
            age = _now() - kept.keys_at
            if kept.keys and age < _KEPT_SECONDS and kept.keys != behind:
                return kept.keys
            if kept.keys and age < REFETCH_SECONDS:
                if not wait:
                    return kept.keys
                await asyncio.sleep(REFETCH_SECONDS - age)
            answer = await self.get(provider, document.jwks_uri, root=root, step="keys")
            kept.keys = read_keys(answer)
            kept.keys_at = _now()
            return kept.keys

    async def token(
        self,
        provider: Provider,
        secret: str,
        document: Document,
        code: Mapping[str, str],
        *,
        root: bool,
    ) -> Mapping[str, Any]:
        """Exchanges a code for tokens (RFC 6749, section 4.1.3).

        Raises:
            AwayError: the provider does not answer.
            RefusedError: CODE when it refuses the code, or does not say what it refuses; CLIENT
                when it refuses the client.
        """
        form = {"grant_type": "authorization_code", **code}
        headers = []
        if document.secret_in_body:
            form |= {"client_id": provider.client_id, "client_secret": secret}
        else:
            # Both are encoded as in a form, before they are put together (RFC 6749, 2.3.1).
            pair = f"{quote(provider.client_id, safe='')}:{quote(secret, safe='')}"
            headers.append(("authorization", f"Basic {base64.b64encode(pair.encode()).decode()}"))
        answer = await self._ask(
            provider, "POST", document.token_endpoint, headers, form, root=root, step="token"
        )
        if answer.status == 200:
            return answer.body
        error = answer.body.get("error")
        if 400 <= answer.status < 500:
            of_code = not isinstance(error, str) or error == "invalid_grant"
            raise RefusedError(
                "CODE" if of_code else "CLIENT", f"the provider says {printable(error)}"
            )
        raise AwayError("token", f"the token endpoint answers {answer.status}", counts=False)

    async def userinfo(
        self, provider: Provider, document: Document, access_token: str, *, root: bool
    ) -> Mapping[str, Any]:
        """What the user-info endpoint adds (OpenID Connect Core 1.0, section 5.3).

        Raises:
            AwayError: the provider does not answer.
        """
        answer = await self._ask(
            provider,
            "GET",
            document.userinfo_endpoint,
            [("authorization", f"Bearer {access_token}")],
            root=root,
            step="userinfo",
        )
        if answer.status != 200:
            text = f"the user-info endpoint answers {answer.status}"
            raise AwayError("userinfo", text, counts=False)
        return answer.body

    async def get(
        self, provider: Provider, url: str, *, root: bool, step: str = "document"
    ) -> Answer:
        """A JSON document of a provider.

        Raises:
            AwayError: it does not answer with one.
        """
        answer = await self._ask(provider, "GET", url, [], root=root, step=step)
        if answer.status != 200:
            raise AwayError(step, f"{url} answers {answer.status}")
        return answer

    def read_document(self, provider: Provider, answer: Answer) -> Document:
        """What a provider says of itself.

        Raises:
            AwayError: something is missing, or not as it has to be.
        """
        said = answer.body
        if said.get("issuer") != provider.issuer:
            raise AwayError(
                "document", f"it calls itself {printable(said.get('issuer'))}: write issuer so"
            )
        found = {
            name: self._endpoint(said, name, required=required)
            for name, required in (
                ("authorization_endpoint", True),
                ("token_endpoint", True),
                ("jwks_uri", True),
                ("userinfo_endpoint", False),
                ("end_session_endpoint", False),
            )
        }
        for name, wanted in (
            ("response_types_supported", {"code"}),
            ("code_challenge_methods_supported", {"S256"}),
            ("id_token_signing_alg_values_supported", jwt.FOREIGN_ALGORITHMS),
        ):
            offered = said.get(name)
            if isinstance(offered, list) and not wanted.intersection(map(str, offered)):
                raise AwayError("document", f"{name} has none of {', '.join(sorted(wanted))}")
        methods = said.get("token_endpoint_auth_methods_supported")
        taken = methods if isinstance(methods, list) else ["client_secret_basic"]
        in_body = "client_secret_basic" not in taken
        if in_body and "client_secret_post" not in taken:
            raise AwayError("document", "it takes no secret of a client")
        says = said.get("authorization_response_iss_parameter_supported") is True
        return Document(**found, secret_in_body=in_body, says_issuer=says)

    def _endpoint(self, said: Mapping[str, Any], name: str, *, required: bool) -> str:
        url = said.get(name)
        if url is None and not required:
            return ""
        if not isinstance(url, str) or len(url) > 2000:
            raise AwayError("document", f"it has no {name}")
        if fault := url_fault(url, insecure=self._insecure):
            raise AwayError("document", f"{name} {fault}")
        return url

    def _known(self, provider: Provider) -> _Kept | None:
        kept = self._kept.get(provider.id)
        if kept is None or kept.updated_at != provider.source.updated_at:
            return None
        return kept if _now() - kept.document_at < _KEPT_SECONDS else None

    async def _ask(
        self,
        provider: Provider,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]],
        form: Mapping[str, str] | None = None,
        *,
        root: bool,
        step: str,
    ) -> Answer:
        """One question.

        Raises:
            AwayError: there is no answer, or one that is no JSON object, too long or too late.
        """
        if fault := url_fault(url, insecure=self._insecure):
            raise AwayError(step, f"the address {fault}")
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._exchange(provider, method, url, headers, form, root=root)
        except TimeoutError:
            raise AwayError(step, "it takes too long to answer") from None
        except (NotConnectedError, _NoAnswerError) as error:
            text = _REASONS.get(str(error), str(error))
            raise AwayError(step, f"{urlsplit(url).hostname}: {text}") from None

    async def _exchange(
        self,
        provider: Provider,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]],
        form: Mapping[str, str] | None,
        *,
        root: bool,
    ) -> Answer:
        import httpcore  # noqa: PLC0415 - only installations with providers load it

        content = urlencode(form).encode() if form is not None else None
        sent = [
            ("accept", "application/json"),
            ("accept-encoding", "identity"),
            ("user-agent", "evergreen"),
            *headers,
            *([("content-type", "application/x-www-form-urlencoded")] if form is not None else []),
        ]
        try:
            async with (
                self._client(provider, url, root=root) as client,
                client.stream(method, url, headers=sent, content=content) as response,
            ):
                said = {name.lower(): value for name, value in response.headers}
                if said.get(b"content-encoding", b"identity").lower() != b"identity":
                    raise _NoAnswerError("its answer is compressed")
                body = b""
                async for part in response.aiter_stream():
                    body += part
                    if len(body) > _MOST_BYTES:
                        raise _NoAnswerError(f"its answer is longer than {_MOST_BYTES} bytes")
                return Answer(response.status, _object(body, response.status), _date(said))
        except (NotConnectedError, _NoAnswerError):
            raise
        except ssl.SSLCertVerificationError as error:
            raise _NoAnswerError(certificate_reason(error)) from error
        except (OSError, ValueError, httpcore.ProtocolError) as error:
            raise _NoAnswerError("the connection broke, or it answers no HTTP") from error

    @asynccontextmanager
    async def _client(
        self, provider: Provider, url: str, *, root: bool
    ) -> AsyncIterator[httpcore.AsyncConnectionPool]:
        import httpcore  # noqa: PLC0415 - as above

        parts = urlsplit(url)
        guard = self._guard
        plain = parts.scheme == "http"
        if plain:
            # `url_fault` has made sure that it is on this machine, and may be.
            own = tuple(Named("", ip_network(net), parts.port or 80) for net in _LOOPBACK)
            guard = replace(guard, rules=replace(guard.rules, allowed=own), proxy=None)
        backend = Backend(guard, _MOST_BYTES + _MOST_HEAD, root=root, plain_http=plain)
        async with httpcore.AsyncConnectionPool(
            ssl_context=None if plain else client_context(provider.ca_pem, "", ""),
            max_connections=1,
            http2=False,
            network_backend=backend,  # type: ignore[arg-type]  # it is one in all but name
        ) as client:
            yield client


class _NoAnswerError(Exception):
    """What came is no answer; the text says why."""


def well_known(issuer: str) -> str:
    """Where a provider says what it is (OpenID Connect Discovery 1.0, section 4)."""
    return f"{issuer.rstrip('/')}/.well-known/openid-configuration"


def read_keys(answer: Answer) -> tuple[jwt.ForeignKey, ...]:
    """The keys of an answer.

    Raises:
        AwayError: there is none that is of use, or there are too many.
    """
    try:
        found = jwt.foreign_keys(answer.body, _MOST_KEYS)
    except ValueError as error:
        raise AwayError("keys", f"jwks_uri {error}") from error
    if not found:
        raise AwayError("keys", "jwks_uri has no key that verifies signatures")
    return found


def read_token(body: Mapping[str, Any], name: str) -> str:
    """A token of the token endpoint's answer.

    Raises:
        RefusedError: it has none, or one that is too long.
    """
    found = body.get(name)
    if not isinstance(found, str) or not 0 < len(found) <= _LONGEST_TOKEN or not found.isascii():
        raise RefusedError("TOKEN", f"the answer has no {name}, or one that is too long")
    return found


def printable(said: object) -> str:
    """What somebody else said, short enough and harmless to show."""
    text = said if isinstance(said, str) else "nothing"
    return "".join(c for c in text[:200] if c.isprintable()) or "nothing"


def _object(body: bytes, status: int) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    if status == 200:
        raise _NoAnswerError("its answer is no JSON object")
    return {}


def _date(said: Mapping[bytes, bytes]) -> datetime | None:
    try:
        found = parsedate_to_datetime(said.get(b"date", b"").decode("ascii", "replace"))
    except (ValueError, TypeError):
        return None
    return found if found.tzinfo is not None else None


def _now() -> float:
    return asyncio.get_running_loop().time()
