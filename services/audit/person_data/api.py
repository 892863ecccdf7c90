"""Exports of what is held about a person, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from google.api.httpbody_pb2 import HttpBody

from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.files import TextFile, send_file
from servicekit.rpc.server import Context
from services.audit.person_data.domain import Sought
from services.audit.person_data.service import PersonData


class PersonDataApi(audit_pb2_grpc.PersonDataServiceServicer):
    """evergreen.v1.PersonDataService."""

    def __init__(self, person_data: PersonData) -> None:
        self._person_data = person_data

    def ExportPersonData(
        self, request: pb.ExportPersonDataRequest, context: Context
    ) -> AsyncGenerator[HttpBody, None]:
        """Streams a file."""
        sought = Sought.read(request.emails, request.names)
        pages = self._person_data.export(context.call, given_id(request.org_id), sought)
        lines = TextFile("application/jsonl", "jsonl")
        return send_file(context, "evergreen-person-data", lines, pages)
