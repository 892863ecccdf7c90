"""Attestation over gRPC: the methods of its capabilities as one service."""

from __future__ import annotations

from uuid import UUID

from evergreen.v1 import attestation_pb2
from servicekit.rpc.server import Context
from services.attestation.binding.api import BindingApi
from services.attestation.binding.service import Bindings
from services.attestation.references.api import ReferenceApi
from services.attestation.references.service import References
from services.attestation.trust.api import TrustApi
from services.attestation.trust.service import Trust
from services.attestation.verdicts.api import VerdictApi, to_attestation
from services.attestation.verdicts.service import Verdicts


class AttestationApi(
    VerdictApi,
    BindingApi,
    TrustApi,
    ReferenceApi,
):
    """evergreen.v1.AttestationService."""

    def __init__(
        self, verdicts: Verdicts, bindings: Bindings, trust: Trust, references: References
    ) -> None:
        VerdictApi.__init__(self, verdicts)
        BindingApi.__init__(self, bindings)
        TrustApi.__init__(self, trust)
        ReferenceApi.__init__(self, references)

    async def ResetTpmBinding(
        self, request: attestation_pb2.ResetTpmBindingRequest, context: Context
    ) -> attestation_pb2.Attestation:
        """Frees a device from its TPM."""
        device_id = UUID(request.device_id)
        await self._bindings.reset(context.call, device_id)
        device = await self._verdicts.get_device(context.call, device_id)
        return to_attestation(device, self._verdicts.stale_before())
