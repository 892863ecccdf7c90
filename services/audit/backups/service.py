"""Shows how old the last good backup is."""

from __future__ import annotations

import asyncio
from typing import Final

from prometheus_client import Gauge

from servicekit.data.postgres import Database
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from services.audit.backups import store
from services.audit.backups.domain import Run

log = logs.get(__name__)

_SUCCESS: Final = Gauge(
    "evergreen_backup_last_success_timestamp_seconds",
    "When the last good backup was begun; 0 before the first.",
)
_FAILURE: Final = Gauge(
    "evergreen_backup_last_failure_timestamp_seconds",
    "When the last failed backup was begun; 0 before the first.",
)
_MAX_AGE: Final = Gauge(
    "evergreen_backup_max_age_seconds", "How old the last good backup may become."
)
_BYTES: Final = Gauge("evergreen_backup_last_success_bytes", "The size of the last good backup.")
_REHEARSED: Final = Gauge(
    "evergreen_backup_last_rehearsal_timestamp_seconds",
    "When a restore was last rehearsed with success; 0 before the first.",
)
_READ_SECONDS: Final = 60.0


class Backups:
    """What `evergreen backup` noted of its runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def watch(self) -> None:
        """Reads it once a minute, for as long as the service lives."""
        outage = Repeated(log, "backups' runs are not read")
        while True:
            try:
                await self.show()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_READ_SECONDS)

    async def show(self) -> None:
        """Sets the metrics."""
        async with self._database.system_transaction("a backup has no tenant") as connection:
            found = await store.newest(connection)
        _SUCCESS.set(_begun(found.backup))
        _FAILURE.set(_begun(found.failed_backup))
        _REHEARSED.set(_begun(found.rehearsal))
        _BYTES.set(found.backup.bytes if found.backup else 0)
        _MAX_AGE.set(found.backup.max_age_seconds if found.backup else 0)


def _begun(run: Run | None) -> float:
    return run.started_at.timestamp() if run else 0.0
