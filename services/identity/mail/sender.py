"""Who sends mails when: each process a few at a time, of each tenant one.

A mail is taken for a while, sent without a transaction, and ended. A process that is killed in
between leaves it taken: another one sends it again when that while is over, with the same
Message-ID. A server that is away is asked for by one mail at a time, with pauses in between; that
wears no mail out.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Final

from prometheus_client import Counter, Gauge

from servicekit.call import begin_background_call
from servicekit.data.postgres import Database
from servicekit.data.quarantine import ROW_ERRORS, note, place
from servicekit.ids import Clock
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.security.sealing import Sealer, SealingError
from services.identity.mail import store
from services.identity.mail.domain import (
    KEPT,
    MOST_UNANSWERED,
    Language,
    Mail,
    NotSentError,
    mail_pause,
    server_pause,
)
from services.identity.mail.letters import Letters
from services.identity.mail.smtp import ANSWER_SECONDS, SECONDS, Smtp
from services.identity.mail.store import Taken

log = logs.get(__name__)

_WAITING: Final = Gauge("evergreen_mails_waiting", "Mails that wait for the mail server.")
_OLDEST: Final = Gauge(
    "evergreen_mails_oldest_seconds", "How long ago the oldest of them was made; 0 for none."
)
_ENDED: Final = Counter(
    "evergreen_mails_ended_total",
    "Mails that were sent, refused for ever, or ended unsent, by outcome.",
    ["outcome"],
)
_FAILING: Final = Gauge(
    "evergreen_mail_server_failing", "Whether the mail server takes nothing now."
)
_PLACE: Final = place("identity", "mail")
_SIDE_BY_SIDE: Final = 4
_TAKEN_FOR: Final = timedelta(seconds=SECONDS + ANSWER_SECONDS + 45)
"""Longer than an attempt may take."""
_LOOK_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 1.0
"""For mails under way when the service stops."""
_SHOW_SECONDS: Final = 15.0


class Sender:
    """Sends what waits, for as long as the service lives."""

    def __init__(
        self,
        database: Database,
        smtp: Smtp,
        letters: Letters,
        sealer: Sealer,
        clock: Clock,
        language: Language,
        time_zone: str,
    ) -> None:
        self._database = database
        self._smtp = smtp
        self._letters = letters
        self._sealer = sealer
        self._clock = clock
        self._language = language
        self._time_zone = time_zone
        self._failures = 0
        self._held_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._outage = Repeated(log, "mail server takes nothing")

    async def run(self) -> None:
        """Looks and sends."""
        outage = Repeated(log, "mails wait")
        show_at = 0.0
        loop = asyncio.get_running_loop()
        noted = False
        try:
            while True:
                begin_background_call()
                try:
                    if not noted:
                        await self._note_on()
                        noted = True
                    full = await self._look()
                    if loop.time() >= show_at:
                        show_at = loop.time() + _SHOW_SECONDS
                        await self._show()
                    outage.worked()
                except Exception as error:
                    full = False
                    outage.failed(error)
                if self._tasks:
                    await asyncio.wait(
                        self._tasks,
                        timeout=_LOOK_SECONDS,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                if not full:
                    await asyncio.sleep(_LOOK_SECONDS)
        finally:
            # Of a mail that is cut off nobody knows whether it was taken.
            try:
                if self._tasks:
                    await asyncio.wait(self._tasks, timeout=_DRAIN_SECONDS)
            finally:
                for task in self._tasks:
                    task.cancel()

    async def _note_on(self) -> None:
        async with self._database.system_transaction("the mail server has no tenant") as connection:
            await store.note_on(connection)

    async def _look(self) -> bool:
        """Begins to send what is due; answers whether there may be more at once."""
        places = (1 if self._failures else _SIDE_BY_SIDE) - len(self._tasks)
        if places <= 0 or asyncio.get_running_loop().time() < self._held_until:
            return False
        at = self._clock()
        async with self._database.system_transaction(
            "mails of all tenants take turns"
        ) as connection:
            taken = await store.take(connection, at, at + _TAKEN_FOR, places)
        for mail in taken:
            task = asyncio.create_task(self._send(mail))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return bool(taken) and not self._failures

    async def _send(self, taken: Taken) -> None:
        begin_background_call()
        try:
            await self._try(taken)
        except ROW_ERRORS as error:
            # A mail that cannot be written never will be; the others go on.
            note(_PLACE, taken.id, error)
            with contextlib.suppress(Exception):
                await self._end(taken, "refused", "NOT_WRITTEN")
        except Exception as error:
            # The database is away: the mail stays taken for a while, and is sent again then.
            log.warning("mail attempt not noted", mail=str(taken.id), error=type(error).__name__)

    async def _try(self, taken: Taken) -> None:
        async with self._database.system_transaction("a mail is looked at") as connection:
            holds = await store.link_holds(connection, taken.id, self._clock())
            language, time_zone = await store.manners(connection, taken.tenant_id)
        if not holds:
            await self._end(taken, "void")
            return
        try:
            secret = self._sealer.open(taken.sealed).decode() if taken.sealed else ""
        except SealingError:
            await self._end(taken, "refused", "SECRET_UNREADABLE")
            return
        mail = Mail(
            id=taken.id,
            tenant_id=taken.tenant_id,
            kind=taken.kind,
            address=taken.address,
            details=taken.details,
            secret=secret,
            created_at=taken.created_at,
            expires_at=taken.expires_at,
            attempts=taken.attempts,
            language=taken.language or language or self._language,
            time_zone=time_zone or self._time_zone,
        )
        message = self._letters.write(mail)
        try:
            await self._smtp.send(message, taken.address)
        except NotSentError as error:
            await self._not_sent(taken, error)
            return
        self._found_well()
        await self._end(taken, "sent", server=True)

    async def _not_sent(self, taken: Taken, error: NotSentError) -> None:
        at = self._clock()
        unanswered = error.fault == "unanswered"
        if unanswered and taken.unanswered + 1 >= MOST_UNANSWERED:
            log.warning("mail given up", mail=str(taken.id), kind=taken.kind, reason=error.reason)
            await self._end(taken, "refused", error.reason)
            return
        if error.fault == "mail":
            self._found_well()
            log.warning("mail refused", mail=str(taken.id), kind=taken.kind, reason=error.reason)
            await self._end(taken, "refused", error.reason, server=True)
            return
        of_server = error.fault == "server"
        if of_server:
            self._failures += 1
            pause = server_pause(self._failures)
            self._held_until = asyncio.get_running_loop().time() + pause
            _FAILING.set(1)
            self._outage.failed(error)
        else:
            pause = mail_pause(taken.attempts)
            log.info("mail postponed", mail=str(taken.id), kind=taken.kind, reason=error.reason)
        async with self._database.system_transaction("a mail waits on") as connection:
            # The server's pause is this process's; the mail itself is due.
            next_at = at if of_server else at + timedelta(seconds=pause)
            await store.postpone(
                connection,
                taken.id,
                next_at,
                error.reason,
                counts=not of_server,
                unanswered=unanswered,
            )
            if of_server:
                await store.note_server(connection, at, error.reason)

    async def _end(
        self, taken: Taken, outcome: str, error: str = "", *, server: bool = False
    ) -> None:
        at = self._clock()
        async with self._database.system_transaction("a mail has ended") as connection:
            await store.end(connection, taken.id, outcome, at, error)
            if server:
                await store.note_server(connection, at)
        _ENDED.labels(outcome).inc()

    def _found_well(self) -> None:
        self._failures = 0
        self._held_until = 0.0
        _FAILING.set(0)
        self._outage.worked()

    async def _show(self) -> None:
        async with self._database.system_transaction("mails are counted") as connection:
            waiting, oldest = await store.waiting(connection)
        _WAITING.set(waiting)
        _OLDEST.set(max((self._clock() - oldest).total_seconds(), 0) if oldest else 0)


async def tidy(database: Database, clock: Clock) -> None:
    """Ends mails whose time is over, and forgets those that ended a week ago."""
    at = clock()
    while True:
        async with database.system_transaction("mails of all tenants end") as connection:
            ended = await store.end_expired(connection, at)
            gone = await store.forget(connection, at - KEPT)
        if ended:
            _ENDED.labels("expired").inc(ended)
        if not ended and not gone:
            return
