"""The upstreams: two clusters per context, one for gRPC and one for plain HTTP."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from deploy.gateway.envoy import Config, address, seconds, typed
from deploy.gateway.settings import GatewaySettings

_PROTOCOL_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def clusters(settings: GatewaySettings) -> list[Config]:
    """All clusters."""
    found = []
    for context, endpoints in settings.contexts.items():
        found.append(
            _cluster(
                settings,
                context,
                endpoints.grpc,
                protocol={"http2_protocol_options": {}},
                health={"grpc_health_check": {}},
            )
        )
        if endpoints.http:
            found.append(
                _cluster(
                    settings,
                    f"{context}-http",
                    endpoints.http,
                    protocol={"http_protocol_options": {}},
                    health={"http_health_check": {"path": "/healthz"}},
                )
            )
    return found


def _cluster(
    settings: GatewaySettings, name: str, where: str, *, protocol: Config, health: Config
) -> Config:
    requests = settings.limits.upstream_requests
    return {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        **_discovery(where),
        "connect_timeout": seconds(2),
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(where)}}]}],
        },
        "typed_extension_protocol_options": {
            _PROTOCOL_OPTIONS: typed(
                _PROTOCOL_OPTIONS.removeprefix("envoy."),
                # Services keep idle connections for an hour; this side closes first, so that no
                # request meets a connection that is just being closed.
                common_http_protocol_options={"idle_timeout": seconds(300)},
                explicit_http_config=protocol,
            )
        },
        # Bounded, so that a slow service answers "come back later" and does not fill the memory.
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": requests,
                    "max_requests": requests,
                    "max_pending_requests": settings.limits.upstream_waiting,
                    "max_retries": 1000,
                }
            ]
        },
        # Finds out which of several replicas can be used. The only one is used in any case
        # (Envoy's "panic"), so a restarted service is reached with the first request after it.
        "health_checks": [
            {
                "timeout": seconds(1),
                "interval": seconds(2),
                "no_traffic_interval": seconds(10),
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                **health,
            }
        ],
        "outlier_detection": _outliers(),
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 60}},
    }


def _discovery(where: str) -> Config:
    if where.startswith("unix:"):
        return {"type": "STATIC"}
    try:
        ipaddress.ip_address(where.rpartition(":")[0].strip("[]"))
    except ValueError:
        return {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"}
    return {"type": "STATIC"}


def _outliers() -> dict[str, Any]:
    """Leaves out, for a second or a few, a replica that connections fail to.

    An error that a service answers does not count: when PostgreSQL is down all answer so.
    """
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 3,
        "interval": seconds(1),
        "base_ejection_time": seconds(1),
        "max_ejection_time": seconds(5),
        "max_ejection_percent": 50,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
    }
