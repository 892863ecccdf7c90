"""Reference values over gRPC."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from evergreen.v1 import attestation_pb2 as pb
from evergreen.v1 import attestation_pb2_grpc
from servicekit.errors import invalid_field
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.attestation.references.domain import (
    SECTIONS,
    Kind,
    ReferenceValue,
    Source,
    State,
    check_pcrs,
    check_register,
    uki_pcr11,
)
from services.attestation.references.service import References, Wanted

_DIGEST_BYTES: Final = 32


class ReferenceApi(attestation_pb2_grpc.AttestationServiceServicer):
    """The methods of evergreen.v1.AttestationService that say what devices may boot."""

    def __init__(self, references: References) -> None:
        self._references = references

    async def ListReferenceValues(
        self, request: pb.ListReferenceValuesRequest, context: Context
    ) -> pb.ListReferenceValuesResponse:
        """Lists values."""
        after, size = asked_page(request, UUID)
        page = await self._references.list_values(
            context.call, given_id(request.org_id), after, size
        )
        return pb.ListReferenceValuesResponse(
            reference_values=[_to_value(value) for value in page.items],
            next_page_token=page.token,
        )

    async def CreateReferenceValue(
        self, request: pb.CreateReferenceValueRequest, context: Context
    ) -> pb.ReferenceValue:
        """Adds a staged value."""
        kind = Kind(request.kind or Kind.OS_IMAGE)
        named = {name: [value] for name, value in request.pcrs.items()}
        for accepted in request.accepted:
            named[str(accepted.index)] = [*named.get(str(accepted.index), []), *accepted.values]
        source = Source.UPLOADED
        if request.uki_sections:
            source = Source.UKI
            named["11"] = [*named.get("11", []), *_predicted(request)]
        wanted = Wanted(request.name, kind, request.model, check_pcrs(kind, named), source)
        return _to_value(await self._references.create(context.call, UUID(request.org_id), wanted))

    async def LearnReferenceValue(
        self, request: pb.LearnReferenceValueRequest, context: Context
    ) -> pb.ReferenceValue:
        """Adds a staged value of what a device booted."""
        kind = Kind(request.kind)
        registers = [check_register(kind, str(index)) for index in request.pcrs]
        return _to_value(
            await self._references.learn(
                context.call, UUID(request.device_id), request.name, kind, registers
            )
        )

    async def UpdateReferenceValue(
        self, request: pb.UpdateReferenceValueRequest, context: Context
    ) -> pb.ReferenceValue:
        """Renames a value, or changes its state."""
        return _to_value(
            await self._references.update(
                context.call,
                UUID(request.id),
                request.name if request.HasField("name") else None,
                State(request.state) if request.HasField("state") else None,
            )
        )

    async def DeleteReferenceValue(
        self, request: pb.DeleteReferenceValueRequest, context: Context
    ) -> pb.DeleteReferenceValueResponse:
        """Removes a value."""
        await self._references.delete(context.call, UUID(request.id))
        return pb.DeleteReferenceValueResponse()

    async def PreviewReferenceValues(
        self, request: pb.PreviewReferenceValuesRequest, context: Context
    ) -> pb.PreviewReferenceValuesResponse:
        """Counts the devices that would change their verdict."""
        found = await self._references.preview(
            context.call,
            UUID(request.org_id),
            frozenset(map(UUID, request.activate)),
            frozenset(map(UUID, request.retire)),
        )
        return pb.PreviewReferenceValuesResponse(
            devices=found.devices,
            would_be_verified=found.would_be_verified,
            would_not_be_verified=found.would_not_be_verified,
        )


def _predicted(request: pb.CreateReferenceValueRequest) -> tuple[str, ...]:
    sections: dict[str, bytes] = {}
    for section in request.uki_sections:
        if section.name not in SECTIONS or section.name in sections:
            raise invalid_field("ukiSections", f"must be of {', '.join(SECTIONS)}, each once")
        try:
            digest = bytes.fromhex(section.sha256)
        except ValueError:
            digest = b""
        if len(digest) != _DIGEST_BYTES:
            raise invalid_field("ukiSections", "must have SHA-256 digests in 64 hex digits")
        sections[section.name] = digest
    return uki_pcr11(sections)


def _to_value(value: ReferenceValue) -> pb.ReferenceValue:
    return pb.ReferenceValue(
        id=str(value.id),
        org_id=str(value.tenant_id),
        name=value.name,
        pcrs={str(index): values[0] for index, values in value.pcrs.items()},
        created_at=timestamp(value.created_at),
        kind=value.kind,
        model=value.model,
        accepted=[
            pb.AcceptedPcr(index=index, values=values)
            for index, values in sorted(value.pcrs.items())
        ],
        state=value.state,
        source=value.source,
        etag=value.etag,
        updated_at=timestamp(value.updated_at),
    )
