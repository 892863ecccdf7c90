"""The pages and their forms.

A form is sent to an address of its own below `/auth/forms/`. What went well leads on to a page
(303); else the page comes again, with what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit
from uuid import UUID

from fastapi import FastAPI
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from evergreen.v1 import identity_pb2 as pb
from servicekit.errors import Code, DomainError
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.chain import check_rules
from services.identity.pages import forms, invitations
from services.identity.pages.answers import language, page_answer, see
from services.identity.pages.browsers import Browsers
from services.identity.pages.problems import problems_of
from services.identity.pages.render import Html, Page, Problem, asset
from services.identity.pages.texts import TEXTS
from services.identity.portal import cached
from services.identity.sessions.domain import OpenSession
from services.identity.users.service import Users

LOGIN: Final = "/login"
ACCEPT: Final = "/auth/accept"
FORGOT: Final = "/auth/forgot"
ACCOUNT: Final = "/auth/account"
SIGNED_IN: Final = "/auth/signed-in"
_CONSOLE: Final = "/dashboard"

_READ: Final = ["GET", "HEAD"]
_ASSETS: Final = {
    "pages.css": "text/css; charset=utf-8",
    "pages.js": "text/javascript; charset=utf-8",
}
_AGAIN: Final = {
    "login": LOGIN,
    "accept": ACCEPT,
    "reset": FORGOT,
    "password": ACCOUNT,
    "logout": ACCOUNT,
    "invite": invitations.PATH,
}
"""Each form's page: where someone comes who reloads one that was refused."""
_LOCAL: Final = re.compile(
    r"/(?:dashboard|auth/(?:account|invitations))(?:[/?][\x21-\x7e]*)?"
).fullmatch


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the pages need to know of the installation."""

    browsers: Browsers
    users: Users
    tenants: TenantDirectory
    public_url: str
    origins: Container[str]
    """Those of the installation's own pages."""
    console: bool
    """Whether a web console is there."""
    password_min: int
    """Characters of a new password."""

    @property
    def landing(self) -> str:
        """Where one comes after a login."""
        return _CONSOLE if self.console else SIGNED_IN


def add_pages(app: FastAPI, around: Surroundings) -> None:
    """Adds the pages and their forms."""
    for name, media_type in _ASSETS.items():
        app.add_api_route(f"/auth/assets/{name}", _asset(name, media_type), methods=_READ)
    pages = _Pages(around)
    invited = invitations.Invitations(
        around.browsers, around.users, around.tenants, around.public_url, around.origins
    )
    for path, page in {
        LOGIN: pages.login,
        ACCEPT: pages.accept,
        FORGOT: pages.forgot,
        ACCOUNT: pages.account,
        SIGNED_IN: pages.signed_in,
        invitations.PATH: invited.page,
    }.items():
        app.add_api_route(path, page, methods=_READ)
    for name, form in {
        "login": pages.log_in,
        "accept": pages.accept_invitation,
        "reset": pages.reset,
        "password": pages.change_password,
        "logout": pages.log_out,
        "invite": invited.invite,
    }.items():
        app.add_api_route(f"/auth/forms/{name}", form, methods=["POST"])
        app.add_api_route(f"/auth/forms/{name}", _back_to(_AGAIN[name]), methods=_READ)


