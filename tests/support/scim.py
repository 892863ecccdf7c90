"""A school whose identity provider sends people and groups by SCIM, and signs them in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest_asyncio

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from services.identity.scim.schemas import GROUP, PATCH, USER
from tests.conftest import MakeKit, ServeService
from tests.fakes.oidc import FakeProvider
from tests.support import callers, single_sign_on
from tests.support.identity import Identity, as_token
from tests.support.servers import TestDatabase
from tests.support.single_sign_on import DOMAIN, row

TYPE = "application/scim+json"


@dataclass
class Client:
    """What an identity provider sends with a token."""

    http: httpx.AsyncClient
    headers: dict[str, str]

    async def call(self, verb: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        headers = self.headers | {"x-request-id": str(uuid4())} | more.pop("headers", {})
        return await self.http.request(verb, f"/scim/v2{path}", json=body, headers=headers, **more)

    async def ok(self, verb: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = await self.call(verb, path, body, **more)
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None

    async def user(self, name: str, /, **more: Any) -> dict[str, Any]:
        """Sends somebody, who is in no group yet."""
        user_name = name if "@" in name else f"{name}@{DOMAIN}"
        body = {"schemas": [USER], "userName": user_name, "active": True, **more}
        made: dict[str, Any] = await self.ok("POST", "/Users", body)
        return made

    async def group(self, name: str, /, *members: dict[str, Any], **more: Any) -> dict[str, Any]:
        body = {
            "schemas": [GROUP],
            "displayName": name,
            "members": [{"value": one["id"]} for one in members],
            **more,
        }
        made: dict[str, Any] = await self.ok("POST", "/Groups", body)
        return made

    async def patch(self, path: str, *operations: dict[str, Any]) -> Any:
        return await self.ok("PATCH", path, {"schemas": [PATCH], "Operations": operations})

    async def add(self, group: dict[str, Any], *members: dict[str, Any]) -> None:
        value = [{"value": one["id"]} for one in members]
        path = f"/Groups/{group['id']}"
        await self.patch(path, {"op": "add", "path": "members", "value": value})

    async def remove(self, group: dict[str, Any], member: dict[str, Any]) -> None:
        path = f'members[value eq "{member["id"]}"]'
        await self.patch(f"/Groups/{group['id']}", {"op": "remove", "path": path})

    async def activate(self, user: dict[str, Any], active: bool) -> None:
        operation = {"op": "replace", "path": "active", "value": active}
        await self.patch(f"/Users/{user['id']}", operation)


@dataclass
class World:
    """The service, a school with a provider, and its SCIM source."""

    sso: single_sign_on.World
    source: pb.ScimSource
    token: pb.ApiToken
    scim: Client

    @property
    def identity(self) -> Identity:
        return self.sso.identity

    @property
    def owner(self) -> callers.Metadata:
        return self.sso.owner

    @property
    def school(self) -> pb.Tenant:
        return self.sso.school

    async def users(self) -> dict[str, pb.User]:
        return await self.sso.users()

    async def user(self, name: str) -> tuple[str, str]:
        """Role and status of somebody's account."""
        found = (await self.users())[name]
        return found.role, found.status

    async def events(self, *names: str) -> list[dict[str, Any]]:
        return await self.sso.events(*names)

    async def problems(self) -> dict[str, str]:
        """Why people have no accounts that can be used, by what stands before the @."""
        answer = await self.identity.scim.ListScimPeople(
            pb.ListScimPeopleRequest(id=self.source.id, page_size=500), metadata=self.owner
        )
        return {one.user_name.partition("@")[0]: one.problem for one in answer.people}

    async def now(self) -> pb.ScimSource:
        return await self.identity.scim.GetScimSource(
            pb.GetScimSourceRequest(id=self.source.id), metadata=self.owner
        )

    async def update(self, **more: Any) -> pb.ScimSource:
        return await self.identity.scim.UpdateScimSource(
            pb.UpdateScimSourceRequest(id=self.source.id, **more), metadata=self.owner
        )

    async def second(
        self, owner: callers.Metadata | None = None, *rows: pb.RoleMapping, **more: Any
    ) -> tuple[pb.ScimSource, Client]:
        """Another source, and a client of it."""
        by = owner or self.owner
        source = await self.identity.scim.CreateScimSource(
            pb.CreateScimSourceRequest(
                name="Other", role_mappings=rows or [row("admins", Role.ADMIN)], **more
            ),
            metadata=by,
        )
        token = await make_token(self.identity, by, source)
        return source, client(self.sso.http, token)


async def make_token(
    identity: Identity, by: callers.Metadata, source: pb.ScimSource, **more: Any
) -> pb.ApiToken:
    return await identity.tokens.CreateApiToken(
        pb.CreateApiTokenRequest(name=uuid4().hex, scim_source_id=source.id, **more), metadata=by
    )


def client(http: httpx.AsyncClient, token: pb.ApiToken) -> Client:
    return Client(http, {**dict(as_token(token.token)), "content-type": TYPE})


@pytest_asyncio.fixture
async def world(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    tmp_path: Path,
    fake: FakeProvider,
) -> AsyncIterator[World]:
    async with single_sign_on.running(make_kit, serve, database, tmp_path, fake) as sso:
        source = await sso.identity.scim.CreateScimSource(
            pb.CreateScimSourceRequest(
                name="Entra",
                role_mappings=[
                    row("owners", Role.OWNER),
                    row("admins", Role.ADMIN),
                    row("staff", Role.AUDITOR),
                ],
            ),
            metadata=sso.owner,
        )
        token = await make_token(sso.identity, sso.owner, source)
        yield World(sso, source, token, client(sso.http, token))
