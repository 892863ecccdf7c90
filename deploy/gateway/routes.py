"""The one routing table: every public address, who may use it, and what bounds it.

A JSON request is first transcoded and then routed again by the RPC that came out of it, so who
may call is decided by what is called, and no spelling of a path changes it. What has no route
here is not there: the internal RPCs above all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deploy.gateway import auth, rates
from deploy.gateway.api import JsonPath, Method, json_paths
from deploy.gateway.envoy import Config, header, header_is, seconds, typed
from deploy.gateway.limits import GRPC_EVENTS_BODY, Limits
from deploy.gateway.settings import GatewaySettings

# The filters that routes adjust, by their names in the filter chain.
BODY_LIMIT: Final = "evergreen.body_limit"
DEVICE_BODY_LIMIT: Final = "evergreen.device_body_limit"
TRANSCODER: Final = "envoy.filters.http.grpc_json_transcoder"
ERRORS: Final = "evergreen.errors"
CORS: Final = "envoy.filters.http.cors"
GRPC_WEB: Final = "envoy.filters.http.grpc_web"

_TIMEOUTS: Final = {
    # Logins that failed before are slowed down.
    "Login": 30,
    "ChangePassword": 30,
    "ReportEvents": 60,
}
_NO_TIMEOUT: Final = 0
_CONSOLE_SECONDS: Final = 60

CONSOLE: Final = "console"
"""The cluster of the web console."""
# What the console serves itself; all else under its origin is the product's.
_CONSOLE: Final[list[Config]] = [
    {"path": "/"},
    {"path": "/favicon.ico"},
    *(
        {"path_separated_prefix": prefix}
        for prefix in ("/login", "/dashboard", "/_next", "/api/auth")
    ),
]

_PORTAL: Final[list[Config]] = [
    *({"path": path} for path in ("/readyz", "/openapi.json", "/asyncapi.json", "/docs")),
    {"prefix": "/docs/"},
]
_GRPC: Final = header_is("content-type", prefix="application/grpc")
_READ: Final = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
_SHARED_SERVICES: Final = ("grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
                           "grpc.reflection.v1alpha.ServerReflection")  # fmt: skip
_PORTAL_CONTEXT: Final = "identity"
"""Who answers for the whole: readiness, documentation, health and reflection."""

# Taken out of the chain when the request comes, by its first route.
_OFF: Final = typed("config.route.v3.FilterConfig", disabled=True)

_HOST_PREDICATE: Final = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
}


def virtual_host(settings: GatewaySettings, methods: Sequence[Method]) -> Config:
    """The routing table; Envoy takes the first route that matches."""
    device_calls = [m for m in methods if m.is_device_call]
    routes = [
        *([_preflight()] if settings.cors_origins else []),
        *(_device_json(settings, method) for method in device_calls),
        *(_wrong_verb({"path": method.template}, ["POST"]) for method in device_calls),
        *(_grpc(settings, method) for method in methods),
        *(_shared_grpc(service) for service in _SHARED_SERVICES),
        *(_console(match) for match in (_CONSOLE if settings.console else ())),
        _alive(),
        *(_portal(settings, match) for match in _PORTAL),
        *(_wrong_verb(match, ["GET", "HEAD"]) for match in ({"path": "/healthz"}, *_PORTAL)),
        *(route for path in json_paths(methods) for route in _transcoded(path)),
        _nothing({"prefix": "/", "headers": [_GRPC]}),
        _transcoder({"prefix": "/"}),
    ]
    host: Config = {"name": "evergreen", "domains": ["*"], "routes": list(map(_tokenless, routes))}
    if settings.cors_origins:
        host["typed_per_filter_config"] = {CORS: _cors(settings.cors_origins)}
    return host


def _device_json(settings: GatewaySettings, method: Method) -> Config:
    """The JSON form of a device's call, forwarded as it is."""
    return {
        "name": _name(method),
        "match": {"path": method.template, "headers": [header_is(":method", exact="POST")]},
        "route": _upstream(settings, f"{method.rule.context}-http", method),
        "metadata": rates.limit(method),
        "typed_per_filter_config": {
            GRPC_WEB: _OFF,
            TRANSCODER: _OFF,
            ERRORS: _OFF,
            **_device_body(method, settings.limits, settings.limits.events_body),
            **auth.required(method.rule.audience),
        },
    }


def _grpc(settings: GatewaySettings, method: Method) -> Config:
    """An RPC, whether it came as gRPC or was transcoded."""
    filters = auth.required(method.rule.audience)
    if method.is_device_call:
        events = min(settings.limits.events_body, GRPC_EVENTS_BODY)
        filters |= {ERRORS: _OFF, **_device_body(method, settings.limits, events)}
    return {
        "name": _name(method),
        "match": {
            "path": method.path,
            "headers": [_GRPC],
        },
        "route": _upstream(settings, method.rule.context, method),
        "metadata": rates.limit(method),
        "typed_per_filter_config": filters,
    }


def _name(method: Method) -> str:
    """What traces call the route's calls, as the services do."""
    return method.path.removeprefix("/")


def _device_body(method: Method, limits: Limits, events: int) -> Config:
    """Takes a device's body only after its token: batches of events are large."""
    sizes = {"ReportEvents": events, "ReportState": limits.state_body}
    size = sizes.get(method.path.rpartition("/")[2], limits.body)
    return {
        BODY_LIMIT: _OFF,
        DEVICE_BODY_LIMIT: typed(
            "extensions.filters.http.buffer.v3.BufferPerRoute", buffer={"max_request_bytes": size}
        ),
    }


