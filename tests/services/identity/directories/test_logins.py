"""Logins with a directory: who gets in, as what, and what the directory is spared."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from services.identity.sources.breaker import FAILURES
from tests.fakes.ldap import SERVICE, SERVICE_PASSWORD, group_dn
from tests.support import callers
from tests.support.directories import DOMAIN, LOCAL, World, fake, reason, row, world
from tests.support.identity import OWNER, PASSWORD, as_caller, claims, refused

__all__ = ["fake", "world"]  # the fixtures


async def test_a_person_gets_an_account_by_logging_in(world: World) -> None:
    """With the role and tenant of the mappings; the password is stored nowhere."""
    anna = world.ldap.person("anna", "Admins")
    session = await world.login("anna")
    assert (session.role, session.tenant_id) == ("Admin", world.school.id)
    user = (await world.users())["anna"]
    assert (user.origin, user.source_id, user.status) == (
        "directory",
        world.directory.id,
        "active",
    )
    again = await world.login("anna")
    assert claims(again.token)["sub"] == user.id

    ((_, created),) = [(e["action"], e) for e in await world.events("user_created")][-1:]
    assert created["actor"] == f"directory:{world.directory.id}"
    assert created["after"]["groups"] == [group_dn("Admins")]
    assert created["after"]["origin"] == "directory"
    connection = await world.identity.database.superuser()
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'identity'")
    dump = ""
    for table in tables:
        name = table["tablename"]
        rows = await connection.fetch(f"SELECT t::text AS text FROM identity.{name} t")
        dump += "".join(found["text"] for found in rows)
    account = await connection.fetchrow(
        "SELECT password_hash, prepared_hash FROM identity.account WHERE origin = 'directory'"
    )
    await connection.close()
    assert "the password of anna" not in dump
    assert tuple(account or ()) == (None, None)
    # The account that searches finds the person, the person binds, the account asks for the groups.
    service = (SERVICE, SERVICE_PASSWORD)
    assert world.ldap.binds[-3:] == [service, (anna.dn, anna.password), service]


async def test_groups_decide(world: World) -> None:
    """The highest role of the deciding tenant's rows; without a row there is no login."""
    world.ldap.person("a", "Auditors")
    world.ldap.person("b", "Auditors", "Owners")
    world.ldap.person("c", "Staff")
    world.ldap.person("d")
    assert (await world.login("a")).role == "Auditor"
    assert (await world.login("b")).role == "Owner"
    for name in ("c", "d"):
        assert await world.refused(name) == "NO_ROLE"
        assert name not in await world.users()
        told = (await world.events("directory_login_refused"))[-1]
        assert told["after"] == {
            "email": f"{name}@{DOMAIN}",
            "reason": "NO_ROLE",
            "source": world.directory.id,
        }


async def test_nested_groups_count(world: World) -> None:
    """Also in a circle, by the server's rule and by walking."""
    world.ldap.person("anna", "Physics")
    world.ldap.groups[group_dn("Teachers")] = {group_dn("Physics"), group_dn("Admins")}
    world.ldap.groups[group_dn("Admins")] = {group_dn("Teachers")}
    assert (await world.login("anna")).role == "Admin"
    await world.update(group_mode="walk")
    assert (await world.login("anna")).role == "Admin"
    world.ldap.groups[group_dn("Teachers")].discard(group_dn("Physics"))
    assert await world.refused("anna") == "NO_ROLE"


async def test_the_first_row_decides_the_tenant(
    world: World,
) -> None:
    """And only rows of that tenant the role: nobody is an Owner by another school's row."""
    root_directory = world.identity.directories
    district = await world.identity.org(world.root, "District", reseller=True)
    north = await world.identity.org(world.root, "North", parent_id=district.id)
    south = await world.identity.org(world.root, "South", parent_id=district.id)
    from tests.support.directories import wanted  # noqa: PLC0415 - near its use

    made = await root_directory.CreateDirectory(
        wanted(
            world.ldap,
            row("North", Role.AUDITOR, north.id),
            row("South", Role.OWNER, south.id),
            row("NorthAdmins", Role.ADMIN, north.id),
            org_id=district.id,
        ),
        metadata=world.root,
    )
    await world.identity.domains.CreateEmailDomain(
        pb.CreateEmailDomainRequest(domain="district.example", org_id=district.id),
        metadata=world.root,
    )
    await world.identity.domains.UpdateEmailDomain(
        pb.UpdateEmailDomainRequest(domain="district.example", source_id=made.id),
        metadata=world.root,
    )
    world.ldap.groups |= {group_dn(name): set() for name in ("North", "South", "NorthAdmins")}
    anna = world.ldap.person("anna", "South", mail="anna@district.example")

    async def login() -> tuple[str, str]:
        session = await world.identity.auth.Login(
            pb.LoginRequest(email=anna.mail, password=anna.password),
            metadata=callers.anonymous(),
        )
        return session.role, session.tenant_id

    assert await login() == ("Owner", south.id)
    world.ldap.groups[group_dn("North")].add(anna.dn)
    assert await login() == ("Auditor", north.id)
    world.ldap.groups[group_dn("NorthAdmins")].add(anna.dn)
    assert await login() == ("Admin", north.id)
    moved = await world.events("user_moved_away", "user_moved_in")
    assert [event["action"] for event in moved] == [
        "identity.user_moved_away",
        "identity.user_moved_in",
    ]
    listed = await world.identity.users.ListUsers(
        pb.ListUsersRequest(org_id=north.id), metadata=world.root
    )
    assert [user.email for user in listed.users] == [anna.mail]


