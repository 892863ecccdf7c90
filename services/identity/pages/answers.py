"""A page as an answer, and where one is led from it."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from servicekit.errors import HTTP_STATUS, DomainError, retry_after_header
from services.identity.pages import forms
from services.identity.pages.render import Page
from services.identity.pages.texts import TEXTS, language_of

_URL: Final = ":/?#[]@!$&'()*+,;=%-._~"
"""What stays as it is in an address that is one already."""
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "vary": "Accept-Language, Cookie",
    # Within this origin, so that browsers tell a form's origin.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
}


def page_answer(page: Page, error: DomainError | None = None, form_token: str = "") -> Response:
    """A page, with the status of what went wrong.

    Args:
        form_token: the token of the page's forms, when it has any.
    """
    status = HTTP_STATUS[error.code] if error else 400 if page.problems else 200
    headers = {**_HEADERS, "content-language": page.language}
    if error is not None and (later := retry_after_header(error)) is not None:
        headers["retry-after"] = later
    response = HTMLResponse(page.html(), status, headers)
    if form_token:
        forms.keep_form_token(response, form_token)
    return response


def see(path: str) -> Response:
    """Leads on to a page."""
    return RedirectResponse(path, 303, {"cache-control": "no-store"})


def asking_first(request: Request, url: str) -> Response:
    """A page that leads to a provider by its button alone."""
    return _leading(request, "sso_going", url)


def going(request: Request, text: str, url: str) -> Response:
    """A page that leads on by itself, without a script, and by its button."""
    response = _leading(request, text, url)
    response.headers["refresh"] = f"0;url={quote(url, safe=_URL)}"
    return response


def _leading(request: Request, text: str, url: str) -> Response:
    spoken = language(request)
    values = {"text": TEXTS[spoken][text], "url": url}
    return page_answer(Page(name="going", language=spoken, values=values))


def language(request: Request) -> str:
    """The language that the page is written in."""
    return language_of(request.headers.get("accept-language", ""))
