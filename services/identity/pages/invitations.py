"""The page on which Owners and Admins get the links of those whom they invited.

The web console invites, but does not show the link. Who asks here for one invites again, by the
same use case as the API: the link before ends.
"""

from __future__ import annotations

import html
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, quote
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from contract.access import Role
from servicekit.call import Call
from servicekit.errors import Code, DomainError, invalid_field, permission_denied
from servicekit.peers.tenants import TenantDirectory
from services.identity.pages import forms
from services.identity.pages.answers import language, page_answer, see
from services.identity.pages.browsers import Browsers
from services.identity.pages.problems import problems_of
from services.identity.pages.render import Html, Page
from services.identity.users.domain import Invitation, User, invitation_link, may_invite
from services.identity.users.service import Users

PATH: Final = "/auth/invitations"
INVITERS: Final = (Role.OWNER, Role.ADMIN)
_USERS: Final = "/evergreen.v1.UserService/"
_ON_A_PAGE: Final = 50


@dataclass(frozen=True, slots=True)
class _Found:
    """What a page shows."""

    role: Role | None
    users: Sequence[User]
    after: UUID | None


class Invitations:
    """The page and its form."""

    def __init__(
        self,
        browsers: Browsers,
        users: Users,
        tenants: TenantDirectory,
        public_url: str,
        own_origins: Container[str],
        *,
        mail_is_on: bool,
    ) -> None:
        self._browsers = browsers
        self._users = users
        self._tenants = tenants
        self._public_url = public_url
        self._own_origins = own_origins
        self._mail_is_on = mail_is_on

    async def page(self, request: Request) -> Response:
        """Lists who is invited and has not come yet."""
        return await self._page(request)

    async def invite(self, request: Request) -> Response:
        """Makes a new link and shows it, once."""
        form = await forms.read_form(request)

        async def invite(call: Call) -> tuple[User, Invitation]:
            return await self._users.invite(call, _uuid("user", form.get("user", "")))

        try:
            forms.check_origin(request, form, self._own_origins)
            made = await self._browsers.user(request, f"{_USERS}InviteUser", invite)
        except DomainError as error:
            if error.code is Code.UNAUTHENTICATED:
                return _login()
            return await self._page(request, error=error)
        return await self._page(request, made=made)

    async def _page(
        self,
        request: Request,
        *,
        made: tuple[User, Invitation] | None = None,
        error: DomainError | None = None,
    ) -> Response:
        found = _Found(None, (), None)
        try:
            found = await self._browsers.user(
                request, f"{_USERS}ListUsers", lambda call: self._find(request, call)
            )
        except DomainError as failed:
            if failed.code is Code.UNAUTHENTICATED:
                return _login()
            error = error or failed
        spoken = language(request)
        page = Page(
            name="invitations",
            language=spoken,
            problems=problems_of(spoken, error, "password") if error else (),
        )
        token = forms.form_token(request)
        by_mail = "invitations_mailed" if self._mail_is_on else "invitations_not_mailed"
        values = {
            "by_mail": page.texts[by_mail],
            "link": self._link(page, *made) if made else Html(""),
            "people": self._people(page, found, token),
            "more": page.part("invitations_more", before=str(found.after))
            if found.after is not None
            else Html(""),
        }
        whole = Page(name=page.name, language=spoken, values=values, problems=page.problems)
        return page_answer(whole, error, token)

    async def _find(self, request: Request, call: Call) -> _Found:
        if call.caller.role not in INVITERS:
            raise permission_denied("ROLE_MAY_NOT", "only Owners and Admins invite")
        said = parse_qs(request.url.query).get("before", [""])[0]
        before = _uuid("before", said) if said and request.method != "POST" else None
        found = await self._users.invited(call, before, _ON_A_PAGE)
        return _Found(call.caller.role, found.items, found.after)

    def _people(self, page: Page, found: _Found, form_token: str) -> Html:
        if not found.users:
            nobody = html.escape(page.texts["nobody_invited"])
            return Html("" if found.role is None else f"<p>{nobody}</p>")
        rows = []
        for user in found.users:
            tenant = self._tenants.known(user.tenant_id)
            button = "invitation_button" if may_invite(found.role, user) else "invitation_owners"
            rows.append(
                page.part(
                    "invitation",
                    id=str(user.id),
                    email=user.email,
                    role=user.role.value,
                    organisation=tenant.name if tenant else str(user.tenant_id),
                    button=page.part(button, form=form_token, id=str(user.id)),
                )
            )
        return Html(f'<ul class="people">{"".join(rows)}</ul>')

    def _link(self, page: Page, user: User, invitation: Invitation) -> Html:
        link = invitation_link(self._public_url, invitation.token) or invitation.token
        mailed = page.texts["link_mailed"] if invitation.mail == "queued" else ""
        return page.part("invitation_link", email=user.email, link=link, mailed=mailed)


def _login() -> Response:
    return see(f"/login?next={quote(PATH)}")


def _uuid(name: str, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise invalid_field(name, "is wrong") from None
