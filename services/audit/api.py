"""Audit's gRPC side: translates between proto and domain, nothing else."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from google.api import httpbody_pb2
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc
from servicekit.auditverify import Entry
from servicekit.grpc_server import Context
from servicekit.keys import pem_bundle
from servicekit.pagination import decode_token, encode_token, page_size
from servicekit.values import filling, timestamp
from services.audit.domain import Filters, Position, data_of
from services.audit.keys import Keys
from services.audit.service import AuditLog

_PEM = "application/x-pem-file"
_MEDIA = {"jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8"}


def _time(message: Message, name: str) -> datetime | None:
    if not message.HasField(name):
        return None
    stamp: Timestamp = getattr(message, name)
    return stamp.ToDatetime(tzinfo=UTC)


async def _struct(value: Any) -> Struct | None:
    if not isinstance(value, dict):
        return None
    struct = Struct()
    for _ in filling(value, struct):
        # Policies can be large; meanwhile others are served.
        await asyncio.sleep(0)
    return struct


async def _entry(entry: Entry) -> pb.AuditEntry:
    data = data_of(entry.record)

    def text(name: str) -> str:
        value = data.get(name)
        return value if isinstance(value, str) else ""

    return pb.AuditEntry(
        id=entry.columns.id,
        occurred_at=timestamp(entry.columns.occurred_at),
        actor=text("actor"),
        action=text("action"),
        resource=text("resource"),
        org_id=entry.tenant_id,
        actor_id=text("actorId"),
        actor_role=text("actorRole"),
        source_ip=text("sourceIp"),
        request_id=text("requestId"),
        before=await _struct(data.get("before")),
        after=await _struct(data.get("after")),
        sequence=entry.sequence,
        previous_hash=entry.previous_hash,
        hash=entry.hash,
    )


def _position(occurred_at: str, entry_id: str) -> Position:
    at = datetime.fromisoformat(occurred_at)
    if at.tzinfo is None:
        raise ValueError("a time without an offset")
    return Position(at.astimezone(UTC), UUID(entry_id))


class AuditApi(audit_pb2_grpc.AuditServiceServicer):
    """evergreen.v1.AuditService."""

    def __init__(self, audit_log: AuditLog, keys: Keys) -> None:
        self._log = audit_log
        self._keys = keys

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        """Lists entries, newest first."""
        limit = page_size(request.page_size)
        filters = Filters(
            actor=request.actor,
            action=request.action,
            resource=request.resource,
            occurred_after=_time(request, "occurred_after"),
            occurred_before=_time(request, "occurred_before"),
        )
        after = decode_token(request.page_token, _position)
        found, more = await self._log.find(context.call, request.org_id, filters, after, limit)
        token = ""
        if more:
            last = found[-1].columns
            token = encode_token(last.occurred_at.isoformat(), last.id)
        return pb.ListAuditEntriesResponse(
            entries=[await _entry(entry) for entry in found], next_page_token=token
        )

    async def GetAuditEntry(
        self, request: pb.GetAuditEntryRequest, context: Context
    ) -> pb.AuditEntry:
        """Answers one entry."""
        return await _entry(await self._log.get(context.call, request.id))

    async def GetAuditCheckpoint(
        self, request: pb.GetAuditCheckpointRequest, context: Context
    ) -> pb.AuditCheckpoint:
        """Answers the signed heads of the chains."""
        checkpoint = await self._log.checkpoint(context.call)
        return pb.AuditCheckpoint(
            statement=checkpoint.statement,
            signature=base64.b64encode(checkpoint.signature).decode(),
            key_id=checkpoint.key_id,
        )

    async def ExportAuditEntries(
        self, request: pb.ExportAuditEntriesRequest, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        """Streams a file."""
        kind = request.format or "jsonl"
        filters = Filters(
            occurred_after=_time(request, "occurred_after"),
            occurred_before=_time(request, "occurred_before"),
        )
        export = self._log.export_csv if kind == "csv" else self._log.export_lines
        begun = False
        async for piece in export(context.call, request.org_id, filters):
            if not begun:
                # Only now: a refusal before the first piece is an answer of its own.
                name = f"evergreen-audit.{kind}"
                await context.send_headers(
                    {"content-disposition": f'attachment; filename="{name}"'}
                )
                begun = True
            yield httpbody_pb2.HttpBody(content_type=_MEDIA[kind], data=piece.encode())

    async def GetAuditKeysPem(
        self, request: pb.GetAuditKeysPemRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Answers the public keys that verify checkpoints."""
        return httpbody_pb2.HttpBody(content_type=_PEM, data=pem_bundle(self._keys.public).encode())
