"""Identity's gRPC side: translates between proto and domain, nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.access import Role
from servicekit.changes import Changes
from servicekit.feed import Cursor, Page, read_page
from servicekit.grpc_server import Context
from servicekit.ids import Clock
from servicekit.pagination import decode_token, encode_token, page_size
from servicekit.postgres import Database
from servicekit.values import timestamp
from services.identity import store
from services.identity.domain import EventCredential, OpenSession, Tenant, User
from services.identity.service.event_credentials import EventCredentials
from services.identity.service.sessions import Sessions
from services.identity.service.tenants import Tenants
from services.identity.service.users import Users
from services.identity.tokens import TokenSigner


def _session(session: OpenSession) -> pb.Session:
    return pb.Session(
        token=session.token,
        refresh_token=session.refresh_token,
        role=session.user.role.value,
        expires_at=timestamp(session.expires_at),
        email=session.user.email,
        tenant_id=str(session.user.tenant_id),
    )


def _tenant(tenant: Tenant) -> pb.Tenant:
    return pb.Tenant(
        id=str(tenant.id),
        name=tenant.name,
        parent_id=str(tenant.parent_id) if tenant.parent_id else None,
        reseller=tenant.kind == "reseller",
        created_at=timestamp(tenant.created_at),
        updated_at=timestamp(tenant.updated_at),
        code=tenant.code,
        kind=tenant.kind,
    )


def _user(user: User, invitation_token: str | None = None) -> pb.User:
    return pb.User(
        id=str(user.id),
        email=user.email,
        role=user.role.value,
        status=user.status,
        created_at=timestamp(user.created_at),
        tenant_id=str(user.tenant_id),
        invitation_token=invitation_token,
    )


def _timestamp(at: datetime | None) -> Timestamp | None:
    return timestamp(at) if at else None


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


class TenantApi(identity_pb2_grpc.TenantServiceServicer):
    """evergreen.v1.TenantService."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    async def ListTenants(
        self, request: pb.ListTenantsRequest, context: Context
    ) -> pb.ListTenantsResponse:
        """Lists the caller's subtree."""
        size = page_size(request.page_size)
        after = decode_token(request.page_token, UUID)
        found = await self._tenants.list(context.call, after, size + 1)
        return pb.ListTenantsResponse(
            tenants=map(_tenant, found[:size]),
            next_page_token=encode_token(str(found[size - 1].id)) if len(found) > size else "",
        )

    async def GetTenant(self, request: pb.GetTenantRequest, context: Context) -> pb.Tenant:
        """Answers one tenant."""
        return _tenant(await self._tenants.get(context.call, request.id))

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Context) -> pb.Tenant:
        """Adds a tenant."""
        return _tenant(
            await self._tenants.create(
                context.call, request.name, request.parent_id, request.reseller, request.code
            )
        )

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: Context) -> pb.Tenant:
        """Changes a tenant."""
        return _tenant(
            await self._tenants.update(
                context.call,
                request.id,
                name=request.name if request.HasField("name") else None,
                code=request.code if request.HasField("code") else None,
                reseller=request.reseller if request.HasField("reseller") else None,
                parent_id=request.parent_id or None,
            )
        )


class UserApi(identity_pb2_grpc.UserServiceServicer):
    """evergreen.v1.UserService."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def ListUsers(
        self, request: pb.ListUsersRequest, context: Context
    ) -> pb.ListUsersResponse:
        """Lists users."""
        size = page_size(request.page_size)
        after = decode_token(request.page_token, UUID)
        found = await self._users.list(context.call, request.org_id, after, size + 1)
        return pb.ListUsersResponse(
            users=map(_user, found[:size]),
            next_page_token=encode_token(str(found[size - 1].id)) if len(found) > size else "",
        )

    async def GetUser(self, request: pb.GetUserRequest, context: Context) -> pb.User:
        """Answers one user."""
        return _user(await self._users.get(context.call, request.id))

    async def CreateUser(self, request: pb.CreateUserRequest, context: Context) -> pb.User:
        """Adds a user."""
        password = request.password if request.HasField("password") else None
        user, invitation = await self._users.create(
            context.call, request.email, Role(request.role), request.tenant_id, password
        )
        return _user(user, invitation)

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: Context) -> pb.User:
        """Changes a user's role."""
        return _user(await self._users.set_role(context.call, request.id, Role(request.role)))

    async def DeactivateUser(self, request: pb.DeactivateUserRequest, context: Context) -> pb.User:
        """Disables a user."""
        return _user(await self._users.deactivate(context.call, request.id))

    async def InviteUser(self, request: pb.InviteUserRequest, context: Context) -> pb.User:
        """Invites a user (again)."""
        user, invitation = await self._users.invite(context.call, request.id)
        return _user(user, invitation)


