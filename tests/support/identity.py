"""Identity on a real database, served in the test's process, and calls to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import jwt
import pytest
import pytest_asyncio

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from evergreen.v1 import identity_pb2_grpc as rpc
from servicekit.call import TOKEN_CLAIMS
from servicekit.ids import Clock, now
from servicekit.rpc.channels import open_channel
from services.identity.__main__ import build
from services.identity.settings import IdentitySettings
from tests.conftest import MakeKit, ServeService
from tests.support import callers
from tests.support.servers import TestDatabase

OWNER = "owner@school.example"
PASSWORD = "a long enough password"


@dataclass
class Identity:
    """The running service, and stubs to call it."""

    database: TestDatabase
    auth: rpc.AuthServiceAsyncStub
    sessions: rpc.SessionServiceAsyncStub
    factors: rpc.SecondFactorServiceAsyncStub
    tenants: rpc.TenantServiceAsyncStub
    users: rpc.UserServiceAsyncStub
    credentials: rpc.EventCredentialServiceAsyncStub
    tokens: rpc.ApiTokenServiceAsyncStub
    accounts: rpc.ServiceAccountServiceAsyncStub
    keys: rpc.TokenKeyServiceAsyncStub
    directories: rpc.DirectoryServiceAsyncStub
    domains: rpc.EmailDomainServiceAsyncStub
    providers: rpc.SsoProviderServiceAsyncStub
    mail: rpc.MailServiceAsyncStub
    scim: rpc.ScimSourceServiceAsyncStub
    internal: rpc.IdentityInternalServiceAsyncStub
    internal_listen: str
    http_socket: str
    """Where the pages are served."""

    async def login(
        self, email: str = OWNER, password: str = PASSWORD, otp: str = "", source: str = ""
    ) -> pb.Session:
        return await self.auth.Login(
            pb.LoginRequest(email=email, password=password, otp=otp),
            metadata=callers.anonymous(*([source] if source else [])),
        )

    async def as_user(self, email: str = OWNER, password: str = PASSWORD) -> callers.Metadata:
        """The metadata that the gateway would make of a fresh session's token."""
        return as_caller((await self.login(email, password)).token)

    async def events(self) -> list[dict[str, Any]]:
        """All events in the outbox, oldest first."""
        connection = await self.database.superuser()
        try:
            rows = await connection.fetch("SELECT payload FROM identity.outbox ORDER BY id")
        finally:
            await connection.close()
        return [json.loads(row["payload"]) for row in rows]

    async def org(self, owner: callers.Metadata, name: str, **more: Any) -> pb.Tenant:
        return await self.tenants.CreateTenant(
            pb.CreateTenantRequest(name=name, **more), metadata=owner
        )

    async def user(
        self, by: callers.Metadata, role: Role, tenant_id: str = "", email: str = ""
    ) -> tuple[pb.User, callers.Metadata]:
        """A new active user with a session."""
        email = email or f"{uuid4().hex[:8]}@school.example"
        made = await self.users.CreateUser(
            pb.CreateUserRequest(
                email=email, role=role.value, tenant_id=tenant_id, password=PASSWORD
            ),
            metadata=by,
        )
        return made, await self.as_user(email)


def claims(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def as_caller(token: str) -> callers.Metadata:
    found = claims(token)
    return callers.user(
        found["tid"],
        Role(found["role"]),
        user_id=found["sub"],
        session_id=found["sid"],
        email=found["email"],
    )


def as_token(token: str) -> callers.Metadata:
    """The metadata that the gateway would make of an API token."""
    found = claims(token.removeprefix("evt_"))
    return (
        *((header, str(found[c])) for c, header in TOKEN_CLAIMS.items() if c in found),
        ("x-request-id", str(uuid4())),
        ("x-envoy-external-address", "192.0.2.44"),
    )


def refused(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> dict[str, Any]:
    """The error body that the gateway would answer."""
    trailing = dict(error.value.trailing_metadata() or ())
    body: dict[str, Any] = json.loads(trailing["x-evergreen-error"])
    return body


@asynccontextmanager
async def running(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    directory: Path,
    clock: Clock = now,
    **more: object,
) -> AsyncIterator[Identity]:
    """Starts the service with further settings, with the first Owner in it."""
    secret = directory / "password"
    secret.write_text(PASSWORD + "\n")
    kit = await make_kit(
        "identity",
        IdentitySettings,
        admin_email=OWNER.upper(),
        admin_password_file=secret,
        **more,
    )
    await serve(replace(kit, clock=clock), build)
    await kit.tenants.follower.refresh()
    async with (
        grpc.aio.insecure_channel(kit.settings.grpc_listen) as public,
        open_channel(kit.settings.internal_listen, "policy") as internal,
    ):
        yield Identity(
            database,
            rpc.AuthServiceStub(public),
            rpc.SessionServiceStub(public),
            rpc.SecondFactorServiceStub(public),
            rpc.TenantServiceStub(public),
            rpc.UserServiceStub(public),
            rpc.EventCredentialServiceStub(public),
            rpc.ApiTokenServiceStub(public),
            rpc.ServiceAccountServiceStub(public),
            rpc.TokenKeyServiceStub(public),
            rpc.DirectoryServiceStub(public),
            rpc.EmailDomainServiceStub(public),
            rpc.SsoProviderServiceStub(public),
            rpc.MailServiceStub(public),
            rpc.ScimSourceServiceStub(public),
            rpc.IdentityInternalServiceStub(internal),
            kit.settings.internal_listen,
            kit.settings.http_listen.removeprefix("unix:"),
        )


@pytest_asyncio.fixture
async def identity(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> AsyncIterator[Identity]:
    async with running(make_kit, serve, database, tmp_path) as found:
        yield found
