"""PullPolicy over gRPC."""

from __future__ import annotations

import json
from functools import lru_cache

from google.protobuf import json_format

from evergreen.v1 import device_pb2
from servicekit.rpc.server import Context
from services.policy.delivery.domain import Bundle
from services.policy.delivery.service import Delivery
from services.policy.keys.signing import PAYLOAD_TYPE


class DeviceApi:
    """The one method of evergreen.v1.DeviceService that this context serves."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    async def PullPolicy(
        self, request: device_pb2.PullPolicyRequest, context: Context
    ) -> device_pb2.PolicyEnvelope:
        """Answers the policy in force for the calling device."""
        caller = context.call.caller
        decision = self._delivery.poll(caller, request.current_version)
        delivered = await self._delivery.deliver(caller, decision)
        if delivered is None:
            return device_pb2.PolicyEnvelope(not_modified=True)
        envelope = to_envelope(delivered.bundle)
        if delivered.device_token is None:
            return envelope
        with_token = device_pb2.PolicyEnvelope(device_token=delivered.device_token)
        with_token.MergeFrom(envelope)
        return with_token


@lru_cache(maxsize=1024)
def to_envelope(bundle: Bundle) -> device_pb2.PolicyEnvelope:
    """A bundle as devices get it over gRPC."""
    message = device_pb2.PolicyEnvelope(
        version=str(bundle.version),
        signature=bundle.signature,
        statement=device_pb2.PolicyStatement(
            payload_type=PAYLOAD_TYPE,
            payload=bundle.statement.payload,
            signature=bundle.statement.signature,
            key_id=bundle.statement.key_id,
        ),
    )
    json_format.ParseDict(json.loads(bundle.document), message.policy)
    return message
