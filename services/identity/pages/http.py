"""The pages and their forms.

A form is sent to an address of its own below `/auth/forms/`. What went well leads on to a page
(303); else the page comes again, with what is wrong.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import parse_qs, urlsplit

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from evergreen.v1 import identity_pb2 as pb
from servicekit.errors import DomainError
from services.identity.pages import forms, invitations
from services.identity.pages.account import Account
from services.identity.pages.answers import language, page_answer, see
from services.identity.pages.base import (
    ACCOUNT,
    CONFIRM,
    CONSOLE,
    DONE_SIGNED_OUT,
    LOGIN,
    SIGNED_IN,
    Surroundings,
)
from services.identity.pages.login import LoginPage
from services.identity.pages.problems import problems_of
from services.identity.pages.render import Page, Problem, asset
from services.identity.pages.second_step import SecondStep
from services.identity.pages.sso import SignOn
from services.identity.pages.targets import SECOND_STEP, next_of
from services.identity.pages.texts import TEXTS
from services.identity.portal import cached
from services.identity.sessions.domain import OpenSession
from services.identity.sso.domain import CALLBACK, LOGOUT, SIGNED_OUT, START

ACCEPT: Final = "/auth/accept"
FORGOT: Final = "/auth/forgot"

_DONE: Final = {"signed-out": "signed_out", "again": "login_over"}
"""What the page for a login says, by its query."""
_READ: Final = ["GET", "HEAD"]
_ASSETS: Final = {
    "pages.css": "text/css; charset=utf-8",
    "pages.js": "text/javascript; charset=utf-8",
}
_AGAIN: Final = {
    "login": LOGIN,
    "passkey": LOGIN,
    "passkey-step": SECOND_STEP,
    "passkey-confirm": CONFIRM,
    "add-passkey": ACCOUNT,
    "new-passkey": ACCOUNT,
    "remove-passkey": ACCOUNT,
    "accept": ACCEPT,
    "reset": FORGOT,
    "forgot": FORGOT,
    "password": ACCOUNT,
    "logout": ACCOUNT,
    "invite": invitations.PATH,
    "end-session": ACCOUNT,
    "set-up-app": ACCOUNT,
    "confirm-app": ACCOUNT,
    "remove-app": ACCOUNT,
    "recovery-codes": ACCOUNT,
    "confirm": CONFIRM,
    "link": ACCOUNT,
    "unlink": ACCOUNT,
    "code": SECOND_STEP,
    "set-up": SECOND_STEP,
    "confirm-login": SECOND_STEP,
}
"""Each form's page: where someone comes who reloads one that was refused."""


def add_pages(app: FastAPI, around: Surroundings) -> None:
    """Adds the pages and their forms."""
    for name, media_type in _ASSETS.items():
        app.add_api_route(f"/auth/assets/{name}", _asset(name, media_type), methods=_READ)
    pages = _Pages(around)
    account = Account(around)
    second = SecondStep(around)
    single = SignOn(around)
    app.add_api_route(LOGOUT, single.backchannel, methods=["POST"])
    app.add_api_route(CALLBACK, single.callback, methods=_READ)
    invited = invitations.Invitations(
        around.browsers,
        around.users,
        around.tenants,
        around.public_url,
        around.origins,
        mail_is_on=around.resets.on,
    )
    for path, page in {
        LOGIN: pages.login,
        ACCEPT: pages.accept,
        FORGOT: pages.forgot,
        ACCOUNT: account.page,
        CONFIRM: account.confirm_page,
        SECOND_STEP: second.page,
        SIGNED_IN: pages.signed_in,
        START: single.start,
        SIGNED_OUT: pages.signed_out,
        invitations.PATH: invited.page,
    }.items():
        app.add_api_route(path, page, methods=_READ)
    for name, form in {
        "login": pages.log_in,
        "passkey": pages.use_passkey,
        "passkey-step": second.use_passkey,
        "passkey-confirm": account.confirm_with_passkey,
        "add-passkey": account.add_passkey,
        "new-passkey": account.new_passkey,
        "remove-passkey": account.remove_passkey,
        "accept": pages.accept_invitation,
        "reset": pages.reset,
        "forgot": pages.send_reset,
        "password": account.change_password,
        "logout": account.log_out,
        "invite": invited.invite,
        "end-session": account.end_session,
        "set-up-app": account.set_up_app,
        "confirm-app": account.confirm_app,
        "remove-app": account.remove_app,
        "recovery-codes": account.new_codes,
        "confirm": account.confirm,
        "code": second.give_code,
        "set-up": second.set_up,
        "confirm-login": second.confirm,
        "link": account.link,
        "unlink": account.unlink,
    }.items():
        app.add_api_route(f"/auth/forms/{name}", form, methods=["POST"])
        app.add_api_route(f"/auth/forms/{name}", _back_to(_AGAIN[name]), methods=_READ)