async def test_a_local_password_is_local_only(world: World) -> None:
    """The directory is not asked for an account that has a password here, right or wrong."""
    world.ldap.person("local", "Auditors", password="another")
    before = list(world.ldap.binds)
    session = await world.identity.login(LOCAL)
    assert session.role == "Owner"
    assert await world.refused("local", "another") == "WRONG_CREDENTIALS"
    assert world.ldap.binds == before


async def test_who_was_invited_comes_by_the_directory(world: World) -> None:
    """The invitation ends, the mappings decide; the account stays the same. Of another tenant it
    stays what it is."""
    invited = await world.identity.users.CreateUser(
        pb.CreateUserRequest(email=f"anna@{DOMAIN}", role="Admin", org_id=world.school.id),
        metadata=world.root,
    )
    elsewhere = await world.identity.users.CreateUser(
        pb.CreateUserRequest(
            email=f"berta@{DOMAIN}", role="Auditor", org_id=world.school.parent_id
        ),
        metadata=world.root,
    )
    world.ldap.person("anna", "Auditors")
    world.ldap.person("berta", "Admins")
    session = await world.login("anna")
    assert (session.role, claims(session.token)["sub"]) == ("Auditor", invited.id)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.identity.auth.AcceptInvitation(
            pb.AcceptInvitationRequest(
                invitation_token=invited.invitation_token, password=PASSWORD
            ),
            metadata=callers.anonymous(),
        )
    assert reason(error) == "WRONG_INVITATION"
    assert await world.refused("berta") == "WRONG_CREDENTIALS"
    assert (await world.users())["berta"].id == elsewhere.id


async def test_an_address_is_the_domains(world: World) -> None:
    """Who has two addresses is one person; an address of nobody's domain makes no account."""
    anna = world.ldap.person("anna", "Admins", mail="anna@elsewhere.example")
    await world.update(user_filter="(&(objectClass=user)(|(cn={login})(mail={login})))")
    world.ldap.people[anna.dn].mail = f"anna@{DOMAIN}"
    first = await world.login("anna")
    world.ldap.people[anna.dn].mail = f"anna.smith@{DOMAIN}"
    await world.forgive()
    # Found by the new address, known by the directory's own id.
    second = await world.login("anna.smith", anna.password)
    assert claims(first.token)["sub"] == claims(second.token)["sub"]
    assert second.email == f"anna.smith@{DOMAIN}"
    assert not await world.is_open(first)


async def test_two_people_with_one_address_are_nobody(world: World) -> None:
    """Whichever of them was meant."""
    world.ldap.person("anna", "Admins")
    world.ldap.person("other", "Owners", mail=f"anna@{DOMAIN}")
    assert await world.refused("anna") == "WRONG_CREDENTIALS"


async def test_what_is_typed_is_no_filter(world: World) -> None:
    """Stars and parentheses find nobody."""
    world.ldap.person("anna", "Admins")
    for typed in ("*", "a*", "anna@school.example)(objectClass=*", "\\2a"):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.identity.auth.Login(
                pb.LoginRequest(email=f"{typed}@{DOMAIN}", password="the password of anna"),
                metadata=callers.anonymous(),
            )
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_directory_sees_two_wrong_passwords_at_most(world: World) -> None:
    """So guessing here locks nobody there. A stranger has one of them, so that the person is not
    kept out by strangers; a right one, or ten minutes, make up for it."""
    anna = world.ldap.person("anna", "Admins")

    def seen() -> int:
        return sum(name == anna.dn for name, _ in world.ldap.binds)

    await world.login("anna", source="192.0.2.1")
    at = seen()
    assert await world.refused("anna", "wrong", "198.51.100.1") == "WRONG_CREDENTIALS"
    for number in range(2, 5):
        where = f"198.51.100.{number}"
        assert await world.refused("anna", "wrong", where) == "TOO_MANY_DIRECTORY_TRIES"
    assert seen() == at + 1
    # From where she has logged in before, one is left, and right.
    await world.login("anna", source="192.0.2.1")
    assert await world.refused("anna", "wrong", "192.0.2.1") == "WRONG_CREDENTIALS"
    assert await world.refused("anna", "wrong", "192.0.2.1") == "WRONG_CREDENTIALS"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.login("anna", source="192.0.2.1")
    body = refused(error)
    assert body["status"] == "RESOURCE_EXHAUSTED"
    retry = next(d["retryDelay"] for d in body["details"] if "retryDelay" in d)
    assert 540 < float(retry.rstrip("s")) <= 600
    assert seen() == at + 4
    world.clock.ahead = timedelta(minutes=10, seconds=1)
    await world.login("anna", source="192.0.2.1")


