"""Directories over gRPC."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, cast
from uuid import UUID

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc
from servicekit.errors import invalid_field
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import optional_timestamp, timestamp
from services.identity.directories.domain import Directory, Kind, Tls
from services.identity.directories.service import Directories
from services.identity.directories.syncs import Syncs
from services.identity.directories.trials import Trials
from services.identity.sources.domain import RoleMapping

_READING: Final = ("user_filter", "id_attribute", "email_attribute", "name_attribute", "group_mode")
_PLAIN: Final = ("tls", "ca_pem", "bind_dn", "base_dn", "group_base_dn", "sync_minutes")


def _directory(directory: Directory) -> pb.Directory:
    source, reading = directory.source, directory.reading
    return pb.Directory(
        id=str(directory.id),
        tenant_id=str(source.tenant_id),
        name=source.name,
        kind=directory.kind,
        urls=directory.urls,
        tls=directory.tls,
        ca_pem=directory.ca_pem,
        bind_dn=directory.bind_dn,
        base_dn=directory.base_dn,
        user_filter=reading.user_filter,
        id_attribute=reading.id_attribute,
        email_attribute=reading.email_attribute,
        name_attribute=reading.name_attribute,
        group_base_dn=directory.group_base_dn,
        group_mode=reading.group_mode,
        sync_minutes=directory.sync_minutes,
        grace_hours=source.grace // timedelta(hours=1),
        enabled=source.enabled,
        role_mappings=[
            pb.MappedRole(group=row.group, role=row.role.value, org_id=str(row.tenant_id))
            for row in directory.mappings
        ],
        created_at=timestamp(source.created_at),
        updated_at=timestamp(source.updated_at),
        synced_at=optional_timestamp(directory.synced_at),
        sync_status=directory.sync_status,
        sync_error=directory.sync_error,
        sync_held=directory.sync_held or 0,
        users=directory.users,
        etag=directory.etag,
    )


def _rows(rows: Iterable[pb.RoleMapping], own: UUID) -> tuple[RoleMapping, ...]:
    """The rows of a request; one that names no tenant leads into the directory's own."""
    return tuple(
        RoleMapping(row.group.strip(), Role(row.role), given_id(row.org_id) or own) for row in rows
    )


class DirectoryApi(identity_pb2_grpc.DirectoryServiceServicer):
    """evergreen.v1.DirectoryService."""

    def __init__(self, directories: Directories, trials: Trials, syncs: Syncs) -> None:
        self._directories = directories
        self._trials = trials
        self._syncs = syncs

    async def ListDirectories(
        self, request: pb.ListDirectoriesRequest, context: Context
    ) -> pb.ListDirectoriesResponse:
        """Lists directories."""
        after, size = asked_page(request, UUID)
        page = await self._directories.list(context.call, given_id(request.org_id), after, size)
        return pb.ListDirectoriesResponse(
            directories=map(_directory, page.items), next_page_token=page.token
        )

    async def GetDirectory(self, request: pb.GetDirectoryRequest, context: Context) -> pb.Directory:
        """Answers one directory."""
        return _directory(await self._directories.get(context.call, UUID(request.id)))

    async def CreateDirectory(
        self, request: pb.CreateDirectoryRequest, context: Context
    ) -> pb.Directory:
        """Adds a directory."""
        org_id = given_id(request.org_id)
        own = org_id or UUID(context.call.caller.tenant_id)
        made = await self._directories.create(
            context.call,
            org_id,
            request.name,
            cast(Kind, request.kind),
            request.bind_password,
            _rows(request.role_mappings, own),
            enabled=not request.disabled,
            sync_minutes=request.sync_minutes,
            grace_hours=request.grace_hours,
            tls=cast(Tls, request.tls) if request.tls else None,
            given={
                "urls": tuple(request.urls),
                "ca_pem": request.ca_pem,
                "bind_dn": request.bind_dn,
                "base_dn": request.base_dn,
                "group_base_dn": request.group_base_dn,
            },
            reading={name: getattr(request, name) for name in _READING if getattr(request, name)},
        )
        return _directory(made)

    async def UpdateDirectory(
        self, request: pb.UpdateDirectoryRequest, context: Context
    ) -> pb.Directory:
        """Changes a directory."""

        def change(before: Directory) -> Directory:
            return _changed(before, request)

        password = request.bind_password if request.HasField("bind_password") else None
        return _directory(
            await self._directories.update(context.call, UUID(request.id), change, password)
        )

    async def DeleteDirectory(
        self, request: pb.DeleteDirectoryRequest, context: Context
    ) -> pb.Directory:
        """Deletes a directory."""
        return _directory(await self._directories.delete(context.call, UUID(request.id)))

    async def TestDirectory(
        self, request: pb.TestDirectoryRequest, context: Context
    ) -> pb.TestDirectoryResponse:
        """Tries a directory."""
        steps = await self._trials.test(
            context.call, UUID(request.id), request.email, request.password
        )
        return pb.TestDirectoryResponse(
            steps=[
                pb.DirectoryTestStep(step=step.step, ok=step.ok, detail=step.detail)
                for step in steps
            ],
            ok=all(step.ok for step in steps),
        )

    async def SyncDirectory(
        self, request: pb.SyncDirectoryRequest, context: Context
    ) -> pb.Directory:
        """Compares a directory with its users."""
        return _directory(
            await self._syncs.sync(context.call, UUID(request.id), confirm=request.confirm)
        )


def _changed(before: Directory, request: pb.UpdateDirectoryRequest) -> Directory:
    """A directory as a request wants it."""
    given: dict[str, Any] = {
        name: getattr(request, name) for name in _PLAIN if request.HasField(name)
    }
    if request.urls:
        given["urls"] = tuple(request.urls)
    if request.role_mappings and request.clear_role_mappings:
        raise invalid_field("clearRoleMappings", "must not be given with roleMappings")
    if request.clear_role_mappings:
        given["mappings"] = ()
    if request.role_mappings:
        given["mappings"] = _rows(request.role_mappings, before.source.tenant_id)
    reading = {name: getattr(request, name) for name in _READING if request.HasField(name)}
    source: dict[str, Any] = {}
    if request.HasField("name"):
        source["name"] = request.name
    if request.HasField("enabled"):
        source["enabled"] = request.enabled
    if request.HasField("grace_hours"):
        source["grace"] = timedelta(hours=request.grace_hours)
    return replace(
        before,
        source=replace(before.source, **source),
        reading=replace(before.reading, **reading),
        **given,
    )
