"""What all pages with forms need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from servicekit.errors import Code, DomainError
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.chain import check_rules
from services.identity.authenticators.password_rules import LEAST
from services.identity.pages import forms
from services.identity.pages.answers import language, see
from services.identity.pages.browsers import Browsers
from services.identity.pages.render import Problem
from services.identity.pages.texts import TEXTS
from services.identity.password_resets.service import PasswordResets
from services.identity.sessions.domain import OpenSession
from services.identity.sso.service import Providers
from services.identity.users.service import Users

LOGIN: Final = "/login"
DONE_SIGNED_OUT: Final = f"{LOGIN}?done=signed-out"
ACCOUNT: Final = "/auth/account"
CONFIRM: Final = "/auth/confirm"
SIGNED_IN: Final = "/auth/signed-in"
CONSOLE: Final = "/dashboard"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the pages need to know of the installation."""

    browsers: Browsers
    users: Users
    resets: PasswordResets
    providers: Providers
    tenants: TenantDirectory
    public_url: str
    origins: Container[str]
    """Those of the installation's own pages."""
    console: bool
    """Whether a web console is there."""
    password_min: int
    """Characters of a new password that nothing else protects."""

    @property
    def landing(self) -> str:
        """Where one comes after a login."""
        return CONSOLE if self.console else SIGNED_IN


class FormPages:
    """What they share."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._browsers = around.browsers

    async def _form(self, request: Request) -> forms.Form:
        return await forms.read_form(request)

    def _check(self, request: Request, form: forms.Form) -> None:
        forms.check_origin(request, form, self._around.origins)

    def _unlike(self, request: Request, form: forms.Form, message: Message) -> list[Problem]:
        """A password that was not written the same twice; what breaks rules is told first."""
        check_rules(message)
        if form.get("password") == form.get("repeat"):
            return []
        return [Problem(TEXTS[language(request)]["must_repeat"], "repeat")]

    def _new_password(self, texts: Mapping[str, str], *, protected: bool = False) -> dict[str, str]:
        """What the field for a new password says of its length."""
        least = str(LEAST if protected else self._around.password_min)
        return {"least": least, "password_hint": texts["new_password_hint"].format(least)}

    def _enter(self, session: OpenSession, path: str) -> Response:
        response = see(path)
        self._browsers.remember(response, session)
        return response

    async def _with_session(
        self, request: Request, page: Callable[[OpenSession], Awaitable[Response]]
    ) -> Response:
        """A page for someone who is logged in; others log in first."""
        try:
            return await page(await self._browsers.current(request))
        except DomainError as error:
            if error.code is Code.UNAUTHENTICATED:
                return see(f"{LOGIN}?next={quote(ACCOUNT)}")
            raise
