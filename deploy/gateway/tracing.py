"""Where traces begin: the gateway picks the calls to record, and tells the services."""

from __future__ import annotations

from typing import Final

from deploy.gateway.envoy import Config, seconds, typed
from servicekit.observability.tracing import Traces

COLLECTOR: Final = "traces"
"""The cluster of the collector."""
_NAME: Final = "envoy.tracers.opentelemetry"
_QUEUE: Final = 2048
_BATCH: Final = 256
_EVERY_MILLISECONDS: Final = 2000


def tracing(traces: Traces) -> Config:
    """The tracer of the connection manager."""
    return {
        "provider": {
            "name": _NAME,
            "typed_config": typed(
                "config.trace.v3.OpenTelemetryConfig",
                grpc_service={
                    "envoy_grpc": {"cluster_name": COLLECTOR},
                    "timeout": seconds(5),
                },
                service_name="evergreen-gateway",
                max_cache_size=_QUEUE,
            ),
        },
        "random_sampling": {"value": round(traces.ratio * 100, 2)},
        # x-client-trace-id does not let a client have its calls recorded.
        "client_sampling": {"value": 0},
        # An address may hold what is nobody's business, in its query or as an id that somebody asks
        # for: what is told is the RPC that the gateway has a route for.
        "max_path_tag_length": 0,
        "operation": "%ROUTE_NAME%",
    }


def runtime() -> Config:
    """How spans are sent, which the tracer does not take otherwise: not five at a time."""
    prefix = "tracing.opentelemetry"
    sending = {
        f"{prefix}.min_flush_spans": _BATCH,
        f"{prefix}.flush_interval_ms": _EVERY_MILLISECONDS,
    }
    return {"layers": [{"name": "traces", "static_layer": sending}]}