class _Pages(LoginPage):
    # Pages

    async def login(self, request: Request) -> Response:
        said = parse_qs(request.url.query)
        done = _DONE.get(said.get("done", [""])[0])
        notice = TEXTS[language(request)][done] if done else ""
        return await self.login_page(
            request,
            next_of(said.get("next", [""])[0]),
            org=said.get("org", [""])[0],
            notice=notice,
        )

    async def accept(self, request: Request) -> Response:
        return self._password_page(request, "accept", "accept", "")

    async def forgot(self, request: Request) -> Response:
        return self._password_page(request, "forgot", "reset", "")

    async def signed_out(self, _: Request) -> Response:
        """Where people come back to who signed out at their provider, too."""
        return see(DONE_SIGNED_OUT)

    async def signed_in(self, request: Request) -> Response:
        if self._around.console:
            return see(CONSOLE)

        async def page(session: OpenSession) -> Response:
            values = {"email": session.user.email}
            return page_answer(Page(name="signed_in", language=language(request), values=values))

        return await self._with_session(request, page)

    # Forms

    async def log_in(self, request: Request) -> Response:
        form = await self._form(request)
        target = next_of(form.get("next", ""))
        try:
            self._check(request, form)
            login = pb.LoginRequest(
                email=form.get("email", "").strip(), password=form.get("password", "")
            )
            session = await self._browsers.begin_login(request, login)
        except DomainError as error:
            problems = problems_of(language(request), error, "password")
            return await self.login_page(
                request,
                target,
                email=form.get("email", ""),
                org=form.get("org", ""),
                problems=problems,
                error=error,
            )
        return self.next_step(session, target)

    async def use_passkey(self, request: Request) -> Response:
        """Signs in with a passkey alone."""
        form = await self._form(request)
        target = next_of(form.get("next", ""))
        try:
            self._check(request, form)
            session = await self._browsers.login_with_passkey(
                request, form.get("credential", ""), form.get(forms.TOKEN, "")
            )
        except DomainError as error:
            problems = problems_of(language(request), error, "password")
            return await self.login_page(request, target, problems=problems, error=error)
        return self._enter(session, target or self._around.landing)

    async def accept_invitation(self, request: Request) -> Response:
        return await self._set_password(request, "accept", "accept")

    async def reset(self, request: Request) -> Response:
        return await self._set_password(request, "forgot", "reset")

    async def send_reset(self, request: Request) -> Response:
        """Has a link for a new password sent; the page says the same whatever is found."""
        form = await self._form(request)
        email = form.get("email", "").strip()
        texts = TEXTS[language(request)]
        try:
            self._check(request, form)
            asked = pb.ForgotPasswordRequest(email=email, language=language(request))
            await self._browsers.ask_for_reset(request, self._around.resets, asked)
        except DomainError as error:
            problems = problems_of(language(request), error, "email")
            return self._password_page(
                request, "forgot", "reset", "", problems=problems, error=error, email=email
            )
        notice = texts["forgot_sent"].format(email) if self._around.resets.on else ""
        return self._password_page(request, "forgot", "reset", "", notice=notice)

    async def _set_password(self, request: Request, page: str, form_name: str) -> Response:
        form = await self._form(request)
        token = token_of(form.get("token", ""))
        accepted = pb.AcceptInvitationRequest(
            invitation_token=token, password=form.get("password", "")
        )
        try:
            self._check(request, form)
            if problems := self._unlike(request, form, accepted):
                return self._password_page(request, page, form_name, token, problems=problems)
            session = await self._browsers.accept_invitation(request, accepted)
        except DomainError as error:
            problems = problems_of(language(request), error, "new_password")
            return self._password_page(
                request, page, form_name, token, problems=problems, error=error
            )
        return self.next_step(session, "")

    # What they share

    def _password_page(
        self,
        request: Request,
        name: str,
        form: str,
        token: str,
        *,
        problems: list[Problem] | None = None,
        error: DomainError | None = None,
        email: str = "",
        notice: str = "",
    ) -> Response:
        page = Page(name=name, language=language(request), problems=problems or ())
        form_token = forms.form_token(request)
        if token and not any(one.field == "token" for one in page.problems):
            # It was right so far, and need not be seen again.
            token_field = page.part("token_hidden", token=token)
        else:
            token_field = page.part("token", token=token)
        new_password = page.part(
            "new_password",
            action=f"/auth/forms/{form}",
            form=form_token,
            token_field=token_field,
            **self._new_password(page.texts),
            button=page.texts[f"{name}_button"],
        )
        values = {"new_password": new_password}
        if name == "forgot":
            values["by_mail"] = (
                page.part("forgot_mail", form=form_token, email=email)
                if self._around.resets.on
                else page.part("forgot_off")
            )
        return page_answer(
            Page(
                name=name,
                language=page.language,
                values=values,
                problems=page.problems,
                notice=notice,
            ),
            error,
            form_token,
        )


def token_of(pasted: str) -> str:
    """The token out of what a person pasted: itself, or the link that holds it."""
    pasted = pasted.strip()
    if "token=" in pasted:
        fragment = urlsplit(pasted).fragment or pasted
        return parse_qs(fragment).get("token", [""])[0].strip()
    return pasted


def _asset(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return cached(request, asset(name), media_type)

    return serve


def _back_to(path: str) -> Callable[[], Awaitable[Response]]:
    async def serve() -> Response:
        return see(path)

    return serve
