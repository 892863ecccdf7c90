"""What Prometheus and probes may see of Envoy's administration, which itself stays on loopback."""

from __future__ import annotations

from typing import Final

from deploy.gateway.envoy import Config, address, extension, seconds
from deploy.gateway.settings import GatewaySettings

_ADMIN: Final = "admin"
_SHOWN: Final = {"/metrics": "/stats/prometheus", "/readyz": "/ready"}


def static_resources(settings: GatewaySettings) -> Config:
    """A listener with these paths alone, and its way to the administration."""
    return {"listeners": [_listener(settings.metrics)], "clusters": [_cluster(settings.admin)]}


def _listener(where: str) -> Config:
    routes = [
        {
            "match": {"path": path},
            "route": {"cluster": _ADMIN, "prefix_rewrite": shown, "timeout": seconds(10)},
        }
        for path, shown in _SHOWN.items()
    ]
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="metrics",
        http_filters=[
            extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")
        ],
        route_config={"virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": routes}]},
    )
    # It is looked at also when callers are turned away.
    return {
        "name": "metrics",
        "address": address(where),
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "filter_chains": [{"filters": [manager]}],
    }


def _cluster(admin: str) -> Config:
    return {
        "name": _ADMIN,
        "type": "STATIC",
        "connect_timeout": seconds(1),
        "load_assignment": {
            "cluster_name": _ADMIN,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(admin)}}]}],
        },
    }
