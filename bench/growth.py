"""Stored events in bulk: full weeks of the past, as a product that ran for long has them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Final

import asyncpg

from bench.product import Product
from deploy.postgres.roles import MIGRATOR

WEEKS: Final = 12
_AT_ONCE: Final = 2
_WORTH_TELLING: Final = 10_000_000
_PATIENCE: Final = 3600.0
_BULK: Final = {
    "synchronous_commit": "off",
    "maintenance_work_mem": "512MB",
    "max_parallel_maintenance_workers": "0",
}
_DEVICE: Final = "lpad(to_hex(n * 7919 % $4::bigint + 1), 12, '0')"
# The devices take turns, in an order that is not the one of their ids; numbers follow the time.
_COLUMNS: Final = (
    *("device_id", "event_id", "id", "tenant_id", "type", "severity", "message"),
    *("payload", "occurred_at", "received_at", "xid", "id_day"),
)
_CHUNKS_ON_THE_WAY: Final = 64
_ROWS: Final = f"""
SELECT ('01980000-0000-7000-8000-' || {_DEVICE})::uuid,
    nanoseconds::text,
    (lpad(to_hex(nanoseconds / 1000000), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid,
    $5::uuid,
    (ARRAY['app.installed', 'app.updated', 'app.removed', 'update.staged', 'update.applied',
           'policy.applied', 'session.started', 'session.ended', 'network.joined', 'boot.finished'
          ])[n % 10 + 1],
    CASE WHEN n % 100 < 90 THEN 'info' WHEN n % 100 < 98 THEN 'warning' ELSE 'error' END,
    'event number ' || n || ' of org.' || (ARRAY['gnome.Calculator', 'mozilla.firefox'])[n % 2 + 1],
    '{{"ref":"app/org.gnome.Calculator/x86_64/stable","bytes":4194304}}'::json,
    at, at + interval '2 seconds', '3'::xid8, at::date
FROM generate_series($1::bigint, $2::bigint) AS n,
    LATERAL (SELECT $6::timestamptz
        + interval '7 days' * ((n - $1) / $3::double precision) AS at) AS a,
    LATERAL (SELECT (extract(epoch FROM at) * 1e6)::bigint * 1000 + n % 1000 AS nanoseconds) AS b
"""

_INDEXES: Final = """
SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS made_by,
    c.conname AS key, pg_get_constraintdef(c.oid) AS key_as
FROM pg_index AS i
LEFT JOIN pg_constraint AS c ON c.conindid = i.indexrelid AND c.contype = 'p'
WHERE i.indrelid = $1::text::regclass
"""


async def stored(connection: asyncpg.Connection) -> int:
    """How many events there are."""
    return int(await connection.fetchval("SELECT count(*) FROM telemetry.event"))


async def store_past(
    product: Product, devices: int, events: int, tell: Callable[[str], None]
) -> None:
    """Stores so many events of so many devices in the twelve weeks before this one.

    A week that has events already is left as it is: what was interrupted can be continued.
    """
    began, done = time.monotonic(), 0
    today = datetime.now(UTC).date()
    begin = today - timedelta(days=today.weekday(), weeks=WEEKS)
    each = events // WEEKS
    weeks = iter([(begin + timedelta(weeks=n), n * each + 1) for n in range(WEEKS)])
    # Two that change the whole would wait for each other.
    one_at_a_time = asyncio.Lock()

    async def worker() -> None:
        nonlocal done
        connection, maker = await product.superuser(), await product.superuser()
        try:
            for name, value in _BULK.items():
                await connection.execute(f"SET {name} = '{value}'")
            for monday, first in weeks:
                week = _Week(connection, maker, monday)
                async with one_at_a_time:
                    if not await week.take_out():
                        continue
                await week.fill(first, each, devices, product.stack.tenant_id)
                async with one_at_a_time:
                    await week.put_back()
                done += each
                if events >= _WORTH_TELLING:
                    tell(f"{done:,} events stored after {time.monotonic() - began:.0f} s")
        finally:
            await connection.close()
            await maker.close()

    connection = await product.superuser()
    try:
        await connection.execute("ALTER SYSTEM SET max_wal_size = '16GB'")
        await connection.execute("SELECT pg_reload_conf()")
        await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
        await connection.execute("ALTER SYSTEM RESET max_wal_size")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute("ANALYZE telemetry.event", timeout=600)
        await connection.execute("CHECKPOINT", timeout=600)
        size = await connection.fetchval("SELECT pg_size_pretty(pg_database_size('evergreen'))")
    finally:
        await connection.close()
    tell(f"{done:,} events stored in {time.monotonic() - began:.0f} s; the database has {size}")


class _Week:
    """The partition of one week, filled first and given its indexes then."""

    def __init__(
        self, connection: asyncpg.Connection, maker: asyncpg.Connection, first_day: date
    ) -> None:
        self._connection = connection
        self._maker = maker
        self._first_day = first_day
        self._partition = ""
        self._indexes: list[asyncpg.Record] = []

    async def take_out(self) -> bool:
        """Makes the partition, or takes the one there is, without its indexes.

        Returns:
            Whether it is to be filled: not if it has events already.
        """
        run = self._connection
        find = "SELECT partition FROM telemetry.event_week WHERE first_day = $1"
        if await run.fetchval(find, self._first_day) is None:
            # As the role that owns the others, which later migrations run as.
            await run.execute(f"SET ROLE {MIGRATOR}")
            make = "CALL telemetry.make_event_week($1, $2)"
            await run.execute(make, self._first_day, self._first_day + timedelta(days=7))
            await run.execute("RESET ROLE")
        self._partition = f"telemetry.{await run.fetchval(find, self._first_day)}"
        if await run.fetchval(f"SELECT EXISTS (SELECT FROM {self._partition})"):
            return False
        self._indexes = await run.fetch(_INDEXES, self._partition)
        async with run.transaction():
            await run.execute(f"ALTER TABLE telemetry.event DETACH PARTITION {self._partition}")
            for index in self._indexes:
                key = f"ALTER TABLE {self._partition} DROP CONSTRAINT {index['key']}"
                await run.execute(key if index["key"] else f"DROP INDEX {index['name']}")
        return True

    async def fill(self, first: int, count: int, devices: int, tenant: str) -> None:
        """Stores events with consecutive numbers, evenly over the week."""
        day = self._first_day
        monday = datetime(day.year, day.month, day.day, tzinfo=UTC)
        await self._copy(_ROWS, first, first + count - 1, count, devices, tenant, monday)
        for index in self._indexes:
            key = f"ALTER TABLE {self._partition} ADD CONSTRAINT {index['key']} {index['key_as']}"
            made_by = key if index["key"] else index["made_by"]
            await self._connection.execute(made_by, timeout=_PATIENCE)
        # In a transaction of its own, as autovacuum does it.
        await self._connection.execute(
            f"VACUUM (FREEZE, ANALYZE) {self._partition}", timeout=_PATIENCE
        )

    async def _copy(self, rows: str, *arguments: object) -> None:
        """COPYs out of a query of one connection into the partition by another one."""
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue(_CHUNKS_ON_THE_WAY)

        async def made() -> AsyncIterator[bytes]:
            while (chunk := await chunks.get()) is not None:
                yield chunk

        async def make() -> None:
            await self._maker.copy_from_query(
                rows, *arguments, output=chunks.put, format="binary", timeout=_PATIENCE
            )
            await chunks.put(None)

        schema, table = self._partition.split(".")
        async with asyncio.TaskGroup() as both:
            both.create_task(make())
            both.create_task(
                self._connection.copy_to_table(
                    table,
                    schema_name=schema,
                    columns=_COLUMNS,
                    source=made(),
                    format="binary",
                    timeout=_PATIENCE,
                )
            )

    async def put_back(self) -> None:
        """Makes it a part of the whole again."""
        end = self._first_day + timedelta(days=7)
        await self._connection.execute(
            f"ALTER TABLE telemetry.event ATTACH PARTITION {self._partition}"
            f" FOR VALUES FROM ('{self._first_day}') TO ('{end}')",
            timeout=_PATIENCE,
        )
