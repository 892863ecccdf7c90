"""The channels to the other services' internal listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

from servicekit.call import H_SERVICE
from servicekit.grpc_server import MAX_MESSAGE
from servicekit.settings import ServiceSettings

if TYPE_CHECKING:
    from servicekit.spans import Tracer

_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # A service that was restarted is found again at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.enable_http_proxy", 0),
)


class _ServiceName(grpc.aio.UnaryUnaryClientInterceptor):
    """Tells the other service who calls it."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()))
        metadata.add(H_SERVICE, self._name)
        return await continuation(client_call_details._replace(metadata=metadata), request)


def connect(
    settings: ServiceSettings, context: str, name: str, tracer: Tracer | None = None
) -> grpc.aio.Channel:
    """A channel to another service's internal listener; `tracer` records its calls."""
    target = settings.target(context)
    if settings.tls is None or target.startswith("unix:"):
        return open_channel(target, name, tracer)
    # Its name is in its certificate, whatever its address is.
    whose = ("grpc.ssl_target_name_override", context)
    credentials = settings.tls.channel_credentials()
    return grpc.aio.secure_channel(
        target,
        credentials,
        interceptors=[tracer.calls_out()] if tracer else None,
        options=[*_CHANNEL_OPTIONS, whose],
    )


def open_channel(target: str, name: str, tracer: Tracer | None = None) -> grpc.aio.Channel:
    """A channel to a service's socket; `name` tells it who calls, `tracer` records its calls."""
    recording = [tracer.calls_out()] if tracer else []
    return grpc.aio.insecure_channel(
        target, interceptors=[_ServiceName(name), *recording], options=_CHANNEL_OPTIONS
    )
