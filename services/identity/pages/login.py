"""The page to sign in, which others show again when something went wrong."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from servicekit.errors import DomainError
from servicekit.observability import logs
from services.identity.pages import forms
from services.identity.pages.answers import language, page_answer, see
from services.identity.pages.base import FormPages
from services.identity.pages.passkeys import asking
from services.identity.pages.render import Html, Page, Problem
from services.identity.pages.second_step import second_step
from services.identity.second_factor.challenges import PendingLogin
from services.identity.sessions.domain import OpenSession

log = logs.get(__name__)


class LoginPage(FormPages):
    """The page, and what follows it."""

    def next_step(self, begun: OpenSession | PendingLogin, target: str) -> Response:
        """Leads on after the first step of a login."""
        if isinstance(begun, OpenSession):
            return self._enter(begun, target or self._around.landing)
        response = see(second_step(target))
        self._browsers.remember_login(response, begun)
        return response

    async def login_page(
        self,
        request: Request,
        target: str,
        *,
        email: str = "",
        org: str = "",
        notice: str = "",
        problems: list[Problem] | None = None,
        error: DomainError | None = None,
    ) -> Response:
        """The page to sign in.

        Args:
            target: where one wants to be afterwards.
            email: what was typed as the address.
            org: the code of the organisation whose providers it shows.
        """
        page = Page(name="login", language=language(request), problems=problems or ())
        session = Html("")
        if not notice and not problems:
            try:
                who = (await self._browsers.current(request)).user.email
                session = page.part("session", email=who, landing=target or self._around.landing)
            except DomainError:
                pass  # the page is for those who are not logged in
        token = forms.form_token(request)
        values = {
            "form": token,
            "next": target,
            "email": email,
            "org": org,
            "session": session,
            "sso": await self._providers(page, target, org, email),
            "passkey": asking(
                page, "passkey", self._browsers.passkey_options(token), token, target
            ),
        }
        return page_answer(
            Page(
                name="login",
                language=page.language,
                values=values,
                problems=page.problems,
                notice=notice,
            ),
            error,
            token,
        )

    async def _providers(self, page: Page, target: str, org: str, email: str) -> Html:
        """The buttons of the providers that the page shows."""
        try:
            found = await self._around.providers.buttons(org, email)
            by_email = await self._around.providers.are_found_by_email()
        except Exception:
            # Who has a password gets in without them.
            log.exception("providers not shown")
            return Html("")
        if not found and not by_email:
            return Html("")
        more = f"&returnTo={quote(target)}" if target else ""
        buttons = (
            page.part(
                "sso_button",
                url=f"{one.start_url}{more}",
                label=page.texts["sso_button"].format(one.name),
            )
            for one in found
        )
        form = page.part("sso_email", next=target) if by_email else Html("")
        return page.part("sso", buttons=Html("".join(buttons)), by_email=form)
