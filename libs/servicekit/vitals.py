"""Signs of life that every service shows beside its calls (Prometheus); the alerts look at them.

What has to be asked for, as how long events have waited, is asked for every few seconds, however
often the metrics are read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from prometheus_client import Gauge

from servicekit.build import current
from servicekit.data.migrate import latest_version
from servicekit.data.postgres import Database
from servicekit.security import fips, mode

_EVERY_SECONDS: Final = 15.0

BUILD: Final = Gauge(
    "evergreen_build_info", "What runs; always 1.", ["version", "commit", "schema_version"]
)
FIPS: Final = Gauge(
    "evergreen_fips_info",
    "The FIPS module that does the service's cryptography; always 1, and not there without one.",
    ["name", "version", "sha256"],
)
SUITES: Final = Gauge(
    "evergreen_suites_info",
    "The algorithms that new values are made with; always 1, and not there with the standard ones.",
    ["suites"],
)
READY: Final = Gauge("evergreen_ready", "1 when the service has all that it needs, else 0.")
MISSING: Final = Gauge(
    "evergreen_missing", "1 for each thing that the service lacks at the moment.", ["what"]
)
LAG: Final = Gauge(
    "evergreen_event_loop_lag_seconds",
    "By how much the event loop was late when it was last measured: a call waits that long.",
)
CONNECTIONS: Final = Gauge(
    "evergreen_database_connections", "Connections of the service's pool.", ["state"]
)
WAITING: Final = Gauge("evergreen_outbox_waiting", "Events that are still to be published.")
OLDEST: Final = Gauge(
    "evergreen_outbox_oldest_seconds", "How long the oldest of them has waited; 0 without any."
)


class Vitals:
    """Keeps the signs of one service up to date.

    Args:
        context: the service.
        database: its database.
        missing: says what the service lacks.
    """

    def __init__(
        self, context: str, database: Database, missing: Callable[[], Awaitable[Sequence[str]]]
    ) -> None:
        self._context = context
        self._database = database
        self._missing = missing
        build = current()
        BUILD.labels(build.version, build.commit, latest_version(context)).set(1)
        if (module := fips.module()) is not None:
            FIPS.labels(module.name, module.version, module.sha256).set(1)
        if mode.writes_approved():
            SUITES.labels(mode.APPROVED).set(1)

    async def run(self) -> None:
        """Looks every few seconds, for as long as the service lives."""
        loop = asyncio.get_running_loop()
        while True:
            await self.look()
            due = loop.time() + _EVERY_SECONDS
            await asyncio.sleep(_EVERY_SECONDS)
            LAG.set(max(loop.time() - due, 0))

    async def look(self) -> None:
        """Looks once. With the database away, what waits stays as it was last seen."""
        missing = await self._missing()
        READY.set(not missing)
        MISSING.clear()
        for what in missing:
            MISSING.labels(what).set(1)
        open_, idle = self._database.connections
        CONNECTIONS.labels("idle").set(idle)
        CONNECTIONS.labels("used").set(open_ - idle)
        if "database" in missing:
            return
        async with self._database.system_transaction("the outbox has all tenants") as connection:
            row = await connection.fetchrow(
                "SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)"
                " FILTER (WHERE isfinite(created_at))), 0)::float8"
                f" FROM {self._context}.outbox"
                " WHERE published_at IS NULL AND quarantined_at IS NULL"
            )
        assert row is not None
        waiting, oldest = row
        WAITING.set(waiting)
        OLDEST.set(oldest)
