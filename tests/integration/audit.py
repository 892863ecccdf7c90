"""The audit service on a real database: events for it, and its RPCs."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest_asyncio

from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc as rpc
from servicekit.app import Kit
from servicekit.channels import open_channel
from servicekit.events import Event
from services.audit.__main__ import build
from services.audit.events import Recorder
from services.audit.settings import AuditSettings
from tests import callers
from tests.conftest import MakeKit, ServeService, tenant
from tests.servers import TestDatabase

ROOT = tenant(0xA1, kind="root")
RESELLER = tenant(0xA2, ROOT, "reseller")
ORG = tenant(0xA3, RESELLER)
SISTER = tenant(0xA4, RESELLER)
STRANGER = tenant(0xA5, ROOT)
TREE = [ROOT, RESELLER, ORG, SISTER, STRANGER]
START = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)

_sequence = itertools.count(1)


def event(
    number: int = 0, tenant_id: UUID = ORG.id, name: str = "policy.updated", **more: Any
) -> Event:
    """The event of second `number`."""
    values: dict[str, Any] = {
        "resource": f"policies/{number}",
        "actor": "owner@school.example",
        "actor_id": str(UUID(int=7)),
        "actor_role": "Owner",
        "before": {"name": "old"},
        "after": {"name": "nåme", "n": number},
        "occurred_at": START + timedelta(seconds=number),
    }
    return Event(name=name, tenant_id=tenant_id, **(values | more))


def message(of: Event | None = None, *, subject: str = "", data: bytes = b"") -> Any:
    """A message of the stream."""
    return SimpleNamespace(
        subject=subject or (of.subject if of else ""),
        data=data or (of.payload().encode() if of else b""),
        metadata=SimpleNamespace(sequence=SimpleNamespace(stream=next(_sequence))),
    )


@dataclass
class Audit:
    """The running service."""

    kit: Kit
    database: TestDatabase
    recorder: Recorder
    api: rpc.AuditServiceAsyncStub
    owner: callers.Metadata = field(default_factory=lambda: callers.user(ROOT.id))

    async def record(self, *events: Event) -> None:
        """Records events as if the stream had delivered them in one batch."""
        await self.recorder.handle([message(e) for e in events])

    async def sql(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Runs a statement as superuser, with the log's triggers out of the way."""
        connection = await self.database.superuser()
        try:
            await connection.execute(
                "ALTER TABLE audit.entry DISABLE TRIGGER ALL;"
                "ALTER TABLE audit.chain_head DISABLE TRIGGER ALL"
            )
            rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
            return rows
        finally:
            await connection.close()

    async def entries(
        self, by: callers.Metadata | None = None, **filters: Any
    ) -> list[pb.AuditEntry]:
        answer = await self.api.ListAuditEntries(
            pb.ListAuditEntriesRequest(**filters), metadata=by or self.owner
        )
        return list(answer.entries)

    async def until_recorded(self, count: int, **filters: Any) -> list[pb.AuditEntry]:
        """Waits until the log shows as many entries."""
        end = time.monotonic() + 20
        while len(found := await self.entries(**filters)) < count:
            assert time.monotonic() < end, f"{len(found)} entries of {count}"
            await asyncio.sleep(0.02)
        return found

    async def export(self, by: callers.Metadata | None = None, **request: Any) -> str:
        parts = self.api.ExportAuditEntries(
            pb.ExportAuditEntriesRequest(**request), metadata=by or self.owner
        )
        return b"".join([part.data async for part in parts]).decode()

    async def checkpoint(self, by: callers.Metadata | None = None) -> str:
        """The API's answer, as JSON."""
        answer = await self.api.GetAuditCheckpoint(
            pb.GetAuditCheckpointRequest(), metadata=by or self.owner
        )
        return json.dumps(
            {
                "statement": answer.statement,
                "signature": answer.signature,
                "keyId": answer.key_id,
            }
        )

    async def public_keys(self) -> str:
        answer = await self.api.GetAuditKeysPem(
            pb.GetAuditKeysPemRequest(), metadata=callers.anonymous()
        )
        return bytes(answer.data).decode()


StartAudit = Callable[..., Awaitable[Audit]]


@pytest_asyncio.fixture
async def start_audit(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase
) -> AsyncIterator[StartAudit]:
    """Starts the service; with `stream=False` its NATS is away and tests hand it messages."""
    channels: list[grpc.aio.Channel] = []

    async def start(*, stream: bool = True) -> Audit:
        away = {} if stream else {"nats_url": "nats://127.0.0.1:1"}
        kit = await make_kit("audit", AuditSettings, tenants=TREE, **away)
        await serve(kit, build)
        channel = open_channel(kit.settings.grpc_listen, "test")
        channels.append(channel)
        return Audit(
            kit, database, Recorder(kit.database, kit.clock), rpc.AuditServiceStub(channel)
        )

    yield start
    for channel in channels:
        await channel.close()


@pytest_asyncio.fixture
async def audit(start_audit: StartAudit) -> Audit:
    """The running service, without the stream."""
    return await start_audit(stream=False)
