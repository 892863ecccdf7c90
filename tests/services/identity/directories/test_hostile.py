"""Directories that are slow, broken or hostile: what they take from others, and what they get."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest

from evergreen.v1 import identity_pb2 as pb
from servicekit.errors import DomainError
from servicekit.security.sealing import Sealer
from services.identity.authenticators.guesses import Standing
from services.identity.directories import syncs, threads
from services.identity.directories.asking import AwayError, Budget, Frames, Job, readable
from services.identity.directories.threads import DirectoryThreads
from services.identity.directories.tries import Tries
from tests.conftest import MakeKit
from tests.fakes.ldap import FakeDirectory, group_dn
from tests.services.identity.directories.test_threads import PATIENCE, settings
from tests.support.directories import DOMAIN, World, fake, reason, wanted, world

__all__ = ["fake", "world"]  # the fixtures


async def fetch(world: World, query: str) -> Any:
    connection = await world.identity.database.superuser()
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@asynccontextmanager
async def asking(world: World) -> AsyncIterator[asyncio.Future[pb.Directory]]:
    """A sync that an Owner waits for, and whose answer is on its way until the block ends."""
    world.ldap.pause = pause = threading.Event()
    asked = asyncio.ensure_future(world.sync())
    try:
        async with asyncio.timeout(PATIENCE):
            while not world.ldap.paused.is_set():
                await asyncio.sleep(0.05)
        yield asked
    finally:
        pause.set()
    await asked


@pytest.mark.parametrize("password", ["\u00ad", "a\x01", "пароль²"])
async def test_passwords_arrive_as_they_were_typed(world: World, password: str) -> None:
    """Whatever the library makes of such ones: they are the person's, and no fault."""
    anna = world.ldap.person("anna", "Admins", password=password)
    assert (await world.login("anna", password)).role == "Admin"
    assert (anna.dn, password) in world.ldap.binds


