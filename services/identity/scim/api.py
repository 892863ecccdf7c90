"""SCIM sources over gRPC."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from uuid import UUID

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.identity.scim.domain import BASE, ListedPerson, ScimSource
from services.identity.scim.service import ScimSources
from services.identity.sources.domain import RoleMapping


def _rows(rows: Iterable[pb.RoleMapping], own: UUID) -> tuple[RoleMapping, ...]:
    """The rows of a request; one that names no tenant leads into the source's own."""
    return tuple(
        RoleMapping(row.group.strip(), Role(row.role), given_id(row.org_id) or own) for row in rows
    )


class ScimSourceApi(identity_pb2_grpc.ScimSourceServiceServicer):
    """evergreen.v1.ScimSourceService."""

    def __init__(self, sources: ScimSources, public_url: str) -> None:
        self._sources = sources
        self._public_url = public_url.rstrip("/")

    async def ListScimSources(
        self, request: pb.ListScimSourcesRequest, context: Context
    ) -> pb.ListScimSourcesResponse:
        """Lists sources."""
        after, size = asked_page(request, UUID)
        page = await self._sources.list(context.call, given_id(request.org_id), after, size)
        return pb.ListScimSourcesResponse(
            sources=map(self._source, page.items), next_page_token=page.token
        )

    async def GetScimSource(
        self, request: pb.GetScimSourceRequest, context: Context
    ) -> pb.ScimSource:
        """Answers one source."""
        return self._source(await self._sources.get(context.call, UUID(request.id)))

    async def CreateScimSource(
        self, request: pb.CreateScimSourceRequest, context: Context
    ) -> pb.ScimSource:
        """Adds a source."""
        org_id = given_id(request.org_id)
        own = org_id or UUID(context.call.caller.tenant_id)
        made = await self._sources.create(
            context.call,
            org_id,
            request.name,
            _rows(request.role_mappings, own),
            enabled=not request.disabled,
        )
        return self._source(made)

    async def UpdateScimSource(
        self, request: pb.UpdateScimSourceRequest, context: Context
    ) -> pb.ScimSource:
        """Changes a source."""

        def change(before: ScimSource) -> ScimSource:
            source: dict[str, Any] = {}
            if request.HasField("name"):
                source["name"] = request.name
            if request.HasField("enabled"):
                source["enabled"] = request.enabled
            after = replace(before, source=replace(before.source, **source))
            if not request.role_mappings:
                return after
            return replace(after, mappings=_rows(request.role_mappings, before.source.tenant_id))

        return self._source(await self._sources.update(context.call, UUID(request.id), change))

    async def DeleteScimSource(
        self, request: pb.DeleteScimSourceRequest, context: Context
    ) -> pb.ScimSource:
        """Deletes a source."""
        return self._source(await self._sources.delete(context.call, UUID(request.id)))

    async def ConfirmScimSource(
        self, request: pb.ConfirmScimSourceRequest, context: Context
    ) -> pb.ScimSource:
        """Lets a source take access from those who were held."""
        return self._source(
            await self._sources.confirm(context.call, UUID(request.id), request.users)
        )

    async def UnlinkScimUser(
        self, request: pb.UnlinkScimUserRequest, context: Context
    ) -> pb.ScimSource:
        """Takes a user out of a source."""
        return self._source(
            await self._sources.unlink(context.call, UUID(request.id), UUID(request.user_id))
        )

    async def ListScimPeople(
        self, request: pb.ListScimPeopleRequest, context: Context
    ) -> pb.ListScimPeopleResponse:
        """Lists the people of a source."""
        after, size = asked_page(request, UUID)
        page = await self._sources.people(context.call, UUID(request.id), after, size)
        return pb.ListScimPeopleResponse(
            people=map(_person, page.items), next_page_token=page.token
        )

    def _source(self, found: ScimSource) -> pb.ScimSource:
        source = found.source
        return pb.ScimSource(
            id=str(found.id),
            tenant_id=str(source.tenant_id),
            name=source.name,
            enabled=source.enabled,
            role_mappings=[
                pb.MappedRole(group=row.group, role=row.role.value, org_id=str(row.tenant_id))
                for row in found.mappings
            ],
            created_at=timestamp(source.created_at),
            updated_at=timestamp(source.updated_at),
            people=found.people,
            groups=found.groups,
            users=found.users,
            held=found.held,
            remaining=found.remaining,
            base_url=self._public_url + BASE if self._public_url else "",
            etag=found.etag,
        )


def _person(found: ListedPerson) -> pb.ScimPerson:
    person = found.person
    return pb.ScimPerson(
        id=str(person.id),
        user_name=person.user_name,
        email=person.email,
        active=person.active and person.deleted_at is None,
        external_id=person.external_id,
        groups=found.groups,
        user_id=str(found.account_id or ""),
        problem=person.problem,
    )
