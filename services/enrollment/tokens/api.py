"""Enrollment tokens over gRPC."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from evergreen.v1 import enrollment_pb2 as pb
from evergreen.v1 import enrollment_pb2_grpc
from servicekit.ids import Clock, given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import given_time, optional_timestamp, timestamp
from services.enrollment.tokens.service import Shown, Tokens


def _token(shown: Shown, at: datetime) -> pb.EnrollmentToken:
    token = shown.token
    return pb.EnrollmentToken(
        id=str(token.id),
        org_id=str(token.tenant_id),
        name=token.name,
        created_at=timestamp(token.created_at),
        expires_at=timestamp(token.expires_at),
        max_uses=token.max_uses,
        uses=token.uses,
        serials=shown.serials,
        require_approval=token.require_approval,
        last_used_at=optional_timestamp(token.last_used_at),
        revoked_at=optional_timestamp(token.revoked_at),
        status=token.status(at),
        secret=shown.secret,
        pre_shared_key=shown.pre_shared_key,
        etag=token.etag,
        labels=token.labels,
        group_ids=map(str, token.group_ids),
        only_expected=token.only_expected,
        policy_key_id=token.policy_key_id,
        policy_key_pem=shown.policy_key_pem,
    )


class EnrollmentTokenApi(enrollment_pb2_grpc.EnrollmentTokenServiceServicer):
    """evergreen.v1.EnrollmentTokenService."""

    def __init__(self, tokens: Tokens, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock

    async def ListEnrollmentTokens(
        self, request: pb.ListEnrollmentTokensRequest, context: Context
    ) -> pb.ListEnrollmentTokensResponse:
        """Lists tokens."""
        before, size = asked_page(request, UUID)
        page = await self._tokens.list(context.call, given_id(request.org_id), before, size)
        at = self._clock()
        return pb.ListEnrollmentTokensResponse(
            enrollment_tokens=[_token(shown, at) for shown in page.items],
            next_page_token=page.token,
        )

    async def GetEnrollmentToken(
        self, request: pb.GetEnrollmentTokenRequest, context: Context
    ) -> pb.EnrollmentToken:
        """Answers one token."""
        return _token(await self._tokens.get(context.call, UUID(request.id)), self._clock())

    async def CreateEnrollmentToken(
        self, request: pb.CreateEnrollmentTokenRequest, context: Context
    ) -> pb.EnrollmentToken:
        """Adds a token."""
        shown = await self._tokens.create(
            context.call,
            UUID(request.org_id),
            request.name,
            expires_at=given_time(request, "expires_at"),
            max_uses=request.max_uses,
            serials=request.serials,
            require_approval=request.require_approval,
            labels=request.labels,
            group_ids=[*map(UUID, request.group_ids)],
            only_expected=request.only_expected,
            policy_key_id=request.policy_key_id,
        )
        return _token(shown, self._clock())

    async def RevokeEnrollmentToken(
        self, request: pb.RevokeEnrollmentTokenRequest, context: Context
    ) -> pb.EnrollmentToken:
        """Revokes a token."""
        return _token(await self._tokens.revoke(context.call, UUID(request.id)), self._clock())
