"""The call chain that records spans; imported only when there is a collector."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from types import CoroutineType
from typing import Any, TypeVar

from servicekit.call import Call
from servicekit.errors import DomainError
from servicekit.observability.spans import Span, Tracer
from servicekit.observability.tracing import current_span
from servicekit.rpc.chain import CallChain

T = TypeVar("T")


class TracedChain(CallChain):
    """The call chain with a span around each call whose trace is recorded."""

    def __init__(self, tracer: Tracer, **settings: Any) -> None:
        super().__init__(**settings)
        self._tracer = tracer

    def serve(
        self,
        rpc: str,
        headers: Mapping[str, str],
        handler: Callable[[Call], T | Coroutine[Any, Any, T]],
        *,
        internal_listener: bool = False,
        time_remaining: float | None = None,
    ) -> T | Coroutine[Any, Any, T]:
        """As `CallChain.serve`."""
        span = self._tracer.continued(rpc, headers)
        if span is None:
            return super().serve(
                rpc,
                headers,
                handler,
                internal_listener=internal_listener,
                time_remaining=time_remaining,
            )

        def handle(call: Call) -> T | Coroutine[Any, Any, T]:
            span.note("evergreen.caller", call.caller.kind.value)
            if call.caller.tenant_id:
                span.note("evergreen.tenant_id", call.caller.tenant_id)
            return handler(call)

        token = current_span.set(span)
        try:
            answer = super().serve(
                rpc,
                headers,
                handle,
                internal_listener=internal_listener,
                time_remaining=time_remaining,
            )
        except DomainError as error:
            span.end(error.code.name, error.reason)
            raise
        finally:
            current_span.reset(token)
        if isinstance(answer, CoroutineType):
            return _until_ended(span, answer)
        span.end("OK")
        return answer


async def _until_ended(span: Span, answer: Coroutine[Any, Any, T]) -> T:
    token = current_span.set(span)
    try:
        with span.ended():
            return await answer
    finally:
        current_span.reset(token)