async def test_wrong_passwords_side_by_side_count_each_other(world: World) -> None:
    """Of twenty at once two arrive at most."""
    anna = world.ldap.person("anna", "Admins")
    await world.login("anna", source="192.0.2.1")
    before = len(world.ldap.binds)
    results = await asyncio.gather(
        *(world.login("anna", "wrong", "192.0.2.1") for _ in range(20)), return_exceptions=True
    )
    assert all(isinstance(result, grpc.aio.AioRpcError) for result in results)
    assert sum(name == anna.dn for name, _ in world.ldap.binds[before:]) <= 2


async def test_what_a_directory_says_is_told(world: World) -> None:
    """Disabled, locked, expired: only after the directory itself said so; the log has its code."""
    anna = world.ldap.person("anna", "Admins")
    await world.login("anna")
    for code, told in (
        ("533", "ACCOUNT_DISABLED"),
        ("701", "ACCOUNT_DISABLED"),
        ("775", "ACCOUNT_LOCKED"),
        ("532", "PASSWORD_EXPIRED"),
        ("773", "PASSWORD_EXPIRED"),
        ("52e", "WRONG_CREDENTIALS"),
        ("525", "WRONG_CREDENTIALS"),
    ):
        await world.forgive()
        anna.bind_message = f"80090308: LdapErr: DSID-0C090447, comment: x, data {code}, v4563"
        assert await world.refused("anna") == told
        failed = (await world.events("login_failed"))[-1]
        assert failed["after"]["reason"] == f"AD_{code.upper()}"
        assert failed["after"]["source"] == world.directory.id


async def test_what_an_administrator_disabled_stays_out(world: World) -> None:
    """No login and no sync lets the user in; to be let in again takes an administrator, and then
    the directory decides."""
    world.ldap.person("anna", "Admins")
    session = await world.login("anna")
    user = (await world.users())["anna"]
    users = world.identity.users
    await users.DeactivateUser(pb.DeactivateUserRequest(id=user.id), metadata=world.owner)
    assert await world.refused("anna") == "ACCOUNT_DISABLED"
    await world.sync()
    assert (await world.users())["anna"].disabled_by == "admin"
    assert not await world.is_open(session)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await users.ReactivateUser(
            pb.ReactivateUserRequest(id=user.id, etag="other"), metadata=world.owner
        )
    assert reason(error) == "ETAG_MISMATCH"
    again = await users.ReactivateUser(pb.ReactivateUserRequest(id=user.id), metadata=world.owner)
    assert (again.status, again.disabled_by) == ("disabled", "source")
    await world.sync()
    assert (await world.users())["anna"].status == "active"
    assert (await world.login("anna")).role == "Admin"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        local = (await world.users())["local"]
        await users.ReactivateUser(pb.ReactivateUserRequest(id=local.id), metadata=world.root)
    assert reason(error) == "USER_IS_LOCAL"


