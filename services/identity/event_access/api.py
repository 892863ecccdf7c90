"""Event credentials over gRPC."""

from __future__ import annotations

from uuid import UUID

from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.ids import Clock, given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import given_time, optional_timestamp, timestamp
from services.identity.event_access.domain import EventCredential
from services.identity.event_access.service import EventCredentials
from services.identity.users.api import org_of


class EventCredentialApi(identity_pb2_grpc.EventCredentialServiceServicer):
    """evergreen.v1.EventCredentialService."""

    def __init__(self, credentials: EventCredentials, url: str, clock: Clock) -> None:
        self._credentials = credentials
        self._url = url
        self._clock = clock

    def _shown(self, credential: EventCredential, secret: str | None = None) -> pb.EventCredential:
        return pb.EventCredential(
            id=str(credential.id),
            tenant_id=str(credential.tenant_id),
            name=credential.name,
            created_at=timestamp(credential.created_at),
            created_by=credential.created_by,
            expires_at=timestamp(credential.expires_at),
            revoked_at=optional_timestamp(credential.revoked_at),
            last_used_at=optional_timestamp(credential.last_used_at),
            secret=secret,
            url=self._url,
            held_by=credential.held_by,
            status=credential.status(self._clock()),
            etag=credential.etag,
        )

    async def ListEventCredentials(
        self, request: pb.ListEventCredentialsRequest, context: Context
    ) -> pb.ListEventCredentialsResponse:
        """Lists credentials."""
        after, size = asked_page(request, UUID)
        page = await self._credentials.list(context.call, given_id(request.org_id), after, size)
        return pb.ListEventCredentialsResponse(
            credentials=map(self._shown, page.items), next_page_token=page.token
        )

    async def CreateEventCredential(
        self, request: pb.CreateEventCredentialRequest, context: Context
    ) -> pb.EventCredential:
        """Adds a credential."""
        made, secret = await self._credentials.create(
            context.call, org_of(request), request.name, given_time(request, "expires_at")
        )
        return self._shown(made, secret)

    async def TakeOverEventCredential(
        self, request: pb.TakeOverEventCredentialRequest, context: Context
    ) -> pb.EventCredential:
        """Makes the caller a credential's holder."""
        return self._shown(await self._credentials.take_over(context.call, UUID(request.id)))

    async def RevokeEventCredential(
        self, request: pb.RevokeEventCredentialRequest, context: Context
    ) -> pb.EventCredential:
        """Revokes a credential."""
        return self._shown(await self._credentials.revoke(context.call, UUID(request.id)))
