"""Calls of users that were refused: gathered, and told in the log of the caller's tenant.

They changed nothing, so they need no transaction: they are gathered in memory, and written to the
outbox every ten seconds, one event for each caller, RPC and reason. A crash loses what was not
written yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from contract.events.base import CallRefusals, CallsRefused
from servicekit.call import Call, Caller, CallerKind, current_call
from servicekit.data.postgres import Database
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated

log = logs.get(__name__)

_FLUSH_SECONDS: Final = 10.0
_MOST_KEYS: Final = 1_000
"""Of callers, RPCs and reasons; further ones are not told."""
Reason = Literal["ROLE_MAY_NOT", "FOREIGN_TENANT"]
ROLE_MAY_NOT: Final = "ROLE_MAY_NOT"
NoteRefused = Callable[[Call, Reason], None]
"""Takes a refused call and the reason."""


@dataclass(slots=True)
class _Refusals:
    call: Call
    first: datetime
    last: datetime
    count: int = 1


class RefusedCalls:
    """Gathers and tells.

    Args:
        database: the service's.
        outbox: takes the events.
        event: the service's type of event.
        clock: the time.
    """

    def __init__(
        self, database: Database, outbox: Outbox, event: type[CallsRefused], clock: Clock
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._event = event
        self._clock = clock
        self._found: dict[tuple[str, str, Reason], _Refusals] = {}

    def note(self, call: Call, reason: Reason) -> None:
        """Takes a refused call of a user."""
        if call.caller.kind is not CallerKind.USER:
            return
        key = call.caller.id, call.rpc, reason
        known = self._found.get(key)
        now = self._clock()
        if known is not None:
            known.count += 1
            known.last = now
        elif len(self._found) < _MOST_KEYS:
            self._found[key] = _Refusals(call, now, now)

    def note_foreign(self, caller: Caller) -> None:
        """Takes the running call, which names a tenant that is there and not its caller's."""
        call = current_call.get()
        if call.caller is caller:
            self.note(call, "FOREIGN_TENANT")

    async def run(self) -> None:
        """Tells of them, for as long as the service lives; once more when it stops."""
        outage = Repeated(log, "refused calls not told")
        while True:
            try:
                await asyncio.sleep(_FLUSH_SECONDS)
                await self.flush()
                outage.worked()
            except asyncio.CancelledError:
                await self.flush()
                raise
            except Exception as error:
                outage.failed(error)

    async def flush(self) -> None:
        """Tells of those that were gathered."""
        if not self._found:
            return
        found, self._found = self._found, {}
        events = [
            CloudEvent(
                self._event(
                    id=UUID(caller_id),
                    after=CallRefusals(
                        rpc=rpc.rpartition(".")[2],
                        reason=reason,
                        count=refusals.count,
                        first=refusals.first,
                        last=refusals.last,
                    ),
                ),
                UUID(refusals.call.caller.tenant_id),
                call=refusals.call,
            )
            for (caller_id, rpc, reason), refusals in found.items()
        ]
        async with self._database.system_transaction("callers are of several tenants") as c:
            await self._outbox.append(c, *events)
