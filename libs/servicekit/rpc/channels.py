"""The channels to the other services' internal listeners."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import grpc

from servicekit.call import (
    H_REQUEST_ID,
    H_SERVICE,
    H_TIMEOUT,
    RETURN_SECONDS,
    current_call,
    seconds_left,
)
from servicekit.errors import too_late
from servicekit.rpc.server import MAX_MESSAGE
from servicekit.security.tls import Tls
from servicekit.settings import ServiceSettings

if TYPE_CHECKING:
    from servicekit.observability.spans import Tracer

_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # A service that was restarted is found again at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
    ("grpc.enable_http_proxy", 0),
)

_LOOK_SECONDS: Final = 5.0
"""How often a channel looks whether its certificate was replaced."""
_LAST_CALLS_SECONDS: Final = 60.0
"""How long calls on the channel before may take; those that wait for a change take half of it."""


class _Hop(grpc.aio.UnaryUnaryClientInterceptor):
    """Tells the other service who calls, for which request, and for how long it waits.

    Raises:
        DomainError: DEADLINE_EXCEEDED when the running call has no time left for the hop.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()))
        metadata.add(H_SERVICE, self._name)
        if request_id := current_call.get().request_id:
            metadata.add(H_REQUEST_ID, request_id)
        left = seconds_left()
        if left <= RETURN_SECONDS:
            raise too_late()
        timeout = client_call_details.timeout
        if left < (math.inf if timeout is None else timeout):
            timeout = left
        if timeout is not None:
            # gRPC's own header rounds up, by as much as a second.
            metadata.add(H_TIMEOUT, f"{timeout:.6f}")
        details = client_call_details._replace(metadata=metadata, timeout=timeout)
        return await continuation(details, request)


class RenewedChannel(grpc.aio.Channel):
    """A channel that takes over a certificate which was replaced on the disk.

    gRPC reads credentials once. Here a call looks now and then whether the files have changed; the
    first one that sees it goes over a new channel, with the new certificate and the CAs that are
    trusted now. Calls on the old one end as they would have. Only calls of one message each way,
    which are all that services make.
    """

    def __init__(
        self, tls: Tls, opened: Callable[[], grpc.aio.Channel], every: float = _LOOK_SECONDS
    ) -> None:
        self._tls = tls
        self._opened = opened
        self._every = every
        self._stamp = tls.stamp()
        self._channel = opened()
        self._look_at = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """The channel for the next call."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._look_at:
            return self._channel
        self._look_at = loop.time() + self._every
        try:
            stamp = self._tls.stamp()
            if stamp != self._stamp:
                channel, old = self._opened(), self._channel
                self._channel, self._stamp = channel, stamp
                task = loop.create_task(old.close(_LAST_CALLS_SECONDS))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        except OSError:
            pass  # in the middle of being replaced: a later call looks again
        return self._channel

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What makes calls of a method."""
        made: tuple[grpc.aio.Channel, Any] | None = None

        def call(*words: Any, **options: Any) -> Any:
            nonlocal made
            channel = self.current()
            if made is None or made[0] is not channel:
                made = channel, channel.unary_unary(method, *args, **kwargs)
            return made[1](*words, **options)

        return call

    def unary_stream(self, method: str, *_args: Any, **_kwargs: Any) -> Any:
        """Services do not make such calls to each other."""
        return _not_here(method)

    def stream_unary(self, method: str, *_args: Any, **_kwargs: Any) -> Any:
        """Services do not make such calls to each other."""
        return _not_here(method)

    def stream_stream(self, method: str, *_args: Any, **_kwargs: Any) -> Any:
        """Services do not make such calls to each other."""
        return _not_here(method)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Whether it is connected."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits for another state."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Waits until it is connected."""
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Closes it."""
        await self._channel.close(grace)
        for task in tuple(self._closing):
            task.cancel()

    async def __aenter__(self) -> RenewedChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _not_here(method: str) -> Callable[..., Any]:
    def call(*_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError(f"{method} is a stream, which services do not call")

    return call


def connect(
    settings: ServiceSettings, context: str, name: str, tracer: Tracer | None = None
) -> grpc.aio.Channel:
    """A channel to another service's internal listener; `tracer` records its calls."""
    target = settings.target(context)
    if settings.tls is None or target.startswith("unix:"):
        return open_channel(target, name, tracer)
    # Its name is in its certificate, whatever its address is.
    options = [*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", context)]
    tls = settings.tls

    def opened() -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            target,
            tls.channel_credentials(),
            interceptors=_interceptors(name, tracer),
            options=options,
        )

    return RenewedChannel(tls, opened)


def open_channel(target: str, name: str, tracer: Tracer | None = None) -> grpc.aio.Channel:
    """A channel to a service's socket; `name` tells it who calls, `tracer` records its calls."""
    return grpc.aio.insecure_channel(
        target, interceptors=_interceptors(name, tracer), options=_CHANNEL_OPTIONS
    )


def _interceptors(name: str, tracer: Tracer | None) -> list[grpc.aio.ClientInterceptor]:
    return [_Hop(name), *([tracer.calls_out()] if tracer else [])]
