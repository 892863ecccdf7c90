"""Spans (OpenTelemetry's SDK): recorded by the call chain and the channels, sent in batches.

Imported only when there is a collector. The SDK is used by hand: the contrib instrumentations
would patch grpc.aio and asyncpg for every call, recorded or not, and know neither the chain's
outcome nor the device's HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import grpc
from opentelemetry.exporter.otlp.proto.grpc.exporter import OTLPExporterMixin
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import REGISTRY

from servicekit.build import VERSION
from servicekit.call import H_REQUEST_ID, H_TRACEPARENT
from servicekit.errors import DomainError
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.observability.metrics import Outcomes
from servicekit.observability.tracing import Traces, current_span
from servicekit.security.tls import require_grpc_tls

log = logs.get(__name__)

_QUEUE: Final = 2048
_BATCH: Final = 512
_EVERY_MILLISECONDS: Final = 2000
_EXPORT_SECONDS: Final = 5.0
_LAST_SECONDS: Final = 2.0
"""How long a stopping service waits for its last spans to be taken."""
_METHOD: Final = "rpc.method"
_CODE: Final = "rpc.response.status_code"
_W3C: Final = TraceContextTextMapPropagator()
_SAMPLED: Final = frozenset("13579bdf")
"""The last digit of a `traceparent` whose call is recorded."""
# As OpenTelemetry's conventions for RPCs have it: what is the caller's own mistake is no error
# of the server.
_SERVER_ERRORS: Final = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)

SPANS: Final = Outcomes(
    REGISTRY, "evergreen_spans", "Recorded spans: sent to the collector, or dropped and why."
)
for _outcome in ("sent", "not_sent", "queue_full"):
    # Each is counted by one thread alone; none must come to be while the counter is read.
    SPANS.note(_outcome, 0)


class Span:
    """A span that is being recorded.

    It gets names, codes and ids of tenants; never a token, a body, a secret or a serial number.
    """

    __slots__ = ("_kind", "_span", "_tracer")

    def __init__(self, tracer: OtelTracer, span: OtelSpan, kind: SpanKind) -> None:
        self._tracer = tracer
        self._span = span
        self._kind = kind

    @property
    def trace_id(self) -> str:
        """The trace's id, as people look for it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def traceparent(self) -> str:
        """What makes another service's span a child of this one."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(self._span))
        return carrier[H_TRACEPARENT]

    def child(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> Span:
        """Begins a part of it."""
        context = set_span_in_context(self._span)
        return Span(self._tracer, self._tracer.start_span(name, context, kind), kind)

    def call(self, method: str) -> Span:
        """Begins a call to another service."""
        span = self.child(method, SpanKind.CLIENT)
        span.note(_METHOD, method)
        return span

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A part of it that is the running one until the block ends."""
        part, before = self.child(name), current_span.get()
        current_span.set(part)
        try:
            with part.ended():
                yield
        finally:
            # Not by a token: a generator that nobody read to its end is closed by another task.
            current_span.set(before)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Ends it with the block."""
        code, reason = "OK", ""
        try:
            yield
        except DomainError as error:
            code, reason = error.code.name, error.reason
            raise
        except BaseException as error:
            # What is no error is that nobody waits any more.
            code = "INTERNAL" if isinstance(error, Exception) else "CANCELLED"
            raise
        finally:
            self.end(code, reason)

    def note(self, name: str, value: str) -> None:
        """Adds what is known by now."""
        self._span.set_attribute(name, value)

    def event(self, name: str) -> None:
        """Marks a moment."""
        self._span.add_event(name)

    def end(self, code: str, reason: str = "") -> None:
        """Ends it with a status as gRPC names them."""
        self._span.set_attribute(_CODE, code)
        if reason:
            self._span.set_attribute("error.type", reason)
        if code in _SERVER_ERRORS or (self._kind is SpanKind.CLIENT and code != "OK"):
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class _LastWords(logging.Filter):
    """Keeps what the SDK says of a failed export, and lets nobody else hear it every time."""

    text = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """Hides every record."""
        self.text = record.getMessage()
        return False


class _Counted(SpanExporter):
    """Sends spans, in the processor's thread; counts what becomes of them, and tells of an outage.

    Each batch is tried for some seconds, so that the first that fails is an outage.
    """

    def __init__(self, traces: Traces) -> None:
        if traces.tls:
            require_grpc_tls()
        self._exporter = OTLPSpanExporter(
            endpoint=traces.address,
            insecure=not traces.tls,
            timeout=_EXPORT_SECONDS,
            # As the gateway's, which knows no proxy.
            channel_options=(("grpc.enable_http_proxy", 0),),  # type: ignore[arg-type]  # a number
        )
        self._last_words = _LastWords()
        logging.getLogger(OTLPExporterMixin.__module__).addFilter(self._last_words)
        self._outage = Repeated(
            log,
            "spans not sent",
            after=1,
            # The collector is no part of the installation, and does not start with it.
            starting=lambda: False,
            collector=traces.address,
        )
        self.taken = 0
        """Spans that have left the queue."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends a batch, or gives up after some seconds."""
        self.taken += len(spans)
        try:
            sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:
            sent, self._last_words.text = False, logs.brief(error)
        SPANS.note("sent" if sent else "not_sent", len(spans))
        if sent:
            self._outage.worked()
            return SpanExportResult.SUCCESS
        self._outage.failed(ConnectionError(self._last_words.text))
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Gives up what is being sent."""
        self._exporter.shutdown()


class _Bounded(BatchSpanProcessor):
    """The SDK's processor; what finds its queue full is dropped and counted."""

    def __init__(self, exporter: _Counted) -> None:
        super().__init__(
            exporter,
            max_queue_size=_QUEUE,
            max_export_batch_size=_BATCH,
            schedule_delay_millis=_EVERY_MILLISECONDS,
        )
        self._counted = exporter
        self._ended = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Takes a span that has ended."""
        # Two counts, for each of which one thread writes.
        if self._ended - self._counted.taken >= _QUEUE:
            SPANS.note("queue_full")
            return
        self._ended += 1
        super().on_end(span)


class Tracer:
    """Continues the traces that the gateway records, in one service.

    Args:
        traces: where the spans go.
        service: the service.
    """

    def __init__(self, traces: Traces, service: str) -> None:
        self._exporter = _Counted(traces)
        self._processor = _Bounded(self._exporter)
        names = {SERVICE_NAME: f"evergreen-{service}", SERVICE_VERSION: VERSION}
        provider = TracerProvider(
            sampler=ParentBased(ALWAYS_OFF),
            resource=Resource.create(names),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("evergreen")

    def continued(self, rpc: str, headers: Mapping[str, str]) -> Span | None:
        """The span of a call that came, if its trace is recorded."""
        parent = headers.get(H_TRACEPARENT)
        if not parent or parent[-1] not in _SAMPLED:
            return None
        method = rpc.removeprefix("/")
        context = _W3C.extract({H_TRACEPARENT: parent})
        made = self._tracer.start_span(method, context, SpanKind.SERVER)
        if not made.is_recording():
            return None
        span = Span(self._tracer, made, SpanKind.SERVER)
        span.note(_METHOD, method)
        if request := headers.get(H_REQUEST_ID):
            span.note("evergreen.request_id", request)
        return span

    def calls_out(self) -> grpc.aio.UnaryUnaryClientInterceptor:
        """What records a channel's calls."""
        return CallsOut()

    async def close(self) -> None:
        """Sends what is left, if the collector takes it soon; stops in any case."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK's
            # The loop may not have waited for it.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=end, daemon=True, name="last-spans").start()
        try:
            await asyncio.wait_for(done.wait(), _LAST_SECONDS)
        except TimeoutError:
            self._exporter.shutdown()


class CallsOut(grpc.aio.UnaryUnaryClientInterceptor):
    """A span around each call to another service, which continues the trace there."""

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        """Calls on; without a trace, nothing more."""
        caller = current_span.get()
        if caller is None:
            return await continuation(client_call_details, request)
        method: str | bytes = client_call_details.method
        span = caller.call((method.decode() if isinstance(method, bytes) else method)[1:])
        sent = grpc.aio.Metadata(*(client_call_details.metadata or ()))
        sent.add(H_TRACEPARENT, span.traceparent)
        code = "CANCELLED"
        call = None
        try:
            call = await continuation(client_call_details._replace(metadata=sent), request)
            code = (await call.code()).name
            return call
        except asyncio.CancelledError:
            if call is not None:
                call.cancel()
            raise
        finally:
            span.end(code)
