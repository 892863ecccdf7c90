"""Audit's gRPC side: translates between proto and domain, nothing else."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

from google.api import httpbody_pb2
from google.protobuf.struct_pb2 import Struct

from auditlog.entries import Entry
from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc, identity_pb2
from servicekit.data.quarantine import place, readable_slowly
from servicekit.ids import given_id
from servicekit.keys.api import list_keys, rotate_key
from servicekit.keys.service import SigningKeys
from servicekit.rpc.files import CsvFile, TextFile, send_file
from servicekit.rpc.pagination import TimePosition, asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import filling, given_time, timestamp, to_value
from servicekit.security.signing import pem_bundle
from services.audit.log.domain import (
    CHECKPOINTS,
    CSV_COLUMNS,
    Base,
    Filters,
    changes_of,
    check_actions,
    csv_row,
    data_of,
    key_of,
    related_of,
)
from services.audit.log.service import AuditLog
from services.audit.tree.published import Published
from services.audit.tree.service import Tree

_LISTED = place("audit", "list_entries")
_EXPORTED = place("audit", "export_entries")
_PEM = "application/x-pem-file"
_BYTES = "application/octet-stream"


def _text(text: str) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type="text/plain; charset=utf-8", data=text.encode())


async def _struct(value: Any) -> Struct | None:
    if not isinstance(value, dict):
        return None
    struct = Struct()
    for _ in filling(value, struct):
        # Policies can be large; meanwhile others are served.
        await asyncio.sleep(0)
    return struct


async def _entry(entry: Entry, org_name: str) -> pb.AuditEntry:
    data = data_of(entry.record)

    def text(name: str) -> str:
        value = data.get(name)
        return value if isinstance(value, str) else ""

    return pb.AuditEntry(
        id=entry.columns.id,
        occurred_at=timestamp(entry.columns.occurred_at),
        actor=text("actor"),
        action=entry.columns.action if entry.redacted else text("action"),
        resource=text("resource"),
        org_id=entry.tenant_id,
        org_name=org_name,
        actor_id=text("actorId"),
        actor_role=text("actorRole"),
        source_ip=text("sourceIp"),
        request_id=text("requestId"),
        before=await _struct(data.get("before")),
        after=await _struct(data.get("after")),
        sequence=entry.sequence,
        previous_hash=entry.previous_hash,
        hash=entry.hash,
        outcome=text("outcome"),
        reason=text("reason"),
        resource_name=text("resourceName"),
        actor_kind=text("actorKind"),
        session_id=text("sessionId"),
        user_agent=text("userAgent"),
        redacted=entry.redacted,
        related=related_of(data),
    )


def to_pruned(base: Base, org_name: str) -> pb.AuditPruned:
    """What was pruned of a chain, as the API has it."""
    return pb.AuditPruned(
        sequence=base.sequence,
        hash=base.hash.hex(),
        archive_sha256=base.archive_sha256.hex(),
        pruned_at=timestamp(base.pruned_at),
        org_id=str(base.tenant_id),
        org_name=org_name,
        last_occurred_at=timestamp(base.last_occurred_at),
    )


async def _changes(entry: Entry) -> list[pb.AuditChange]:
    data = data_of(entry.record)
    answer = []
    for change in changes_of(data.get("before"), data.get("after")):
        shown = pb.AuditChange(path=change.path)
        for side, value in change.sides.items():
            to_value(value, getattr(shown, side))
        answer.append(shown)
        await asyncio.sleep(0)
    return answer


class AuditApi(audit_pb2_grpc.AuditServiceServicer):
    """evergreen.v1.AuditService."""

    def __init__(
        self, audit_log: AuditLog, tree: Tree, published: Published, keys: SigningKeys
    ) -> None:
        self._log = audit_log
        self._tree = tree
        self._published = published
        self._keys = keys

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Context
    ) -> pb.ListAuditEntriesResponse:
        """Lists entries, newest first."""
        after, limit = asked_page(request, TimePosition.read)
        check_actions(request.actions)
        filters = Filters(
            actor=request.actor,
            action=request.action,
            resource=request.resource,
            occurred_after=given_time(request, "occurred_after"),
            occurred_before=given_time(request, "occurred_before"),
            actions=tuple(request.actions),
            actor_kind=request.actor_kind,
            outcome=request.outcome,
            source_ip=request.source_ip,
            request_id=request.request_id,
            search=request.search,
            related_to=request.related_to,
        )
        page, gone = await self._log.find(
            context.call, given_id(request.org_id), filters, after, limit
        )
        return pb.ListAuditEntriesResponse(
            entries=await readable_slowly(_LISTED, page.items, self._named, key_of),
            next_page_token=page.token,
            pruned=[to_pruned(base, self._log.name_of(base.tenant_id)) for base in gone.shown],
            pruned_chains=gone.count,
        )

    async def GetAuditEntry(
        self, request: pb.GetAuditEntryRequest, context: Context
    ) -> pb.AuditEntry:
        """Answers one entry."""
        found = await self._log.get(context.call, UUID(request.id))
        answer = await self._named(found)
        answer.changes.extend(await _changes(found))
        return answer

    async def _named(self, entry: Entry) -> pb.AuditEntry:
        return await _entry(entry, self._log.name_of(UUID(entry.tenant_id)))

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

    def ExportAuditEntries(
        self, request: pb.ExportAuditEntriesRequest, context: Context
    ) -> AsyncGenerator[httpbody_pb2.HttpBody, None]:
        """Streams a file."""
        filters = Filters(
            occurred_after=given_time(request, "occurred_after"),
            occurred_before=given_time(request, "occurred_before"),
        )
        asked = (context.call, given_id(request.org_id), filters)
        name = "evergreen-audit"
        if request.format == "csv":
            form = CsvFile(_EXPORTED, CSV_COLUMNS, csv_row, key_of)
            return send_file(context, name, form, self._log.export_entries(*asked))
        lines = TextFile("application/jsonl", "jsonl")
        return send_file(context, name, lines, self._log.export_lines(*asked))

    async def GetAuditKeysPem(
        self, request: pb.GetAuditKeysPemRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Answers the public keys that verify checkpoints."""
        pem = pem_bundle(reversed(self._keys.ring.verifying()))
        return httpbody_pb2.HttpBody(content_type=_PEM, data=pem.encode())

    async def GetAuditProof(
        self, request: pb.GetAuditProofRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Proves that an entry is in the log."""
        proof = await self._log.prove(context.call, UUID(request.id))
        return _text(proof.write())

    async def GetAuditLogCheckpoint(
        self, request: pb.GetAuditLogCheckpointRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Answers the newest checkpoint of the tree."""
        asked = self._tree.witnessed if request.witnessed else self._tree.checkpoint
        return _text((await asked()).write())

    async def GetPublicAuditLogCheckpoint(
        self, request: pb.GetPublicAuditLogCheckpointRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Answers the newest checkpoint that is published."""
        return _text((await self._published.checkpoint()).write())

    async def GetPublicAuditLogTile(
        self, request: pb.GetPublicAuditLogTileRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Answers published hashes of the tree."""
        data = await self._published.tile(request.path)
        return httpbody_pb2.HttpBody(content_type=_BYTES, data=data)

    async def GetAuditLogTile(
        self, request: pb.GetAuditLogTileRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Answers a piece of the tree."""
        return httpbody_pb2.HttpBody(content_type=_BYTES, data=await self._tree.tile(request.path))

    async def GetAuditConsistency(
        self, request: pb.GetAuditConsistencyRequest, context: Context
    ) -> pb.AuditConsistency:
        """Proves that an older tree is in the present one."""
        proof = await self._tree.consistency(int(getattr(request, "from")))
        return pb.AuditConsistency(
            **{"from": str(proof.old)},
            hashes=[base64.b64encode(found).decode() for found in proof.hashes],
            checkpoint=proof.checkpoint.write(),
        )

    async def GetAuditLogKeys(
        self, request: pb.GetAuditLogKeysRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        """Answers the public keys that verify checkpoints of the tree."""
        return _text(await self._tree.verifier_keys())

    async def ListAuditKeys(
        self, request: pb.ListAuditKeysRequest, context: Context
    ) -> identity_pb2.ListSigningKeysResponse:
        """Lists the keys with their states."""
        return list_keys(self._keys)

    async def RotateAuditKey(
        self, request: pb.RotateAuditKeyRequest, context: Context
    ) -> identity_pb2.SigningKey:
        """Makes the next key of checkpoints."""
        return await rotate_key(self._keys, context.call, CHECKPOINTS, request.request_id)
