"""Reads by id are bound to tenants twice: by their SQL, and by the transaction around them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeAlias
from uuid import UUID

import pytest

from contract.access import Role
from servicekit.app import Kit
from servicekit.data.postgres import SYSTEM, Connection, Scope
from servicekit.ids import new_id, now
from servicekit.security.passwords import PasswordHashes
from services.identity.api_tokens import account_store as accounts
from services.identity.api_tokens import store as tokens
from services.identity.api_tokens.domain import ApiToken, ServiceAccount
from services.identity.directories import store as directories
from services.identity.directories.domain import READINGS, Directory
from services.identity.email_domains import store as domains
from services.identity.email_domains.domain import EmailDomain
from services.identity.event_access import store as credentials
from services.identity.event_access.domain import EventCredential
from services.identity.sources import store as sources
from services.identity.sources.domain import Source
from services.identity.tenants import store as tenants
from services.identity.tenants.domain import Tenant
from services.identity.users import store as users
from services.identity.users.domain import User
from tests.conftest import MakeKit

HASHES = PasswordHashes("hash", "hash")


@dataclass(frozen=True)
class School:
    """An organisation with one of everything."""

    tenant: Tenant
    user: User
    credential: EventCredential
    directory: Directory
    domain: EmailDomain
    account: ServiceAccount
    token: ApiToken

    @property
    def scope(self) -> Scope:
        return Scope.of(self.tenant.id)


@dataclass(frozen=True)
class Schools:
    """Two organisations below one root."""

    kit: Kit
    mine: School
    other: School

    @property
    def open(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction whose scope was forgotten, as it were."""
        return self.kit.database.system_transaction("a test works on all rows")


async def _school(connection: Connection, root: UUID, name: str) -> School:
    at = now()
    tenant = Tenant(new_id(), root, "org", name, name, at, at)
    user = User(new_id(), tenant.id, f"{name}@school.example", Role.OWNER, "active", at)
    credential = EventCredential(
        new_id(), tenant.id, name, at, user.email, at + timedelta(days=1), user.email, user.id
    )
    await tenants.insert_tenant(connection, tenant)
    await users.insert_user(connection, user, password=HASHES)
    await credentials.insert(connection, credential, name.encode().ljust(32))
    hour = timedelta(hours=1)
    source = Source(new_id(), tenant.id, "directory", name, True, hour, at, at)
    directory = Directory(
        source=source,
        kind="ad",
        urls=("ldaps://dc1.school.example",),
        tls="ldaps",
        ca_pem="",
        bind_dn="x",
        sealed_secrets=b"sealed",
        base_dn="x",
        reading=READINGS["ad"],
        group_base_dn="",
        sync_minutes=15,
        mappings=(),
    )
    await directories.insert(connection, directory, at)
    domain = EmailDomain(f"{name}.example", tenant.id, source.id, user.email, at)
    await domains.insert(connection, domain)
    account = ServiceAccount(new_id(), tenant.id, name, Role.ADMIN, at, user.email)
    token = ApiToken(
        id=new_id(),
        tenant_id=tenant.id,
        name=name,
        role=Role.ADMIN,
        scopes=("users:read",),
        held_by=user.email,
        created_at=at,
        created_by=user.email,
        expires_at=at + timedelta(days=1),
        ends_at=at + timedelta(days=1),
        account_id=user.id,
    )
    await accounts.insert(connection, account)
    await tokens.insert(connection, token)
    return School(tenant, user, credential, directory, domain, account, token)


@pytest.fixture
async def schools(make_kit: MakeKit) -> Schools:
    kit = await make_kit("identity")
    async with kit.database.system_transaction("a test works on all rows") as connection:
        root = Tenant(new_id(), None, "root", "root", "root", now(), now())
        await tenants.insert_tenant(connection, root)
        return Schools(
            kit,
            await _school(connection, root.id, "mine"),
            await _school(connection, root.id, "other"),
        )


Read: TypeAlias = Callable[[Connection, Scope, School], Awaitable[object | None]]

