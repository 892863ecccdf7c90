"""API tokens and service accounts over gRPC."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.ids import Clock, given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import given_time, optional_timestamp, timestamp
from services.identity.api_tokens.accounts import ServiceAccounts
from services.identity.api_tokens.domain import ApiToken, ServiceAccount
from services.identity.api_tokens.service import ApiTokens, MadeToken, Wish


class ApiTokenApi(identity_pb2_grpc.ApiTokenServiceServicer):
    """evergreen.v1.ApiTokenService."""

    def __init__(self, tokens: ApiTokens, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock

    def _shown(self, token: ApiToken, secret: str | None = None) -> pb.ApiToken:
        return pb.ApiToken(
            id=str(token.id),
            name=token.name,
            tenant_id=str(token.tenant_id),
            # One of a SCIM source has none, whatever its row says.
            role="" if token.source_id else token.role.value,
            scopes=token.scopes,
            held_by=token.held_by,
            user_id=str(token.account_id or ""),
            service_account_id=str(token.service_account_id or ""),
            scim_source_id=str(token.source_id or ""),
            created_at=timestamp(token.created_at),
            created_by=token.created_by,
            expires_at=timestamp(token.expires_at),
            ends_at=timestamp(token.ends_at),
            status=token.status(self._clock()),
            replaced_by=str(token.replaced_by or ""),
            last_used_at=optional_timestamp(token.last_used_at),
            last_used_from=token.last_used_from,
            token=secret,
            etag=token.etag,
        )

    def _made(self, made: MadeToken) -> pb.ApiToken:
        return self._shown(made.token, made.secret)

    async def ListApiTokens(
        self, request: pb.ListApiTokensRequest, context: Context
    ) -> pb.ListApiTokensResponse:
        """Lists tokens."""
        after, size = asked_page(request, UUID)
        page = await self._tokens.list(
            context.call,
            given_id(request.org_id),
            after,
            size,
            service_account_id=given_id(request.service_account_id),
            source_id=given_id(request.scim_source_id),
            mine=request.mine,
            ended=request.show_ended,
        )
        return pb.ListApiTokensResponse(
            tokens=map(self._shown, page.items), next_page_token=page.token
        )

    async def GetApiToken(self, request: pb.GetApiTokenRequest, context: Context) -> pb.ApiToken:
        """Answers one token."""
        return self._shown(await self._tokens.get(context.call, UUID(request.id)))

    async def CreateApiToken(
        self, request: pb.CreateApiTokenRequest, context: Context
    ) -> pb.ApiToken:
        """Makes a token."""
        wish = Wish(
            name=request.name,
            scopes=tuple(request.scopes),
            role=Role(request.role) if request.role else None,
            tenant_id=given_id(request.org_id),
            service_account_id=given_id(request.service_account_id),
            source_id=given_id(request.scim_source_id),
            expires_at=given_time(request, "expires_at"),
        )
        return self._made(await self._tokens.create(context.call, wish))

    async def RotateApiToken(
        self, request: pb.RotateApiTokenRequest, context: Context
    ) -> pb.ApiToken:
        """Makes a token's successor."""
        made = await self._tokens.rotate(
            context.call,
            UUID(request.id),
            timedelta(hours=request.overlap_hours),
            given_time(request, "expires_at"),
        )
        return self._made(made)

    async def RevokeApiToken(
        self, request: pb.RevokeApiTokenRequest, context: Context
    ) -> pb.ApiToken:
        """Ends a token."""
        return self._shown(await self._tokens.revoke(context.call, UUID(request.id)))


class ServiceAccountApi(identity_pb2_grpc.ServiceAccountServiceServicer):
    """evergreen.v1.ServiceAccountService."""

    def __init__(self, accounts: ServiceAccounts) -> None:
        self._accounts = accounts

    async def ListServiceAccounts(
        self, request: pb.ListServiceAccountsRequest, context: Context
    ) -> pb.ListServiceAccountsResponse:
        """Lists service accounts."""
        after, size = asked_page(request, UUID)
        page = await self._accounts.list(
            context.call, given_id(request.org_id), after, size, deleted=request.show_deleted
        )
        return pb.ListServiceAccountsResponse(
            service_accounts=map(_account, page.items), next_page_token=page.token
        )

    async def GetServiceAccount(
        self, request: pb.GetServiceAccountRequest, context: Context
    ) -> pb.ServiceAccount:
        """Answers one service account."""
        return _account(await self._accounts.get(context.call, UUID(request.id)))

    async def CreateServiceAccount(
        self, request: pb.CreateServiceAccountRequest, context: Context
    ) -> pb.ServiceAccount:
        """Adds a service account."""
        return _account(
            await self._accounts.create(
                context.call, request.name, Role(request.role), given_id(request.org_id)
            )
        )

    async def UpdateServiceAccount(
        self, request: pb.UpdateServiceAccountRequest, context: Context
    ) -> pb.ServiceAccount:
        """Changes a service account."""
        return _account(
            await self._accounts.update(
                context.call,
                UUID(request.id),
                name=request.name if request.HasField("name") else None,
                role=Role(request.role) if request.HasField("role") else None,
            )
        )

    async def DeleteServiceAccount(
        self, request: pb.DeleteServiceAccountRequest, context: Context
    ) -> pb.ServiceAccount:
        """Deletes a service account."""
        return _account(await self._accounts.delete(context.call, UUID(request.id)))


def _account(account: ServiceAccount) -> pb.ServiceAccount:
    return pb.ServiceAccount(
        id=str(account.id),
        tenant_id=str(account.tenant_id),
        name=account.name,
        role=account.role.value,
        created_at=timestamp(account.created_at),
        created_by=account.created_by,
        etag=account.etag,
        deleted_at=optional_timestamp(account.deleted_at),
        deleted_by=account.deleted_by or None,
    )
