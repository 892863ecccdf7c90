"""Verdicts over gRPC."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Final
from uuid import UUID

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.json_format import MessageToDict

from evergreen.v1 import attestation_pb2, attestation_pb2_grpc
from servicekit.data.quarantine import place
from servicekit.ids import given_id
from servicekit.rpc.files import CsvFile, Form, JsonFile, send_file
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from servicekit.times import format_rfc3339
from services.attestation.verdicts.domain import Attested, BootVerdict, Wanted
from services.attestation.verdicts.service import Verdicts

_EXPORT: Final = place("attestation", "export_attestations")
_COLUMNS: Final = (
    "serialNumber",
    "deviceId",
    "model",
    "verdict",
    "reasons",
    "attestedAt",
    "stale",
    "orgId",
)


class VerdictApi(attestation_pb2_grpc.AttestationServiceServicer):
    """The methods of evergreen.v1.AttestationService that show verdicts."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts

    async def ListAttestations(
        self, request: attestation_pb2.ListAttestationsRequest, context: Context
    ) -> attestation_pb2.ListAttestationsResponse:
        """Lists devices with their latest verdicts."""
        after, size = asked_page(request, UUID)
        page = await self._verdicts.list_devices(
            context.call, given_id(request.org_id), self._wanted(request), after, size
        )
        before = self._verdicts.stale_before()
        return attestation_pb2.ListAttestationsResponse(
            attestations=[to_attestation(device, before) for device in page.items],
            next_page_token=page.token,
        )

    async def GetAttestation(
        self, request: attestation_pb2.GetAttestationRequest, context: Context
    ) -> attestation_pb2.Attestation:
        """Answers the latest verdict of a device."""
        device = await self._verdicts.get_device(context.call, UUID(request.device_id))
        return to_attestation(device, self._verdicts.stale_before())

    async def ListAttestationVerdicts(
        self, request: attestation_pb2.ListAttestationVerdictsRequest, context: Context
    ) -> attestation_pb2.ListAttestationVerdictsResponse:
        """Lists the verdicts of a device."""
        before, size = asked_page(request, UUID)
        page = await self._verdicts.list_verdicts(
            context.call, UUID(request.device_id), before, size
        )
        return attestation_pb2.ListAttestationVerdictsResponse(
            verdicts=[_to_verdict(verdict) for verdict in page.items],
            next_page_token=page.token,
        )

    def ExportAttestations(
        self, request: attestation_pb2.ExportAttestationsRequest, context: Context
    ) -> AsyncGenerator[HttpBody, None]:
        """Streams devices with their latest verdicts as a file."""
        before = self._verdicts.stale_before()
        form: Form[Attested] = (
            CsvFile(_EXPORT, _COLUMNS, lambda device: _row(device, before), _key)
            if request.format == "csv"
            else JsonFile(_EXPORT, lambda device: _json(device, before), _key)
        )
        pages = self._verdicts.export(
            context.call, given_id(request.org_id), self._wanted(request), form.ending
        )
        return send_file(context, "evergreen-attestations", form, pages)

    def _wanted(
        self,
        request: attestation_pb2.ListAttestationsRequest
        | attestation_pb2.ExportAttestationsRequest,
    ) -> Wanted:
        return Wanted(
            verdict=request.verdict,
            reason=request.reason,
            older_than=self._verdicts.stale_before() if request.stale else None,
        )


def _is_stale(device: Attested, before: datetime) -> bool:
    return device.attested_at is not None and device.attested_at < before


def to_attestation(device: Attested, before: datetime) -> attestation_pb2.Attestation:
    """A device's latest verdict as the API answers it; evidence before a time is stale."""
    return attestation_pb2.Attestation(
        device_id=str(device.device_id),
        org_id=str(device.tenant_id),
        verdict=device.verdict,
        reasons=device.reasons,
        attested_at=timestamp(device.attested_at) if device.attested_at else None,
        pcrs=device.pcrs,
        bank=device.bank,
        secure_boot=device.secure_boot,
        reference_value_ids=map(str, device.reference_value_ids),
        stale=_is_stale(device, before),
        serial_number=device.serial,
        model=device.model,
        bound=device.ek_sha256 is not None,
        ek_hash_prefix=(device.ek_sha256 or b"").hex()[:8],
    )


def _to_verdict(verdict: BootVerdict) -> attestation_pb2.AttestationVerdict:
    return attestation_pb2.AttestationVerdict(
        id=str(verdict.id),
        device_id=str(verdict.device_id),
        org_id=str(verdict.tenant_id),
        verdict=verdict.verdict,
        reasons=verdict.reasons,
        attested_at=timestamp(verdict.attested_at),
        pcrs=verdict.pcrs,
        bank=verdict.bank,
        secure_boot=verdict.secure_boot,
        reference_value_ids=map(str, verdict.reference_value_ids),
    )


def _key(device: Attested) -> object:
    return device.device_id


def _row(device: Attested, before: datetime) -> tuple[str, ...]:
    return (
        device.serial,
        str(device.device_id),
        device.model,
        device.verdict,
        " ".join(device.reasons),
        format_rfc3339(device.attested_at) if device.attested_at else "",
        "true" if _is_stale(device, before) else "false",
        str(device.tenant_id),
    )


def _json(device: Attested, before: datetime) -> str:
    values = MessageToDict(
        to_attestation(device, before), always_print_fields_with_no_presence=True
    )
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False)
