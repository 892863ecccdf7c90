"""The pages' forms: what was sent, and whether a page of ours sent it.

A browser says where a form comes from; and beside its cookie each form holds the same random token,
which no other site can read or set: the cookie's name keeps sibling domains from setting it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Container, Mapping
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from servicekit.errors import DomainError, invalid_field, permission_denied
from servicekit.security.digests import equal
from services.identity.pages.browsers import cookie

Form = Mapping[str, str]
"""What was sent, by the fields' names."""

TOKEN: Final = "form"
"""The hidden field with the form's token."""
_COOKIE: Final = "__Host-evergreen_form"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{22}").fullmatch
_URLENCODED: Final = "application/x-www-form-urlencoded"
_MAX_BYTES: Final = 64 * 1024
_MAX_FIELDS: Final = 20


def form_token(request: Request) -> str:
    """The token of the browser's forms: the one that it has, or a new one."""
    held = cookie(request, _COOKIE)
    return held if _TOKEN(held) else secrets.token_urlsafe(16)


def keep_form_token(response: Response, token: str) -> None:
    """Lets the browser send the token beside the form."""
    response.set_cookie(_COOKIE, token, path="/", secure=True, httponly=True, samesite="strict")


async def read_form(request: Request) -> Form:
    """The fields of a form.

    Raises:
        DomainError: INVALID_ARGUMENT when it is none, or too large.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _URLENCODED:
        raise invalid_field("content-type", f"must be {_URLENCODED}")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BYTES:
            raise invalid_field("body", f"must have at most {_MAX_BYTES} bytes")
    try:
        fields = parse_qsl(
            body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise invalid_field("body", f"must have at most {_MAX_FIELDS} fields") from None
    return dict(fields)


def check_origin(request: Request, form: Form, own_origins: Container[str]) -> None:
    """Refuses a form that no page of ours has sent.

    Raises:
        DomainError: PERMISSION_DENIED.
    """
    headers = request.headers
    same = headers.get("sec-fetch-site") == "same-origin" or headers.get("origin") in own_origins
    held = cookie(request, _COOKIE)
    if not same or not _TOKEN(held) or not equal(held.encode(), form.get(TOKEN, "").encode()):
        raise foreign_form()


def foreign_form() -> DomainError:
    """The form came from elsewhere, or its cookie is gone."""
    return permission_denied("FOREIGN_FORM", "the form has expired; send it again")
