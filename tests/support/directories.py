"""Identity with a directory beside it, and an organisation whose people log in with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from servicekit.ids import now
from tests.conftest import MakeKit, ServeService
from tests.fakes import ldap
from tests.fakes.ldap import BASE, SERVICE, SERVICE_PASSWORD, FakeDirectory, group_dn
from tests.support import callers, identity
from tests.support.identity import OWNER, PASSWORD, Identity, claims
from tests.support.servers import TestDatabase

DOMAIN = "school.example"
LOCAL = "local@school.example"


@dataclass
class Clock:
    """A clock that a test turns."""

    ahead: timedelta = timedelta()

    def __call__(self) -> datetime:
        return now() + self.ahead


@dataclass
class World:
    """The service, a school, and its directory."""

    identity: Identity
    ldap: FakeDirectory
    clock: Clock
    root: callers.Metadata
    school: pb.Tenant
    owner: callers.Metadata
    """The school's own Owner, who has a password here."""
    directory: pb.Directory

    async def login(self, name: str, password: str = "", source: str = "192.0.2.9") -> pb.Session:
        """Logs somebody of the directory in."""
        return await self.identity.auth.Login(
            pb.LoginRequest(
                email=f"{name}@{DOMAIN}", password=password or f"the password of {name}"
            ),
            metadata=callers.anonymous(source),
        )

    async def refused(self, name: str, password: str = "", source: str = "192.0.2.9") -> str:
        """The reason why somebody is not logged in."""
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.login(name, password, source)
        return reason(error)

    async def sync(self, *, confirm: bool = False) -> pb.Directory:
        """Syncs; when the service does so itself at this moment, once more."""
        while True:
            try:
                return await self.identity.directories.SyncDirectory(
                    pb.SyncDirectoryRequest(id=self.directory.id, confirm=confirm),
                    metadata=self.owner,
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED:
                    raise

    async def update(self, **more: Any) -> pb.Directory:
        return await self.identity.directories.UpdateDirectory(
            pb.UpdateDirectoryRequest(id=self.directory.id, **more), metadata=self.owner
        )

    async def users(self) -> dict[str, pb.User]:
        """The users below the root, by the name in their address."""
        found = await self.identity.users.ListUsers(pb.ListUsersRequest(), metadata=self.root)
        return {user.email.partition("@")[0]: user for user in found.users}

    async def events(self, *names: str) -> list[dict[str, Any]]:
        """The events with these names, oldest first."""
        return [
            event["data"]
            for event in await self.identity.events()
            if event["data"]["action"] in {f"identity.{name}" for name in names}
        ]

    async def is_open(self, session: pb.Session) -> bool:
        """Whether a session's tokens are taken."""
        feed = await self.identity.internal.ListAccessChanges(pb.ListAccessChangesRequest())
        return claims(session.token)["sid"] not in {one.session_id for one in feed.ended_sessions}

    async def forgive(self) -> None:
        """Forgets all failed guesses."""
        connection = await self.identity.database.superuser()
        await connection.execute("DELETE FROM identity.guess")
        await connection.close()


def reason(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> str:
    return str(identity.refused(error)["details"][0]["reason"])


def row(group: str, role: Role, org_id: str = "") -> pb.RoleMapping:
    """A row for a group, by its name."""
    return pb.RoleMapping(
        group=group if group == "*" else group_dn(group), role=role.value, org_id=org_id
    )


def wanted(ldap: FakeDirectory, *rows: pb.RoleMapping, **more: Any) -> pb.CreateDirectoryRequest:
    """A directory as the fake one wants it."""
    given: dict[str, Any] = {
        "name": "School directory",
        "kind": "ad",
        "urls": [ldap.ldaps],
        "ca_pem": ldap.ca_pem,
        "bind_dn": SERVICE,
        "bind_password": SERVICE_PASSWORD,
        "base_dn": BASE,
        "role_mappings": rows,
    }
    return pb.CreateDirectoryRequest(**(given | more))


@asynccontextmanager
async def running(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    directory: Path,
    fake: FakeDirectory,
    **more: object,
) -> AsyncIterator[World]:
    clock = Clock()
    more = {"ldap_allow": fake.allowed} | more
    async with identity.running(make_kit, serve, database, directory, clock, **more) as found:
        root = await found.as_user()
        school = await found.org(root, "School")
        await found.users.CreateUser(
            pb.CreateUserRequest(email=LOCAL, role="Owner", org_id=school.id, password=PASSWORD),
            metadata=root,
        )
        owner = await found.as_user(LOCAL)
        fake.groups = {group_dn(name): set() for name in ("Owners", "Admins", "Auditors")}
        rows = (
            row("Owners", Role.OWNER),
            row("Admins", Role.ADMIN),
            row("Auditors", Role.AUDITOR),
        )
        made = await found.directories.CreateDirectory(wanted(fake, *rows), metadata=owner)
        await found.domains.CreateEmailDomain(
            pb.CreateEmailDomainRequest(domain=DOMAIN, org_id=school.id), metadata=root
        )
        await found.domains.UpdateEmailDomain(
            pb.UpdateEmailDomainRequest(domain=DOMAIN, source_id=made.id), metadata=owner
        )
        yield World(found, fake, clock, root, school, owner, made)


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    with ldap.running(tmp_path / "ldap") as found:
        yield found


@pytest_asyncio.fixture
async def world(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    tmp_path: Path,
    fake: FakeDirectory,
) -> AsyncIterator[World]:
    async with running(make_kit, serve, database, tmp_path, fake) as found:
        yield found


__all__ = ["DOMAIN", "LOCAL", "OWNER", "World", "fake", "reason", "row", "wanted", "world"]
