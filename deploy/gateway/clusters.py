"""The upstreams: two clusters per context, one for gRPC and one for plain HTTP."""

from __future__ import annotations

import ipaddress
from typing import Any, Final
from urllib.parse import urlsplit

from contract.rows import CONSOLE
from deploy.gateway import parts, tracing
from deploy.gateway.envoy import Config, address, approved_tls, extension, seconds, typed
from deploy.gateway.limits import Limits
from deploy.gateway.settings import GatewaySettings
from servicekit.observability.tracing import Traces

_SYSTEM_CA: Final = "/etc/ssl/certs/ca-certificates.crt"
_PROTOCOL_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


INSIDE: Final = "inside"
INSIDE_CA: Final = "inside-ca"
"""The secrets with the gateway's own certificate and with the services' CA."""


def clusters(settings: GatewaySettings) -> list[Config]:
    """All clusters."""
    found = []
    for name, context in (*((c, c) for c in settings.contexts), (parts.LOGINS, "identity")):
        endpoints = settings.contexts[context]
        found.append(
            _cluster(
                settings,
                name,
                endpoints.grpc,
                protocol={"http2_protocol_options": {}},
                more={
                    **_health({"grpc_health_check": {}}),
                    **_tls(settings, endpoints.grpc, context, "h2"),
                },
            )
        )
    for context, endpoints in settings.contexts.items():
        if endpoints.http:
            found.append(
                _cluster(
                    settings,
                    f"{context}-http",
                    endpoints.http,
                    protocol={"http_protocol_options": {}},
                    more={
                        **_health({"http_health_check": {"path": "/healthz"}}),
                        **_tls(settings, endpoints.http, context, "http/1.1"),
                    },
                )
            )
    if settings.console:
        found.append(_console(settings))
    if settings.traces:
        found.append(_collector(settings, settings.traces))
    return found


def _console(settings: GatewaySettings) -> Config:
    url = urlsplit(settings.console)
    if url.scheme not in {"http", "https"} or not url.hostname or url.path not in {"", "/"}:
        raise ValueError(f"the console's address is {settings.console}, not http(s)://HOST[:PORT]")
    where = f"{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}"
    tls: Config = {}
    if url.scheme == "https":
        tls = _public_tls(url.hostname)
    return _cluster(settings, CONSOLE, where, protocol={"http_protocol_options": {}}, more=tls)


def _collector(settings: GatewaySettings, traces: Traces) -> Config:
    # Calls do not wait for it: neither at the start nor later.
    more: Config = {"wait_for_warm_on_init": False}
    if traces.tls:
        more |= _public_tls(traces.host, "h2")
    return _cluster(
        settings,
        tracing.COLLECTOR,
        traces.address,
        protocol={"http2_protocol_options": {}},
        more=more,
    )


def _public_tls(host: str, *protocols: str) -> Config:
    """For a server whose certificate the system's CAs have signed."""
    ca = {"trusted_ca": {"filename": _SYSTEM_CA}}
    names = [{"san_type": "DNS", "matcher": {"exact": host}}]
    validation = {"validation_context": {**ca, "match_typed_subject_alt_names": names}}
    return _upstream_tls(
        host, {**validation, **({"alpn_protocols": list(protocols)} if protocols else {})}
    )


def _tls(settings: GatewaySettings, where: str, context: str, protocol: str) -> Config:
    """Both sides show a certificate of the installation's CA; the name counts, not the address."""
    if settings.inside is None or where.startswith("unix:"):
        return {}
    own, ca = (_source(settings, name) for name in (INSIDE, INSIDE_CA))
    names = [{"san_type": "DNS", "matcher": {"exact": context}}]
    return _upstream_tls(
        context,
        {
            "alpn_protocols": [protocol],
            "tls_certificate_sds_secret_configs": [own],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": names},
                "validation_context_sds_secret_config": ca,
            },
        },
    )


def _source(settings: GatewaySettings, secret: str) -> Config:
    path = {"path": str(settings.secret_file(secret))}
    return {
        "name": secret,
        "sds_config": {"resource_api_version": "V3", "path_config_source": path},
    }


def _upstream_tls(server_name: str, common: Config) -> Config:
    return {
        "transport_socket": extension(
            "envoy.transport_sockets.tls",
            "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=server_name,
            common_tls_context={
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", **approved_tls()},
                **common,
            },
        )
    }


def _cluster(
    settings: GatewaySettings, name: str, where: str, *, protocol: Config, more: Config
) -> Config:
    limits = settings.limits
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
        # Calls that anybody may make have a budget of their own, and connections too.
        "circuit_breakers": {
            "thresholds": [
                _budget("DEFAULT", limits.upstream_requests, limits.upstream_waiting),
                _budget(parts.ANYBODY, *_anybody(limits, name)),
            ]
        },
        "outlier_detection": _outliers(),
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 60}},
        **more,
    }


def _anybody(limits: Limits, cluster: str) -> tuple[int, int]:
    if cluster in {parts.LOGINS, "enrollment"}:
        # Refreshes, and enrollments of devices that speak gRPC: they come as herds.
        return limits.upstream_requests, limits.upstream_waiting
    return limits.open_requests, limits.open_waiting


def _budget(priority: str, requests: int, waiting: int) -> Config:
    return {
        "priority": priority,
        "max_connections": requests,
        "max_requests": requests,
        "max_pending_requests": waiting,
        "max_retries": 1000,
    }


def _health(check: Config) -> Config:
    """Finds out which of several replicas can be used.

    The only one is used in any case (Envoy's "panic"), so a restarted service is reached with the
    first request after it.
    """
    return {
        "health_checks": [
            {
                "timeout": seconds(1),
                "interval": seconds(2),
                "no_traffic_interval": seconds(10),
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                **check,
            }
        ]
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
