"""The API tokens that work, as every service knows them from identity's feed.

A token carries all that a call needs, so nobody is asked when it is used. What it cannot say is
that it was ended before its time; so every token that works is known, and one that is not known is
refused. Only of a token that was made after the feed was last read the signature is enough: the
feed has had no time to tell of it. After a restore the database knows nothing of tokens that were
made since the backup. They are refused for the same reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from prometheus_client import Counter

from evergreen.v1 import identity_pb2, identity_pb2_grpc
from servicekit.call import Caller, begin_background_call
from servicekit.errors import unauthenticated, unavailable
from servicekit.feeds.feed import ANSWER_SECONDS
from servicekit.ids import Clock
from servicekit.observability import logs
from servicekit.observability.logs import Repeated

log = logs.get(__name__)

NOTE_SECONDS: Final = 60.0
"""How often identity is told which tokens were used."""
_MAX_NOTED: Final = 10_000
"""Tokens whose use is kept until then; what comes beyond is noted with the next use."""
_FRESH: Final = timedelta(minutes=1)
"""So much earlier than the last look at the feed a token may have been made without being in it:
clocks differ, and a transaction takes its time to commit."""
_NEVER: Final = datetime.fromtimestamp(0, UTC)
_REFUSED: Final = Counter(
    "evergreen_api_tokens_refused_total", "Calls with API tokens that do not work any more."
)


@dataclass(frozen=True, slots=True)
class _Known:
    works_until: datetime
    expires_at: datetime


class ApiTokens:
    """Which API tokens work, and which were used since identity was last told.

    Args:
        identity: takes note of uses.
        clock: the time.
    """

    def __init__(
        self, identity: identity_pb2_grpc.IdentityInternalServiceAsyncStub, clock: Clock
    ) -> None:
        self._identity = identity
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._known_at = _NEVER
        """When the feed was last read to its end."""
        self._used: dict[str, tuple[datetime, str]] = {}

    def learn(self, states: Iterable[identity_pb2.ApiTokenState]) -> None:
        """Takes tokens as they are now."""
        for state in states:
            works = state.HasField("works_until")
            self._known[state.token_id] = _Known(
                works_until=state.works_until.ToDatetime(tzinfo=UTC) if works else _NEVER,
                expires_at=state.expires_at.ToDatetime(tzinfo=UTC),
            )

    def all_known(self, at: datetime) -> None:
        """Takes note that all is known that had been committed at a time, and forgets tokens that
        have expired, which the gateway lets through no more."""
        self._known_at = at
        before = self._clock() - _FRESH
        if any(known.expires_at < before for known in self._known.values()):
            self._known = {k: v for k, v in self._known.items() if v.expires_at >= before}

    def check(self, caller: Caller, source_ip: str) -> None:
        """Refuses a token that has ended, and notes the use of another one.

        Raises:
            DomainError: UNAUTHENTICATED, or UNAVAILABLE before the first word from identity.
        """
        at = self._clock()
        known = self._known.get(caller.session_id)
        if known is not None:
            works = at < known.works_until
        elif self._known_at == _NEVER:
            # Identity has not told yet which tokens work: a revoked one looks like a new one.
            raise unavailable("which API tokens work is not known yet")
        else:
            issued, expires = caller.issued_at, caller.expires_at
            works = (
                issued is not None
                and expires is not None
                and issued > self._known_at - _FRESH
                and at < expires
            )
        if not works:
            _REFUSED.inc()
            raise unauthenticated(
                "TOKEN_ENDED", "the API token was revoked, or has ended; make a new one"
            )
        if len(self._used) < _MAX_NOTED or caller.session_id in self._used:
            self._used[caller.session_id] = (at, source_ip)

    async def run(self) -> None:
        """Tells identity every minute which tokens were used, for as long as the service lives."""
        outage = Repeated(log, "uses of API tokens not noted")
        while True:
            await asyncio.sleep(NOTE_SECONDS)
            begin_background_call()
            try:
                await self.tell()
                outage.worked()
            except Exception as error:
                outage.failed(error)

    async def tell(self) -> None:
        """Tells identity which tokens were used since it was last told; if it cannot be told, the
        next time."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._identity.NoteTokenUses(
                identity_pb2.NoteTokenUsesRequest(
                    uses=(_use(key, at, address) for key, (at, address) in used.items())
                ),
                timeout=ANSWER_SECONDS,
            )
        except BaseException:
            self._used = used | self._used
            raise


def _use(token_id: str, at: datetime, address: str) -> identity_pb2.TokenUse:
    use = identity_pb2.TokenUse(token_id=token_id, address=address)
    use.used_at.FromDatetime(at)
    return use
