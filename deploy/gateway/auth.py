"""Tokens: which kinds there are, what of them services get to know, which route takes which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from contract.access import Audience
from deploy.gateway.envoy import Config, extension, seconds, typed
from deploy.gateway.settings import GatewaySettings
from servicekit import call

JWT: Final = "envoy.filters.http.jwt_authn"
JWKS_PATH: Final = "/.well-known/jwks.json"

_USERS: Final = "users"
_DEVICES: Final = "devices"
_TOKENS: Final = "tokens"
_CALLERS: Final = "callers"
_NOBODY: Final = "nobody"
_GUESTS: Final = "guests"

PREFIX: Final = "evt_"
"""What API tokens begin with, so that people and scanners of secrets know them."""
_TOKENS_KEPT: Final = 1_000
"""Verified API tokens kept per worker."""
_LAPSE_SECONDS: Final = 90 * 24 * 3600
_CLOCK_SKEW_SECONDS: Final = 30

_REQUIREMENT_OF: Final = {
    Audience.USER: _CALLERS,
    Audience.GUEST_OR_USER: _GUESTS,
    # Tokens of SCIM sources have the keys of API tokens; identity tells the two apart.
    Audience.SCIM: _TOKENS,
    Audience.DEVICE: _DEVICES,
    Audience.DEVICE_LAPSED: _DEVICES,
}


def jwt_filter(settings: GatewaySettings) -> Config:
    """The filter that checks tokens. A route without a rule of its own lets nobody through."""
    users = _provider(
        settings, _USERS, "evergreen:users", "evergreen:api", from_cookies=["session"]
    )
    devices = _provider(settings, _DEVICES, "evergreen:devices", "evergreen:devices")
    # API tokens have keys, an issuer and a prefix of their own, so that neither kind is ever read
    # as the other; only of theirs services get to know scopes.
    tokens = _provider(settings, _TOKENS, "evergreen:tokens", "evergreen:api")
    tokens["from_headers"] = [{"name": "authorization", "value_prefix": f"Bearer {PREFIX}"}]
    tokens["claim_to_headers"] = _headers(call.TOKEN_CLAIMS)
    tokens["jwt_cache_config"] = {
        "jwt_cache_size": min(settings.limits.cached_tokens, _TOKENS_KEPT)
    }
    # One provider is one memory of verified tokens, so a device is in it once. That a token has
    # lapsed is for the services to see (servicekit.rpc.chain): they take it for the policy alone.
    # The leeway holds for "not before" too, which does no harm: identity dates no token ahead.
    devices["clock_skew_seconds"] = _LAPSE_SECONDS
    providers = {_USERS: users, _DEVICES: devices, _TOKENS: tokens}
    one_of = {name: {"provider_name": name} for name in providers}
    # Two kinds of token in one place: no request can have that.
    nobody = {"requires_all": {"requirements": [one_of[_USERS], one_of[_DEVICES]]}}
    callers = [one_of[_USERS], one_of[_TOKENS]]
    guests = {"requires_any": {"requirements": [*callers, {"allow_missing": {}}]}}
    return extension(
        JWT,
        "extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        providers=providers,
        requirement_map={
            **one_of,
            _CALLERS: {"requires_any": {"requirements": callers}},
            _GUESTS: guests,
            _NOBODY: nobody,
        },
        rules=[{"match": {"prefix": "/"}, "requirement_name": _NOBODY}],
    )


def _provider(
    settings: GatewaySettings, purpose: str, issuer: str, audience: str, **where: list[str]
) -> Config:
    return {
        "issuer": issuer,
        "audiences": [audience],
        "require_expiration": True,
        "clock_skew_seconds": _CLOCK_SKEW_SECONDS,
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        **where,
        "forward": False,
        "claim_to_headers": _headers(call.CLAIMS),
        "jwt_cache_config": {"jwt_cache_size": settings.limits.cached_tokens},
        "remote_jwks": {
            "http_uri": {
                # Only the keys that sign tokens of this kind. As a query, which an identity of
                # the last release does not look at: it answers all keys.
                "uri": f"http://identity{JWKS_PATH}?use={purpose}",
                "cluster": "identity-http",
                "timeout": seconds(2),
            },
            # Envoy does not fetch again when it meets an unknown key id, so it asks often; a new
            # key is published well before it signs. Through an outage it goes on with the keys it
            # has; without any, it answers 503 (see errors.py).
            "cache_duration": seconds(settings.key_refresh),
            "async_fetch": {"failed_refetch_duration": seconds(1)},
        },
    }


def _headers(claims: Mapping[str, str]) -> list[Config]:
    return [{"claim_name": claim, "header_name": name} for claim, name in claims.items()]


def required(audience: Audience) -> Config:
    """The per-route setting for an audience.

    Raises:
        KeyError: for the internal audience, which has no route.
    """
    if audience is Audience.PUBLIC:
        return not_required()
    return {JWT: _per_route(requirement_name=_REQUIREMENT_OF[audience])}


def not_required() -> Config:
    """The per-route setting of what takes no token; one that is sent is not looked at."""
    return {JWT: _per_route(disabled=True)}


def forbidden() -> Config:
    """The per-route setting of what nobody may use."""
    return {JWT: _per_route(requirement_name=_NOBODY)}


def _per_route(**config: object) -> Config:
    return typed("extensions.filters.http.jwt_authn.v3.PerRouteConfig", **config)
