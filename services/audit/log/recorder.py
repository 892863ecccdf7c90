"""What audit receives: every event of the stream, in batches, each batch in one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final

from nats.aio.msg import Msg
from prometheus_client import Counter

from auditlog.chain import SALT_BYTES
from auditlog.entries import Entry
from servicekit.data.postgres import Connection, Database
from servicekit.data.quarantine import note, place
from servicekit.errors import DomainError
from servicekit.ids import Clock
from servicekit.observability import logs
from services.audit.log import store
from services.audit.log.domain import Arrival, MalformedError, is_recorded, read_event

log = logs.get(__name__)

_PLACE: Final = place("audit", "consumer")
_RECORDED: Final = Counter("evergreen_audit_entries_total", "Entries that were recorded.")
_SET_ASIDE: Final = Counter(
    "evergreen_audit_dead_letters_total",
    "Messages that could not be recorded and were quarantined.",
)


def new_salt() -> str:
    """The salt of an entry, in hexadecimal."""
    return secrets.token_hex(SALT_BYTES)


class Recorder:
    """Records events; safe to run in several processes and with messages that come again.

    Args:
        database: the service's.
        clock: the time.
        recorded: is told what a batch has added to the log.
        salted: whether entries are recorded with a salt (`auditlog.chain`).
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        recorded: Callable[[Sequence[Entry]], None] = lambda _: None,
        *,
        salted: bool = False,
    ) -> None:
        self._database = database
        self._clock = clock
        self._recorded = recorded
        self._salt = new_salt if salted else str

    async def handle(self, messages: Sequence[Msg]) -> None:
        """Records a batch.

        Raises:
            DomainError: UNAVAILABLE when the database is away; the batch is to come again.
        """
        arrivals: list[Arrival] = []
        malformed: list[tuple[Msg, str]] = []
        for message in messages:
            if is_recorded(message.subject):
                try:
                    arrivals.append(read_event(message.subject, message.data))
                except MalformedError as broken:
                    malformed.append((message, str(broken)))
        last = max(message.metadata.sequence.stream for message in messages)
        try:
            async with self._database.system_transaction("a batch spans tenants") as connection:
                recorded = await self._record(connection, arrivals)
                for message, reason in malformed:
                    await self._quarantine(connection, message, reason)
                await store.advance(connection, last)
            self._recorded(recorded)
        except DomainError:
            raise
        except Exception as error:
            if len(messages) > 1:
                # One that cannot be written must not stop the others.
                for message in messages:
                    await self.handle([message])
                return
            log.exception("event not recorded", subject=messages[0].subject)
            async with self._database.system_transaction("a batch spans tenants") as connection:
                await self._quarantine(connection, messages[0], type(error).__name__)
                await store.advance(connection, last)

    async def _record(self, connection: Connection, arrivals: Sequence[Arrival]) -> Sequence[Entry]:
        if not arrivals:
            return ()
        result = await store.append(connection, arrivals, self._salt)
        _RECORDED.inc(len(result.recorded))
        for tenant_id in result.damaged:
            log.error("chain end mismatch; verify the log", tenant=str(tenant_id))
        for arrival in result.redacted:
            log.warning(
                "event of a redacted entry came again, not kept",
                tenant=str(arrival.tenant_id),
                id=str(arrival.id),
                action=arrival.columns.action,
            )
        for arrival in result.contradicting:
            subject = f"{arrival.columns.tenant_id}.{arrival.columns.action}"
            reason = "the log has another event with this id"
            log.error(reason, subject=subject, id=str(arrival.id))
            if await store.quarantine(
                connection, subject, arrival.record.encode(), reason, self._clock()
            ):
                _SET_ASIDE.inc()
                note(_PLACE, arrival.id, reason)
        return result.recorded

    async def _quarantine(self, connection: Connection, message: Msg, reason: str) -> None:
        log.error("message quarantined: not an event", subject=message.subject, why=reason)
        if await store.quarantine(connection, message.subject, message.data, reason, self._clock()):
            _SET_ASIDE.inc()
            note(_PLACE, message.subject, reason)
