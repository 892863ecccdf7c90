"""Sessions over gRPC."""

from __future__ import annotations

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.identity.sessions.domain import OpenSession
from services.identity.sessions.service import Sessions


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

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def Login(self, request: pb.LoginRequest, context: Context) -> pb.Session:
        """Opens a session."""
        session = await self._sessions.login(context.call, request.email, request.password)
        return _session(session)

    async def RefreshSession(
        self, request: pb.RefreshSessionRequest, context: Context
    ) -> pb.Session:
        """Exchanges a refresh token."""
        return _session(await self._sessions.refresh(request.refresh_token))

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.Session:
        """Answers the caller's session."""
        return _session(self._sessions.current(context.call))

    async def Logout(self, request: pb.LogoutRequest, context: Context) -> pb.LogoutResponse:
        """Ends the caller's session."""
        await self._sessions.logout(context.call)
        return pb.LogoutResponse()

    async def ChangePassword(
        self, request: pb.ChangePasswordRequest, context: Context
    ) -> pb.ChangePasswordResponse:
        """Sets the caller's password."""
        await self._sessions.change_password(
            context.call, request.current_password, request.new_password
        )
        return pb.ChangePasswordResponse()

    async def AcceptInvitation(
        self, request: pb.AcceptInvitationRequest, context: Context
    ) -> pb.Session:
        """Sets the password of an invited user."""
        return _session(
            await self._sessions.accept_invitation(request.invitation_token, request.password)
        )
