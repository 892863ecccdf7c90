"""Logins and syncs with a real OpenLDAP: what the table of docs/sign-in.md says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.conftest import MakeKit, ServeService
from tests.external import openldap
from tests.external.openldap import OpenLdap, group_dn, password_of, person_dn
from tests.support import callers
from tests.support.directories import reason
from tests.support.identity import PASSWORD, Identity, claims, running
from tests.support.servers import TestDatabase

DOMAIN = "school.test"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are unpacked, once."""
    return tmp_path_factory.mktemp("openldap")


@pytest.fixture
def server(programs: Path, tmp_path: Path) -> Iterator[OpenLdap]:
    with openldap.running(programs, tmp_path / "ldap") as found:
        yield found


@dataclass
class School:
    """The service, and a directory in it."""

    identity: Identity
    server: OpenLdap
    owner: callers.Metadata
    directory: pb.Directory

    async def login(self, name: str, password: str = "") -> pb.Session:
        connection = await self.identity.database.superuser()
        await connection.execute("DELETE FROM identity.guess")
        await connection.close()
        return await self.identity.auth.Login(
            pb.LoginRequest(email=f"{name}@{DOMAIN}", password=password or password_of(name)),
            metadata=callers.anonymous(),
        )

    async def refused(self, name: str, password: str = "") -> str:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.login(name, password)
        return reason(error)

    async def sync(self) -> pb.Directory:
        return await self.identity.directories.SyncDirectory(
            pb.SyncDirectoryRequest(id=self.directory.id), metadata=self.owner
        )

    async def user(self, name: str) -> pb.User:
        found = await self.identity.users.ListUsers(pb.ListUsersRequest(), metadata=self.owner)
        return next(user for user in found.users if user.email == f"{name}@{DOMAIN}")


@pytest_asyncio.fixture(params=["ldaps", "starttls"])
async def school(
    request: pytest.FixtureRequest,
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    tmp_path: Path,
    server: OpenLdap,
) -> AsyncIterator[School]:
    async with running(make_kit, serve, database, tmp_path, ldap_allow=server.allowed) as identity:
        owner = await identity.as_user()
        rows = {
            "eg-owners": Role.OWNER,
            "eg-admins": Role.ADMIN,
            "eg-auditors": Role.AUDITOR,
        }
        made = await identity.directories.CreateDirectory(
            pb.CreateDirectoryRequest(
                name="OpenLDAP",
                kind="openldap",
                urls=[getattr(server, request.param)],
                ca_pem=server.ca_pem,
                bind_dn=openldap.SERVICE,
                bind_password=openldap.SERVICE_PASSWORD,
                base_dn=openldap.BASE,
                role_mappings=[
                    pb.RoleMapping(group=group_dn(group), role=role.value)
                    for group, role in rows.items()
                ],
            ),
            metadata=owner,
        )
        tenant = claims((await identity.login()).token)["tid"]
        await identity.domains.CreateEmailDomain(
            pb.CreateEmailDomainRequest(domain=DOMAIN, org_id=tenant), metadata=owner
        )
        await identity.domains.UpdateEmailDomain(
            pb.UpdateEmailDomainRequest(domain=DOMAIN, source_id=made.id), metadata=owner
        )
        yield School(identity, server, owner, made)


async def test_who_gets_in_and_who_does_not(school: School) -> None:
    """Roles by groups, nested ones in a circle too; expired, locked, two with one address."""
    expected = {"olive": "Owner", "adam": "Admin", "nina": "Admin", "audrey": "Auditor"}
    for name, role in expected.items():
        assert (await school.login(name)).role == role
    # A name with *, ( and \ in the entry.
    assert (await school.login("paren")).role == "Auditor"
    assert await school.refused("expired") == "PASSWORD_EXPIRED"
    assert await school.refused("twin", password_of("twin1")) == "WRONG_CREDENTIALS"
    assert await school.refused("olive", "wrong") == "WRONG_CREDENTIALS"
    assert await school.refused("nobody", PASSWORD) == "WRONG_CREDENTIALS"
    # Strangers are not told.
    await school.login("lock")
    for _ in range(3):
        await school.refused("lock", "wrong")
    assert await school.refused("lock") == "ACCOUNT_LOCKED"
    assert (await school.identity.login()).role == "Owner"


