"""`evergreen.v1.DeviceService` is one service in the proto, and several in here.

Agents see five methods under one name; each lives in its own context, and the gateway routes
method by method. So a context registers only its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from evergreen.v1 import device_pb2
from servicekit.rpc.server import Register

_SERVICE: Final = device_pb2.DESCRIPTOR.services_by_name["DeviceService"]

Method = Callable[[Any, Any], Awaitable[Message]]
"""A servicer's method: takes the request and the context."""


def device_methods(**methods: Method) -> Register:
    """Adds the named methods of DeviceService to a server: `device_methods(PullPolicy=…)`."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=GetMessageClass(
                _SERVICE.methods_by_name[name].input_type
            ).FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )
        for name, method in methods.items()
    }
    handler = grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)

    def register(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((handler,))

    return register
