"""PullPolicy over gRPC."""

from __future__ import annotations

import json
from functools import lru_cache

from google.protobuf import json_format

from evergreen.v1 import device_pb2
from servicekit.rpc.server import Context
from services.policy.delivery.service import Delivery
from services.policy.keys.signing import PAYLOAD_TYPE
from services.policy.stamps.domain import Bundle


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
        if delivered.device_token is not None:
            envelope.device_token = delivered.device_token
        return envelope


def to_envelope(bundle: Bundle) -> device_pb2.PolicyEnvelope:
    """A bundle as devices get it over gRPC."""
    message = device_pb2.PolicyEnvelope(
        version=str(bundle.version),
        signature=bundle.document.signature,
        statement=to_statement(bundle),
    )
    message.policy.CopyFrom(_policy(bundle.document.body))
    return message


@lru_cache(maxsize=16)
def _policy(body: bytes) -> device_pb2.PolicyDocument:
    """A document as a message; many devices get the same one, and one can have half a megabyte."""
    return json_format.ParseDict(json.loads(body), device_pb2.PolicyDocument())


def to_statement(bundle: Bundle) -> device_pb2.PolicyStatement:
    """The signature that is over the number, too."""
    statement = bundle.statement()
    return device_pb2.PolicyStatement(
        payload_type=PAYLOAD_TYPE,
        payload=statement.payload,
        signature=statement.signature,
        key_id=statement.key_id,
    )