async def test_the_directory_locks_nobody_by_guesses_here(school: School) -> None:
    """OpenLDAP locks after three: as many wrong passwords as are tried here never reach it."""
    for _ in range(10):
        with pytest.raises(grpc.aio.AioRpcError):
            await school.identity.auth.Login(
                pb.LoginRequest(email=f"dora@{DOMAIN}", password="wrong"),
                metadata=callers.anonymous(),
            )
    assert (await school.login("dora")).role == "Auditor"


async def test_a_sync_follows_the_directory(school: School) -> None:
    """Out of a nested group, another address, renamed, deleted; the account is the entry's."""
    users = {name: claims((await school.login(name)).token)["sub"] for name in ("nina", "dora")}
    assert (await school.sync()).sync_status == "ok"
    change = school.server.change
    change(
        f"dn: {group_dn('teachers')}",
        "changetype: modify",
        "replace: member",
        f"member: {person_dn('olive')}",
    )
    change(f"dn: {person_dn('dora')}", "changetype: modrdn", "newrdn: uid=doris", "deleteoldrdn: 1")
    change(
        f"dn: {person_dn('doris')}",
        "changetype: modify",
        "replace: mail",
        f"mail: doris@{DOMAIN}",
    )
    change(
        f"dn: {group_dn('eg-auditors')}",
        "changetype: modify",
        "add: member",
        f"member: {person_dn('doris')}",
    )
    assert (await school.sync()).sync_status == "ok"
    assert (await school.user("nina")).status == "disabled"
    doris = await school.user("doris")
    assert (doris.id, doris.status, doris.role) == (users["dora"], "active", "Auditor")
    change(f"dn: {person_dn('doris')}", "changetype: delete")
    assert (await school.sync()).sync_status == "ok"
    assert (await school.user("doris")).status == "disabled"
    assert await school.refused("nina") == "NO_ROLE"


async def test_a_missing_group_changes_nothing(school: School) -> None:
    """Renamed or deleted there: the sync fails and says which, and everybody stays."""
    await school.login("audrey")
    school.server.change(f"dn: {group_dn('eg-auditors')}", "changetype: delete")
    done = await school.sync()
    assert (done.sync_status, group_dn("eg-auditors") in done.sync_error) == ("failed", True)
    assert (await school.user("audrey")).status == "active"


async def test_a_try_tells_each_step(school: School) -> None:
    """What an Owner sees of it."""

    async def steps(**more: Any) -> list[tuple[str, bool]]:
        answer = await school.identity.directories.TestDirectory(
            pb.TestDirectoryRequest(id=school.directory.id, **more), metadata=school.owner
        )
        return [(step.step, step.ok) for step in answer.steps]

    assert await steps(email=f"nina@{DOMAIN}", password=password_of("nina")) == [
        (step, True)
        for step in (
            "resolve", "connect", "tls", "bind", "search", "groups", "password", "role", "domain",
            "account",
        )
    ]  # fmt: skip
    assert (await steps())[-1] == ("groups", True)
    assert (await steps(email=f"twin@{DOMAIN}"))[-1] == ("search", False)
    assert (await steps(email=f"nina@{DOMAIN}", password="x"))[-1] == ("password", False)


async def test_a_group_is_one_however_it_is_written(school: School) -> None:
    """Two rows for it, in large and small letters, count together."""
    group = group_dn("eg-auditors")
    await school.identity.directories.UpdateDirectory(
        pb.UpdateDirectoryRequest(
            id=school.directory.id,
            role_mappings=[
                pb.RoleMapping(group=group.upper(), role="Admin"),
                pb.RoleMapping(group=group, role="Auditor"),
            ],
        ),
        metadata=school.owner,
    )
    assert (await school.login("audrey")).role == "Admin"
    assert (await school.sync()).sync_status == "ok"
    assert (await school.user("audrey")).role == "Admin"
