"""What Envoy starts with: its administration, its memory, and where the rest is to be found."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from deploy.gateway import metrics, tracing
from deploy.gateway.envoy import Config, address, extension, seconds, typed
from deploy.gateway.settings import GatewaySettings

_LARGE_REQUEST_BITS: Final = 20
"""A request that holds a mebibyte or more may be ended when memory runs short."""


def bootstrap(settings: GatewaySettings, listener_file: Path, clusters_file: Path) -> Config:
    """The start file; everything that may change while Envoy runs is in the other files."""
    return {
        "node": {"id": "gateway", "cluster": "evergreen"},
        "admin": {"address": address(settings.admin)},
        **({"static_resources": metrics.static_resources(settings)} if settings.metrics else {}),
        "dynamic_resources": {
            "lds_config": _file(listener_file),
            "cds_config": _file(clusters_file),
        },
        "overload_manager": _overload(settings),
        **({"layered_runtime": tracing.runtime()} if settings.traces else {}),
    }


def _file(path: Path) -> Config:
    return {"resource_api_version": "V3", "path_config_source": {"path": str(path)}}


def _overload(settings: GatewaySettings) -> Config:
    heap = "envoy.resource_monitors.fixed_heap"
    connections = "envoy.resource_monitors.global_downstream_max_connections"
    return {
        "refresh_interval": seconds(0.25),
        "resource_monitors": [
            extension(
                heap,
                "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=settings.limits.heap,
            ),
            extension(
                connections,
                "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=settings.limits.connections,
            ),
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _LARGE_REQUEST_BITS},
        "actions": [
            _action("shrink_heap", heap, 0.6),
            {
                "name": "envoy.overload_actions.reduce_timeouts",
                "triggers": [_between(heap, 0.65, 0.85)],
                "typed_config": typed(
                    "config.overload.v3.ScaleTimersOverloadActionConfig",
                    timer_scale_factors=[
                        {"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": seconds(2)},
                    ],
                ),
            },
            # The largest first, so that it hits who fills the memory and nobody else.
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [_between(heap, 0.85, 0.95)],
            },
            _action("disable_http_keepalive", heap, 0.9),
            _action("stop_accepting_requests", heap, 0.95),
            _action("stop_accepting_connections", heap, 0.98),
        ],
    }


def _action(name: str, monitor: str, share: float) -> Config:
    return {
        "name": f"envoy.overload_actions.{name}",
        "triggers": [{"name": monitor, "threshold": {"value": share}}],
    }


def _between(monitor: str, begins: float, full: float) -> Config:
    return {
        "name": monitor,
        "scaled": {"scaling_threshold": begins, "saturation_threshold": full},
    }
