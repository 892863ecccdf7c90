"""Syncs: what a directory has changed reaches its users, and what it lost by mistake does not."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.fakes.ldap import group_dn
from tests.support.directories import DOMAIN, World, fake, reason, row, world
from tests.support.identity import claims

__all__ = ["fake", "world"]  # the fixtures


async def test_a_sync_takes_over_what_has_changed(world: World) -> None:
    """Role and address; who is unchanged stays logged in, whose access changed is logged out."""
    anna = world.ldap.person("anna", "Admins")
    world.ldap.person("berta", "Auditors")
    sessions = {name: await world.login(name) for name in ("anna", "berta")}
    done = await world.sync()
    assert (done.sync_status, done.users) == ("ok", 2)
    assert await world.is_open(sessions["anna"])
    assert await world.is_open(sessions["berta"])
    assert await world.events("user_updated", "user_deactivated") == []

    world.ldap.groups[group_dn("Admins")].discard(anna.dn)
    world.ldap.groups[group_dn("Auditors")].add(anna.dn)
    anna.mail = f"anna.smith@{DOMAIN}"
    await world.sync()
    users = await world.users()
    assert (users["anna.smith"].role, users["anna.smith"].id) == (
        "Auditor",
        claims(sessions["anna"].token)["sub"],
    )
    assert not await world.is_open(sessions["anna"])
    assert await world.is_open(sessions["berta"])
    (told,) = await world.events("user_updated")
    assert told["actor"] == f"directory:{world.directory.id}"
    assert told["after"]["groups"] == [group_dn("Auditors")]


async def test_who_lost_it_is_out(world: World) -> None:
    """Removed from the last group, disabled there, deleted there, out of a nested group: disabled
    here, and logged out. Back there, back here, as the same account."""
    anna = world.ldap.person("anna", "Admins")
    world.ldap.person("somebody")
    admins, inner = world.ldap.groups[group_dn("Admins")], group_dn("Inner")
    world.ldap.groups[inner] = {anna.dn}

    def lose(loss: str, *, back: bool) -> None:
        if loss == "group":
            (admins.add if back else admins.discard)(anna.dn)
        elif loss == "nested":
            (admins.add if back else admins.discard)(inner)
        elif loss == "disabled":
            anna.disabled = not back
        elif back:
            world.ldap.people[anna.dn] = anna
        else:
            del world.ldap.people[anna.dn]

    for loss in ("group", "disabled", "gone", "nested"):
        if loss == "nested":
            admins.discard(anna.dn)
            admins.add(inner)
            await world.sync()
        session = await world.login("anna")
        assert await world.is_open(session)
        lose(loss, back=False)
        await world.sync()
        user = (await world.users())["anna"]
        assert (user.status, user.disabled_by) == ("disabled", "source"), loss
        assert not await world.is_open(session)
        told = (await world.events("user_deactivated"))[-1]
        assert told["actor"] == f"directory:{world.directory.id}"
        lose(loss, back=True)
        await world.sync()
        again = (await world.users())["anna"]
        assert (again.id, again.status, again.role) == (user.id, "active", "Admin"), loss
    assert len(await world.events("user_deactivated")) == 4


async def test_any_fault_changes_nothing(world: World) -> None:
    """A missing group, a wrong password, an answer that is none: all users stay as they are. It is
    told once, until it works again."""
    world.ldap.person("anna", "Admins")
    session = await world.login("anna")
    groups = world.ldap.groups
    for number, fault in enumerate(("cut", "garbage", "group")):
        if fault == "group":
            world.ldap.groups = {}
        else:
            world.ldap.lie = fault
        for _ in range(2):
            done = await world.sync()
            assert done.sync_status == "failed", fault
            assert done.sync_error
        told = await world.events("directory_sync_failed")
        assert len(told) == number + 1
        assert told[-1]["after"]["error"] == done.sync_error
        assert (await world.users())["anna"].status == "active"
        assert await world.is_open(session)
        world.ldap.groups, world.ldap.lie = groups, ""
        assert (await world.sync()).sync_status == "ok"
    await world.update(bind_password="another")
    assert (await world.sync()).sync_status == "failed"
    assert await world.is_open(session)


async def people(world: World, count: int) -> list[pb.Session]:
    for number in range(count):
        world.ldap.person(f"p{number}", "Auditors")
    sessions = []
    for number in range(count):
        sessions.append(await world.login(f"p{number}", source=f"192.0.2.{number}"))
    return sessions


async def test_many_at_once_wait_for_an_owner(world: World) -> None:
    """More than five, and more than a fifth: nothing is changed until it is confirmed, and then no
    more than was said."""
    sessions = await people(world, 8)
    auditors = world.ldap.groups[group_dn("Auditors")]
    everybody = set(auditors)
    auditors.clear()
    auditors.update(sorted(everybody)[:2])
    held = await world.sync()
    assert (held.sync_status, held.sync_held) == ("held", 6)
    assert all([await world.is_open(session) for session in sessions])
    assert await world.events("user_deactivated") == []
    assert (await world.sync()).sync_status == "held"
    (told,) = await world.events("directory_sync_held")
    assert told["after"]["deactivates"] == 6

    # By now it would be more than was shown: held again.
    auditors.clear()
    held = await world.sync(confirm=True)
    assert (held.sync_status, held.sync_held) == ("held", 8)
    done = await world.sync(confirm=True)
    assert (done.sync_status, done.sync_held) == ("ok", 0)
    users = await world.users()
    assert {users[f"p{n}"].status for n in range(8)} == {"disabled"}
    assert not any([await world.is_open(session) for session in sessions])
    (confirmed,) = await world.events("directory_sync_confirmed")
    assert confirmed["after"]["deactivates"] == 8
    assert confirmed["actor"] == "local@school.example"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.sync(confirm=True)
    assert reason(error) == "NOTHING_HELD"
    auditors.update(everybody)
    assert (await world.sync()).sync_status == "ok"
    assert {(await world.users())[f"p{n}"].status for n in range(8)} == {"active"}


async def test_a_few_do_not_wait(world: World) -> None:
    """Five of six are an ordinary day in a small school."""
    await people(world, 6)
    auditors = world.ldap.groups[group_dn("Auditors")]
    auditors.intersection_update(sorted(auditors)[:1])
    assert (await world.sync()).sync_status == "ok"
    statuses = [user.status for name, user in (await world.users()).items() if name[0] == "p"]
    assert sorted(statuses) == ["active"] + ["disabled"] * 5


async def test_other_mappings_count_at_once(world: World) -> None:
    """What they no longer give is taken with the change itself; what they give now comes with the
    next word of the directory."""
    anna = world.ldap.person("anna", "Admins")
    world.ldap.person("berta", "Auditors")
    sessions = [await world.login("anna"), await world.login("berta")]
    await world.update(role_mappings=[row("Admins", Role.AUDITOR)])
    users = await world.users()
    assert (users["anna"].role, users["berta"].status) == ("Auditor", "disabled")
    assert not any([await world.is_open(session) for session in sessions])
    world.ldap.groups[group_dn("New")] = {anna.dn}
    await world.update(role_mappings=[row("New", Role.OWNER), row("Auditors", Role.AUDITOR)])
    users = await world.users()
    assert (users["anna"].status, users["berta"].status) == ("disabled", "disabled")
    await world.sync()
    users = await world.users()
    assert (users["anna"].role, users["anna"].status) == ("Owner", "active")
    assert (users["berta"].role, users["berta"].status) == ("Auditor", "active")


async def test_no_half_of_other_mappings_is_ever_in_force(world: World) -> None:
    """While they are taken over, all is as before; when somebody cannot be changed, it stays so."""
    world.ldap.person("anna", "Admins")
    world.ldap.person("berta", "Admins")
    sessions = [await world.login(name) for name in ("anna", "berta")]
    before = await world.users()
    rows = [row("Admins", Role.AUDITOR)]

    async def check_as_before() -> None:
        assert await world.users() == before
        found = await world.identity.directories.GetDirectory(
            pb.GetDirectoryRequest(id=world.directory.id), metadata=world.owner
        )
        assert found.role_mappings == world.directory.role_mappings
        assert all([await world.is_open(session) for session in sessions])

    connection = await world.identity.database.superuser()
    try:
        async with connection.transaction():
            # The last one that is changed.
            await connection.execute(
                "SELECT FROM identity.account WHERE id = $1 FOR UPDATE",
                max(before[name].id for name in ("anna", "berta")),
            )
            change = asyncio.create_task(world.update(role_mappings=rows))
            async with asyncio.timeout(20):
                while not await connection.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted"
                ):
                    await asyncio.sleep(0.05)
            await check_as_before()
            change.cancel()
        with pytest.raises(asyncio.CancelledError):
            await change
        await check_as_before()
        await connection.execute(
            "CREATE FUNCTION identity.refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'refused'; END $$;"
            "CREATE TRIGGER refuse BEFORE UPDATE ON identity.account FOR EACH ROW"
            " WHEN (old.email LIKE 'berta@%') EXECUTE FUNCTION identity.refuse()"
        )
        with pytest.raises(grpc.aio.AioRpcError):
            await world.update(role_mappings=rows)
        await check_as_before()
        await connection.execute("DROP TRIGGER refuse ON identity.account")
    finally:
        await connection.close()
    await world.update(role_mappings=rows)
    users = await world.users()
    assert {users[name].role for name in ("anna", "berta")} == {"Auditor"}


async def test_a_narrower_filter_counts_for_everybody(world: World) -> None:
    """Who does not match the filter any more is nobody of the directory's."""
    world.ldap.person("anna", "Admins")
    world.ldap.person("berta", mail="berta@elsewhere.example")
    await world.login("anna")
    berta = "(mail=berta@elsewhere.example)"
    await world.update(user_filter=f"(&(objectClass=user){berta}(mail={{login}}))")
    await world.sync()
    assert (await world.users())["anna"].status == "disabled"