class EventCredentialApi(identity_pb2_grpc.EventCredentialServiceServicer):
    """evergreen.v1.EventCredentialService."""

    def __init__(self, credentials: EventCredentials, url: str) -> None:
        self._credentials = credentials
        self._url = url

    def _shown(self, credential: EventCredential, secret: str | None = None) -> pb.EventCredential:
        return pb.EventCredential(
            id=str(credential.id),
            tenant_id=str(credential.tenant_id),
            name=credential.name,
            created_at=timestamp(credential.created_at),
            created_by=credential.created_by,
            expires_at=_timestamp(credential.expires_at),
            revoked_at=_timestamp(credential.revoked_at),
            last_used_at=_timestamp(credential.last_used_at),
            secret=secret,
            url=self._url,
        )

    async def ListEventCredentials(
        self, request: pb.ListEventCredentialsRequest, context: Context
    ) -> pb.ListEventCredentialsResponse:
        """Lists credentials."""
        size = page_size(request.page_size)
        after = decode_token(request.page_token, UUID)
        found = await self._credentials.list(context.call, request.org_id, after, size + 1)
        return pb.ListEventCredentialsResponse(
            credentials=map(self._shown, found[:size]),
            next_page_token=encode_token(str(found[size - 1].id)) if len(found) > size else "",
        )

    async def CreateEventCredential(
        self, request: pb.CreateEventCredentialRequest, context: Context
    ) -> pb.EventCredential:
        """Adds a credential."""
        expires_at = (
            request.expires_at.ToDatetime(tzinfo=UTC) if request.HasField("expires_at") else None
        )
        made, secret = await self._credentials.create(
            context.call, request.tenant_id, request.name, expires_at
        )
        return self._shown(made, secret)

    async def RevokeEventCredential(
        self, request: pb.RevokeEventCredentialRequest, context: Context
    ) -> pb.EventCredential:
        """Revokes a credential."""
        return self._shown(await self._credentials.revoke(context.call, request.id))


class TokenKeyApi(identity_pb2_grpc.TokenKeyServiceServicer):
    """evergreen.v1.TokenKeyService."""

    def __init__(self, signer: TokenSigner) -> None:
        self._jwks = pb.Jwks(keys=[pb.Jwk(**key.jwk()) for key in signer.public_keys])

    async def GetJwks(self, request: pb.GetJwksRequest, context: Context) -> pb.Jwks:
        """Answers the public keys."""
        return self._jwks


class InternalApi(identity_pb2_grpc.IdentityInternalServiceServicer):
    """evergreen.v1.IdentityInternalService."""

    def __init__(
        self, database: Database, changes: Changes, signer: TokenSigner, clock: Clock
    ) -> None:
        self._database = database
        self._changes = changes
        self._signer = signer
        self._clock = clock

    async def IssueDeviceToken(
        self, request: pb.IssueDeviceTokenRequest, context: Context
    ) -> pb.IssueDeviceTokenResponse:
        """Issues a token that is bound to one device."""
        token, expires_at = self._signer.device_token(
            request.device_id, request.tenant_id, request.token_version, self._clock()
        )
        return pb.IssueDeviceTokenResponse(device_token=token, expires_at=timestamp(expires_at))

    async def ListAccessChanges(
        self, request: pb.ListAccessChangesRequest, context: Context
    ) -> pb.ListAccessChangesResponse:
        """Feeds the other services; the cursor holds one position per source."""
        tenants_at, _, sessions_at = request.cursor.partition("/")

        async def read() -> tuple[Page, Page]:
            async with self._database.transaction() as connection:
                return (
                    await read_page(
                        connection, store.TENANT_CHANGES, Cursor.parse(tenants_at), request.limit
                    ),
                    await read_page(
                        connection, store.ENDED_SESSIONS, Cursor.parse(sessions_at), request.limit
                    ),
                )

        tenants, sessions = await self._changes.answer(
            read, request.wait_seconds, has_news=lambda found: any(page.rows for page in found)
        )
        return pb.ListAccessChangesResponse(
            tenants=[_tenant(store.tenant_of(row)) for row in tenants.rows],
            ended_sessions=[
                pb.EndedSession(session_id=str(row["id"]), ended_at=timestamp(row["ended_at"]))
                for row in sessions.rows
            ],
            next_cursor=f"{tenants.cursor}/{sessions.cursor}",
            more=tenants.more or sessions.more,
        )
