"""Bearer tokens and the session's cookie: which of the two counts, and what the cookie may do.

A browser sends the cookie by itself, also with what a page of another site, or of a sibling
subdomain, has it send: `SameSite=Strict` does not keep subdomains apart. So a change that comes
with the cookie has to show that a page of ours sent it, and to be JSON, which no form can send.
The first route of a request refuses it otherwise: before the transcoder, while the content type is
the one that was sent. A bearer token needs nothing of that, for no browser adds it by itself; where
there is one, the cookie is taken away before tokens are looked at.

Reads are free: no call that a GET reaches changes anything (tests/gateway/test_render.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from deploy.gateway.envoy import Config, extension, header_is
from deploy.gateway.errors import ORIGINAL_PATH, refusal
from deploy.gateway.settings import GatewaySettings
from servicekit.errors import Code
from servicekit.http.origins import origin_of

BEARER: Final = "evergreen.bearer"
"""The filter's name in the chain."""
COOKIE: Final = "session"

# The scheme's case does not matter (RFC 7235), and the filter that checks tokens minds it.
_SCRIPT: Final = """\
function envoy_on_request(request)
  local headers = request:headers()
  local authorization = headers:get("authorization")
  if authorization == nil or authorization:lower():find("^bearer +") == nil then return end
  headers:remove("cookie")
  if authorization:find("^Bearer ") == nil then
    headers:replace("authorization", "Bearer " .. authorization:match("^%a+ +(.*)$"))
  end
end
"""
_IS_BEARER: Final = "(?i)bearer +.*"
_IS_JSON: Final = r"(?i)application/json\s*(;.*)?"
_READS: Final = "GET|HEAD|OPTIONS"

CROSS_SITE: Final = refusal(
    403,
    Code.PERMISSION_DENIED,
    "CROSS_SITE_REQUEST",
    "a browser's write must come from a page of this address;"
    " programs log in with POST /auth/login and send a bearer token",
)
NOT_JSON: Final = refusal(
    403,
    Code.PERMISSION_DENIED,
    "CONTENT_TYPE_NOT_JSON",
    "a browser's write must have the content type application/json",
)


def bearer_filter() -> Config:
    """The filter that writes a bearer token's scheme as the next one reads it."""
    return extension(
        BEARER,
        "extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": _SCRIPT},
    )


def spelled_as_usual() -> Config:
    """Matches a request whose bearer token needs no filter, as every agent's."""
    return header_is("authorization", prefix="Bearer ")


def guards(settings: GatewaySettings) -> list[Config]:
    """The routes that refuse what a page of another site may have sent.

    They stand before the routes that they guard, and behind those that take neither the cookie nor
    JSON of browsers.
    """
    with_cookie = [
        {"name": "cookie", "string_match": {"contains": f"{COOKIE}="}},
        _is_not("authorization", safe_regex={"regex": _IS_BEARER}),
    ]
    return [
        *_guard(settings, {"prefix": "/"}, with_cookie),
        # A login from another site would be somebody else's: it sets the cookie.
        *_guard(settings, {"path_separated_prefix": "/api/auth"}, []),
    ]


def _guard(settings: GatewaySettings, match: Config, when: Sequence[Config]) -> list[Config]:
    conditions = [
        *when,
        _is_not(":method", safe_regex={"regex": _READS}),
        # An RPC that the transcoder made has been here before.
        {"name": ORIGINAL_PATH, "present_match": False},
    ]
    no_type = {"name": "content-type", "present_match": False}
    not_delete = _is_not(":method", exact="DELETE")
    return [
        {**refused, "match": {**match, "headers": [*conditions, *more]}}
        for refused, more in (
            (CROSS_SITE, not_ours(settings)),
            (NOT_JSON, [_present("content-type"), _is_no_json()]),
            # What has no body has nothing that could be taken for JSON. That there is none a
            # browser says by a length of 0, but not with DELETE, which it asks leave for.
            (NOT_JSON, [no_type, _is_not("content-length", exact="0"), not_delete]),
            (NOT_JSON, [no_type, _is_not("content-length", exact="0"), _present("content-length")]),
        )
    ]


def not_ours(settings: GatewaySettings) -> list[Config]:
    """Matches what no page of ours has sent, as far as the browser says."""
    return [
        _is_not("sec-fetch-site", exact="same-origin"),
        *(_is_not("origin", exact=origin) for origin in our_origins(settings)),
    ]


def our_origins(settings: GatewaySettings) -> list[str]:
    """The origins whose pages may change something, as browsers write them."""
    urls = [settings.public_url, *settings.former_public_urls, *settings.cors_origins]
    return list(dict.fromkeys(origin_of(url) for url in urls if url))


def _is_no_json() -> Config:
    return _is_not("content-type", safe_regex={"regex": _IS_JSON})


def _present(name: str) -> Config:
    return {"name": name, "present_match": True}


def _is_not(name: str, **string_match: Any) -> Config:
    return {
        "name": name,
        "string_match": string_match,
        "invert_match": True,
        "treat_missing_header_as_empty": True,
    }
