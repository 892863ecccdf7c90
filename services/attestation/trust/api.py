"""Roots and listed keys over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final
from uuid import UUID

from google.api.httpbody_pb2 import HttpBody

from evergreen.v1 import attestation_pb2 as pb
from evergreen.v1 import attestation_pb2_grpc
from servicekit.data.quarantine import place
from servicekit.rpc.files import CsvFile, send_file
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.attestation.trust.domain import ListedKey, Source, TrustRoot
from services.attestation.trust.service import Trust

_EXPORT: Final = place("attestation", "export_endorsement_keys")
_COLUMNS: Final = ("serial", "ek_hash")


class TrustApi(attestation_pb2_grpc.AttestationServiceServicer):
    """The methods of evergreen.v1.AttestationService that say by what TPMs are known."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust

    async def ListTrustRoots(
        self, request: pb.ListTrustRootsRequest, context: Context
    ) -> pb.ListTrustRootsResponse:
        """Lists roots."""
        return pb.ListTrustRootsResponse(
            roots=[_to_root(root) for root in await self._trust.list_roots()]
        )

    async def CreateTrustRoot(
        self, request: pb.CreateTrustRootRequest, context: Context
    ) -> pb.TrustRoot:
        """Adds a root."""
        root = await self._trust.add_root(
            context.call, request.certificate_pem, validate_only=request.validate_only
        )
        shown = _to_root(root)
        if request.validate_only:
            shown.id = ""
        return shown

    async def DeleteTrustRoot(
        self, request: pb.DeleteTrustRootRequest, context: Context
    ) -> pb.DeleteTrustRootResponse:
        """Removes a root."""
        await self._trust.remove_root(context.call, UUID(request.id))
        return pb.DeleteTrustRootResponse()

    async def ImportEndorsementKeys(
        self, request: pb.ImportEndorsementKeysRequest, context: Context
    ) -> pb.ImportEndorsementKeysResponse:
        """Takes a list of endorsement keys."""
        done = await self._trust.import_keys(
            context.call, UUID(request.org_id), request.csv, replace=request.replace
        )
        return pb.ImportEndorsementKeysResponse(
            added=done.added, unchanged=done.unchanged, removed=done.removed
        )

    def ExportEndorsementKeys(
        self, request: pb.ExportEndorsementKeysRequest, context: Context
    ) -> AsyncGenerator[HttpBody, None]:
        """Streams endorsement keys as a file."""
        source = Source(request.source or Source.LISTED)
        pages = self._trust.export_keys(context.call, UUID(request.org_id), source)
        form = CsvFile(_EXPORT, _COLUMNS, lambda key: (key.serial, key.ek_sha256.hex()), _serial_of)
        return send_file(context, "evergreen-endorsement-keys", form, pages)


def _serial_of(key: ListedKey) -> object:
    return key.serial


def _to_root(root: TrustRoot) -> pb.TrustRoot:
    return pb.TrustRoot(
        id=str(root.id),
        subject=root.subject,
        sha256=root.sha256.hex(),
        not_before=timestamp(root.not_before),
        not_after=timestamp(root.not_after),
        created_at=timestamp(root.created_at),
    )
