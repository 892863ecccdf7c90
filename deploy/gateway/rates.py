"""Rates: how often one caller may call."""

from __future__ import annotations

from typing import Final

from contract.rows import RateClass
from deploy.gateway.envoy import Config, extension, percent
from deploy.gateway.limits import Rate
from deploy.gateway.settings import GatewaySettings
from servicekit.call import H_SUBJECT, H_TENANT

_NAMESPACE: Final = "evergreen"
_LIMIT: Final = "limit"
_SUBJECT: Final = "subject"
_ADDRESS: Final = "masked_remote_address"
_TENANT: Final = "tenant"
_SUBJECT_HEADER: Final = {"header_name": H_SUBJECT, "descriptor_key": _SUBJECT}
_TENANT_HEADER: Final = {"header_name": H_TENANT, "descriptor_key": _TENANT}
# One client has a whole /64 of IPv6.
_MASKS: Final = {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": 64}


def rate_filter(settings: GatewaySettings) -> Config:
    """The filter that counts, per caller.

    A request is refused when any of its limits is reached. How long it is to stay away, the table
    of local replies says (`errors`): this filter would tell all the same.
    """
    limits = settings.limits
    rates = [
        (RateClass.DEVICE, _SUBJECT, limits.device),
        (RateClass.DEVICE, _TENANT, limits.tenant),
        (RateClass.USER, _SUBJECT, limits.user),
        (RateClass.LOGIN, _ADDRESS, limits.login),
        (RateClass.REFRESH, _ADDRESS, limits.refresh),
        (RateClass.INVITATION, _ADDRESS, limits.invitation),
        (RateClass.ENROLL, _ADDRESS, limits.enroll),
        (RateClass.OPEN, _ADDRESS, limits.open),
        (RateClass.PUBLISHED, _ADDRESS, limits.published),
        (RateClass.PAGES, _ADDRESS, limits.pages),
        (RateClass.SCIM, _SUBJECT, limits.scim),
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
                "entries": [{"key": _LIMIT, "value": counted.value}, {"key": caller}],
                "token_bucket": _bucket(rate),
            }
            for counted, caller, rate in rates
        ],
        rate_limits=[
            {"actions": [_limit_of_route(), {"request_headers": _SUBJECT_HEADER}]},
            {"actions": [_limit_of_route(), {"request_headers": _TENANT_HEADER}]},
            {"actions": [_limit_of_route(), {"masked_remote_address": _MASKS}]},
        ],
        max_dynamic_descriptors=limits.counted_callers,
        rate_limited_as_resource_exhausted=True,
    )


def counted(rate: RateClass | None) -> Config:
    """The members of a route that counts against a rate, or against the one of all others."""
    if rate is None:
        return {}
    return {"metadata": {"filter_metadata": {_NAMESPACE: {_LIMIT: rate.value}}}}


def _limit_of_route() -> Config:
    key = {"key": _NAMESPACE, "path": [{"key": _LIMIT}]}
    return {"metadata": {"descriptor_key": _LIMIT, "metadata_key": key, "source": "ROUTE_ENTRY"}}


def _bucket(rate: Rate) -> Config:
    return {
        "max_tokens": rate.burst,
        "tokens_per_fill": rate.per_second,
        "fill_interval": "1s",
    }
