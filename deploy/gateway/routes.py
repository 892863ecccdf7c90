"""The one routing table: every public address, who may use it, and what bounds it.

A JSON request is first transcoded and then routed again by the RPC that came out of it, so who
may call is decided by what is called, and no spelling of a path changes it. What has no route
here is not there: the internal RPCs above all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from contract.rows import CONSOLE, ENDLESS, SESSION_RATES, Audience, Body, RateClass, Rule
from deploy.gateway import auth, credentials, members, native, rates
from deploy.gateway.api import JsonPath, Method, json_paths
from deploy.gateway.envoy import Config, header, header_is, seconds, typed
from deploy.gateway.limits import GRPC_EVENTS_BODY, Limits
from deploy.gateway.parts import (
    ANYBODY,
    BODY_LIMIT,
    CALLS,
    CORS,
    DEVICE_BODY_LIMIT,
    ERRORS,
    GRPC_WEB,
    IS_GRPC,
    LOGINS,
    OFF,
    TRANSCODER,
    body,
    lasts,
    plain,
    retries,
    wrong_verb,
)
from deploy.gateway.settings import GatewaySettings
from servicekit.call import H_TIMEOUT

_ANYBODYS: Final = "identity"
"""The cluster of routes that nobody uses to their end."""


def virtual_host(settings: GatewaySettings, methods: Sequence[Method]) -> Config:
    """The routing table; Envoy takes the first route that matches."""
    agents = [m for m in methods if m.rule.agent_form]
    routes = [
        _tunnel(),
        *([_preflight()] if settings.cors_origins else []),
        *(route for method in agents for route in _device_json(settings, method)),
        *(wrong_verb({"path": method.template}, ["POST"]) for method in agents),
        *(route for method in agents for route in _device_grpc(settings, method)),
        *native.forms(settings),
        # All others may be called by browsers.
        *(_refused(route) for route in credentials.guards(settings)),
        *(_grpc(settings, method) for method in methods if not method.rule.agent_form),
        *native.grpc(settings),
        *native.pages(settings),
        *(route for path in json_paths(methods) for route in _transcoded(settings, path)),
        _nothing({"prefix": "/", "headers": [IS_GRPC]}),
        _transcoder(settings, {"prefix": "/"}),
    ]
    host: Config = {"name": "evergreen", "domains": ["*"], "routes": list(map(_tokenless, routes))}
    if settings.cors_origins:
        host["typed_per_filter_config"] = {CORS: _cors(settings.cors_origins)}
    return host


def _device_json(settings: GatewaySettings, method: Method) -> list[Config]:
    """The JSON form of a device's call, forwarded as it is."""
    route = {
        "name": _name(method),
        "match": {"path": method.template, "headers": [header_is(":method", exact="POST")]},
        "route": _upstream(settings, f"{method.rule.context}-http", method),
        **_told_timeout(settings, method.rule),
        **rates.counted(method.rule.rate),
        "typed_per_filter_config": {
            GRPC_WEB: OFF,
            TRANSCODER: OFF,
            ERRORS: OFF,
            **_agents_body(method.rule, settings.limits, settings.limits.events_body),
            **auth.required(method.rule.audience),
        },
    }
    return _with_usual_bearer(route, method)


def _device_grpc(settings: GatewaySettings, method: Method) -> list[Config]:
    return _with_usual_bearer(_grpc(settings, method), method)


def _with_usual_bearer(route: Config, method: Method) -> list[Config]:
    """Spares agents the filter that others' spellings of "Bearer" need."""
    spared = {
        **route,
        "typed_per_filter_config": {**route["typed_per_filter_config"], credentials.BEARER: OFF},
    }
    if method.rule.audience is Audience.PUBLIC:
        return [spared]
    headers = [*route["match"]["headers"], credentials.spelled_as_usual()]
    return [{**spared, "match": {**route["match"], "headers": headers}}, route]


def _refused(route: Config) -> Config:
    return {**route, "typed_per_filter_config": plain()}


def _grpc(settings: GatewaySettings, method: Method) -> Config:
    """An RPC, whether it came as gRPC or was transcoded."""
    filters = auth.required(method.rule.audience)
    if method.rule.agent_form:
        events = min(settings.limits.events_body, GRPC_EVENTS_BODY)
        filters |= {ERRORS: OFF, **_agents_body(method.rule, settings.limits, events)}
    return {
        "name": _name(method),
        "match": {
            "path": method.path,
            "headers": CALLS,
        },
        "route": _upstream(settings, method.rule.context, method),
        **_told_timeout(settings, method.rule),
        **rates.counted(method.rule.rate),
        "typed_per_filter_config": filters,
    }


