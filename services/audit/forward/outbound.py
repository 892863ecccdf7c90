"""What the senders of an installation share, and how one is made for a forwarder."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Database, Scope
from servicekit.ids import Clock
from servicekit.messaging.outbox import Outbox
from servicekit.outgoing.guard import Guard
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.sealing import Sealer
from services.audit.forward.domain import Forwarder, Secrets, Webhook
from services.audit.forward.formats import Bodies
from services.audit.forward.webhook import WebhookSender
from services.audit.tree.service import Tree

_MOST_LANES: Final = 32
"""Pages in memory, half a megabyte each."""
_MOST_OF_A_TENANT: Final = 8
_MOST_A_SECOND: Final = 2_750
"""Entries; a message counts as ten more."""
_COST_OF_A_MESSAGE: Final = 10


class Lanes:
    """Bounds how much is done at a time, in all and for the forwarders of one tenant.

    Those of the root tenant, which is the operator, have their own places: no other tenant's
    targets hold them up.

    Args:
        most: in all, beside the root tenant's.
        of_a_tenant: for one tenant.
    """

    def __init__(self, most: int, of_a_tenant: int) -> None:
        self._all = asyncio.Semaphore(most)
        self._of_a_tenant = of_a_tenant
        self._own: dict[UUID, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def one(self, tenant_id: UUID, *, root: bool) -> AsyncIterator[None]:
        """A place for a forwarder of a tenant."""
        own = self._own.setdefault(tenant_id, asyncio.Semaphore(self._of_a_tenant))
        async with own, contextlib.nullcontext() if root else self._all:
            yield


class Pace:
    """Spreads over time what is sent: a backlog is not to take the processors for itself.

    Args:
        rate: what may be sent in a second, as `_MOST_A_SECOND` counts it.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due = 0.0
        """When the next message may go, by the loop's clock."""

    async def take(self, entries: int) -> None:
        """Waits until a message of so many entries may go."""
        now = asyncio.get_running_loop().time()
        due = max(self._due, now)
        self._due = due + (entries + _COST_OF_A_MESSAGE) / self._rate
        if due > now:
            await asyncio.sleep(due - now)


@dataclass(slots=True)
class Outbound:
    """What all senders share."""

    database: Database
    outbox: Outbox
    tenants: TenantDirectory
    sealer: Sealer
    guard: Guard
    host: str
    tree: Tree
    clock: Clock
    lanes: Lanes = field(default_factory=lambda: Lanes(_MOST_LANES, _MOST_OF_A_TENANT))
    pace: Pace = field(default_factory=lambda: Pace(_MOST_A_SECOND))
    chance: Callable[[], float] = random.random

    def lane(self, forwarder: Forwarder) -> AbstractAsyncContextManager[None]:
        """A lane for a forwarder."""
        return self.lanes.one(forwarder.tenant_id, root=self.is_root(forwarder))

    def is_root(self, forwarder: Forwarder) -> bool:
        """Whether a forwarder is the root tenant's, which is the operator."""
        node = self.tenants.known(forwarder.tenant_id)
        return node is not None and node.kind == "root"

    def chains(self, forwarder: Forwarder) -> Scope:
        """Whose entries a forwarder sends; deleted tenants have entries, too."""
        if forwarder.below_too:
            return self.tenants.log_scope(forwarder.tenant_id)
        return Scope.of(forwarder.tenant_id)

    def secrets(self, forwarder: Forwarder) -> Secrets:
        """What lies sealed.

        Raises:
            SealingError, ValueError: it cannot be opened.
        """
        return Secrets.from_bytes(self.sealer.open(forwarder.sealed_secrets))

    def webhook(self, forwarder: Forwarder) -> WebhookSender:
        """What sends for a webhook.

        Raises:
            SealingError, ValueError: its secrets cannot be opened.
        """
        assert isinstance(forwarder.config, Webhook)
        return WebhookSender(
            forwarder.config,
            self.secrets(forwarder),
            Bodies(forwarder.config.format, self.host),
            self.guard,
            root=self.is_root(forwarder),
            clock=self.clock,
            second_secret_until=forwarder.second_secret_until,
        )
