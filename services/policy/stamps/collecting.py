"""Takes documents away that no device has or is to have.

Each change above many organisations leaves a document for each of those with values or policies of
their own. A document is needed while it is part of what devices are to have, while a device in use
says that it has it, and while the next number of an organisation names it as the one before. When
nothing has needed it for a while, it goes with its signatures. Numbers stay, and stand for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta
from typing import Final
from uuid import UUID

from prometheus_client import Counter

from servicekit.call import begin_background_call
from servicekit.data.postgres import Connection, Database
from servicekit.ids import Clock
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from services.policy.stamps.domain import Content

log = logs.get(__name__)

UNUSED_DAYS: Final = 7
"""So long a document stays that nothing needs."""
_AT_ONCE: Final = 100
_FIRST_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 1.0
_ROUND_SECONDS: Final = 3600.0
COLLECTED: Final = Counter(
    "evergreen_policy_documents_collected_total",
    "Documents that went because no device has or is to have them.",
)
_USED: Final = (
    "SELECT w.tenant_id, w.digest FROM unnest($1::uuid[], $2::bytea[]) AS w (tenant_id, digest)"
    " WHERE EXISTS (SELECT FROM policy.editions e"
    " WHERE e.document_tenant = w.tenant_id AND e.digest = w.digest)"
    " OR EXISTS (SELECT FROM policy.profiles p"
    " WHERE p.document_tenant = w.tenant_id AND p.digest = w.digest)"
    " OR EXISTS (SELECT FROM policy.stamps s"
    " WHERE s.document_tenant = w.tenant_id AND s.digest = w.digest AND ("
    "EXISTS (SELECT FROM policy.version_counters c"
    " WHERE c.tenant_id = s.tenant_id AND c.last_version = s.version)"
    " OR EXISTS (SELECT FROM policy.assignments a"
    " WHERE a.tenant_id = s.tenant_id AND a.version = s.version)"
    " OR EXISTS (SELECT FROM policy.applied_versions h JOIN policy.devices d"
    " ON d.device_id = h.device_id AND d.status = 'active'"
    " WHERE h.tenant_id = s.tenant_id AND h.version = s.version)))"
)


class Collector:
    """Looks at all documents, some at a time. The service runs its task."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._after = Content(UUID(int=0), b"")

    async def run(self) -> None:
        """Collects for as long as the service lives."""
        outage = Repeated(log, "documents not collected")
        seconds = _FIRST_SECONDS
        while True:
            await asyncio.sleep(seconds)
            begin_background_call()
            seconds = _ROUND_SECONDS
            try:
                if await self.step():
                    seconds = _PAUSE_SECONDS
                outage.worked()
            except Exception as error:
                outage.failed(error)

    async def step(self) -> bool:
        """Looks at the next documents; answers whether there are more behind them."""
        now = self._clock()
        async with self._database.system_transaction(
            "a document may be of a tenant above"
        ) as connection:
            rows = await connection.fetch(
                "SELECT tenant_id, digest, unused_since FROM policy.documents"
                " WHERE (tenant_id, digest) > ($1, $2) ORDER BY tenant_id, digest LIMIT $3",
                *self._after,
                _AT_ONCE,
            )
            since = {Content(row["tenant_id"], row["digest"]): row["unused_since"] for row in rows}
            used = await _used(connection, since)
            until = now - timedelta(days=UNUSED_DAYS)
            # Who is about to need one again holds it, or waits here and stores it anew.
            held = await _hold(
                connection,
                [
                    one
                    for one, marked in since.items()
                    if (one in used) == (marked is not None) or (marked and marked <= until)
                ],
            )
            # A statement of its own: one that was under way saw other tables as they were before.
            used = await _used(connection, held)
            await _mark(connection, [one for one in held if one in used], None)
            unused = [one for one in held if one not in used]
            await _mark(connection, [one for one in unused if since[one] is None], now)
            gone = [one for one in unused if (marked := since[one]) and marked <= until]
            await _take(connection, gone)
        more = len(rows) == _AT_ONCE
        self._after = [*since][-1] if more else Content(UUID(int=0), b"")
        if gone:
            COLLECTED.inc(len(gone))
            log.info("documents collected", documents=len(gone))
        return more


async def _used(connection: Connection, contents: Collection[Content]) -> set[Content]:
    """Those that something needs."""
    rows = await connection.fetch(_USED, *_columns(contents))
    return {Content(row["tenant_id"], row["digest"]) for row in rows}


async def _mark(connection: Connection, contents: Collection[Content], since: object) -> None:
    if contents:
        await connection.execute(
            "UPDATE policy.documents d SET unused_since = $3"
            " FROM unnest($1::uuid[], $2::bytea[]) AS w (tenant_id, digest)"
            " WHERE d.tenant_id = w.tenant_id AND d.digest = w.digest",
            *_columns(contents),
            since,
        )


async def _hold(connection: Connection, contents: Collection[Content]) -> list[Content]:
    """Those that nobody else holds; nobody else takes them until the transaction ends."""
    rows = await connection.fetch(
        "SELECT d.tenant_id, d.digest FROM policy.documents d"
        " JOIN unnest($1::uuid[], $2::bytea[]) AS w (tenant_id, digest)"
        " ON d.tenant_id = w.tenant_id AND d.digest = w.digest FOR UPDATE OF d SKIP LOCKED",
        *_columns(contents),
    )
    return [Content(row["tenant_id"], row["digest"]) for row in rows]


async def _take(connection: Connection, contents: Collection[Content]) -> None:
    """Takes documents with their signatures."""
    for table in ("signatures", "documents") if contents else ():
        await connection.execute(
            f"DELETE FROM policy.{table} t"
            " USING unnest($1::uuid[], $2::bytea[]) AS w (tenant_id, digest)"
            " WHERE t.tenant_id = w.tenant_id AND t.digest = w.digest",
            *_columns(contents),
        )


def _columns(contents: Collection[Content]) -> tuple[list[UUID], list[bytes]]:
    return [one.tenant_id for one in contents], [one.digest for one in contents]
