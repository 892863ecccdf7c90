"""Sessions over gRPC."""

from __future__ import annotations

from uuid import UUID

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.pagination import Page, asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.identity.password_resets.service import PasswordResets, language_asked
from services.identity.sessions.domain import KnownSession, OpenSession
from services.identity.sessions.overview import SessionsOverview
from services.identity.sessions.service import Authentication
from services.identity.sso.service import Providers


def _session(session: OpenSession) -> pb.Session:
    return pb.Session(
        token=session.token,
        refresh_token=session.refresh_token,
        role=session.user.role.value,
        expires_at=timestamp(session.expires_at),
        email=session.user.email,
        tenant_id=str(session.user.tenant_id),
    )


class AuthApi(identity_pb2_grpc.AuthServiceServicer):
    """evergreen.v1.AuthService."""

    def __init__(self, auth: Authentication, providers: Providers, resets: PasswordResets) -> None:
        self._auth = auth
        self._resets = resets
        self._providers = providers

    async def Login(self, request: pb.LoginRequest, context: Context) -> pb.Session:
        """Opens a session."""
        session = await self._auth.logins.login(
            context.call, request.email, request.password, otp=request.otp
        )
        return _session(session)

    async def RefreshSession(
        self, request: pb.RefreshSessionRequest, context: Context
    ) -> pb.Session:
        """Exchanges a refresh token."""
        return _session(await self._auth.sessions.refresh(request.refresh_token))

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.Session:
        """Answers the caller's session."""
        return _session(self._auth.sessions.current(context.call))

    async def Logout(self, request: pb.LogoutRequest, context: Context) -> pb.LogoutResponse:
        """Ends the caller's session."""
        await self._auth.sessions.logout(context.call)
        return pb.LogoutResponse()

    async def StepUp(self, request: pb.StepUpRequest, context: Context) -> pb.Session:
        """Confirms who uses the caller's session."""
        return _session(
            await self._auth.confirming.step_up(context.call, request.password, request.otp)
        )

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, context: Context
    ) -> pb.ChangePasswordResponse:
        """Sets the caller's password."""
        await self._auth.passwords.change_password(
            context.call, request.current_password, request.new_password
        )
        return pb.ChangePasswordResponse()

    async def ForgotPassword(
        self, request: pb.ForgotPasswordRequest, context: Context
    ) -> pb.ForgotPasswordResponse:
        """Has a link for a new password sent."""
        await self._resets.ask(context.call, request.email, language_asked(request))
        return pb.ForgotPasswordResponse(mail_is_on=self._resets.on)

    async def AcceptInvitation(
        self, request: pb.AcceptInvitationRequest, context: Context
    ) -> pb.Session:
        """Sets the password of an invited user."""
        return _session(
            await self._auth.passwords.accept_invitation(
                context.call, request.invitation_token, request.password, request.otp
            )
        )

    async def ListLoginMethods(
        self, request: pb.ListLoginMethodsRequest, context: Context
    ) -> pb.ListLoginMethodsResponse:
        """Says how people sign in."""
        found = await self._providers.buttons(request.org, request.email)
        return pb.ListLoginMethodsResponse(
            providers=[
                pb.LoginMethod(id=str(one.id), name=one.name, start_url=one.start_url)
                for one in found
            ]
        )


class SessionApi(identity_pb2_grpc.SessionServiceServicer):
    """evergreen.v1.SessionService."""

    def __init__(self, sessions: SessionsOverview) -> None:
        self._sessions = sessions

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """Lists the caller's own sessions."""
        before, size = asked_page(request, UUID)
        page = await self._sessions.own(context.call, before, size)
        return _page(page, context.call.caller.session_id)

    async def EndSession(
        self, request: pb.EndSessionRequest, context: Context
    ) -> pb.EndSessionsResponse:
        """Ends one of the caller's own sessions."""
        ended = await self._sessions.end_own(context.call, UUID(request.id))
        return pb.EndSessionsResponse(ended=ended)

    async def EndOtherSessions(
        self, request: pb.EndOtherSessionsRequest, context: Context
    ) -> pb.EndSessionsResponse:
        """Ends the caller's own sessions but this one."""
        return pb.EndSessionsResponse(ended=await self._sessions.end_others(context.call))

    async def ListUserSessions(
        self, request: pb.ListUserSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """Lists a user's sessions."""
        before, size = asked_page(request, UUID)
        page = await self._sessions.of_user(context.call, UUID(request.id), before, size)
        return _page(page, context.call.caller.session_id)

    async def EndUserSessions(
        self, request: pb.EndUserSessionsRequest, context: Context
    ) -> pb.EndSessionsResponse:
        """Ends a user's sessions."""
        ended = await self._sessions.end_of_user(
            context.call, UUID(request.id), given_id(request.session_id)
        )
        return pb.EndSessionsResponse(ended=ended)


def _page(page: Page[KnownSession, UUID], current: str) -> pb.ListSessionsResponse:
    return pb.ListSessionsResponse(
        sessions=(
            pb.UserSession(
                id=str(one.id),
                created_at=timestamp(one.created_at),
                last_seen_at=timestamp(one.last_seen_at),
                expires_at=timestamp(one.expires_at),
                address=one.source_ip,
                user_agent=one.user_agent,
                current=str(one.id) == current,
                methods=one.methods,
            )
            for one in page.items
        ),
        next_page_token=page.token,
    )
