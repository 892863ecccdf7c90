"""Logins with addresses that nobody has: told in the root tenant's log, few at a time.

People type passwords where the address belongs, so only what looks like an address is told. The
first attempt of a network within ten minutes is an entry of its own; the others are counted, and
become one entry when the ten minutes are over.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections import Counter
from datetime import datetime, timedelta
from typing import Final

from contract.events.identity.sign_in import (
    LoginRefused,
    LoginsRefused,
    RefusedLogin,
    RefusedLogins,
)
from servicekit.call import Call
from servicekit.data.postgres import Database
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from services.identity.tenants import store as tenants_store

log = logs.get(__name__)

_WINDOW: Final = timedelta(minutes=10)
_LOOK_SECONDS: Final = 5.0
_MOST_NETWORKS: Final = 1_000
_MOST_TOLD_ALONE: Final = 50
"""Entries of their own within a window: a flood from everywhere is a sum."""
_MOST_SOURCES: Final = 10
_ADDRESS: Final = re.compile(r"[^@\s\x00-\x1f]{1,64}@[a-z0-9.-]{1,180}\.[a-z]{2,24}")


class UnknownLogins:
    """Counts and tells of them."""

    def __init__(self, database: Database, outbox: Outbox, clock: Clock) -> None:
        self._database = database
        self._outbox = outbox
        self._clock = clock
        self._since: datetime | None = None
        self._networks: set[str] = set()
        self._told = 0
        self._count = 0
        self._sources: Counter[str] = Counter()

    async def note(self, call: Call, email: str) -> None:
        """Takes an attempt; tells of it, or counts it."""
        if self._since is None:
            self._since = self._clock()
        network = _network(call.source_ip)
        if network not in self._networks and self._told < _MOST_TOLD_ALONE:
            self._networks.add(network)
            self._told += 1
            told = RefusedLogin(
                email=email if _ADDRESS.fullmatch(email) else "", reason="UNKNOWN_ADDRESS"
            )
            await self._tell(LoginRefused(id=new_id(), after=told))
            return
        self._count += 1
        if network in self._sources or len(self._sources) < _MOST_NETWORKS:
            self._sources[network] += 1

    async def run(self) -> None:
        """Tells of those that were counted, for as long as the service lives."""
        outage = Repeated(log, "refused logins not told")
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self.flush()
                outage.worked()
            except Exception as error:
                outage.failed(error)

    async def flush(self) -> None:
        """Tells of those that were counted, when their ten minutes are over."""
        now = self._clock()
        if self._since is None or now < self._since + _WINDOW:
            return
        if self._count:
            told = RefusedLogins(
                count=self._count,
                sources=tuple(name for name, _ in self._sources.most_common(_MOST_SOURCES)),
                reason="UNKNOWN_ADDRESS",
                since=self._since,
                until=now,
            )
            await self._tell(LoginsRefused(id=new_id(), after=told))
        self._since, self._count, self._told = None, 0, 0
        self._networks.clear()
        self._sources.clear()

    async def _tell(self, event: LoginRefused | LoginsRefused) -> None:
        async with self._database.system_transaction("the root's log has it") as connection:
            root = await tenants_store.root_tenant(connection)
            if root is not None:
                await self._outbox.append(connection, CloudEvent(event, root.id))


def _network(address: str) -> str:
    """The /24, or the /64, that an address is in; the text itself where it is none."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    bits = 24 if found.version == 4 else 64
    return str(ipaddress.ip_network(f"{found}/{bits}", strict=False))
