"""Gates over gRPC."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from contract.events.attestation import VerdictName
from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.policy.gate.domain import Gate, GatePosition, Mode, ShortDevice
from services.policy.gate.service import Change, Gates


class GateApi(policy_pb2_grpc.PolicyServiceServicer):
    """The methods of evergreen.v1.PolicyService that say what is asked of devices' boots."""

    def __init__(self, gates: Gates) -> None:
        self._gates = gates

    async def GetAttestationGate(
        self, request: policy_pb2.GetAttestationGateRequest, context: Context
    ) -> policy_pb2.AttestationGate:
        """Answers what an organisation asks."""
        found = await self._gates.get(
            context.call, given_id(request.org_id), given_id(request.group_id)
        )
        return to_gate(found)

    async def ListAttestationGates(
        self, request: policy_pb2.ListAttestationGatesRequest, context: Context
    ) -> policy_pb2.ListAttestationGatesResponse:
        """Lists the gates of organisations."""
        after, size = asked_page(request, GatePosition.read)
        page = await self._gates.list_gates(
            context.call,
            given_id(request.org_id),
            Mode(request.mode) if request.mode else None,
            after,
            size,
            only_held=request.only_held,
        )
        return policy_pb2.ListAttestationGatesResponse(
            gates=map(to_gate, page.items), next_page_token=page.token
        )

    async def UpdateAttestationGate(
        self, request: policy_pb2.UpdateAttestationGateRequest, context: Context
    ) -> policy_pb2.AttestationGate:
        """Says what an organisation asks."""
        change = Change(
            mode=Mode(request.mode) if request.HasField("mode") else None,
            at_least=_verdict(request.at_least),
            grace_hours=request.grace_hours if request.HasField("grace_hours") else None,
            otherwise_policy_id=given_id(request.otherwise_policy_id),
            max_percent=request.max_percent if request.HasField("max_percent") else None,
            expected_devices=request.expected_devices
            if request.HasField("expected_devices")
            else None,
        )
        found = await self._gates.update(
            context.call, given_id(request.org_id), given_id(request.group_id), change
        )
        return to_gate(found)

    async def PreviewAttestationGate(
        self, request: policy_pb2.PreviewAttestationGateRequest, context: Context
    ) -> policy_pb2.PreviewAttestationGateResponse:
        """Counts and lists who would fall short."""
        after, size = asked_page(request, UUID)
        wanted = Change(
            at_least=_verdict(request.at_least),
            grace_hours=request.grace_hours if request.HasField("grace_hours") else None,
        )
        found = await self._gates.preview(
            context.call,
            given_id(request.org_id),
            given_id(request.group_id),
            wanted,
            after,
            size,
        )
        return policy_pb2.PreviewAttestationGateResponse(
            devices=map(_to_device, found.page.items),
            next_page_token=found.page.token,
            devices_in_use=found.counts.in_use,
            falling_short=found.counts.short,
            in_grace=found.counts.in_grace,
            at_least=found.demand.at_least,
            grace_hours=found.demand.grace_hours,
            restricted=found.counts.restricted,
        )


def _verdict(name: str) -> VerdictName | None:
    # The proto's rules let no other name through.
    return cast(VerdictName, name) if name else None


def to_gate(gate: Gate) -> policy_pb2.AttestationGate:
    """A gate as the API answers it."""
    return policy_pb2.AttestationGate(
        org_id=str(gate.tenant_id),
        mode=gate.mode,
        at_least=gate.demand.at_least,
        grace_hours=gate.demand.grace_hours,
        updated_at=timestamp(gate.updated_at) if gate.updated_at else None,
        etag=gate.etag,
        group_id=str(gate.group_id or ""),
        otherwise_policy_id=str(gate.otherwise_policy_id or ""),
        otherwise_version=str(gate.otherwise_version or ""),
        max_percent=gate.max_percent or 0,
        held=gate.held,
        restricted_devices=gate.restricted,
        group_alias=gate.group_alias,
    )


def _to_device(device: ShortDevice) -> policy_pb2.DeviceFallingShort:
    return policy_pb2.DeviceFallingShort(
        device_id=str(device.device_id),
        org_id=str(device.tenant_id),
        verdict=device.verdict,
        attested_at=timestamp(device.attested_at) if device.attested_at else None,
        enrolled_at=timestamp(device.enrolled_at) if device.enrolled_at else None,
    )
