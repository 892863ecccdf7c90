"""Rates: how often one caller may call."""

from __future__ import annotations

from typing import Final

from deploy.gateway.api import Method
from deploy.gateway.envoy import Config, extension, percent
from deploy.gateway.limits import Rate
from deploy.gateway.settings import GatewaySettings
from servicekit.access import Audience
from servicekit.call import H_SUBJECT, H_TENANT

OPEN: Final = "open"
_NAMESPACE: Final = "evergreen"
_LIMIT: Final = "limit"
_SUBJECT: Final = "subject"
_ADDRESS: Final = "masked_remote_address"
_TENANT: Final = "tenant"
_SUBJECT_HEADER: Final = {"header_name": H_SUBJECT, "descriptor_key": _SUBJECT}
_TENANT_HEADER: Final = {"header_name": H_TENANT, "descriptor_key": _TENANT}
# One client has a whole /64 of IPv6.
_MASKS: Final = {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": 64}
_LOGINS: Final = frozenset({"Login", "RefreshSession", "AcceptInvitation"})


def rate_filter(settings: GatewaySettings) -> Config:
    """The filter that counts, per caller.

    A request is refused when any of its limits is reached. How long it is to stay away, the table
    of local replies says (`errors`): this filter would tell all the same.
    """
    limits = settings.limits
    rates = [
        ("device", _SUBJECT, limits.device),
        ("device", _TENANT, limits.tenant),
        ("user", _SUBJECT, limits.user),
        ("login", _ADDRESS, limits.login),
        ("enroll", _ADDRESS, limits.enroll),
        (OPEN, _ADDRESS, limits.open),
    ]
    return extension(
        "envoy.filters.http.local_ratelimit",
        "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="rate",
        filter_enabled=percent(100),
        filter_enforced=percent(100),
        token_bucket=_bucket(limits.other),
        always_consume_default_token_bucket=False,
        descriptors=[
            {
                # An entry without a value stands for one bucket per value that comes.
                "entries": [{"key": _LIMIT, "value": limit}, {"key": caller}],
                "token_bucket": _bucket(rate),
            }
            for limit, caller, rate in rates
        ],
        rate_limits=[
            {"actions": [_limit_of_route(), {"request_headers": _SUBJECT_HEADER}]},
            {"actions": [_limit_of_route(), {"request_headers": _TENANT_HEADER}]},
            {"actions": [_limit_of_route(), {"masked_remote_address": _MASKS}]},
        ],
        max_dynamic_descriptors=limits.counted_callers,
        rate_limited_as_resource_exhausted=True,
    )


def limit(method: Method) -> Config:
    """What a call of a method counts against."""
    name = method.path.rpartition("/")[2]
    match method.rule.audience:
        case Audience.PUBLIC if name in _LOGINS:
            return by_name("login")
        case Audience.PUBLIC if method.is_device_call:
            return by_name("enroll")
        case Audience.PUBLIC:
            return by_name(OPEN)
        case Audience.USER:
            return by_name("user")
        case _:
            return by_name("device")


def by_name(limit: str) -> Config:
    """The metadata of a route that counts against a limit."""
    return {"filter_metadata": {_NAMESPACE: {_LIMIT: limit}}}


def _limit_of_route() -> Config:
    key = {"key": _NAMESPACE, "path": [{"key": _LIMIT}]}
    return {"metadata": {"descriptor_key": _LIMIT, "metadata_key": key, "source": "ROUTE_ENTRY"}}


def _bucket(rate: Rate) -> Config:
    return {
        "max_tokens": rate.burst,
        "tokens_per_fill": rate.per_second,
        "fill_interval": "1s",
    }
