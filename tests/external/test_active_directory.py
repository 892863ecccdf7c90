"""Logins and syncs with a real domain controller (Samba): codes, nested groups, disabled users."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.conftest import MakeKit, ServeService
from tests.external import samba
from tests.external.samba import Samba, group_dn
from tests.support import callers
from tests.support.directories import reason
from tests.support.identity import Identity, claims, running
from tests.support.paths import LONG
from tests.support.servers import TestDatabase

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not LONG, reason="a minute to make a domain: `make test-long` runs it"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samba]:
    with samba.running(tmp_path_factory.mktemp("samba") / "dc") as found:
        yield found


async def _refused(identity: Identity, name: str, password: str = samba.PASSWORD) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await _login(identity, name, password)
    return reason(error)


async def _login(identity: Identity, name: str, password: str = samba.PASSWORD) -> pb.Session:
    connection = await identity.database.superuser()
    await connection.execute("DELETE FROM identity.guess")
    await connection.close()
    return await identity.auth.Login(
        pb.LoginRequest(email=f"{name}@school.test", password=password),
        metadata=callers.anonymous(),
    )


@pytest.mark.parametrize("tls", ["ldaps", "starttls"])
async def test_a_domain(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    tmp_path: Path,
    server: Samba,
    tls: str,
) -> None:
    """Who gets in as what, what each refusal is called, and what a sync takes over."""
    async with running(make_kit, serve, database, tmp_path, ldap_allow=server.allowed) as identity:
        owner = await identity.as_user()
        tenant = claims((await identity.login()).token)["tid"]
        rows = {"EG-Owners": Role.OWNER, "EG-Admins": Role.ADMIN, "EG-Auditors": Role.AUDITOR}
        made = await identity.directories.CreateDirectory(
            pb.CreateDirectoryRequest(
                name="Active Directory",
                kind="ad",
                urls=[getattr(server, tls)],
                ca_pem=server.ca_pem,
                bind_dn=samba.SERVICE,
                bind_password=samba.PASSWORD,
                base_dn=samba.BASE,
                role_mappings=[
                    pb.RoleMapping(group=group_dn(group), role=role.value)
                    for group, role in rows.items()
                ],
            ),
            metadata=owner,
        )
        domain = {"domain": "school.test"}
        await identity.domains.CreateEmailDomain(
            pb.CreateEmailDomainRequest(**domain, org_id=tenant), metadata=owner
        )
        await identity.domains.UpdateEmailDomain(
            pb.UpdateEmailDomainRequest(**domain, source_id=made.id), metadata=owner
        )

        expected = {"olive": "Owner", "adam": "Admin", "nina": "Admin", "audrey": "Auditor"}
        for name, role in expected.items():
            assert (await _login(identity, name)).role == role
        for name, told in {
            "nobody": "NO_ROLE",
            "dora": "ACCOUNT_DISABLED",
            "expired": "ACCOUNT_DISABLED",
            "mustchange": "PASSWORD_EXPIRED",
            "unknown": "WRONG_CREDENTIALS",
        }.items():
            assert await _refused(identity, name) == told, name
        assert await _refused(identity, "audrey", "wrong") == "WRONG_CREDENTIALS"
        if tls == "ldaps":
            for _ in range(4):
                await _refused(identity, "lock", "wrong")
        assert await _refused(identity, "lock") == "ACCOUNT_LOCKED"

        async def sync() -> dict[str, Any]:
            done = await identity.directories.SyncDirectory(
                pb.SyncDirectoryRequest(id=made.id), metadata=owner
            )
            assert done.sync_status == "ok", done.sync_error
            found = await identity.users.ListUsers(pb.ListUsersRequest(), metadata=owner)
            return {
                user.email.partition("@")[0]: (user.status, user.role)
                for user in found.users
                if user.origin == "directory"
            }

        assert await sync() == {name: ("active", role) for name, role in expected.items()}
        server.tool("user", "disable", "audrey")
        server.tool("group", "removemembers", "Teachers", "nina")
        try:
            found = await sync()
        finally:
            server.tool("user", "enable", "audrey")
            server.tool("group", "addmembers", "Teachers", "nina")
        assert (found["audrey"][0], found["nina"][0]) == ("disabled", "disabled")
        assert found["adam"] == ("active", "Admin")
        assert await sync() == {name: ("active", role) for name, role in expected.items()}