async def test_a_directory_decides_what_its_users_are(world: World) -> None:
    """Role, address, tenant and password of its users are nobody else's to change."""
    world.ldap.person("anna", "Auditors")
    session = await world.login("anna")
    user = (await world.users())["anna"]
    users = world.identity.users
    for call in (
        users.UpdateUser(pb.UpdateUserRequest(id=user.id, role="Owner"), metadata=world.root),
        users.UpdateUser(
            pb.UpdateUserRequest(id=user.id, email="x@school.example"), metadata=world.root
        ),
        users.UpdateUser(
            pb.UpdateUserRequest(id=user.id, org_id=world.school.parent_id), metadata=world.root
        ),
        users.InviteUser(pb.InviteUserRequest(id=user.id), metadata=world.root),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert reason(error) == "SOURCE_DECIDES"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.identity.auth.ChangePassword(
            pb.ChangePasswordRequest(
                current_password="the password of anna", new_password=PASSWORD + "!"
            ),
            metadata=as_caller(session.token),
        )
    assert reason(error) == "PASSWORD_ELSEWHERE"


async def test_the_last_local_owner_stays(world: World) -> None:
    """Of an organisation with a directory: for the day when that does not answer."""
    world.ldap.person("olive", "Owners")
    olive = as_caller((await world.login("olive")).token)
    local = (await world.users())["local"]
    users = world.identity.users
    for by in (olive, world.root):
        for call in (
            users.DeactivateUser(pb.DeactivateUserRequest(id=local.id), metadata=by),
            users.UpdateUser(pb.UpdateUserRequest(id=local.id, role="Admin"), metadata=by),
            users.InviteUser(pb.InviteUserRequest(id=local.id), metadata=by),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert reason(error) == "LAST_LOCAL_OWNER"
    await world.identity.user(world.root, Role.OWNER, world.school.id, "second@other.example")
    await users.DeactivateUser(pb.DeactivateUserRequest(id=local.id), metadata=olive)
    # The root has no directory, and its Owner comes from none.
    root_owner = (await world.users())[OWNER.partition("@")[0]]
    _, other = await world.identity.user(world.root, Role.OWNER, email="o2@other.example")
    await users.DeactivateUser(pb.DeactivateUserRequest(id=root_owner.id), metadata=other)


async def test_after_three_failures_nobody_waits(world: World) -> None:
    """503 with a delay, without asking; local users get in all the while; afterwards it works."""
    world.ldap.person("anna", "Admins")
    await world.login("anna")
    for number in range(FAILURES):
        world.ldap.lie = ("cut", "garbage")[number % 2]
        assert await world.refused("anna") == "DIRECTORY_AWAY"
    asked = world.ldap.connections
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.login("anna")
    body = refused(error)
    assert (body["status"], reason(error)) == ("UNAVAILABLE", "DIRECTORY_AWAY")
    retry = next(d["retryDelay"] for d in body["details"] if "retryDelay" in d)
    assert 0 < float(retry.rstrip("s")) <= 30
    assert world.ldap.connections == asked
    assert (await world.identity.login(LOCAL)).role == "Owner"
    # No wrong password was seen, and none is counted.
    world.ldap.lie = ""
    await world.update(name="The same, mended")
    assert (await world.login("anna")).role == "Admin"


async def test_sessions_outlast_a_silent_directory_for_a_day(world: World) -> None:
    """Refreshes go on for `grace_hours` after the last word; then the user logs in again."""
    world.ldap.person("anna", "Admins")
    session = await world.login("anna")
    local = await world.identity.login(LOCAL)
    world.ldap.lie = "cut"

    async def refresh(token: str) -> pb.Session:
        return await world.identity.auth.RefreshSession(
            pb.RefreshSessionRequest(refresh_token=token), metadata=callers.anonymous()
        )

    world.clock.ahead = timedelta(hours=23)
    session = await refresh(session.refresh_token)
    world.clock.ahead = timedelta(hours=24, seconds=1)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await refresh(session.refresh_token)
    assert reason(error) == "SOURCE_SILENT"
    assert (await refresh(local.refresh_token)).role == "Owner"
    world.ldap.lie = ""
    await world.sync()
    assert (await refresh(session.refresh_token)).role == "Admin"


async def test_a_directory_that_is_not_in_use_lets_nobody_in(world: World) -> None:
    """Nor keeps anybody in; one that is deleted leaves users whom an Owner may invite."""
    world.ldap.person("anna", "Admins")
    session = await world.login("anna")
    await world.update(enabled=False)
    assert not await world.is_open(session)
    assert await world.refused("anna") == "WRONG_CREDENTIALS"
    await world.update(enabled=True)
    session = await world.login("anna")
    await world.identity.directories.DeleteDirectory(
        pb.DeleteDirectoryRequest(id=world.directory.id), metadata=world.owner
    )
    user = (await world.users())["anna"]
    assert (user.origin, user.status) == ("local", "disabled")
    assert not await world.is_open(session)
    assert await world.refused("anna") == "WRONG_CREDENTIALS"
    listed = await world.identity.domains.ListEmailDomains(
        pb.ListEmailDomainsRequest(), metadata=world.owner
    )
    assert [(one.domain, one.source_id) for one in listed.domains] == [(DOMAIN, "")]
    again = await world.identity.users.InviteUser(
        pb.InviteUserRequest(id=user.id), metadata=world.owner
    )
    await world.identity.auth.AcceptInvitation(
        pb.AcceptInvitationRequest(invitation_token=again.invitation_token, password=PASSWORD),
        metadata=callers.anonymous(),
    )
    assert (await world.identity.login(f"anna@{DOMAIN}")).role == "Admin"


async def test_passwords_are_in_no_event(world: World) -> None:
    """Neither right nor wrong ones."""
    world.ldap.person("anna", "Admins")
    await world.login("anna")
    await world.refused("anna", "planted wrong password")
    told = json.dumps(await world.identity.events())
    assert "planted wrong password" not in told
    assert "the password of anna" not in told
