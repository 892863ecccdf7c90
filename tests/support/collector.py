"""A collector of traces: OTLP over gRPC, as any OpenTelemetry collector takes it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Recorded

from tests.support.stack import PATIENCE, until

SERVER = Recorded.SPAN_KIND_SERVER
CLIENT = Recorded.SPAN_KIND_CLIENT


@dataclass(frozen=True, slots=True)
class Seen:
    """A span as it arrived."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    failed: bool
    attributes: dict[str, Any]
    text: str = field(repr=False)
    """All of it, to look for what must not be in it."""


@dataclass
class Collector:
    """What has arrived so far."""

    port: int
    seen: list[Seen] = field(default_factory=list)

    def Export(  # noqa: N802 - the name of the proto
        self, request: otlp.ExportTraceServiceRequest, _context: Any
    ) -> otlp.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.seen += [_seen(str(names["service.name"]), span) for span in scope.spans]
        return otlp.ExportTraceServiceResponse()

    def traced(self, request_id: str, *parts: str) -> list[Seen]:
        """The whole trace of a call, once each of `parts` (`service name`) has arrived."""

        def arrived() -> list[Seen]:
            traces = {s.trace for s in self.seen if request_id in _ids(s)}
            found = [s for s in self.seen if s.trace in traces]
            there = {f"{s.service} {s.name}" for s in found}
            return found if there >= set(parts) else []

        try:
            found: list[Seen] = until(arrived, PATIENCE, "the trace did not arrive")
        except AssertionError as missing:
            raise AssertionError(f"of {parts} not all is in {self.seen}") from missing
        return found


def _ids(span: Seen) -> tuple[Any, ...]:
    # The gateway and the services call it differently.
    return span.attributes.get("guid:x-request-id"), span.attributes.get("evergreen.request_id")


def _values(pairs: Any) -> dict[str, Any]:
    return {p.key: getattr(p.value, p.value.WhichOneof("value") or "string_value") for p in pairs}


def _seen(service: str, span: Recorded) -> Seen:
    return Seen(
        service=service,
        name=span.name,
        kind=span.kind,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        attributes=_values(span.attributes),
        text=str(span),
    )


@contextmanager
def collecting(port: int) -> Iterator[Collector]:
    """Collects on a loopback port until the block ends; then nobody listens there."""
    server = grpc.server(ThreadPoolExecutor(4))
    collector = Collector(port)
    otlp_grpc.add_TraceServiceServicer_to_server(collector, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()
