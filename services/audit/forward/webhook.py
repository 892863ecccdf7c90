"""Messages by HTTP POST, signed as Standard Webhooks has it (standardwebhooks.com).

The connection is `guard`'s: no redirect is followed, no proxy of the environment is used. Of an
answer only the status counts; its body is read a little and thrown away.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from servicekit.ids import Clock
from servicekit.outgoing.addresses import NotConnectedError
from servicekit.outgoing.guard import Guard
from servicekit.outgoing.http import Backend
from servicekit.outgoing.wire import certificate_reason, client_context
from servicekit.security.digests import hmac_sha256
from servicekit.security.tokens import new_key
from services.audit.forward.domain import (
    LONGEST_WAIT,
    Fault,
    NotDeliveredError,
    Secrets,
    Webhook,
    not_connected,
    not_delivered,
)
from services.audit.forward.formats import Bodies, Body, Item

if TYPE_CHECKING:
    import httpcore

_LONGEST_CONNECTION: Final = 60.0
"""So long a connection is used, so that a name's new address counts within it."""
_MOST_OF_AN_ANSWER: Final = 4 << 10
_ANSWER_SECONDS: Final = 1.0
_MOST_RECEIVED: Final = 128 << 10
"""For one message, with the head and all interim answers (1xx)."""
_PREFIX: Final = "whsec_"
_ATTEMPTS_AT_ONCE: Final = 2


def new_signing_secret() -> str:
    """A secret as Standard Webhooks writes it."""
    return _PREFIX + base64.b64encode(new_key()).decode()


def signatures(secrets: Iterable[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature for each secret, the newest first."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join(
        "v1," + base64.b64encode(hmac_sha256(_key(secret), signed)).decode() for secret in secrets
    )


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(_PREFIX))


