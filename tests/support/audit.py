"""The audit service on a real database: events for it, and its RPCs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest
import pytest_asyncio

from auditlog.notes import TreeCheckpoint
from contract.subjects import SUBJECT_ROOT
from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc as rpc
from servicekit.app import Kit, Running
from servicekit.ids import Clock, new_id, now
from servicekit.rpc.channels import open_channel
from servicekit.times import format_rfc3339
from services.audit.__main__ import build
from services.audit.log.recorder import Recorder
from services.audit.log.store import stream_position
from services.audit.settings import AuditSettings
from services.audit.tree import sequencer
from tests.conftest import MakeKit, ServeService, tenant
from tests.support import callers
from tests.support.servers import TestDatabase

ROOT = tenant(0xA1, kind="root")
RESELLER = tenant(0xA2, ROOT, "reseller")
ORG = tenant(0xA3, RESELLER)
SISTER = tenant(0xA4, RESELLER)
STRANGER = tenant(0xA5, ROOT)
TREE = [ROOT, RESELLER, ORG, SISTER, STRANGER]
START = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)

_sequence = itertools.count(1)


@dataclass(frozen=True)
class SentEvent:
    """An event as a service of any release may send it; its type need not allow it."""

    name: str
    tenant_id: UUID
    resource: str
    actor: str
    actor_id: str
    actor_role: str
    before: Any
    after: Any
    occurred_at: datetime
    id: UUID = field(default_factory=new_id)
    told: Mapping[str, Any] = field(default_factory=dict)
    """What else its data says."""

    @property
    def subject(self) -> str:
        """The NATS subject."""
        return f"{SUBJECT_ROOT}.{self.tenant_id}.{self.name}"

    def payload(self) -> str:
        """The CloudEvent in JSON."""
        return json.dumps(
            {
                "specversion": "1.0",
                "id": str(self.id),
                "source": f"/evergreen/{self.name.partition('.')[0]}",
                "type": f"{SUBJECT_ROOT}.{self.name}",
                "subject": self.resource,
                "time": format_rfc3339(self.occurred_at),
                "datacontenttype": "application/json",
                "tenantid": str(self.tenant_id),
                "data": {
                    "action": self.name,
                    "resource": self.resource,
                    "actor": self.actor,
                    "actorId": self.actor_id,
                    "actorRole": self.actor_role,
                    "sourceIp": "",
                    "requestId": "",
                    "before": self.before,
                    "after": self.after,
                    **self.told,
                },
            },
            separators=(",", ":"),
            ensure_ascii=False,
        )


def event(
    number: int = 0, tenant_id: UUID = ORG.id, name: str = "policy.updated", **more: Any
) -> SentEvent:
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
    return SentEvent(name=name, tenant_id=tenant_id, **(values | more))


def message(of: SentEvent | None = None, *, subject: str = "", data: bytes = b"") -> Any:
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
    forwarders: rpc.ForwarderServiceAsyncStub
    running: Running
    owner: callers.Metadata = field(default_factory=lambda: callers.user(ROOT.id))

    async def record(self, *events: SentEvent) -> None:
        """Records events as if the stream had delivered them in one batch."""
        await self.recorder.handle([message(e) for e in events])

    async def sql(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Runs a statement as superuser, with the log's triggers out of the way."""
        connection = await self.database.superuser()
        try:
            tables = ("entry", "chain_head", "tree_log", "tree_leaf", "tree_node")
            for table in tables:
                # One lock at a time: the service takes several of them in its own order.
                await connection.execute(f"ALTER TABLE audit.{table} DISABLE TRIGGER ALL")
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
        end = time.monotonic() + 60
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

    async def proof(self, entry_id: str, by: callers.Metadata | None = None) -> str:
        answer = await self.api.GetAuditProof(
            pb.GetAuditProofRequest(id=entry_id), metadata=by or self.owner
        )
        return bytes(answer.data).decode()

    async def tree_checkpoint(self, least: int = 0) -> TreeCheckpoint:
        """The newest checkpoint of the tree, when it has so many leaves."""
        end = time.monotonic() + 60
        while True:
            found = None
            # There may be none for a moment.
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await self.api.GetAuditLogCheckpoint(
                    pb.GetAuditLogCheckpointRequest(), metadata=self.owner
                )
                found = TreeCheckpoint.read(bytes(answer.data).decode())
                if found.size >= least:
                    return found
            assert time.monotonic() < end, f"{found and found.size} leaves of {least}"
            await asyncio.sleep(0.05)

    async def tile(self, path: str) -> bytes:
        answer = await self.api.GetAuditLogTile(
            pb.GetAuditLogTileRequest(path=path), metadata=self.owner
        )
        return bytes(answer.data)

    async def public_keys(self) -> str:
        answer = await self.api.GetAuditKeysPem(
            pb.GetAuditKeysPemRequest(), metadata=callers.anonymous()
        )
        return bytes(answer.data).decode()


StartAudit = Callable[..., Awaitable[Audit]]


@pytest_asyncio.fixture
async def start_audit(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[StartAudit]:
    """Starts the service; with `stream=False` its NATS is away and tests hand it messages.

    The tree grows all the same, unless with `grows=False`.
    """
    channels: list[grpc.aio.Channel] = []
    growing: list[asyncio.Task[None]] = []
    # Tests record beside the service, which does not hear of it.
    monkeypatch.setattr(sequencer, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(sequencer, "_LINGER_SECONDS", 0.05)

    async def start(
        *, stream: bool = True, grows: bool = True, clock: Clock = now, **settings: object
    ) -> Audit:
        away = {} if stream else {"nats_url": "nats://127.0.0.1:1"}
        made = await make_kit("audit", AuditSettings, tenants=TREE, **(away | settings))
        kit = replace(made, clock=clock)
        running = await serve(kit, build)
        if grows and not stream:
            # The service waits for its stream; another process need not.
            other = sequencer.Sequencer(kit.database, "evergreen", clock, stream_position)
            growing.append(asyncio.create_task(other.run()))
        channel = open_channel(kit.settings.grpc_listen, "test")
        channels.append(channel)
        return Audit(
            kit,
            database,
            Recorder(kit.database, kit.clock),
            rpc.AuditServiceStub(channel),
            rpc.ForwarderServiceStub(channel),
            running,
        )

    yield start
    for task in growing:
        task.cancel()
    await asyncio.gather(*growing, return_exceptions=True)
    for channel in channels:
        await channel.close()


@pytest_asyncio.fixture
async def audit(start_audit: StartAudit) -> Audit:
    """The running service, without the stream."""
    return await start_audit(stream=False)