async def test_local_users_are_no_business_of_a_sync(world: World) -> None:
    """Whatever the directory says of their addresses."""
    world.ldap.person("local", "Auditors")
    await world.sync()
    local = (await world.users())["local"]
    assert (local.origin, local.role, local.status) == ("local", "Owner", "active")


async def test_an_address_that_is_taken_stays(world: World) -> None:
    """A user keeps the old address where the new one is somebody else's; the rest is taken over."""
    anna = world.ldap.person("anna", "Admins")
    await world.login("anna")
    anna.mail = "local@school.example"
    world.ldap.groups[group_dn("Admins")].discard(anna.dn)
    world.ldap.groups[group_dn("Auditors")].add(anna.dn)
    assert (await world.sync()).sync_status == "ok"
    users = await world.users()
    assert (users["anna"].role, users["local"].role) == ("Auditor", "Owner")
    anna.mail = "anna@nobodys.example"
    await world.sync()
    assert "anna" in await world.users()


async def test_syncs_come_by_themselves_and_take_turns(world: World) -> None:
    """When their time has come; two at once are one."""
    anna = world.ldap.person("anna", "Admins")
    await world.login("anna")
    world.ldap.groups[group_dn("Admins")].discard(anna.dn)
    world.clock.ahead = timedelta(minutes=30)
    async with asyncio.timeout(60):
        while (await world.users())["anna"].status != "disabled":
            await asyncio.sleep(0.1)
    world.ldap.groups[group_dn("Admins")].add(anna.dn)
    call = world.identity.directories.SyncDirectory

    async def once() -> str:
        try:
            await call(pb.SyncDirectoryRequest(id=world.directory.id), metadata=world.owner)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.ABORTED
            return "turned away"
        return "done"

    results: list[str] = []
    while "done" not in results:  # the one that came by itself may not be over yet
        results = await asyncio.gather(*(once() for _ in range(6)))
    assert (await world.users())["anna"].status == "active"


async def test_a_directory_that_is_not_in_use_is_not_synced(world: World) -> None:
    """It says so."""
    await world.update(enabled=False)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.sync()
    assert reason(error) == "DIRECTORY_DISABLED"
