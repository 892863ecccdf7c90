"""The checkpoint of the day by mail: kept where mail is kept, it convicts a rewritten log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from auditlog.notes import TreeCheckpoint
from servicekit.call import begin_background_call
from servicekit.data.postgres import Database
from servicekit.ids import Clock
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.peers.tenants import TenantDirectory
from services.audit.notices.domain import CHECKPOINT, Text
from services.audit.notices.service import Notices
from services.audit.tree import store
from services.audit.tree.service import Tree

log = logs.get(__name__)

_LOOK_SECONDS: Final = 300.0
_EACH: Final = timedelta(days=1)


class CheckpointMail:
    """Sends the newest checkpoint once a day, whichever process is there.

    Args:
        database: the service's.
        tenants: the tree of tenants, of which the root tenant sends it.
        tree: of the log.
        notices: takes mails.
        addresses: who gets it.
        clock: the time.
    """

    def __init__(
        self,
        database: Database,
        tenants: TenantDirectory,
        tree: Tree,
        notices: Notices,
        addresses: Sequence[str],
        clock: Clock,
    ) -> None:
        self._database = database
        self._tenants = tenants
        self._tree = tree
        self._notices = notices
        self._addresses = addresses
        self._clock = clock

    async def run(self) -> None:
        """Looks whether a day is over, for as long as the service lives."""
        outage = Repeated(log, "checkpoint of the audit log not mailed")
        while True:
            begin_background_call()
            try:
                await self.look()
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Has the mail wait, when the last one is a day old."""
        root = self._tenants.root
        if root is None:
            return
        checkpoint = await self._tree.checkpoint()
        at = self._clock()
        async with self._database.system_transaction("the tree has no tenant") as connection:
            # Another process that looks now finds the row held, and comes again.
            if await store.newest(connection, lock=True) is None:
                return
            if await self._notices.added_since(connection, root.id, CHECKPOINT, at - _EACH):
                return
            await self._notices.add(
                connection,
                root.id,
                texts(checkpoint, at),
                CHECKPOINT,
                addresses=self._addresses,
            )


def texts(checkpoint: TreeCheckpoint, at: datetime) -> Sequence[Text]:
    """The mail in its languages."""
    day = f"{at:%Y-%m-%d}"
    note = checkpoint.write().rstrip("\n")
    command = "evergreen audit verify --checkpoint FILE"
    return (
        Text(
            "en",
            f"Checkpoint of the audit log, {day}",
            (
                f"The log has {checkpoint.size} entries. Keep this mail where nobody who runs the"
                " server can change it: the lines below prove later that nothing before them was"
                f" changed. Put them into a file, as they are, for:\n{command}",
                note,
            ),
        ),
        Text(
            "de",
            f"Prüfpunkt des Protokolls, {day}",
            (
                f"Das Protokoll hat {checkpoint.size} Einträge. Bewahren Sie diese Mail auf, wo"
                " niemand sie ändern kann, der den Server betreibt: Die Zeilen unten belegen"
                " später, dass nichts vor ihnen geändert wurde. Unverändert in eine Datei"
                f" gelegt, für:\n{command}",
                note,
            ),
        ),
    )