class WebhookSender:
    """Posts messages of one forwarder; several at a time, each on a connection of its own.

    Args:
        webhook: where and how.
        secrets: what signs, and what headers hold.
        bodies: what is sent.
        guard: connects.
        root: whether the forwarder is the root tenant's.
        clock: the time.
        second_secret_until: until when older secrets sign, too.
    """

    def __init__(
        self,
        webhook: Webhook,
        secrets: Secrets,
        bodies: Bodies,
        guard: Guard,
        *,
        root: bool,
        clock: Clock,
        second_secret_until: datetime | None = None,
    ) -> None:
        self._webhook = webhook
        self._second_until = second_secret_until
        self._secrets = secrets
        self._bodies = bodies
        self._clock = clock
        self._https = webhook.parts.scheme == "https"
        self._backend = Backend(guard, _MOST_RECEIVED, root=root, plain_http=not self._https)
        self._context: ssl.SSLContext | None = None
        self._idle: list[tuple[httpcore.AsyncConnectionPool, float]] = []

    async def send(self, items: Sequence[Item], pieces: Sequence[bytes]) -> int:
        """Posts entries in one message; answers the status.

        Raises:
            NotDeliveredError: the target did not take it.
        """
        body = self._bodies.body(items, pieces, many=self._webhook.batch > 1)
        try:
            async with asyncio.timeout(self._webhook.timeout_seconds):
                status, headers = await self._post(body)
        except TimeoutError as late:
            raise NotDeliveredError(Fault.TARGET, "TIMEOUT") from late
        except NotConnectedError as error:
            raise not_connected(error) from error
        except Exception as error:
            raise NotDeliveredError(Fault.TARGET, _reason(error)) from error
        if refused := not_delivered(status, _retry_after(headers, self._clock)):
            raise refused
        return status

    def piece(self, item: Item) -> bytes:
        """What a message has of an entry.

        Raises:
            UnreadableError: it cannot be made.
        """
        return self._bodies.piece(item)

    async def close(self) -> None:
        """Closes all connections."""
        while self._idle:
            await self._idle.pop()[0].aclose()

    async def _post(self, body: Body) -> tuple[int, Mapping[bytes, bytes]]:
        for attempt in range(1, _ATTEMPTS_AT_ONCE + 1):
            async with self._client() as (client, is_used):
                try:
                    return await self._exchange(client, body)
                except Exception as error:
                    # The target may have closed the connection just now, as it may.
                    if not is_used or attempt == _ATTEMPTS_AT_ONCE or not _is_broken(error):
                        raise
        raise AssertionError("unreachable")

    async def _exchange(
        self, client: httpcore.AsyncConnectionPool, body: Body
    ) -> tuple[int, Mapping[bytes, bytes]]:
        now = self._clock()
        timestamp = int(now.timestamp())
        both = self._second_until is not None and now < self._second_until
        signing = self._secrets.signing if both else self._secrets.signing[:1]
        headers = [
            ("content-type", body.media_type),
            ("user-agent", "evergreen"),
            ("webhook-id", body.id),
            ("webhook-timestamp", str(timestamp)),
            (
                "webhook-signature",
                signatures(signing, body.id, timestamp, body.content),
            ),
            *((name, self._secrets.headers.get(name, "")) for name in self._webhook.headers),
        ]
        async with client.stream(
            "POST", self._webhook.url, headers=headers, content=body.content
        ) as response:
            read = 0
            # The status has decided; what comes behind it is not waited for to its end.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    async for part in response.aiter_stream():
                        read += len(part)
                        if read > _MOST_OF_AN_ANSWER:
                            break
            return response.status, {name.lower(): value for name, value in response.headers}

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[tuple[httpcore.AsyncConnectionPool, bool]]:
        """A client with at most one connection, and whether it has one that was used."""
        loop = asyncio.get_running_loop()
        found = None
        while self._idle and found is None:
            client, since = self._idle.pop()
            if loop.time() - since > _LONGEST_CONNECTION:
                await client.aclose()
            else:
                found = client, since
        client, since = found or (self._new_client(), loop.time())
        try:
            yield client, found is not None
        except BaseException:
            await client.aclose()
            raise
        self._idle.append((client, since))

    def _new_client(self) -> httpcore.AsyncConnectionPool:
        import httpcore  # noqa: PLC0415 - only installations with webhooks load it

        if self._https and self._context is None:
            webhook = self._webhook
            self._context = client_context(
                webhook.ca_pem, webhook.client_certificate_pem, self._secrets.client_key_pem
            )
        return httpcore.AsyncConnectionPool(
            ssl_context=self._context,
            max_connections=1,
            keepalive_expiry=_LONGEST_CONNECTION,
            http2=False,
            network_backend=self._backend,  # type: ignore[arg-type]  # it is one in all but name
        )


def _is_broken(error: Exception) -> bool:
    """Whether the connection ended without an answer."""
    import httpcore  # noqa: PLC0415 - as above

    return isinstance(error, OSError | httpcore.RemoteProtocolError) and not isinstance(
        error, ssl.SSLError
    )


def _reason(error: BaseException) -> str:
    """What went wrong, without anything that the target said."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return certificate_reason(error)
    if isinstance(error, ssl.SSLError):
        return "TLS_FAILED"
    if isinstance(error, OSError):
        return "CONNECTION_LOST"
    if isinstance(error, ValueError):
        return "CERTIFICATE_UNUSABLE"
    return "NO_HTTP_ANSWER"


def _retry_after(headers: Mapping[bytes, bytes], clock: Clock) -> timedelta | None:
    """How long the target asks to wait, at most an hour (RFC 9110, section 10.2.3)."""
    text = headers.get(b"retry-after", b"").decode("ascii", "replace").strip()
    if not text:
        return None
    if text.isdecimal():
        return min(timedelta(seconds=int(text[:9])), LONGEST_WAIT)
    try:
        at = parsedate_to_datetime(text)
        wait = at - clock()
    except (ValueError, TypeError):
        return None
    return min(max(wait, timedelta(0)), LONGEST_WAIT)
