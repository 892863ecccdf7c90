"""What the other services ask attestation for."""

from __future__ import annotations

from datetime import UTC
from uuid import UUID

from evergreen.v1 import attestation_pb2, attestation_pb2_grpc, person_pb2
from servicekit.data.postgres import Database, Scope
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import Cursor, FeedPage
from servicekit.rpc.persons import person_records
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from services.attestation.facts import person_store
from services.attestation.facts import store as fact_store
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

    async def ListDeviceVerdicts(
        self, request: attestation_pb2.ListDeviceVerdictsRequest, context: Context
    ) -> attestation_pb2.ListDeviceVerdictsResponse:
        """Answers the verdicts over the latest boots of devices of an organisation."""
        tenant_id = UUID(request.tenant_id)
        async with self._database.transaction(Scope.of(tenant_id)) as connection:
            found = await fact_store.verdicts(
                connection,
                tenant_id,
                [UUID(one) for one in request.device_ids],
                request.until.ToDatetime(UTC) if request.HasField("until") else None,
            )
        return attestation_pb2.ListDeviceVerdictsResponse(
            verdicts=[
                attestation_pb2.VerdictFacts(
                    device_id=str(one.device_id),
                    verdict=one.verdict,
                    reasons=one.reasons,
                    attested_at=optional_timestamp(one.attested_at),
                    failed_since=optional_timestamp(one.failed_since),
                    reference_values=one.reference_values,
                )
                for one in found
            ]
        )

    async def ListPersonRecords(
        self, request: person_pb2.ListPersonRecordsRequest, context: Context
    ) -> person_pb2.ListPersonRecordsResponse:
        """Answers a page of what is held about a person."""
        return await person_records(self._database, "attestation", person_store.TABLES, request)


def _to_change(device: Attested) -> attestation_pb2.DeviceVerdict:
    return attestation_pb2.DeviceVerdict(
        device_id=str(device.device_id),
        tenant_id=str(device.tenant_id),
        verdict=device.verdict,
        reasons=device.reasons,
        attested_at=timestamp(device.attested_at) if device.attested_at else None,
    )
