"""The audit service, a receiver of webhooks, and a clock that a test moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from evergreen.v1 import audit_pb2 as pb
from servicekit.ids import now
from services.audit.forward import worker
from tests.support import callers
from tests.support.audit import ORG, Audit, StartAudit, start_audit
from tests.support.receivers import Receiver, receiving

__all__ = ["start_audit"]


class Time:
    """A clock that runs, and that a test moves."""

    def __init__(self) -> None:
        self._moved = timedelta(0)

    def __call__(self) -> datetime:
        return now() + self._moved

    def move(self, **by: float) -> None:
        self._moved += timedelta(**by)


@dataclass
class World:
    """What a test talks to."""

    audit: Audit
    receiver: Receiver
    time: Time
    admin: callers.Metadata
    made: int = 0

    async def record(self, *events: Any) -> None:
        await self.audit.record(*events)

    async def create(self, by: callers.Metadata | None = None, **more: Any) -> pb.Forwarder:
        """A webhook to the receiver, from the beginning."""
        webhook = {"url": self.receiver.url} | more.pop("webhook", {})
        self.made += 1
        name = f"SIEM {self.made}" if self.made > 1 else "SIEM"
        request = {"name": name, "kind": "webhook", "start_at": "beginning"} | more
        return await self.audit.forwarders.CreateForwarder(
            pb.CreateForwarderRequest(webhook=webhook, **request), metadata=by or self.admin
        )

    async def update(self, forwarder_id: str, **change: Any) -> pb.Forwarder:
        return await self.audit.forwarders.UpdateForwarder(
            pb.UpdateForwarderRequest(id=forwarder_id, **change), metadata=self.admin
        )

    async def get(self, forwarder_id: str, by: callers.Metadata | None = None) -> pb.Forwarder:
        return await self.audit.forwarders.GetForwarder(
            pb.GetForwarderRequest(id=forwarder_id), metadata=by or self.admin
        )

    async def test(self, forwarder_id: str) -> pb.TestForwarderResponse:
        return await self.audit.forwarders.TestForwarder(
            pb.TestForwarderRequest(id=forwarder_id), metadata=self.admin
        )

    async def until(
        self, forwarder_id: str, condition: Callable[[pb.Forwarder], bool]
    ) -> pb.Forwarder:
        """Waits until a forwarder does as it should."""
        found = await self.get(forwarder_id)

        async def look() -> bool:
            nonlocal found
            found = await self.get(forwarder_id)
            return condition(found)

        for _ in range(1200):
            if await look():
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(found)

    async def attempts(self) -> int:
        """How often the message was refused that holds a chain up."""
        rows = await self.audit.sql(
            "SELECT coalesce(max(attempts), 0) AS n FROM audit.forwarder_position"
        )
        return int(rows[0]["n"])

    async def told(self, action: str) -> list[Any]:
        """The payloads of the events of an action, in the outbox."""
        rows = await self.audit.sql(
            "SELECT payload FROM audit.outbox WHERE subject LIKE '%.' || $1 ORDER BY id", action
        )
        return [json.loads(row["payload"]) for row in rows]


StartWorld = Callable[..., Awaitable[World]]


@pytest.fixture
def time() -> Time:
    return Time()


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@pytest_asyncio.fixture
async def start_world(
    start_audit: StartAudit, receiver: Receiver, time: Time, monkeypatch: pytest.MonkeyPatch
) -> StartWorld:
    """Starts the service with settings; the receiver is allowed unless they say otherwise."""
    monkeypatch.setattr(worker, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(worker, "_FULL_LOOK_SECONDS", 0.5)

    async def start(to: Receiver = receiver, **settings: Any) -> World:
        allowed = {"forward_allow": to.allowed, "public_url": "https://evergreen.school.example"}
        audit = await start_audit(stream=False, clock=time, **(allowed | settings))
        # As when the stream was read before: then each batch moves the position.
        await audit.sql(
            "INSERT INTO audit.stream_position (incarnation, sequence) VALUES ('test', 0)"
            " ON CONFLICT DO NOTHING"
        )
        return World(audit, to, time, callers.user(ORG.id))

    return start


@pytest_asyncio.fixture
async def world(start_world: StartWorld) -> World:
    return await start_world()