def _name(method: Method) -> str:
    """What traces call the route's calls, as the services do."""
    return method.path.removeprefix("/")


def _agents_body(rule: Rule, limits: Limits, events: int) -> Config:
    """Takes an agent's body only after its token: batches of events are large."""
    sizes = {Body.USUAL: limits.body, Body.STATE: limits.state_body, Body.EVENTS: events}
    return {
        BODY_LIMIT: OFF,
        DEVICE_BODY_LIMIT: body(sizes[rule.body]),
    }


def _upstream(settings: GatewaySettings, cluster: str, method: Method) -> Config:
    rule = method.rule
    action = {
        "cluster": cluster,
        "timeout": seconds(_timeout(settings, rule)),
        "retry_policy": retries(idempotent=method.is_idempotent),
    }
    if rule.audience is not Audience.PUBLIC:
        return action
    # Enrollments in JSON have their cluster for themselves.
    alone = rule.rate is RateClass.LOGIN or cluster != rule.context
    return {
        **action,
        "cluster": LOGINS if rule.rate in SESSION_RATES else cluster,
        **({} if alone else {"priority": ANYBODY}),
        **lasts(settings.limits.unauthenticated),
    }


def _timeout(settings: GatewaySettings, rule: Rule) -> float:
    """Seconds that a call's answer may take."""
    return settings.limits.timeout if rule.timeout is None else rule.timeout


def _told_timeout(settings: GatewaySettings, rule: Rule) -> Config:
    """Tells the service how long the gateway waits: its own calls to others end in that time."""
    timeout = _timeout(settings, rule)
    # Nearly all polls are answered from memory; the others' one call has a shorter time of its own.
    if timeout == ENDLESS or rule.audience is Audience.DEVICE_LAPSED:
        return {}
    return {"request_headers_to_add": [header(H_TIMEOUT, f"{timeout:g}")]}


def _tokenless(route: Config) -> Config:
    """Services trust the headers made from a token, and have no use for the token."""
    if route.get("route", {}).get("cluster", CONSOLE) == CONSOLE:
        return route
    return {"request_headers_to_remove": ["authorization", "cookie"], **route}


def _tunnel() -> Config:
    """CONNECT has a body without an end, and no path: no other route matches it."""
    refused = {"direct_response": {"status": 405}, "match": {"connect_matcher": {}}}
    return {**refused, "typed_per_filter_config": {**plain(), BODY_LIMIT: OFF}}


def _transcoded(settings: GatewaySettings, path: JsonPath) -> list[Config]:
    if path.regex:
        return [wrong_verb({"safe_regex": {"regex": path.regex}}, path.verbs)]
    match = {"path": path.template}
    return [wrong_verb(match, path.verbs), _transcoder(settings, match)]


def _transcoder(settings: GatewaySettings, match: Config) -> Config:
    """The first route of a JSON call: the transcoder makes an RPC of it, which is routed again.

    What it cannot make an RPC of it refuses as not there; so nobody ever uses this route to its
    end. It names a cluster because the CORS filter does not look at routes without one.
    """
    return {
        "match": match,
        # For as long as its body is waited for; the RPC's own route has its own time.
        "route": {"cluster": _ANYBODYS, **lasts(settings.limits.unauthenticated)},
        "typed_per_filter_config": {**members.looked_at(), **auth.forbidden()},
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
        "route": {"cluster": _ANYBODYS},
        "typed_per_filter_config": {TRANSCODER: OFF, ERRORS: OFF, **auth.forbidden()},
    }


def _nothing(match: Config) -> Config:
    return {
        "match": match,
        "direct_response": {"status": 404},
        # Not even for its body, which may never end.
        "typed_per_filter_config": {BODY_LIMIT: OFF, **auth.not_required()},
    }


def _cors(origins: Sequence[str]) -> Config:
    return typed(
        "extensions.filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[{"exact": origin} for origin in origins],
        allow_methods="GET, POST, PATCH, DELETE",
        allow_headers="authorization, content-type, if-match, x-grpc-web, x-user-agent,"
        " grpc-timeout",
        expose_headers="etag, grpc-status, grpc-message, grpc-status-details-bin, x-request-id",
        allow_credentials=True,
        forward_not_matching_preflights=False,
        max_age="600",
    )
