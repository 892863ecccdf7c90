"""What a service answers of one person, over gRPC."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from evergreen.v1 import person_pb2 as pb
from servicekit.data.persons import Person, Table, look
from servicekit.data.postgres import Database, Scope


async def person_records(
    database: Database,
    context: str,
    tables: Sequence[Table],
    request: pb.ListPersonRecordsRequest,
) -> pb.ListPersonRecordsResponse:
    """A page of what tables of a service hold about a person.

    Args:
        context: the service.

    Raises:
        DomainError: INVALID_ARGUMENT for a page token that is none.
    """
    tenant_id = UUID(request.tenant_id)
    person = Person(tuple(request.emails), tuple(request.names), tuple(map(UUID, request.ids)))
    async with database.transaction(Scope.of(tenant_id)) as connection:
        page = await look(connection, context, tables, tenant_id, person, request.page_token)
    return pb.ListPersonRecordsResponse(
        records=[
            pb.PersonRecord(
                kind=one.kind, id=one.id, content=json.dumps(one.content, ensure_ascii=False)
            )
            for one in page.records
        ],
        looked_at=page.looked_at,
        next_page_token=page.token,
    )
