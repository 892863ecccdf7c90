"""Has mails wait with what they tell of, and hands them to identity, which sends them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import grpc
from prometheus_client import Counter, Gauge

from evergreen.v1 import identity_pb2, identity_pb2_grpc
from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.ids import Clock, new_id
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.rpc.values import timestamp
from services.audit.notices import store
from services.audit.notices.domain import KEPT, LIFE, Notice, Source, Text, pause

log = logs.get(__name__)

_HANDED_OVER: Final = Counter(
    "evergreen_notices_total",
    "Mails of audit by what became of them: identity has it, it sends none, it was refused or given"
    " up, or its tenant had too many.",
    ["outcome"],
)
_WAITING: Final = Gauge("evergreen_notices_waiting", "Mails of audit that identity has not yet.")
_LOOK_SECONDS: Final = 5.0
_SWEEP_SECONDS: Final = 60.0
_MOST: Final = 20
_HELD: Final = timedelta(seconds=60)
"""So long a process that took a notice may need for it; then it is taken again."""
_SECONDS: Final = 10.0
_REFUSED: Final = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT})
_FULL: Final = timedelta(minutes=10)


class Notices:
    """Mails of this service.

    Args:
        database: the service's.
        identity: takes mails; with the same key nobody gets one twice.
        clock: the time.
    """

    def __init__(
        self,
        database: Database,
        identity: identity_pb2_grpc.IdentityInternalServiceAsyncStub,
        clock: Clock,
    ) -> None:
        self._database = database
        self._identity = identity
        self._clock = clock
        self._wake = asyncio.Event()

    async def add(
        self,
        connection: Connection,
        tenant_id: UUID,
        texts: Sequence[Text],
        source: Source,
        *,
        addresses: Sequence[str] = (),
        roles: Sequence[str] = (),
    ) -> bool:
        """Has a mail wait, in the transaction of what it tells of; nothing for nobody.

        It is left out when its tenant had too many lately, which is answered by false.
        """
        if not addresses and not roles:
            return True
        notice = Notice(new_id(), tenant_id, texts, addresses, roles, self._clock())
        if await store.insert(connection, notice, source):
            self._wake.set()
            return True
        _HANDED_OVER.labels("full").inc()
        return False

    async def added_since(
        self, connection: Connection, tenant_id: UUID, source: Source, since: datetime
    ) -> bool:
        """Whether a tenant's mail about something was added behind a time, of at most a day ago."""
        return await store.added_since(connection, tenant_id, source, since)

    async def run(self) -> None:
        """Hands over what waits, for as long as the service lives."""
        outage = Repeated(log, "notices postponed")
        loop = asyncio.get_running_loop()
        sweep_at = 0.0
        while True:
            self._wake.clear()
            begin_background_call()
            try:
                while await self._hand_over():
                    pass
                if loop.time() >= sweep_at:
                    await self._sweep()
                    sweep_at = loop.time() + _SWEEP_SECONDS
                outage.worked()
            except Exception as error:
                outage.failed(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _LOOK_SECONDS)

    async def _hand_over(self) -> int:
        at = self._clock()
        async with self._database.system_transaction("mails of all tenants wait") as connection:
            found = await store.claim(connection, at, at + _HELD, _MOST)
        for notice in found:
            try:
                again = await self._send(notice)
            except Exception as error:
                # One that is broken keeps no other one waiting.
                log.warning("notice not handed over", notice=str(notice.id), error=brief(error))
                again = pause(notice.attempts)
            if again is not None and at - notice.created_at >= LIFE:
                log.error("notice given up", notice=str(notice.id))
                _HANDED_OVER.labels("given_up").inc()
                again = None
            async with self._database.transaction(Scope.of(notice.tenant_id)) as connection:
                await store.put_off(connection, notice, None if again is None else at + again)
        return len(found)

    async def _send(self, notice: Notice) -> timedelta | None:
        """Hands a mail over; answers when it is tried again, `None` for never."""
        request = identity_pb2.SendMailRequest(
            tenant_id=str(notice.tenant_id),
            key=f"audit:{notice.id}",
            roles=notice.roles,
            addresses=notice.addresses,
            texts=[identity_pb2.MailText(**text.json()) for text in notice.texts],
            expires_at=timestamp(self._clock() + LIFE),
        )
        try:
            answer = await self._identity.SendMail(request, timeout=_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _REFUSED:
                raise
            log.error("notice refused", notice=str(notice.id), error=brief(error))
            _HANDED_OVER.labels("refused").inc()
            return None
        if answer.full:
            return _FULL
        _HANDED_OVER.labels("sent" if answer.mail_is_on else "off").inc()
        return None

    async def _sweep(self) -> None:
        async with self._database.system_transaction("mails of all tenants end") as connection:
            await store.forget(connection, self._clock() - KEPT)
            _WAITING.set(await store.waiting(connection))
