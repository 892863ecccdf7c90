"""One's own account: password, second factor, and where one is signed in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from urllib.parse import quote
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from evergreen.v1 import identity_pb2 as pb
from servicekit.errors import Code, DomainError
from servicekit.rpc.rules import is_uuid
from services.identity.mail.texts import known_program
from services.identity.pages import forms, invitations
from services.identity.pages.answers import going, language, page_answer, see
from services.identity.pages.base import ACCOUNT, CONFIRM, CONSOLE, DONE_SIGNED_OUT, FormPages
from services.identity.pages.browsers import keep_sso
from services.identity.pages.passkeys import asking, making
from services.identity.pages.problems import problems_of
from services.identity.pages.render import Html, Page, Problem
from services.identity.pages.texts import TEXTS
from services.identity.second_factor.domain import Factors
from services.identity.second_factor.passkey_store import Passkey
from services.identity.second_factor.qr import qr_svg
from services.identity.second_factor.service import Setup
from services.identity.sessions.domain import KnownSession, OpenSession

_SHOWN_SESSIONS: Final = 50
_DONE: Final = {
    "password": "changed",
    "confirmed": "confirmed",
    "factor": "factor_done",
    "no-factor": "factor_removed",
    "passkey": "passkey_done",
    "no-passkey": "passkey_removed",
    "session": "session_ended_there",
    "others": "others_ended",
    "linked": "linked",
    "unlinked": "unlinked",
}
"""What the page says after a form, by its query."""


class Account(FormPages):
    """The page, and its forms."""

    async def page(self, request: Request) -> Response:
        """The page itself."""
        done = request.url.query.removeprefix("done=")
        notice = TEXTS[language(request)][_DONE[done]] if done in _DONE else ""
        return await self._with_session(
            request, lambda session: self._page(request, session, notice=notice)
        )

    async def change_password(self, request: Request) -> Response:
        """Sets another password."""
        form = await self._form(request)
        change = pb.ChangePasswordRequest(
            current_password=form.get("current", ""), new_password=form.get("password", "")
        )
        try:
            self._check(request, form)
            if problems := self._unlike(request, form, change):
                return await self._again(request, problems)
            await self._browsers.change_password(request, change)
        except DomainError as error:
            return await self._refused(request, error, "new_password")
        return see(f"{ACCOUNT}?done=password")

    async def log_out(self, request: Request) -> Response:
        """Ends the session; where a provider opened it and signs people out, it is next."""
        form = await self._form(request)
        try:
            self._check(request, form)
        except DomainError as error:
            return await self._refused(request, error)
        ended = await self._browsers.logout(request)
        there = await self._browsers.leave(ended) if ended is not None else ""
        # A form of a page may not lead to another site, a page that was opened may.
        response = going(request, "sso_leaving", there) if there else see(DONE_SIGNED_OUT)
        self._browsers.forget(response)
        return response

    async def end_session(self, request: Request) -> Response:
        """Ends another session, or all others."""
        form = await self._form(request)
        try:
            self._check(request, form)
            await self._browsers.end_session(request, form.get("session", ""))
        except DomainError as error:
            return await self._refused(request, error)
        return see(f"{ACCOUNT}?done={'session' if form.get('session') else 'others'}")

    async def set_up_app(self, request: Request) -> Response:
        """Shows the key of an authenticator app, once, and recovery codes where there are none."""
        form = await self._form(request)
        try:
            self._check(request, form)
            setup = await self._browsers.set_up_app(request)
        except DomainError as error:
            return await self._refused(request, error)
        return set_up_page(request, setup, "confirm")

    async def confirm_app(self, request: Request) -> Response:
        """Lets an app count."""
        form = await self._form(request)
        try:
            self._check(request, form)
            confirm = pb.ConfirmTotpRequest(code=form.get("code", ""))
            await self._browsers.confirm_app(request, confirm)
        except DomainError as error:
            if not error.violations:
                return await self._refused(request, error)
            waiting = await self._browsers.waiting_app(request)
            if waiting is None:
                return await self._refused(request, error)
            return set_up_page(request, Setup(waiting, ()), "confirm", error)
        return see(f"{ACCOUNT}?done=factor")

    async def remove_app(self, request: Request) -> Response:
        """Removes the app."""
        form = await self._form(request)
        try:
            self._check(request, form)
            await self._browsers.remove_app(request)
        except DomainError as error:
            return await self._refused(request, error)
        return see(f"{ACCOUNT}?done=no-factor")

    async def new_codes(self, request: Request) -> Response:
        """Shows new recovery codes, once."""
        form = await self._form(request)
        try:
            self._check(request, form)
            return await self._codes_page(request)
        except DomainError as error:
            return await self._refused(request, error)

    async def _codes_page(self, request: Request) -> Response:
        codes = await self._browsers.new_recovery_codes(request)
        values = {"codes": _items(codes)}
        return page_answer(Page(name="recovery_codes", language=language(request), values=values))

    async def add_passkey(self, request: Request) -> Response:
        """Shows recovery codes where there are none, and else asks the browser for a passkey."""
        form = await self._form(request)
        try:
            self._check(request, form)
            if not (await self._browsers.factors(request)).recovery_codes_left:
                return await self._codes_page(request)
            options = await self._browsers.new_passkey_options(request)
        except DomainError as error:
            return await self._refused(request, error)
        token = forms.form_token(request)
        page = Page(name="add_passkey", language=language(request))
        values = {"passkey": making(page, options, token)}
        return page_answer(
            Page(name=page.name, language=page.language, values=values), form_token=token
        )

    async def new_passkey(self, request: Request) -> Response:
        """Adds the passkey that the browser has made."""
        form = await self._form(request)
        made = pb.CreatePasskeyRequest(
            name=form.get("name", "").strip(), credential=form.get("credential", "")
        )
        try:
            self._check(request, form)
            await self._browsers.add_passkey(request, made)
        except DomainError as error:
            return await self._refused(request, error)
        return see(f"{ACCOUNT}?done=passkey")

    async def remove_passkey(self, request: Request) -> Response:
        """Removes a passkey."""
        form = await self._form(request)
        try:
            self._check(request, form)
            removed = pb.DeletePasskeyRequest(id=form.get("passkey", ""))
            await self._browsers.remove_passkey(request, removed)
        except DomainError as error:
            return await self._refused(request, error)
        return see(f"{ACCOUNT}?done=no-passkey")

    async def confirm_with_passkey(self, request: Request) -> Response:
        """Confirms with a passkey who uses the session."""
        form = await self._form(request)
        try:
            self._check(request, form)
            confirmed = await self._browsers.step_up_with_passkey(
                request, form.get("credential", "")
            )
        except DomainError as error:
            problem = error
            return await self._with_session(
                request, lambda session: self._confirm(request, session, problem)
            )
        response = see(f"{ACCOUNT}?done=confirmed")
        self._browsers.remember_token(response, confirmed)
        return response

    async def confirm_page(self, request: Request) -> Response:
        """Asks for the password again, and for a code where there is a second factor."""
        return await self._with_session(request, lambda session: self._confirm(request, session))

    async def confirm(self, request: Request) -> Response:
        """Confirms who uses the session."""
        form = await self._form(request)
        try:
            self._check(request, form)
            step_up = pb.StepUpRequest(
                password=form.get("password", ""), otp=form.get("code", "").strip()
            )
            confirmed = await self._browsers.step_up(request, step_up)
        except DomainError as error:
            problem = error
            return await self._with_session(
                request, lambda session: self._confirm(request, session, problem)
            )
        response = see(f"{ACCOUNT}?done=confirmed")
        self._browsers.remember_token(response, confirmed)
        return response

    async def _confirm(
        self, request: Request, session: OpenSession, error: DomainError | None = None
    ) -> Response:
        spoken = language(request)
        token = forms.form_token(request)
        problems = problems_of(spoken, error, "password") if error else []
        page = Page(name="confirm", language=spoken, problems=problems)
        provider = await self._around.providers.again(await self._browsers.session_id(request))
        factors = await self._browsers.factors(request)
        code = page.part("confirm_code") if factors.any else Html("")
        values = {
            "first": page.part(
                "confirm_elsewhere",
                url=f"{provider.start_url}&again=1&returnTo={quote(ACCOUNT)}",
                label=page.texts["sso_button"].format(provider.name),
            )
            if provider is not None
            else page.part("confirm_password", form=token, email=session.user.email, code=code),
            "passkey": asking(
                page, "passkey-confirm", await self._browsers.confirm_options(request), token
            ),
        }
        return page_answer(
            Page(name=page.name, language=spoken, values=values, problems=problems), error, token
        )

    async def link(self, request: Request) -> Response:
        """Leads to a provider, to link the account."""
        form = await self._form(request)
        try:
            self._check(request, form)
            change = pb.ChangePasswordRequest(current_password=form.get("current", ""))
            began = await self._browsers.begin_link(request, _provider(form), change)
        except DomainError as error:
            return await self._refused(request, error)
        response = going(request, "sso_going", began.url)
        keep_sso(response, began)
        return response

    async def unlink(self, request: Request) -> Response:
        """Takes a link back."""
        form = await self._form(request)
        try:
            self._check(request, form)
            await self._browsers.unlink(request, _provider(form))
        except DomainError as error:
            return await self._refused(request, error)
        return see(f"{ACCOUNT}?done=unlinked")

    async def _refused(self, request: Request, error: DomainError, label: str = "") -> Response:
        if error.reason == "STEP_UP_NEEDED":
            return see(CONFIRM)
        return await self._again(request, problems_of(language(request), error, label), error)

    async def _again(
        self, request: Request, problems: list[Problem], error: DomainError | None = None
    ) -> Response:
        return await self._with_session(
            request,
            lambda session: self._page(request, session, problems=problems, error=error),
        )

    async def _page(
        self,
        request: Request,
        session: OpenSession,
        *,
        notice: str = "",
        problems: list[Problem] | None = None,
        error: DomainError | None = None,
    ) -> Response:
        token = forms.form_token(request)
        page = Page(
            name="account", language=language(request), problems=problems or (), notice=notice
        )
        texts = page.texts
        factors = await self._browsers.factors(request)
        tenant = self._around.tenants.known(UUID(str(session.user.tenant_id)))
        links = [(CONSOLE, "console")] if self._around.console else []
        if session.user.role in invitations.INVITERS:
            links.append((invitations.PATH, "invitations"))
        return page_answer(
            Page(
                name=page.name,
                language=page.language,
                values={
                    "form": token,
                    "email": session.user.email,
                    "role": session.user.role.value,
                    **self._new_password(texts, protected=factors.any),
                    "organisation": tenant.name if tenant else str(session.user.tenant_id),
                    "providers": await self._links(page, token, session),
                    "factor": _factor_part(
                        page, factors, await self._browsers.passkeys(request), token
                    ),
                    "sessions": await self._sessions_part(request, page, token),
                    "links": Html(
                        "".join(
                            f'<a href="{path}">{texts[text]}</a>'
                            for path, text in [*links, ("/docs", "docs")]
                        )
                    ),
                },
                problems=page.problems,
                notice=notice,
            ),
            error,
            token,
        )

    async def _links(self, page: Page, token: str, session: OpenSession) -> Html:
        """The providers that the account may be linked with."""
        found = await self._browsers.linkable(session.user)
        if not found:
            return Html("")
        rows = (
            page.part(
                "unlink" if linked else "link_provider",
                form=token,
                provider=str(one.id),
                label=page.texts["unlink_button" if linked else "link_button"].format(one.name),
            )
            for one, linked in found
        )
        return page.part("links", rows=Html("".join(rows)))

    async def _sessions_part(self, request: Request, page: Page, token: str) -> Html:
        found, current = await self._browsers.sessions(request, _SHOWN_SESSIONS)
        rows = [_session_row(page, one, token, here=str(one.id) == current) for one in found.items]
        others = page.part("sessions_end", form=token) if len(found.items) > 1 else Html("")
        return Html(f'<ul class="people">{"".join(rows)}</ul>{others}')


def _provider(form: forms.Form) -> UUID:
    named = form.get("provider", "")
    if not is_uuid(named):
        raise DomainError(Code.NOT_FOUND, "NO_PROVIDER", "there is no such provider")
    return UUID(named)


def set_up_page(
    request: Request, setup: Setup, form: str, error: DomainError | None = None, target: str = ""
) -> Response:
    """The page with the key of an authenticator app.

    Args:
        form: where its code is sent to.
        target: where one wants to be afterwards.
    """
    spoken = language(request)
    problems = problems_of(spoken, error, "") if error else []
    page = Page(name="set_up", language=spoken, problems=problems)
    token = forms.form_token(request)
    codes = (
        page.part("set_up_codes", codes=_items(setup.codes))
        if setup.codes
        else page.part("set_up_codes_kept")
    )
    values = {
        "form": token,
        "next": target,
        "action": f"/auth/forms/{form}",
        "codes": codes,
        "qr": Html(qr_svg(setup.key.uri)),
        "secret": _in_groups(setup.key.secret),
    }
    return page_answer(
        Page(name=page.name, language=spoken, values=values, problems=problems), error, token
    )


def _factor_part(page: Page, factors: Factors, passkeys: Sequence[Passkey], token: str) -> Html:
    texts = page.texts
    said = [texts["factor_off"]]
    if factors.totp_since is not None:
        said = [texts["factor_on"].format(_day(factors.totp_since), factors.recovery_codes_left)]
    elif factors.any:
        said = [texts["factor_passkeys"].format(factors.recovery_codes_left)]
    if factors.required_from is not None and not factors.any:
        said.append(texts["factor_required"].format(_day(factors.required_from)))
    more = Html("")
    if factors.any:
        remove = page.part("account_remove_app", form=token) if factors.totp_since else Html("")
        more = page.part("account_factor_more", form=token, remove=remove)
    rows = "".join(_passkey_row(page, one, token) for one in passkeys)
    return page.part(
        "account_factor",
        said=" ".join(said),
        form=token,
        button=texts["another_app" if factors.totp_since else "set_up_app"],
        more=more,
        passkeys=Html(f'<ul class="people">{rows}</ul>' if rows else ""),
    )


def _passkey_row(page: Page, passkey: Passkey, token: str) -> Html:
    used = passkey.last_used_at
    return page.part(
        "passkey_row",
        id=str(passkey.id),
        called=passkey.name,
        about=page.texts["passkey_about"].format(
            _day(passkey.created_at), _day(used) if used else "-"
        ),
        form=token,
    )


def _session_row(page: Page, session: KnownSession, token: str, *, here: bool) -> Html:
    button = Html("") if here else page.part("session_end", form=token, id=str(session.id))
    return page.part(
        "session_row",
        id=str(session.id),
        what=known_program("de" if page.language == "de" else "en", session.user_agent)
        or session.user_agent
        or session.source_ip,
        where=session.source_ip,
        seen=f"{_day(session.last_seen_at)} {session.last_seen_at:%H:%M} UTC",
        here=page.texts["this_session"] if here else "",
        button=button,
    )


def _items(codes: Sequence[str]) -> Html:
    return Html("".join(f"<li><code>{code}</code></li>" for code in codes))


def _in_groups(secret: str) -> str:
    """In groups of four, which people type without losing their place."""
    return " ".join(secret[at : at + 4] for at in range(0, len(secret), 4))


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d}"
