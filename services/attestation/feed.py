"""What the other services ask attestation for."""

from __future__ import annotations

from evergreen.v1 import attestation_pb2, attestation_pb2_grpc
from servicekit.data.postgres import Database
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import Cursor, FeedPage
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.attestation.verdicts import store
from services.attestation.verdicts.domain import Attested


class AttestationInternalApi(attestation_pb2_grpc.AttestationInternalServiceServicer):
    """evergreen.v1.AttestationInternalService."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self._changes = changes

    async def ListVerdictChanges(
        self, request: attestation_pb2.ListVerdictChangesRequest, context: Context
    ) -> attestation_pb2.ListVerdictChangesResponse:
        """Answers a page of the feed of verdicts."""

        async def read() -> tuple[FeedPage, list[Attested]]:
            async with self._database.system_transaction(
                "the feed tells of all tenants"
            ) as connection:
                return await store.verdicts_since(
                    connection, Cursor.parse(request.cursor), request.limit
                )

        page, found = await self._changes.answer(
            read, request.wait_seconds, has_news=lambda answer: bool(answer[1])
        )
        return attestation_pb2.ListVerdictChangesResponse(
            verdicts=[_to_change(device) for device in found],
            next_cursor=str(page.cursor),
            more=page.more,
        )


def _to_change(device: Attested) -> attestation_pb2.DeviceVerdict:
    return attestation_pb2.DeviceVerdict(
        device_id=str(device.device_id),
        tenant_id=str(device.tenant_id),
        verdict=device.verdict,
        reasons=device.reasons,
        attested_at=timestamp(device.attested_at) if device.attested_at else None,
    )
