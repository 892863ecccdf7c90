"""What routes are made of: the filters that they adjust, and words that all kinds of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from deploy.gateway import auth, credentials
from deploy.gateway.envoy import Config, header, header_is, seconds, typed

# The filters that routes adjust, by their names in the filter chain.
BODY_LIMIT: Final = "evergreen.body_limit"
DEVICE_BODY_LIMIT: Final = "evergreen.device_body_limit"
TRANSCODER: Final = "envoy.filters.http.grpc_json_transcoder"
ERRORS: Final = "evergreen.errors"
CORS: Final = "envoy.filters.http.cors"
GRPC_WEB: Final = "envoy.filters.http.grpc_web"

LOGINS: Final = "identity-logins"
"""The cluster of logins: nothing else takes their places."""
ANYBODY: Final = "HIGH"
"""The second of the two budgets that Envoy has for each cluster, which it calls a priority: what
came without a token and is no login; refreshes and invitations beside logins."""

OFF: Final = typed("config.route.v3.FilterConfig", disabled=True)
"""Takes a filter out of the chain when the request comes, by its first route."""

IS_GRPC: Final = header_is("content-type", prefix="application/grpc")
CALLS: Final = [IS_GRPC, header_is(":method", exact="POST")]
"""A gRPC call, which has one method: a service closes the stream of any other, as if it broke."""

_HOST_PREDICATE: Final = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
}


def plain() -> Config:
    """The filters' settings for what is passed on, or answered, as it is, and takes no token."""
    return {
        TRANSCODER: OFF,
        ERRORS: OFF,
        credentials.BEARER: OFF,
        **auth.not_required(),
    }


def body(size: int) -> Config:
    """The setting of a filter that limits bodies."""
    return typed(
        "extensions.filters.http.buffer.v3.BufferPerRoute", buffer={"max_request_bytes": size}
    )


def lasts(longest: float) -> Config:
    """Ends a stream after so many seconds, whatever it waits for."""
    return {"max_stream_duration": {"max_stream_duration": seconds(longest)}}


def retries(*, idempotent: bool) -> Config:
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


def one_of(verbs: Sequence[str]) -> Config:
    """Matches the HTTP methods."""
    return {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(verbs)}}}


def wrong_verb(match: Config, verbs: Sequence[str]) -> Config:
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
        "typed_per_filter_config": plain(),
    }