class _Pages:
    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._browsers = around.browsers
        self._own_origins = around.origins

    # Pages

    async def login(self, request: Request) -> Response:
        said = parse_qs(request.url.query)
        done = said.get("done") == ["signed-out"]
        notice = TEXTS[language(request)]["signed_out"] if done else ""
        return await self._login_page(request, next_of(said.get("next", [""])[0]), notice=notice)

    async def accept(self, request: Request) -> Response:
        return self._password_page(request, "accept", "accept", "")

    async def forgot(self, request: Request) -> Response:
        return self._password_page(request, "forgot", "reset", "")

    async def account(self, request: Request) -> Response:
        done = request.url.query == "done=password"
        notice = TEXTS[language(request)]["changed"] if done else ""
        return await self._with_session(
            request, lambda session: self._account_page(request, session, notice=notice)
        )

    async def signed_in(self, request: Request) -> Response:
        if self._around.console:
            return see(_CONSOLE)

        def page(session: OpenSession) -> Response:
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
            session = await self._browsers.login(request, login)
        except DomainError as error:
            problems = problems_of(language(request), error, "password")
            return await self._login_page(
                request, target, email=form.get("email", ""), problems=problems, error=error
            )
        return self._enter(session, target or self._around.landing)

    async def accept_invitation(self, request: Request) -> Response:
        return await self._set_password(request, "accept", "accept")

    async def reset(self, request: Request) -> Response:
        return await self._set_password(request, "forgot", "reset")

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
        return self._enter(session, self._around.landing)

    async def change_password(self, request: Request) -> Response:
        form = await self._form(request)
        change = pb.ChangePasswordRequest(
            current_password=form.get("current", ""), new_password=form.get("password", "")
        )
        try:
            self._check(request, form)
            if problems := self._unlike(request, form, change):
                return await self._account_again(request, problems)
            await self._browsers.change_password(request, change)
        except DomainError as error:
            problems = problems_of(language(request), error, "new_password")
            return await self._account_again(request, problems, error)
        return see(f"{ACCOUNT}?done=password")

    async def log_out(self, request: Request) -> Response:
        form = await self._form(request)
        try:
            self._check(request, form)
        except DomainError as error:
            problems = problems_of(language(request), error, "")
            return await self._account_again(request, problems, error)
        await self._browsers.logout(request)
        response = see(f"{LOGIN}?done=signed-out")
        self._browsers.forget(response)
        return response

    async def _account_again(
        self, request: Request, problems: list[Problem], error: DomainError | None = None
    ) -> Response:
        return await self._with_session(
            request,
            lambda session: self._account_page(request, session, problems=problems, error=error),
        )

    # What they share

    async def _form(self, request: Request) -> forms.Form:
        return await forms.read_form(request)

    def _check(self, request: Request, form: forms.Form) -> None:
        forms.check_origin(request, form, self._own_origins)

    def _unlike(self, request: Request, form: forms.Form, message: Message) -> list[Problem]:
        """A password that was not written the same twice; what breaks rules is told first."""
        check_rules(message)
        if form.get("password") == form.get("repeat"):
            return []
        return [Problem(TEXTS[language(request)]["must_repeat"], "repeat")]

    def _enter(self, session: OpenSession, path: str) -> Response:
        response = see(path)
        self._browsers.remember(response, session)
        return response

    async def _with_session(
        self, request: Request, page: Callable[[OpenSession], Response]
    ) -> Response:
        """A page for someone who is logged in; others log in first."""
        try:
            return page(await self._browsers.current(request))
        except DomainError as error:
            if error.code is Code.UNAUTHENTICATED:
                return see(f"{LOGIN}?next={quote(ACCOUNT)}")
            raise

    async def _login_page(
        self,
        request: Request,
        target: str,
        *,
        email: str = "",
        notice: str = "",
        problems: list[Problem] | None = None,
        error: DomainError | None = None,
    ) -> Response:
        page = Page(name="login", language=language(request), problems=problems or ())
        session = Html("")
        if not notice and not problems:
            try:
                who = (await self._browsers.current(request)).user.email
                session = page.part("session", email=who, landing=target or self._around.landing)
            except DomainError:
                pass  # the page is for those who are not logged in
        token = forms.form_token(request)
        values = {"form": token, "next": target, "email": email, "session": session}
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

    def _password_page(
        self,
        request: Request,
        name: str,
        form: str,
        token: str,
        *,
        problems: list[Problem] | None = None,
        error: DomainError | None = None,
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
        return page_answer(
            Page(
                name=name,
                language=page.language,
                values={"new_password": new_password},
                problems=page.problems,
            ),
            error,
            form_token,
        )

    def _new_password(self, texts: Mapping[str, str]) -> dict[str, str]:
        """What the field for a new password says of its length."""
        least = str(self._around.password_min)
        return {"least": least, "password_hint": texts["new_password_hint"].format(least)}

    def _account_page(
        self,
        request: Request,
        session: OpenSession,
        *,
        notice: str = "",
        problems: list[Problem] | None = None,
        error: DomainError | None = None,
    ) -> Response:
        spoken = language(request)
        token = forms.form_token(request)
        tenant = self._around.tenants.known(UUID(str(session.user.tenant_id)))
        links = [(_CONSOLE, "console")] if self._around.console else []
        if session.user.role in invitations.INVITERS:
            links.append((invitations.PATH, "invitations"))
        return page_answer(
            Page(
                name="account",
                language=spoken,
                values={
                    "form": token,
                    "email": session.user.email,
                    "role": session.user.role.value,
                    **self._new_password(TEXTS[spoken]),
                    "organisation": tenant.name if tenant else str(session.user.tenant_id),
                    "links": Html(
                        "".join(
                            f'<a href="{path}">{TEXTS[spoken][text]}</a>'
                            for path, text in [*links, ("/docs", "docs")]
                        )
                    ),
                },
                problems=problems or (),
                notice=notice,
            ),
            error,
            token,
        )


def next_of(wish: str) -> str:
    """Where someone wants to be after a login: one of our own pages, or nowhere."""
    return wish if _LOCAL(wish) else ""


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
