"""The routes of `contract.addresses`: pages and their forms, the console, probes, documentation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from contract import addresses
from contract.rows import CONSOLE, GATEWAY, SESSION_RATES, Address, Audience, Body, Part
from deploy.gateway import auth, credentials, rates
from deploy.gateway.envoy import Config, header, header_is, seconds
from deploy.gateway.limits import FORM_BODY, SCIM_BODY
from deploy.gateway.parts import (
    ANYBODY,
    BODY_LIMIT,
    CALLS,
    ERRORS,
    IS_GRPC,
    OFF,
    TRANSCODER,
    body,
    lasts,
    one_of,
    plain,
    retries,
    wrong_verb,
)
from deploy.gateway.settings import GatewaySettings

_CONSOLE_SECONDS: Final = 60
_WITH_TOKENS: Final = frozenset({Audience.USER, Audience.SCIM})
_BODIES: Final = {Body.FORM: FORM_BODY, Body.SCIM: SCIM_BODY}


def forms(settings: GatewaySettings) -> list[Config]:
    """The routes that find out themselves where a request comes from: before the guards."""
    return _routes(settings, [row for row in addresses.HTTP if row.checks_origin])


def grpc(settings: GatewaySettings) -> list[Config]:
    """The gRPC services of the ecosystem."""
    return _routes(settings, [row for row in addresses.HTTP if row.is_grpc])


def pages(settings: GatewaySettings) -> list[Config]:
    """All else, and what is said to HTTP methods that an address does not take."""
    return [
        *_routes(settings, addresses.PAGES),
        *_wrong_verbs(addresses.PAGES),
        *_routes(settings, addresses.SCIM),
        *_wrong_verbs(addresses.SCIM),
        # Several servers share the console's addresses, and so their methods.
        *_routes(settings, addresses.OF_CONSOLE),
        *_routes(settings, addresses.PORTAL),
        *_wrong_verbs(addresses.PORTAL),
    ]


def matching(row: Address) -> Config:
    """Envoy's words for a row's path."""
    if row.path.endswith("[/*]"):
        return {"path_separated_prefix": row.path.removesuffix("[/*]")}
    if row.path.endswith("*"):
        return {"prefix": row.path.removesuffix("*")}
    return {"path": row.path}


def _routes(settings: GatewaySettings, rows: Iterable[Address]) -> list[Config]:
    there = {
        None: True,
        Part.CONSOLE: bool(settings.console),
        Part.NO_CONSOLE: not settings.console,
        Part.REFLECTION: settings.reflection,
    }
    return [_route(settings, row) for row in rows if there[row.needs]]


def _wrong_verbs(rows: Iterable[Address]) -> list[Config]:
    return [wrong_verb(matching(row), row.verbs) for row in rows]


def _route(settings: GatewaySettings, row: Address) -> Config:
    if row.served_by == GATEWAY:
        return _OWN_ANSWERS[row.path](row)
    if row.served_by == CONSOLE:
        return _console(row)
    return _grpc(settings, row) if row.is_grpc else _http(settings, row)


def _http(settings: GatewaySettings, row: Address) -> Config:
    public = row.audience not in _WITH_TOKENS
    takes_no_token = row.audience is Audience.PUBLIC
    token = {TRANSCODER: OFF, ERRORS: OFF, **auth.required(row.audience)}
    filters = plain() if takes_no_token else token
    return {
        "match": {**matching(row), "headers": [one_of(row.verbs)]},
        "route": {
            "cluster": f"{row.served_by}-http",
            **({"priority": ANYBODY} if public and row.rate not in SESSION_RATES else {}),
            "timeout": seconds(_timeout(settings, row)),
            "retry_policy": retries(idempotent=row.reads),
            **(lasts(settings.limits.unauthenticated) if public else {}),
        },
        **rates.counted(row.rate),
        **({"request_headers_to_remove": ["authorization"]} if row.cookies else {}),
        "typed_per_filter_config": {
            **filters,
            **({BODY_LIMIT: body(_BODIES[row.body])} if row.body in _BODIES else {}),
        },
    }


def _grpc(settings: GatewaySettings, row: Address) -> Config:
    timeout = _timeout(settings, row)
    return {
        "match": {**matching(row), "headers": CALLS},
        "route": {
            "cluster": row.served_by,
            "priority": ANYBODY,
            "timeout": seconds(timeout),
            **lasts(timeout or settings.limits.unauthenticated),
        },
        **rates.counted(row.rate),
        "typed_per_filter_config": {
            **({BODY_LIMIT: OFF} if row.body is Body.DIALOGUE else {}),
            **auth.required(row.audience),
        },
    }


def _timeout(settings: GatewaySettings, row: Address) -> float:
    return settings.limits.timeout if row.timeout is None else row.timeout


def _console(row: Address) -> Config:
    """A page of the web console, which has its own use for the cookie."""
    return {
        "match": matching(row),
        "route": {
            "cluster": CONSOLE,
            "timeout": seconds(_CONSOLE_SECONDS),
            "retry_policy": retries(idempotent=False),
        },
        "typed_per_filter_config": plain(),
    }


def _logged_out_already(row: Address) -> Config:
    """A logout that brings no credentials."""
    return {
        "match": {
            **matching(row),
            "headers": [
                header_is(":method", exact="POST"),
                {**IS_GRPC, "invert_match": True, "treat_missing_header_as_empty": True},
                {"name": "authorization", "present_match": False},
                {
                    "name": "cookie",
                    "string_match": {"contains": f"{credentials.COOKIE}="},
                    "invert_match": True,
                    "treat_missing_header_as_empty": True,
                },
            ],
        },
        **_says("{}"),
    }


def _to_login(row: Address) -> Config:
    """Leads a browser to the login; programs get 404."""
    accept = {"name": "accept", "string_match": {"contains": "text/html"}}
    return {
        "match": {**matching(row), "headers": [one_of(row.verbs), accept]},
        "direct_response": {"status": 303},
        "response_headers_to_add": [header("location", "/login")],
        **rates.counted(row.rate),
        "typed_per_filter_config": plain(),
    }


def _alive(row: Address) -> Config:
    return {
        "match": {**matching(row), "headers": [one_of(row.verbs)]},
        **_says('{"status":"ok"}\n'),
    }


def _says(json: str) -> Config:
    return {
        "direct_response": {"status": 200, "body": {"inline_string": json}},
        "response_headers_to_add": [header("content-type", "application/json")],
        "typed_per_filter_config": plain(),
    }


_OWN_ANSWERS: Final = {"/auth/logout": _logged_out_already, "/": _to_login, "/healthz": _alive}
"""What the gateway answers itself, by the row's path."""
