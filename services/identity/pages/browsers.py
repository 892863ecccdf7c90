"""Sessions of browsers: the use cases of `Sessions`, with cookies for tokens.

Every call passes the service's chain as an RPC does, with its row of the access table, its rules
and its audit entry. The gateway does not look at tokens here, so this does.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from evergreen.v1 import identity_pb2 as pb
from servicekit.call import CLAIMS, H_REQUEST_ID, H_SOURCE, H_TRACEPARENT, H_USER_AGENT, Call
from servicekit.errors import Code, DomainError, unauthenticated
from servicekit.rpc.chain import CallChain, check_rules
from servicekit.rpc.pagination import Page
from services.identity.authenticators.domain import DEVICE_COOKIE, DEVICE_LIFE
from services.identity.password_resets.service import PasswordResets, language_asked
from services.identity.second_factor.challenges import PendingLogin
from services.identity.second_factor.domain import CHALLENGE_LIFE, Factors
from services.identity.second_factor.passkey_store import Passkey
from services.identity.second_factor.passkeys import Passkeys
from services.identity.second_factor.service import AppKey, SecondFactors, Setup
from services.identity.sessions.domain import KnownSession, OpenSession
from services.identity.sessions.overview import SessionsOverview
from services.identity.sessions.service import Authentication
from services.identity.sso.accounts import SsoAccounts
from services.identity.sso.logins import LIFE as SSO_LIFE
from services.identity.sso.logins import Arrival, Began, SsoLogins
from services.identity.sso.logouts import SsoLogouts
from services.identity.sso.service import Button
from services.identity.token_keys.tokens import SESSION_TOKEN_LIFE, TokenSigner
from services.identity.users.domain import User

T = TypeVar("T")

SESSION: Final = "session"
REFRESH: Final = "session_refresh"
SSO_COOKIE: Final = "__Host-evergreen_sso"
_REFRESH_PATH: Final = "/api/auth"
"""Where the refresh token is needed; it goes nowhere else."""
_PASSED_ON: Final = (H_REQUEST_ID, H_SOURCE, H_TRACEPARENT, H_USER_AGENT)
_AUTH: Final = "/evergreen.v1.AuthService/"
_FACTORS: Final = "/evergreen.v1.SecondFactorService/"
_SESSIONS: Final = "/evergreen.v1.SessionService/"
WAITING: Final = "__Host-evergreen_login"
"""The cookie of a login that waits for the second factor."""


class Browsers:
    """Opens, refreshes and ends browsers' sessions.

    Args:
        session_life: how long a session can be refreshed.
    """

    def __init__(
        self,
        chain: CallChain,
        auth: Authentication,
        overview: SessionsOverview,
        factors: SecondFactors,
        passkeys: Passkeys,
        sso: SsoLogins,
        sso_accounts: SsoAccounts,
        sso_logouts: SsoLogouts,
        signer: TokenSigner,
        session_life: timedelta,
    ) -> None:
        self._chain = chain
        self._auth = auth
        self._overview = overview
        self._factors = factors
        self._sso = sso
        self._sso_accounts = sso_accounts
        self._sso_logouts = sso_logouts
        self._passkeys = passkeys
        self._signer = signer
        self._session_life = session_life

    async def begin_login(
        self, request: Request, login: pb.LoginRequest
    ) -> OpenSession | PendingLogin:
        """Opens a session, or begins a login that waits for the second factor.

        Raises:
            DomainError: as `Logins.begin_login`.
        """
        return await self._public(
            request,
            "Login",
            login,
            lambda call: self._auth.logins.begin_login(
                call, login.email, login.password, cookie(request, DEVICE_COOKIE)
            ),
        )

    async def waiting_login(self, request: Request) -> tuple[User, Factors, AppKey | None]:
        """The user of the browser's login that waits, and the user's factors.

        Raises:
            DomainError: as `SecondSteps.waiting`.
        """
        return await self._second_step(
            request, lambda _: self._auth.second_steps.waiting(cookie(request, WAITING))
        )

    async def finish_login(self, request: Request, code: str) -> OpenSession:
        """Opens the session of a login that waits.

        Raises:
            DomainError: as `SecondSteps.finish_login`.
        """
        device = cookie(request, DEVICE_COOKIE)
        return await self._second_step(
            request,
            lambda call: self._auth.second_steps.finish_login(
                call, cookie(request, WAITING), code, device
            ),
        )

    def passkey_options(self, bound: str) -> str:
        """What the browser is asked for a login with a passkey; empty where there can be none.

        Args:
            bound: what only this browser has.
        """
        return self._passkeys.login_options(bound)

    async def login_with_passkey(
        self, request: Request, credential: str, bound: str
    ) -> OpenSession:
        """Opens a session with a passkey alone.

        Raises:
            DomainError: as `SecondSteps.login_with_passkey`.
        """
        device = cookie(request, DEVICE_COOKIE)
        return await self._second_step(
            request, lambda _: self._auth.second_steps.login_with_passkey(credential, bound, device)
        )

    async def finish_with_passkey(self, request: Request, credential: str) -> OpenSession:
        """Opens the session of a login that waits, with a passkey.

        Raises:
            DomainError: as `SecondSteps.finish_with_passkey`.
        """
        device = cookie(request, DEVICE_COOKIE)
        return await self._second_step(
            request,
            lambda _: self._auth.second_steps.finish_with_passkey(
                cookie(request, WAITING), credential, device
            ),
        )

    async def step_up_with_passkey(self, request: Request, credential: str) -> OpenSession:
        """Confirms with a passkey who uses the session; answers its new token.

        Raises:
            DomainError: as `Confirming.step_up_with_passkey`.
        """

        async def work(call: Call) -> OpenSession:
            return await self._auth.confirming.step_up_with_passkey(call, credential)

        return await self.user(request, f"{_AUTH}StepUp", work)

    async def known_passkeys(self, request: Request, user: User) -> str:
        """What the browser is asked for the second step; empty where the user has no passkey."""

        async def work(_: Call) -> str:
            known = await self._passkeys.of_user(user)
            return self._passkeys.step_options(cookie(request, WAITING), known)

        return await self._second_step(request, work)

    async def passkeys(self, request: Request) -> list[Passkey]:
        """The user's passkeys."""
        return await self.user(request, f"{_FACTORS}GetSecondFactors", self._passkeys.own)

    async def confirm_options(self, request: Request) -> str:
        """What the browser is asked to confirm who uses the session; empty without a passkey."""

        async def work(call: Call) -> str:
            known = await self._passkeys.own(call)
            return self._passkeys.step_options(call.caller.session_id, known)

        return await self.user(request, f"{_FACTORS}GetSecondFactors", work)

    async def new_passkey_options(self, request: Request) -> str:
        """What the browser is asked to make.

        Raises:
            DomainError: as `Passkeys.creation_options`.
        """
        return await self.user(
            request, f"{_FACTORS}CreatePasskeyOptions", self._passkeys.creation_options
        )

    async def add_passkey(self, request: Request, made: pb.CreatePasskeyRequest) -> None:
        """Adds a passkey.

        Raises:
            DomainError: as `Passkeys.add`.
        """

        async def work(call: Call) -> None:
            check_rules(made)
            await self._passkeys.add(call, made.name, made.credential)

        await self.user(request, f"{_FACTORS}CreatePasskey", work)

    async def remove_passkey(self, request: Request, removed: pb.DeletePasskeyRequest) -> None:
        """Removes a passkey.

        Raises:
            DomainError: as `Passkeys.remove`.
        """

        async def work(call: Call) -> None:
            check_rules(removed)
            await self._passkeys.remove(call, UUID(removed.id))

        await self.user(request, f"{_FACTORS}DeletePasskey", work)

    async def set_up_factor(self, request: Request) -> Setup:
        """Makes what somebody needs who gets in only with a second factor.

        Raises:
            DomainError: as `SecondSteps.set_up_factor`.
        """
        return await self._second_step(
            request, lambda _: self._auth.second_steps.set_up_factor(cookie(request, WAITING))
        )

    async def confirm_factor(self, request: Request, code: str) -> OpenSession:
        """Lets what was set up count, and opens the session.

        Raises:
            DomainError: as `SecondSteps.confirm_factor`.
        """
        device = cookie(request, DEVICE_COOKIE)
        return await self._second_step(
            request,
            lambda _: self._auth.second_steps.confirm_factor(
                cookie(request, WAITING), code, device
            ),
        )

    async def login(self, request: Request, login: pb.LoginRequest) -> OpenSession:
        """Opens a session, with both factors at once.

        Raises:
            DomainError: as `Logins.login`.
        """
        return await self._public(
            request,
            "Login",
            login,
            lambda call: self._auth.logins.login(
                call, login.email, login.password, cookie(request, DEVICE_COOKIE), login.otp
            ),
        )

    async def begin(
        self,
        request: Request,
        provider_id: UUID | None,
        email: str,
        return_to: str,
        *,
        again: bool = False,
    ) -> Began:
        """Where the browser goes to sign in with a provider, and its cookie.

        Args:
            again: as for `SsoLogins.begin`.

        Raises:
            DomainError: as `SsoLogins.begin`.
        """
        asked = pb.ListLoginMethodsRequest(email=email)
        return await self._public(
            request,
            "ListLoginMethods",
            asked,
            lambda _: self._sso.begin(provider_id, email, return_to, again=again),
        )

    async def arrive(
        self, request: Request, provider_id: UUID, query: Mapping[str, str]
    ) -> tuple[Arrival, OpenSession | PendingLogin | None]:
        """Who comes back from a provider, with the session that was opened, or the login that waits
        for the second factor; with neither where an account was linked.

        Raises:
            DomainError: as `SsoLogins.arrive`, `Logins.enter` and `Logins.link`.
        """

        async def arrive(_: Call) -> tuple[Arrival, OpenSession | PendingLogin | None]:
            arrival = await self._sso.arrive(provider_id, query, cookie(request, SSO_COOKIE))
            if arrival.link is not None:
                await self._auth.logins.link(arrival)
                return arrival, None
            device = cookie(request, DEVICE_COOKIE)
            return arrival, await self._auth.logins.enter(arrival, device)

        return await self._chain.run(f"{_AUTH}Login", _headers(request), arrive)

    async def provider_says(self, request: Request, provider_id: UUID, token: str) -> None:
        """Ends the sessions that a provider says are over.

        Raises:
            DomainError: as `SsoLogouts.log_out`.
        """

        async def work(_: Call) -> None:
            await self._sso_logouts.log_out(provider_id, token)

        await self._chain.run(f"{_AUTH}Login", _headers(request), work)

    async def begin_link(
        self, request: Request, provider_id: UUID, change: pb.ChangePasswordRequest
    ) -> Began:
        """Where the browser goes to link the user's account with a provider.

        Raises:
            DomainError: INVALID_ARGUMENT when the password is wrong; PERMISSION_DENIED without a
                fresh login; else as `SsoLogins.begin`.
        """

        async def work(call: Call) -> Began:
            user = await self._auth.passwords.confirm_password(call, change.current_password)
            session = UUID(call.caller.session_id)
            return await self._sso.begin(provider_id, user.email, "", link=user.id, session=session)

        # It opens the account from elsewhere, as a factor does: with a fresh login alone.
        return await self.user(request, f"{_FACTORS}CreateTotp", work)

    async def unlink(self, request: Request, provider_id: UUID) -> None:
        """Takes a link back.

        Raises:
            DomainError: as `SsoAccounts.unlink`.
        """

        async def work(call: Call) -> None:
            caller = call.caller
            await self._sso_accounts.unlink(UUID(caller.id), UUID(caller.tenant_id), provider_id)

        await self.user(request, f"{_AUTH}ChangePassword", work)

    async def linkable(self, user: User) -> Sequence[tuple[Button, bool]]:
        """The providers that a user's account may be linked with, and whether it is."""
        return await self._sso_accounts.linkable(user.id, user.tenant_id)

    async def accept_invitation(
        self, request: Request, accepted: pb.AcceptInvitationRequest
    ) -> OpenSession | PendingLogin:
        """Sets the password of an invited user and opens a session, or begins a login that waits
        for the second factor.

        Raises:
            DomainError: as `OwnPasswords.begin_with_invitation`.
        """
        return await self._public(
            request,
            "AcceptInvitation",
            accepted,
            lambda _: self._auth.passwords.begin_with_invitation(
                accepted.invitation_token, accepted.password, cookie(request, DEVICE_COOKIE)
            ),
        )

    async def ask_for_reset(
        self, request: Request, resets: PasswordResets, asked: pb.ForgotPasswordRequest
    ) -> None:
        """Has a link for a new password sent to somebody.

        Raises:
            DomainError: INVALID_ARGUMENT for what is too long to be an address.
        """
        await self._public(
            request,
            "ForgotPassword",
            asked,
            lambda call: resets.ask(call, asked.email, language_asked(asked)),
        )

    async def refresh(self, request: Request) -> OpenSession:
        """Exchanges the browser's refresh token.

        Raises:
            DomainError: as `Sessions.refresh`.
        """
        refresh = pb.RefreshSessionRequest(refresh_token=cookie(request, REFRESH))
        if not refresh.refresh_token:
            raise _not_logged_in()
        return await self._public(
            request,
            "RefreshSession",
            refresh,
            lambda _: self._auth.sessions.refresh(refresh.refresh_token),
        )

    async def current(self, request: Request) -> OpenSession:
        """The browser's session.

        Raises:
            DomainError: UNAUTHENTICATED when it has none.
        """

        async def current(call: Call) -> OpenSession:
            return self._auth.sessions.current(call)

        return await self.user(request, f"{_AUTH}GetSession", current)

    async def change_password(self, request: Request, change: pb.ChangePasswordRequest) -> None:
        """Sets the user's own password.

        Raises:
            DomainError: as `OwnPasswords.change_password`; UNAUTHENTICATED without a session.
        """

        async def work(call: Call) -> None:
            check_rules(change)
            await self._auth.passwords.change_password(
                call, change.current_password, change.new_password
            )

        await self.user(request, f"{_AUTH}ChangePassword", work)

    async def session_id(self, request: Request) -> UUID:
        """Which session the browser has."""

        async def work(call: Call) -> UUID:
            return UUID(call.caller.session_id)

        return await self.user(request, f"{_AUTH}GetSession", work)

    async def step_up(self, request: Request, step_up: pb.StepUpRequest) -> OpenSession:
        """Confirms who uses the session; answers its new token.

        Raises:
            DomainError: as `Confirming.step_up`.
        """

        async def work(call: Call) -> OpenSession:
            check_rules(step_up)
            return await self._auth.confirming.step_up(call, step_up.password, step_up.otp)

        return await self.user(request, f"{_AUTH}StepUp", work)

    async def factors(self, request: Request) -> Factors:
        """The user's second factors."""
        return await self.user(request, f"{_FACTORS}GetSecondFactors", self._factors.own)

    async def set_up_app(self, request: Request) -> Setup:
        """Makes a key of an authenticator app, and recovery codes where there are none."""
        return await self.user(request, f"{_FACTORS}CreateTotp", self._factors.set_up_own)

    async def waiting_app(self, request: Request) -> AppKey | None:
        """The key of an app that waits for its first code."""
        return await self.user(request, f"{_FACTORS}CreateTotp", self._factors.waiting_own)

    async def confirm_app(self, request: Request, confirm: pb.ConfirmTotpRequest) -> None:
        """Lets an app count.

        Raises:
            DomainError: as `SecondFactors.confirm_totp`.
        """

        async def work(call: Call) -> None:
            check_rules(confirm)
            await self._factors.confirm_totp(call, confirm.code)

        await self.user(request, f"{_FACTORS}ConfirmTotp", work)

    async def remove_app(self, request: Request) -> None:
        """Removes the app.

        Raises:
            DomainError: as `SecondFactors.delete_totp`.
        """
        await self.user(request, f"{_FACTORS}DeleteTotp", self._factors.delete_totp)

    async def new_recovery_codes(self, request: Request) -> list[str]:
        """Makes recovery codes."""
        return await self.user(
            request, f"{_FACTORS}CreateRecoveryCodes", self._factors.create_recovery_codes
        )

    async def sessions(self, request: Request, limit: int) -> tuple[Page[KnownSession, UUID], str]:
        """The user's open sessions, newest first, and the id of the browser's own."""

        async def work(call: Call) -> tuple[Page[KnownSession, UUID], str]:
            return await self._overview.own(call, None, limit), call.caller.session_id

        return await self.user(request, f"{_SESSIONS}ListSessions", work)

    async def end_session(self, request: Request, session_id: str) -> None:
        """Ends one of the user's sessions; all but the browser's own without an id.

        Raises:
            DomainError: NOT_FOUND when it is none of the user's.
        """
        if not session_id:
            await self.user(request, f"{_SESSIONS}EndOtherSessions", self._overview.end_others)
            return
        end = pb.EndSessionRequest(id=session_id)

        async def work(call: Call) -> None:
            check_rules(end)
            await self._overview.end_own(call, UUID(end.id))

        await self.user(request, f"{_SESSIONS}EndSession", work)

    async def logout(self, request: Request) -> UUID | None:
        """Ends the browser's session, if it has one; answers which one it was."""

        async def work(call: Call) -> UUID:
            await self._auth.sessions.logout(call)
            return UUID(call.caller.session_id)

        try:
            claims = self._claims(request, lapsed=True)
            if claims is None:
                # The browser has dropped the token of the last hour.
                renewed = await self.refresh(request)
                claims = self._signer.session_claims(renewed.token)
            return await self.user(request, f"{_AUTH}Logout", work, claims)
        except DomainError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
        return None

    async def leave(self, session_id: UUID) -> str:
        """Where the browser goes to sign out at a provider, too; empty for nowhere."""
        return await self._sso_logouts.leave(session_id)

    async def user(
        self,
        request: Request,
        rpc: str,
        work: Callable[[Call], Coroutine[Any, Any, T]],
        claims: Mapping[str, Any] | None = None,
    ) -> T:
        """Does an RPC's work for the user whose session the browser has.

        Raises:
            DomainError: UNAUTHENTICATED without a session, and as the chain and the work.
        """
        claims = claims or self._claims(request)
        if claims is None:
            raise _not_logged_in()
        said = {CLAIMS[name]: str(value) for name, value in claims.items() if name in CLAIMS}
        return await self._chain.run(rpc, {**_headers(request), **said}, work)

    def remember(self, response: Response, session: OpenSession) -> None:
        """Sets the cookies of a session."""
        _set(response, SESSION, session.token, "/", SESSION_TOKEN_LIFE)
        _set(response, REFRESH, session.refresh_token, _REFRESH_PATH, self._session_life)
        if session.device:
            _set(response, DEVICE_COOKIE, session.device, "/", DEVICE_LIFE)

    def remember_token(self, response: Response, session: OpenSession) -> None:
        """Sets the cookie of a session's new token alone."""
        _set(response, SESSION, session.token, "/", SESSION_TOKEN_LIFE)

    def remember_login(self, response: Response, pending: PendingLogin) -> None:
        """Sets the cookie of a login that waits for the second factor."""
        _set(response, WAITING, pending.secret, "/", CHALLENGE_LIFE)

    def forget_login(self, response: Response) -> None:
        """Clears it."""
        response.delete_cookie(WAITING, "/", secure=True, httponly=True, samesite="strict")

    def forget(self, response: Response) -> None:
        """Clears the cookies of a session."""
        for name, path in ((SESSION, "/"), (REFRESH, _REFRESH_PATH)):
            response.delete_cookie(name, path, secure=True, httponly=True, samesite="strict")

    async def _second_step(
        self, request: Request, use_case: Callable[[Call], Coroutine[Any, Any, T]]
    ) -> T:
        """Does what belongs to a login."""
        return await self._chain.run(f"{_AUTH}Login", _headers(request), use_case)

    async def _public(
        self,
        request: Request,
        method: str,
        message: Message,
        use_case: Callable[[Call], Coroutine[Any, Any, T]],
    ) -> T:
        async def work(call: Call) -> T:
            check_rules(message)
            return await use_case(call)

        return await self._chain.run(_AUTH + method, _headers(request), work)

    def _claims(self, request: Request, *, lapsed: bool = False) -> dict[str, Any] | None:
        token = cookie(request, SESSION)
        return self._signer.session_claims(token, lapsed=lapsed) if token else None


