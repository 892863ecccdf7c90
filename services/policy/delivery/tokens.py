"""New tokens for devices whose own is past half of its life."""

from __future__ import annotations

import asyncio
from datetime import UTC
from typing import Final
from uuid import UUID

import grpc

from contract.events.policy import DeviceTokenRotated, TokenExpiry
from evergreen.v1 import identity_pb2, identity_pb2_grpc
from servicekit.call import Caller
from servicekit.data.postgres import Database, Scope
from servicekit.errors import DomainError
from servicekit.ids import Clock
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from services.policy.bounds import Hourly

log = logs.get(__name__)

_IDENTITY_SECONDS: Final = 2.0
AWAY_SECONDS: Final = 5.0
"""So long nobody waits for an identity that did not answer in time."""
TOKENS_AN_HOUR: Final = 6
"""For one device: an answer may be lost, and a device that goes on with its old token is answered
without a new one. Each new token is an entry of the audit log, which is never deleted."""


class DeviceTokens:
    """Has identity make new tokens, each with its entry in the audit log."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        identity: identity_pb2_grpc.IdentityInternalServiceAsyncStub,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._identity = identity
        self._made = Hourly(TOKENS_AN_HOUR, clock)
        self._away_until = 0.0

    async def renewed(self, device: Caller) -> str | None:
        """A new token, or `None`: the old one works on for now."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._away_until or not self._made.take(device.id):
            return None
        tenant_id = UUID(device.tenant_id)
        try:
            issued = await self._identity.IssueDeviceToken(
                identity_pb2.IssueDeviceTokenRequest(
                    device_id=device.id,
                    tenant_id=device.tenant_id,
                    token_version=device.token_version,
                ),
                timeout=_IDENTITY_SECONDS,
            )
            async with self._database.transaction(Scope.of(tenant_id)) as connection:
                await self._outbox.append(
                    connection,
                    CloudEvent(
                        DeviceTokenRotated(
                            id=UUID(device.id),
                            before=TokenExpiry(expires_at=device.expires_at),
                            after=TokenExpiry(expires_at=issued.expires_at.ToDatetime(UTC)),
                        ),
                        tenant_id,
                    ),
                )
        except (grpc.aio.AioRpcError, DomainError) as away:
            if (
                isinstance(away, grpc.aio.AioRpcError)
                and away.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            ):
                # A herd that waits for it takes the places of devices that need nothing of it.
                self._away_until = loop.time() + AWAY_SECONDS
            self._made.give_back(device.id)
            log.warning("device token not renewed", device=device.id, error=str(away))
            return None
        return issued.device_token