def _upstream(settings: GatewaySettings, cluster: str, method: Method) -> Config:
    name = method.path.rpartition("/")[2]
    timeout = _TIMEOUTS.get(name, settings.limits.timeout)
    return {
        "cluster": cluster,
        "timeout": seconds(_NO_TIMEOUT if method.streams else timeout),
        "retry_policy": _retries(idempotent=method.is_idempotent),
    }


def _retries(*, idempotent: bool) -> Config:
    """What is tried again, if possible elsewhere.

    A write is repeated only when it cannot have arrived. A service's own UNAVAILABLE is never
    repeated: it says when to come back, and repeating it would double the load that caused it.
    """
    never_arrived = "connect-failure,refused-stream"
    return {
        "retry_on": f"{never_arrived},reset" if idempotent else never_arrived,
        "num_retries": 2,
        "retry_host_predicate": [_HOST_PREDICATE],
        "host_selection_retry_max_attempts": 3,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
    }


def _shared_grpc(service: str) -> Config:
    return {
        "match": {
            "prefix": f"/{service}/",
            "headers": [_GRPC],
        },
        "route": {
            "cluster": _PORTAL_CONTEXT,
            "timeout": seconds(_NO_TIMEOUT),
        },
        "metadata": rates.by_name(rates.OPEN),
        # Reflection is a dialogue: its body must not be waited for.
        "typed_per_filter_config": {BODY_LIMIT: _OFF, **auth.not_required()},
    }


def _portal(settings: GatewaySettings, match: Config) -> Config:
    return {
        "match": {**match, "headers": [_READ]},
        "route": {
            "cluster": f"{_PORTAL_CONTEXT}-http",
            "timeout": seconds(settings.limits.timeout),
            "retry_policy": _retries(idempotent=True),
        },
        "metadata": rates.by_name(rates.OPEN),
        "typed_per_filter_config": _plain(),
    }


def _console(match: Config) -> Config:
    """A page of the web console, which has its own use for the cookie."""
    return {
        "match": match,
        "route": {
            "cluster": CONSOLE,
            "timeout": seconds(_CONSOLE_SECONDS),
            "retry_policy": _retries(idempotent=False),
        },
        "typed_per_filter_config": _plain(),
    }


def _tokenless(route: Config) -> Config:
    """Services trust the headers made from a token, and have no use for the token."""
    if route.get("route", {}).get("cluster", CONSOLE) == CONSOLE:
        return route
    return {**route, "request_headers_to_remove": ["authorization", "cookie"]}


def _alive() -> Config:
    return {
        "match": {"path": "/healthz", "headers": [_READ]},
        "direct_response": {"status": 200, "body": {"inline_string": '{"status":"ok"}\n'}},
        "response_headers_to_add": [header("content-type", "application/json")],
        "typed_per_filter_config": _plain(),
    }


def _wrong_verb(match: Config, verbs: Sequence[str]) -> Config:
    """Says which methods a path takes, to a request with another one."""
    others = [
        {
            **header_is(":method", exact=verb),
            "invert_match": True,
            "treat_missing_header_as_empty": True,
        }
        for verb in verbs
    ]
    return {
        "match": {**match, "headers": others},
        "direct_response": {"status": 405},
        "response_headers_to_add": [header("allow", ", ".join(verbs))],
        "typed_per_filter_config": _plain(),
    }


def _transcoded(path: JsonPath) -> list[Config]:
    if path.regex:
        return [_wrong_verb({"safe_regex": {"regex": path.regex}}, path.verbs)]
    match = {"path": path.template}
    return [_wrong_verb(match, path.verbs), _transcoder(match)]


def _transcoder(match: Config) -> Config:
    """The first route of a JSON call: the transcoder makes an RPC of it, which is routed again.

    What it cannot make an RPC of it refuses as not there; so nobody ever uses this route to its
    end. It names a cluster because the CORS filter does not look at routes without one.
    """
    return {
        "match": match,
        "route": {"cluster": _PORTAL_CONTEXT},
        "typed_per_filter_config": auth.forbidden(),
    }


def _preflight() -> Config:
    """A browser's question before a call; the CORS filter answers it."""
    return {
        "match": {
            "prefix": "/",
            "headers": [
                header_is(":method", exact="OPTIONS"),
                {"name": "access-control-request-method", "present_match": True},
                {"name": "origin", "present_match": True},
            ],
        },
        "route": {"cluster": _PORTAL_CONTEXT},
        "typed_per_filter_config": {TRANSCODER: _OFF, ERRORS: _OFF, **auth.forbidden()},
    }


def _nothing(match: Config) -> Config:
    return {
        "match": match,
        "direct_response": {"status": 404},
        "typed_per_filter_config": auth.not_required(),
    }


def _plain() -> Config:
    return {TRANSCODER: _OFF, ERRORS: _OFF, **auth.not_required()}


def _cors(origins: Sequence[str]) -> Config:
    return typed(
        "extensions.filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[{"exact": origin} for origin in origins],
        allow_methods="GET, POST, PATCH, DELETE",
        allow_headers="authorization, content-type, x-grpc-web, x-user-agent, grpc-timeout",
        expose_headers="grpc-status, grpc-message, grpc-status-details-bin, x-request-id",
        allow_credentials=True,
        forward_not_matching_preflights=False,
        max_age="600",
    )
