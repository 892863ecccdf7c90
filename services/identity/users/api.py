"""Users over gRPC."""

from __future__ import annotations

from uuid import UUID

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.errors import invalid_field
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from services.identity.users.domain import Invitation, User, invitation_link
from services.identity.users.service import Users


def _user(
    user: User, invitation: Invitation | None = None, invitation_link: str | None = None
) -> pb.User:
    return pb.User(
        id=str(user.id),
        email=user.email,
        role=user.role.value,
        status=user.status,
        created_at=timestamp(user.created_at),
        tenant_id=str(user.tenant_id),
        invitation_token=invitation.token if invitation else None,
        invitation_link=invitation_link,
        invitation_mail=invitation.mail if invitation else None,
        etag=user.etag,
        last_login_at=optional_timestamp(user.last_login_at),
        deleted_at=optional_timestamp(user.deleted_at),
        deleted_by=user.deleted_by or None,
        origin=user.origin,
        source_id=str(user.source_id) if user.source_id else None,
        disabled_by=user.disabled_by,
    )


def org_of(
    request: pb.CreateUserRequest | pb.UpdateUserRequest | pb.CreateEventCredentialRequest,
) -> UUID | None:
    """The tenant that a request names, by either of the field's names.

    Raises:
        DomainError: INVALID_ARGUMENT when they name two.
    """
    org_id, tenant_id = given_id(request.org_id), given_id(request.tenant_id)
    if org_id and tenant_id and org_id != tenant_id:
        raise invalid_field("orgId", "must be the same as tenantId, its older name; give one")
    return org_id or tenant_id


class UserApi(identity_pb2_grpc.UserServiceServicer):
    """evergreen.v1.UserService."""

    def __init__(self, users: Users, public_url: str = "") -> None:
        self._users = users
        self._public_url = public_url

    def _invited(self, user: User, invitation: Invitation | None) -> pb.User:
        """A user with what the invited person needs, which is shown once."""
        link = invitation_link(self._public_url, invitation.token) if invitation else None
        return _user(user, invitation, link)

    async def ListUsers(
        self, request: pb.ListUsersRequest, context: Context
    ) -> pb.ListUsersResponse:
        """Lists users."""
        after, size = asked_page(request, UUID)
        page = await self._users.list(
            context.call, given_id(request.org_id), after, size, deleted=request.show_deleted
        )
        return pb.ListUsersResponse(users=map(_user, page.items), next_page_token=page.token)

    async def GetUser(self, request: pb.GetUserRequest, context: Context) -> pb.User:
        """Answers one user."""
        return _user(await self._users.get(context.call, UUID(request.id)))

    async def CreateUser(self, request: pb.CreateUserRequest, context: Context) -> pb.User:
        """Adds a user."""
        password = request.password if request.HasField("password") else None
        user, invitation = await self._users.create(
            context.call, request.email, Role(request.role), org_of(request), password
        )
        return self._invited(user, invitation)

    async def UpdateUser(self, request: pb.UpdateUserRequest, context: Context) -> pb.User:
        """Changes a user."""
        user, invitation = await self._users.update(
            context.call,
            UUID(request.id),
            role=Role(request.role) if request.HasField("role") else None,
            email=request.email if request.HasField("email") else None,
            tenant_id=org_of(request),
            validate_only=request.validate_only,
        )
        return self._invited(user, invitation)

    async def DeleteUser(self, request: pb.DeleteUserRequest, context: Context) -> pb.User:
        """Deletes a deactivated user."""
        return _user(
            await self._users.delete(
                context.call, UUID(request.id), validate_only=request.validate_only
            )
        )

    async def DeactivateUser(self, request: pb.DeactivateUserRequest, context: Context) -> pb.User:
        """Disables a user."""
        return _user(await self._users.deactivate(context.call, UUID(request.id)))

    async def ReactivateUser(self, request: pb.ReactivateUserRequest, context: Context) -> pb.User:
        """Lets a deactivated user of a directory in again."""
        return _user(await self._users.reactivate(context.call, UUID(request.id)))

    async def InviteUser(self, request: pb.InviteUserRequest, context: Context) -> pb.User:
        """Invites a user (again)."""
        user, invitation = await self._users.invite(context.call, UUID(request.id))
        return self._invited(user, invitation)