def cookie(request: Request, name: str) -> str:
    """The value of a cookie, empty when there is none; of several, the one of the nearest path.

    Of what looks like a blank only those of RFC 6265 are taken off. With any other one in front of
    it, a sibling domain's server may set the name of a `__Host-` cookie.
    """
    for part in request.headers.get("cookie", "").split(";"):
        key, _, value = part.strip(" \t").partition("=")
        if key == name:
            return value
    return ""


def _headers(request: Request) -> dict[str, str]:
    """What the gateway says of a call by somebody whom it does not know."""
    return {name: request.headers[name] for name in _PASSED_ON if name in request.headers}


def _set(response: Response, name: str, value: str, path: str, life: timedelta) -> None:
    strict: Literal["strict"] = "strict"
    response.set_cookie(
        name,
        value,
        max_age=int(life.total_seconds()),
        expires=datetime.now(UTC) + life,
        path=path,
        secure=True,
        httponly=True,
        samesite=strict,
    )


def keep_sso(response: Response, began: Began) -> None:
    """Sets the cookie of a login that is under way elsewhere. It comes back with the browser, from
    the provider's site, so it is not strict."""
    response.set_cookie(
        SSO_COOKIE,
        began.cookie,
        max_age=int(SSO_LIFE.total_seconds()),
        path="/",
        secure=True,
        httponly=True,
        samesite="lax",
    )


def forget_sso(response: Response) -> None:
    """Clears the cookie of a login that was under way."""
    response.delete_cookie(SSO_COOKIE, "/", secure=True, httponly=True, samesite="lax")


def _not_logged_in() -> DomainError:
    return unauthenticated("NO_USER_TOKEN", "log in first")
