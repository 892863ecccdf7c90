"""What devices are to have of all policies, over gRPC."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from google.protobuf import struct_pb2

from evergreen.v1 import policy_pb2
from servicekit.ids import given_id
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp, to_value
from services.policy.authoring.api import PolicyApi
from services.policy.editions.domain import Effective, Shown
from services.policy.editions.effective import EffectivePolicies
from services.policy.gate.domain import Restriction
from services.policy.layers.merging import Level, Source


def to_effective(found: Effective) -> policy_pb2.EffectivePolicy:
    """What devices are to have, as the API answers it."""
    document = struct_pb2.Struct()
    document.update(found.document)
    inherits = {layer.source: layer.merging.inherit for layer in found.layers}

    restriction = found.restriction

    def group_id_of(source: Source) -> str:
        if source.level is Level.GATE and restriction is not None:
            return str(restriction.group_id or "")
        return str(source.target_id) if source.level is Level.GROUP else ""

    def layer(source: Source) -> policy_pb2.PolicyLayer:
        return policy_pb2.PolicyLayer(
            level=source.level.value,
            tenant_name=found.tenant_names.get(source.tenant_id, ""),
            policy_id=str(source.policy_id or ""),
            policy_name=source.policy_name,
            version=str(source.version or ""),
            inherit=inherits.get(source, True),
            group_id=group_id_of(source),
            group_alias=source.target_name,
        )

    def field(shown: Shown) -> policy_pb2.EffectiveField:
        message = policy_pb2.EffectiveField(
            path=shown.path,
            item_key=shown.name,
            how=shown.how,
            source=None if shown.source is None else layer(shown.source),
        )
        if shown.value is not None:
            to_value(shown.value, message.value)
        for lost in shown.overridden:
            one = message.overridden.add(source=layer(lost.source), reason=lost.why.value)
            to_value(lost.value, one.value)
        return message

    return policy_pb2.EffectivePolicy(
        device_id=str(found.device_id or ""),
        org_id=str(found.org_id),
        state=found.state,
        state_reason=found.reason,
        applied_version=str(found.applied or ""),
        wanted_version=str(found.wanted or ""),
        document=document,
        layers=[layer(one.source) for one in found.layers],
        fields=map(field, found.fields),
        restriction=None if restriction is None else _to_restriction(restriction),
    )


def _to_restriction(found: Restriction) -> policy_pb2.Restriction:
    return policy_pb2.Restriction(
        group_id=str(found.group_id or ""),
        group_alias=found.group_alias,
        at_least=found.at_least,
        verdict=found.verdict,
        since=timestamp(found.since),
    )


class EffectiveApi(PolicyApi):
    """evergreen.v1.PolicyService, with what devices are to have of all policies."""

    def __init__(self, effective: EffectivePolicies, *others: Any) -> None:
        super().__init__(*others)
        self._effective = effective

    async def GetEffectivePolicy(
        self, request: policy_pb2.GetEffectivePolicyRequest, context: Context
    ) -> policy_pb2.EffectivePolicy:
        """Answers what a device is to have."""
        return to_effective(await self._effective.of_device(context.call, UUID(request.id)))

    async def GetLayeredPolicy(
        self, request: policy_pb2.GetLayeredPolicyRequest, context: Context
    ) -> policy_pb2.EffectivePolicy:
        """Answers what the devices of an organisation are to have, or those in some groups."""
        org_id = given_id(request.org_id)
        groups = [*map(UUID, request.group_ids)]
        return to_effective(await self._effective.of_org(context.call, org_id, groups))
