"""The way to a provider of single sign-on and back, and what the provider itself says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from servicekit.errors import HTTP_STATUS, Code, DomainError, invalid_field, retry_after_header
from servicekit.rpc.rules import is_uuid
from services.identity.pages import forms
from services.identity.pages.answers import asking_first, going, language, see
from services.identity.pages.base import ACCOUNT
from services.identity.pages.browsers import forget_sso, keep_sso
from services.identity.pages.login import LoginPage
from services.identity.pages.problems import problems_of
from services.identity.pages.second_step import second_step
from services.identity.pages.targets import next_of
from services.identity.second_factor.challenges import PendingLogin

_MAX_QUERY: Final = 16 * 1024
_MAX_PARAMETERS: Final = 20
_NO_STORE: Final = {"cache-control": "no-store"}


class SignOn(LoginPage):
    """The pages and answers of single sign-on."""

    async def start(self, request: Request) -> Response:
        """Leads a browser to a provider."""
        said = _query(request)
        if request.headers.get("sec-fetch-site") == "cross-site":
            # Another site does not sign anybody in: the person presses the button.
            return asking_first(request, f"{request.url.path}?{urlencode(said)}")
        target = next_of(said.get("returnTo", ""))
        email = said.get("email", "").strip()
        try:
            named = said.get("provider", "")
            if not named and not email:
                raise invalid_field("provider", "is missing")
            if named and not is_uuid(named):
                raise DomainError(Code.NOT_FOUND, "NO_PROVIDER", "there is no such provider")
            began = await self._browsers.begin(
                request, UUID(named) if named else None, email, target, again="again" in said
            )
        except DomainError as error:
            return await self._failed(request, error, target, email)
        # A form of a page may not lead to another site, a page that was opened may.
        response = see(began.url) if named else going(request, "sso_going", began.url)
        keep_sso(response, began)
        return response

    async def callback(self, request: Request, provider: str) -> Response:
        """Takes a browser that comes back."""
        try:
            if not is_uuid(provider):
                raise DomainError(Code.NOT_FOUND, "NO_PROVIDER", "there is no such provider")
            arrival, begun = await self._browsers.arrive(request, UUID(provider), _query(request))
        except DomainError as error:
            response = await self._failed(request, error, "", "")
            forget_sso(response)
            return response
        # Cookies of the session are for requests that begin on this site: with a redirect this
        # one would go on as the provider's.
        if begun is None:
            response = going(request, "linked", f"{ACCOUNT}?done=linked")
        elif isinstance(begun, PendingLogin):
            response = going(request, "sso_done", second_step(arrival.return_to))
            self._browsers.remember_login(response, begun)
        else:
            response = going(request, "sso_done", arrival.return_to or self._around.landing)
            self._browsers.remember(response, begun)
        forget_sso(response)
        return response

    async def backchannel(self, request: Request, provider: str) -> Response:
        """Takes a provider's word that sessions are over."""
        try:
            form = await forms.read_form(request)
            if not is_uuid(provider):
                raise DomainError(Code.NOT_FOUND, "NOT_FOUND", "there is no such provider")
            token = form.get("logout_token", "")
            if not token:
                raise invalid_field("logout_token", "is missing")
            await self._browsers.provider_says(request, UUID(provider), token)
        except DomainError as error:
            headers = dict(_NO_STORE)
            if (later := retry_after_header(error)) is not None:
                headers["retry-after"] = later
            refused = {"error": "invalid_request", "error_description": error.message}
            return JSONResponse(refused, HTTP_STATUS[error.code], headers)
        return Response(status_code=200, headers=_NO_STORE)

    async def _failed(
        self, request: Request, error: DomainError, target: str, email: str
    ) -> Response:
        problems = problems_of(language(request), error, "password")
        return await self.login_page(request, target, email=email, problems=problems, error=error)


def _query(request: Request) -> Mapping[str, str]:
    """The parameters; one that is there twice is not taken at all (RFC 6749, section 3.1)."""
    text = request.url.query
    if len(text) > _MAX_QUERY:
        return {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        return {}
    names = [name for name, _ in pairs]
    return {name: value for name, value in pairs if names.count(name) == 1}