_READS: dict[str, Read] = {
    "user": lambda c, scope, of: users.user(c, scope, of.user.id),
    "user, locked": lambda c, scope, of: users.user(c, scope, of.user.id, for_update=True),
    "credentials": lambda c, scope, of: users.credentials(c, scope, of.user.id),
    "credentials, locked": lambda c, scope, of: users.credentials(
        c, scope, of.user.id, for_update=True
    ),
    "tenant": lambda c, scope, of: tenants.tenant(c, scope, of.tenant.id),
    "tenant, locked": lambda c, scope, of: tenants.tenant(c, scope, of.tenant.id, for_update=True),
    "source": lambda c, scope, of: sources.source(c, scope, of.directory.id),
    "directory": lambda c, scope, of: directories.directory(c, scope, of.directory.id),
    "directory, locked": lambda c, scope, of: directories.directory(
        c, scope, of.directory.id, lock="FOR UPDATE"
    ),
    "email domain": lambda c, scope, of: domains.domain(c, scope, of.domain.domain),
    "service account": lambda c, scope, of: accounts.account(c, scope, of.account.id),
    "service account, locked": lambda c, scope, of: accounts.account(
        c, scope, of.account.id, for_update=True
    ),
    "API token": lambda c, scope, of: tokens.token(c, scope, of.token.id),
    "API token, locked": lambda c, scope, of: tokens.token(c, scope, of.token.id, for_update=True),
    "event credential": lambda c, scope, of: credentials.credential(c, scope, of.credential.id),
}


async def test_a_read_finds_no_other_tenants_row(schools: Schools) -> None:
    """Each of the two bounds does for it alone; within both, and for the root, the row is found."""
    mine, other = schools.mine, schools.other
    for name, read in _READS.items():
        async with schools.open as connection:
            assert await read(connection, mine.scope, other) is None, f"{name} names no tenant"
            assert await read(connection, Scope(()), mine) is None, name
            assert await read(connection, mine.scope, mine) is not None, name
            assert await read(connection, SYSTEM, other) is not None, name
        async with schools.kit.database.transaction(mine.scope) as connection:
            assert await read(connection, SYSTEM, other) is None, f"{name} is not bound"
            assert await read(connection, mine.scope, mine) is not None, name


async def test_a_write_changes_no_other_tenants_user(schools: Schools) -> None:
    """A user who is said to be another tenant's is not written."""
    user = schools.mine.user
    wrong = replace(user, tenant_id=schools.other.tenant.id, role=Role.AUDITOR)
    at = now()
    async with schools.open as connection:
        await users.update_user(connection, wrong, wrong, at)
        await users.set_password(connection, wrong, PasswordHashes("another", None), at)
        await users.set_invitation(connection, wrong, b"token".ljust(32), at, at)
        found = await users.credentials(connection, SYSTEM, user.id)
        assert found is not None
        assert (found.user.role, found.user.status) == (Role.OWNER, "active")
        assert found.hashes == HASHES
        await users.update_user(connection, user, replace(user, role=Role.AUDITOR), at)
        changed = await users.user(connection, SYSTEM, user.id)
        assert changed is not None
        assert changed.role is Role.AUDITOR


async def test_a_write_changes_no_other_tenants_token(schools: Schools) -> None:
    """Nor its service account; one that is said to be another tenant's is not written."""
    mine, at = schools.mine, now()
    other = schools.other.tenant.id
    async with schools.open as connection:
        ended = replace(mine.token, ends_at=at, ended_because="revoked")
        await tokens.end(connection, replace(ended, tenant_id=other))
        await accounts.update(connection, replace(mine.account, tenant_id=other, name="other"))
        assert await tokens.token(connection, SYSTEM, mine.token.id) == mine.token
        assert await accounts.account(connection, SYSTEM, mine.account.id) == mine.account
        await tokens.end(connection, ended)
        await accounts.update(connection, replace(mine.account, name="other"))
        assert await tokens.token(connection, SYSTEM, mine.token.id) == ended
