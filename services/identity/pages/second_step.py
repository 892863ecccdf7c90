"""The second step of a login: a code, or setting up what gives codes."""

from __future__ import annotations

from urllib.parse import parse_qs, quote

from starlette.requests import Request
from starlette.responses import Response

from servicekit.errors import DomainError
from services.identity.pages import forms
from services.identity.pages.account import set_up_page
from services.identity.pages.answers import language, page_answer, see
from services.identity.pages.base import LOGIN, FormPages
from services.identity.pages.passkeys import asking
from services.identity.pages.problems import problems_of
from services.identity.pages.render import Page
from services.identity.pages.targets import SECOND_STEP, next_of
from services.identity.second_factor.service import Setup
from services.identity.sessions.domain import OpenSession

_OVER = frozenset({"LOGIN_OVER", "ORGANISATION_ARCHIVED"})


def second_step(target: str) -> str:
    """The page of the second step.

    Args:
        target: where one wants to be afterwards.
    """
    return f"{SECOND_STEP}?next={quote(target)}" if target else SECOND_STEP


class SecondStep(FormPages):
    """The page, and its forms."""

    async def page(self, request: Request) -> Response:
        """The page itself: by what the user has, and has to have."""
        target = next_of(parse_qs(request.url.query).get("next", [""])[0])
        return await self._page(request, target)

    async def give_code(self, request: Request) -> Response:
        """Takes a code, and signs in."""
        form = await self._form(request)
        target = next_of(form.get("next", ""))
        try:
            self._check(request, form)
            session = await self._browsers.finish_login(request, form.get("code", ""))
        except DomainError as error:
            return await self._page(request, target, error)
        return self._signed_in(session, target)

    async def use_passkey(self, request: Request) -> Response:
        """Takes a passkey, and signs in."""
        form = await self._form(request)
        target = next_of(form.get("next", ""))
        try:
            self._check(request, form)
            session = await self._browsers.finish_with_passkey(request, form.get("credential", ""))
        except DomainError as error:
            return await self._page(request, target, error)
        return self._signed_in(session, target)

    async def set_up(self, request: Request) -> Response:
        """Shows the key of an authenticator app, and recovery codes, once."""
        form = await self._form(request)
        target = next_of(form.get("next", ""))
        try:
            self._check(request, form)
            setup = await self._browsers.set_up_factor(request)
        except DomainError as error:
            return await self._page(request, target, error)
        return set_up_page(request, setup, "confirm-login", target=target)

    async def confirm(self, request: Request) -> Response:
        """Lets the app count, and signs in."""
        form = await self._form(request)
        target = next_of(form.get("next", ""))
        try:
            self._check(request, form)
            session = await self._browsers.confirm_factor(request, form.get("code", ""))
        except DomainError as error:
            if not error.violations:
                return await self._page(request, target, error)
            try:
                _, _, key = await self._browsers.waiting_login(request)
            except DomainError as over:
                return await self._page(request, target, over)
            if key is None:
                return await self._page(request, target, error)
            return set_up_page(request, Setup(key, ()), "confirm-login", error, target)
        return self._signed_in(session, target)

    def _signed_in(self, session: OpenSession, target: str) -> Response:
        response = self._enter(session, target or self._around.landing)
        self._browsers.forget_login(response)
        return response

    async def _page(
        self, request: Request, target: str, error: DomainError | None = None
    ) -> Response:
        try:
            if error is not None and error.reason in _OVER:
                raise error
            user, factors, _ = await self._browsers.waiting_login(request)
            known = await self._browsers.known_passkeys(request, user)
        except DomainError as over:
            if over.reason not in _OVER:
                raise
            response = see(f"{LOGIN}?done=again")
            self._browsers.forget_login(response)
            return response
        spoken = language(request)
        token = forms.form_token(request)
        name = "second_factor" if factors.any else "set_up_first"
        problems = problems_of(spoken, error, "") if error else []
        page = Page(name=name, language=spoken)
        values = {"form": token, "next": target, "email": user.email}
        if factors.any:
            values["passkey"] = asking(page, "passkey-step", known, token, target)
        return page_answer(
            Page(name=name, language=spoken, values=values, problems=problems), error, token
        )
