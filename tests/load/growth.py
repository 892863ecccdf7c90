"""Stored events in bulk, written by PostgreSQL itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import asyncpg

from tests.load.fleet import Fleet, tidy
from tests.load.product import Product

_CHUNK: Final = 250_000
_AT_ONCE: Final = 2
# Numbers follow the time of the events, so that one partition is filled after the other. The
# devices take turns, in an order that is not the one of their ids.
_INSERT: Final = """
INSERT INTO telemetry.event (device_id, event_id, id, tenant_id, type, severity, message, payload,
    occurred_at, received_at, xid)
SELECT ('01980000-0000-7000-8000-' || lpad(to_hex(n * 7919 % $4::bigint + 1), 12, '0'))::uuid,
    nanoseconds::text,
    (lpad(to_hex(nanoseconds / 1000000), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid,
    $5::uuid,
    (ARRAY['app.installed', 'app.updated', 'app.removed', 'update.staged', 'update.applied',
           'policy.applied', 'session.started', 'session.ended', 'network.joined', 'boot.finished'
          ])[n % 10 + 1],
    CASE WHEN n % 100 < 90 THEN 'info' WHEN n % 100 < 98 THEN 'warning' ELSE 'error' END,
    'event number ' || n || ' of org.' || (ARRAY['gnome.Calculator', 'mozilla.firefox'])[n % 2 + 1],
    '{"ref":"app/org.gnome.Calculator/x86_64/stable","bytes":4194304}'::json,
    at, at + interval '2 seconds', '3'::xid8
FROM generate_series($1::bigint, $2::bigint) AS n,
    LATERAL (SELECT now() - interval '84 days' * (1 - n / $3::double precision) AS at) AS a,
    LATERAL (SELECT (extract(epoch FROM at) * 1e6)::bigint * 1000 + n % 1000 AS nanoseconds) AS b
"""


async def stored(connection: asyncpg.Connection) -> int:
    """How many events there are."""
    return int(await connection.fetchval("SELECT count(*) FROM telemetry.event"))


async def grow_events(
    product: Product, fleet: Fleet, events: int, tell: Callable[[str], None]
) -> None:
    """Stores events of all the fleet's devices, over the last twelve weeks, until it is so many."""
    missing = events - fleet.events
    if missing <= 0:
        return
    began = time.monotonic()
    starts = iter(range(fleet.events + 1, events + 1, _CHUNK))
    done = 0

    async def worker() -> None:
        nonlocal done
        connection = await product.superuser()
        try:
            await connection.execute("SET synchronous_commit = off")
            for start in starts:
                end = min(start + _CHUNK - 1, events)
                await connection.execute(
                    _INSERT, start, end, events, fleet.devices, fleet.tenant_id, timeout=600
                )
                done += end - start + 1
                if done % (40 * _CHUNK) == 0:
                    tell(f"{done:,} events stored in {time.monotonic() - began:.0f} s")
        finally:
            await connection.close()

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
    fleet.events = events
    connection = await product.superuser()
    try:
        await tidy(connection, "telemetry.event")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
    tell(f"{missing:,} events stored in {time.monotonic() - began:.0f} s")