async def test_a_sync_holds_nothing_while_it_asks(world: World) -> None:
    """No lock and no transaction; the next one is due later already; of a tenant's syncs Owners
    wait for one at a time."""
    world.ldap.person("anna", "Admins")
    await world.login("anna")
    second = await world.identity.directories.CreateDirectory(
        wanted(world.ldap, name="Second"), metadata=world.owner
    )
    async with asking(world) as asked:
        assert await fetch(world, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
        held = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state"
        assert await fetch(world, f"{held} LIKE 'idle in transaction%'") == 0
        due = "SELECT sync_next_at > now() + interval '10 minutes' FROM identity.directory"
        assert await fetch(world, f"{due} WHERE id = '{world.directory.id}'")
        for directory in (world.directory, second):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await world.identity.directories.SyncDirectory(
                    pb.SyncDirectoryRequest(id=directory.id), metadata=world.owner
                )
            assert reason(error) == "SYNC_UNDER_WAY"
        assert not asked.done()
    assert asked.result().sync_status == "ok"
    assert (
        await fetch(world, "SELECT count(*) FROM identity.directory WHERE sync_until > now()") == 0
    )


async def test_a_sync_changes_nothing_of_a_directory_that_was_changed(world: World) -> None:
    """What it heard was asked of another one."""
    anna = world.ldap.person("anna", "Admins")
    await world.login("anna")
    async with asking(world):
        await world.update(name="Another")
        del world.ldap.people[anna.dn]
    assert (await world.users())["anna"].status == "active"


async def test_a_login_is_newer_than_a_sync_that_began_before(world: World) -> None:
    """What the sync heard before is not taken, when a login has heard more since."""
    anna = world.ldap.person("anna", "Auditors")
    await world.login("anna")
    async with asking(world):
        anna.mail = f"anna.smith@{DOMAIN}"
        session = await world.login("anna.smith", anna.password)
    assert "anna.smith" in await world.users()
    assert await world.is_open(session)
    await world.sync()
    assert "anna.smith" in await world.users()


async def test_what_cannot_be_stored_stops_nobody(world: World) -> None:
    """Addresses with NUL, in no encoding, or endless; ids that are none: those people stay as they
    are, and all others are taken over."""
    names = ("null", "broken", "long", "idless", "berta")
    people = {name: world.ldap.person(name, "Admins") for name in names}
    for number, name in enumerate(names):
        await world.login(name, source=f"192.0.2.{number}")
    people["null"].mail = f"a\0b@{DOMAIN}"
    people["broken"].mail = f"a\udcff@{DOMAIN}"
    people["long"].mail = "a" * 2000 + f"@{DOMAIN}"
    people["idless"].shown_guid = b"\0" * 15
    admins, auditors = (world.ldap.groups[group_dn(one)] for one in ("Admins", "Auditors"))
    admins.discard(people["berta"].dn)
    auditors.add(people["berta"].dn)
    done = await world.sync()
    assert done.sync_status == "ok"
    assert done.sync_error == "1 people cannot be read, and stay as they are"
    users = await world.users()
    assert {users[name].status for name in names} == {"active"}
    assert users["berta"].role == "Auditor"
    assert await world.refused("idless") == "WRONG_CREDENTIALS"


def test_texts_of_a_directory_can_be_stored() -> None:
    """Errors have no NUL, nothing that is no character, and an end."""
    assert readable("a\0b\ud800c") == "a\ufffdb\ufffdc"
    assert len(str(AwayError("search", "x" * 10_000))) < 500


async def test_a_large_message_is_refused_by_its_head() -> None:
    """Before any of it is there; so is what is no LDAP."""

    def frames(**more: Any) -> Frames:
        given = {"seconds": 9.0, "octets": 9000, "messages": 9, "cpu_seconds": 9.0} | more
        return Frames(Job(Budget(**given), asyncio.get_running_loop()))

    for head in (b"\x30\x84\x7f\xff\xff\xff", b"\x30\x80", b"\x30\x88", b"\x31", b"\x30\x83\x10"):
        whole = head + b"\0\0" if head.endswith(b"\x10") else head
        with pytest.raises(OSError, match="server sent"):
            frames().take(whole)
    good = frames()
    for octet in b"\x30\x03abc" * 9:
        good.take(bytes([octet]))
    with pytest.raises(OSError, match="too much"):
        good.take(b"\x30\x00")
    with pytest.raises(OSError, match="too much"):
        frames(octets=4).take(b"\x30\x03abc")
    with pytest.raises(OSError, match="too much"):
        frames(cpu_seconds=-1.0).take(b"\x30")


async def test_a_flood_ends_at_once(fake: FakeDirectory) -> None:
    """A message of 2 GB is over with its head, and more entries than a budget has with the first
    one too many."""
    had = DirectoryThreads(1, PATIENCE)
    fake.lie = "flood"
    began = time.monotonic()
    with pytest.raises(AwayError, match="too large"):
        await had.run(uuid4(), settings(fake), lambda ldap: ldap.count())
    assert time.monotonic() - began < PATIENCE / 2
    fake.lie = ""
    for number in range(60):
        fake.person(f"p{number}")
    with pytest.raises(AwayError, match="too much"):
        await had.run(
            uuid4(), settings(fake), lambda ldap: ldap.count(), Budget(PATIENCE, 1 << 20, 50, 9.0)
        )
    assert await had.run(uuid4(), settings(fake), lambda ldap: ldap.count()) == 60
    had.close()


async def test_a_turn_that_does_not_come_is_no_fault_of_the_directory(
    fake: FakeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits in vain is told that too many do; nothing counts against whom they wait for."""
    monkeypatch.setattr(threads, "_WAIT_SECONDS", 0.3)
    had = DirectoryThreads(1, PATIENCE)
    fake.lie = "hang"
    hung = asyncio.ensure_future(had.run(uuid4(), settings(fake), lambda ldap: ldap.count()))
    await asyncio.sleep(0.1)
    victim = uuid4()
    with pytest.raises(DomainError) as busy:
        await had.run(victim, settings(fake), lambda ldap: ldap.count())
    assert busy.value.reason == "DIRECTORY_BUSY"
    had.check(victim)
    had.close()
    # Closing ends what is under way.
    with pytest.raises(AwayError):
        await asyncio.wait_for(hung, PATIENCE / 2)


async def test_slow_directories_leave_places_to_the_others(
    fake: FakeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many hang, places are free again after a moment; and a directory that was slow does
    not take one of them the next time."""
    monkeypatch.setattr(threads, "_SLOW_SECONDS", 0.5)
    had = DirectoryThreads(2, PATIENCE, slow=1)
    hanging = [uuid4() for _ in range(2)]
    fake.lie = "hang"
    hung = [
        asyncio.ensure_future(had.run(one, settings(fake), lambda ldap: ldap.count()))
        for one in hanging
    ]
    async with asyncio.timeout(PATIENCE):
        while fake.hanging < 2:
            await asyncio.sleep(0.05)
    fake.lie = ""
    began = time.monotonic()
    assert await had.run(uuid4(), settings(fake), lambda ldap: ldap.count()) == 0
    assert time.monotonic() - began < PATIENCE / 3
    monkeypatch.setattr(threads, "_WAIT_SECONDS", 0.3)
    with pytest.raises(DomainError) as busy:
        await had.run(hanging[0], settings(fake), lambda ldap: ldap.count())
    assert busy.value.reason == "DIRECTORY_BUSY"
    had.close()
    await asyncio.gather(*hung, return_exceptions=True)


async def test_a_login_that_changes_nothing_waits_for_nobody(world: World) -> None:
    """Not for the turn to change users, which another organisation may have."""
    world.ldap.person("anna", "Admins")
    await world.login("anna")
    connection = await world.identity.database.superuser()
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('identity:users'))")
        session = await asyncio.wait_for(world.login("anna"), PATIENCE)
    await connection.close()
    assert session.role == "Admin"


async def test_a_sync_changes_users_in_chunks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, in the end."""
    monkeypatch.setattr(syncs, "_CHUNK", 2)
    people = [world.ldap.person(f"p{number}", "Auditors") for number in range(5)]
    for number in range(5):
        await world.login(f"p{number}", source=f"192.0.2.{number}")
    admins = world.ldap.groups.setdefault(group_dn("Admins"), set())
    admins.update(one.dn for one in people)
    assert (await world.sync()).sync_status == "ok"
    users = await world.users()
    assert {users[f"p{number}"].role for number in range(5)} == {"Admin"}


async def test_small_steps_are_a_large_one(world: World) -> None:
    """What syncs took within a day counts together, also when people only may do less; an Owner's
    word begins anew."""
    people = [world.ldap.person(f"p{number}", "Admins") for number in range(9)]
    for number in range(9):
        await world.login(f"p{number}", source=f"192.0.2.{number}")
    admins, auditors = (world.ldap.groups[group_dn(one)] for one in ("Admins", "Auditors"))
    for one in people[:3]:
        admins.discard(one.dn)
    assert (await world.sync()).sync_status == "ok"
    for one in people[3:6]:
        admins.discard(one.dn)
        auditors.add(one.dn)
    held = await world.sync()
    assert (held.sync_status, held.sync_held) == ("held", 3)
    assert (await world.users())["p3"].role == "Admin"
    assert (await world.sync(confirm=True)).sync_status == "ok"
    assert (await world.users())["p3"].role == "Auditor"
    for one in people[6:]:
        admins.discard(one.dn)
    assert (await world.sync()).sync_status == "ok"
    for one in people[3:6]:
        auditors.discard(one.dn)
    assert (await world.sync()).sync_status == "held"
    world.clock.ahead = timedelta(hours=25)
    assert (await world.sync()).sync_status == "ok"


async def test_a_directory_that_knows_nobody_takes_nothing(world: World) -> None:
    """Not even from one user, until an Owner confirms it."""
    world.ldap.person("anna", "Admins")
    await world.login("anna")
    world.ldap.people.clear()
    held = await world.sync()
    assert (held.sync_status, held.sync_held) == ("held", 1)
    assert (await world.users())["anna"].status == "active"
    assert (await world.sync(confirm=True)).sync_status == "ok"
    assert (await world.users())["anna"].status == "disabled"


async def test_a_group_that_is_gone_takes_nothing_at_a_login(world: World) -> None:
    """Renamed or deleted there, its members are not told that they have no role, nor lose one."""
    anna = world.ldap.person("anna", "Admins")
    world.ldap.groups[group_dn("Auditors")].add(anna.dn)
    await world.login("anna")
    del world.ldap.groups[group_dn("Admins")]
    assert await world.refused("anna") == "DIRECTORY_AWAY"
    user = (await world.users())["anna"]
    assert (user.status, user.role) == ("active", "Admin")


async def test_a_directory_that_is_silent_about_passwords_is_away(world: World) -> None:
    """It finds people, and answers no bind of theirs: three times are enough. The password may have
    been seen, so the try stays one."""
    world.ldap.person("anna", "Admins")
    await world.login("anna")
    world.ldap.lie = "mute"
    for number in range(2):
        assert await world.refused("anna", "x", f"198.51.100.{number}") in {
            "DIRECTORY_AWAY" if number == 0 else "TOO_MANY_DIRECTORY_TRIES"
        }
    for _ in range(2):
        assert await world.refused("anna", "x") == "DIRECTORY_AWAY"
    binds = len(world.ldap.binds)
    assert await world.refused("anna", "x") == "DIRECTORY_AWAY"
    assert len(world.ldap.binds) == binds


async def test_who_is_there_cannot_be_found_out(world: World) -> None:
    """A stranger's wrong password takes the same questions whether there is a person or not, and
    once more by another address of the person; that somebody is locked, strangers are not told."""
    anna = world.ldap.person("anna", "Admins")
    await world.update(user_filter="(&(objectClass=user)(|(mail={login})(displayName={login})))")
    counts = []
    for name in ("anna", "nobody"):
        before = world.ldap.connections
        assert await world.refused(name, "wrong", "198.51.100.1") == "WRONG_CREDENTIALS"
        counts.append(world.ldap.connections - before)
    assert counts[0] == counts[1]
    await world.forgive()
    anna.bind_message = "80090308: LdapErr: DSID-0C090447, comment: x, data 775, v4563"
    assert await world.refused("anna", "wrong", "198.51.100.1") == "WRONG_CREDENTIALS"
    failed = (await world.events("login_failed"))[-1:]
    assert failed == [] or failed[0]["after"]["reason"] == "AD_775"


async def test_shares_of_tries(make_kit: MakeKit) -> None:
    """Neither strangers nor the same school's network use up what the person's own browser has."""
    kit = await make_kit("identity")
    tries = Tries(kit.database, Sealer(b"k" * 32, "tries"), kit.clock)
    directory = uuid4()

    async def left(standing: Standing) -> int:
        for count in range(9):
            try:
                await tries.begin(directory, "anna", standing)
            except DomainError:
                return count
        raise AssertionError

    counts = [await left(one) for one in (Standing.FAMILIAR, Standing.STRANGE, Standing.OWN)]
    assert counts == [2, 1, 3]


async def test_a_trial_counts_whom_it_finds(world: World) -> None:
    """By whatever address: a directory sees no more wrong passwords of a person by that."""
    anna = world.ldap.person("anna", "Admins")
    await world.update(user_filter="(&(objectClass=user)(|(mail={login})(displayName={login})))")

    async def test(login: str) -> pb.TestDirectoryResponse:
        return await world.identity.directories.TestDirectory(
            pb.TestDirectoryRequest(id=world.directory.id, email=login, password="wrong"),
            metadata=world.owner,
        )

    for login in (anna.mail, anna.dn):
        assert not (await test(login)).ok
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await test(anna.mail)
    assert reason(error) == "TOO_MANY_DIRECTORY_TRIES"
    assert sum(name == anna.dn for name, _ in world.ldap.binds) == 2


async def test_an_invited_owner_stays_local(world: World) -> None:
    """The one who is to get in when the directory does not answer: it is not asked for them."""
    await world.identity.users.CreateUser(
        pb.CreateUserRequest(email=f"olive@{DOMAIN}", role="Owner", org_id=world.school.id),
        metadata=world.root,
    )
    world.ldap.person("olive", "Auditors")
    assert await world.refused("olive") == "WRONG_CREDENTIALS"
    olive = (await world.users())["olive"]
    assert (olive.origin, olive.role, olive.status) == ("local", "Owner", "invited")
