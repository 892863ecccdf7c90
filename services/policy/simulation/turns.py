"""Which simulations run: one at a time in a process, and one of each tenant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from servicekit.errors import exhausted

_MOST: Final = 4
"""Those that wait included: each may take five seconds, and a call ends after thirty."""
_AGAIN_SECONDS: Final = 5.0


class Turns:
    """What lets one simulation run after the other."""

    def __init__(self) -> None:
        self._tenants: set[UUID] = set()
        self._one = asyncio.Semaphore(1)

    @asynccontextmanager
    async def turn(self, tenant_id: UUID) -> AsyncIterator[None]:
        """Waits until no other one runs.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when one of the tenant runs or waits, or several wait.
        """
        if tenant_id in self._tenants:
            raise exhausted(
                "SIMULATION_RUNS",
                "another simulation of the tenant is under way; try again",
                retry_after=_AGAIN_SECONDS,
            )
        if len(self._tenants) >= _MOST:
            raise exhausted(
                "SIMULATIONS_WAIT",
                "too many simulations are under way; try again",
                retry_after=_AGAIN_SECONDS,
            )
        self._tenants.add(tenant_id)
        try:
            async with self._one:
                yield
        finally:
            self._tenants.remove(tenant_id)
