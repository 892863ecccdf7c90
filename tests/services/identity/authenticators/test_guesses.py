"""Guessing is slowed down in any way that it is tried, and locks nobody out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import grpc
import pytest
import pytest_asyncio

from evergreen.v1 import identity_pb2 as pb
from servicekit.errors import Code, DomainError
from servicekit.security.sealing import Sealer
from services.identity.authenticators import guess_store
from services.identity.authenticators.guesses import ATTACK, Attempt, Guesses, Standing
from tests.conftest import MakeKit
from tests.support import callers
from tests.support.identity import OWNER, PASSWORD, Identity, identity, refused
from tests.support.stack import PATIENCE

__all__ = ["identity"]  # the fixture

_HERE = "192.0.2.1"
_ELSEWHERE = "198.51.100.1"


class Clock:
    """A clock that the test holds; whoever sleeps moves it on."""

    def __init__(self) -> None:
        self.now = datetime(2026, 9, 1, tzinfo=UTC)
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 2))
        self.now += timedelta(seconds=seconds)

    def __call__(self) -> datetime:
        return self.now


class Door:
    """Attempts to log in, as identity counts them."""

    def __init__(self, make: Callable[[], Awaitable[Guesses]], guesses: Guesses, clock: Clock):
        self.another = make
        self.guesses = guesses
        self.clock = clock

    async def recognise(
        self, email: str, source: str = _HERE, account: UUID | None = None, device: str = ""
    ) -> Attempt:
        async with self.guesses._database.system_transaction(
            "a test works on all rows"
        ) as connection:
            return await self.guesses.recognise(connection, email, account, source, device)

    async def fail(self, times: int, *which: Any, **more: Any) -> list[float]:
        """Fails so many times in a row; answers how long each had to wait, 0.0 for not at all."""
        waited = []
        for _ in range(times):
            self.clock.slept.clear()
            async with self.guesses.attempt(await self.recognise(*which, **more)):
                pass
            waited.append(sum(self.clock.slept))
        return waited

    @asynccontextmanager
    async def holding(self, *attempts: tuple[Any, ...]) -> AsyncIterator[None]:
        """Attempts that are under way all the while."""
        async with AsyncExitStack() as stack:
            for which in attempts:
                await stack.enter_async_context(self.guesses.attempt(await self.recognise(*which)))
            yield

    async def succeed(self, account: UUID, email: str, source: str, device: str | None) -> str:
        attempt = await self.recognise(email, source, account, device or "")
        async with (
            self.guesses.attempt(attempt) as counted,
            self.guesses._database.system_transaction("a test works on all rows") as connection,
        ):
            await self.guesses.succeeded(connection, counted)
            return await self.guesses.remember(connection, account, source, device)


@pytest_asyncio.fixture
async def door(make_kit: MakeKit) -> AsyncIterator[Door]:
    clock = Clock()
    sealer = Sealer(bytes(32), "identity-guesses")

    async def make() -> Guesses:
        return Guesses((await make_kit("identity")).database, sealer, clock, clock.sleep)

    yield Door(make, await make(), clock)


@pytest_asyncio.fixture
async def account(door: Door) -> UUID:
    """Somebody who exists."""
    found = UUID(int=1)
    async with door.guesses._database.system_transaction("a test works on all rows") as connection:
        await connection.execute(
            "INSERT INTO identity.tenant (id, kind, name, code, created_at, updated_at)"
            " VALUES ($1, 'root', 'Root', 'root', now(), now())",
            found,
        )
        await connection.execute(
            "INSERT INTO identity.account (id, tenant_id, email, role, status, created_at,"
            " updated_at) VALUES ($1, $1, 'a@x', 'Admin', 'active', now(), now())",
            found,
        )
    return found


async def test_answers_come_slower_after_some_failures(door: Door) -> None:
    """The first failures are free, then the wait doubles up to a bound."""
    assert await door.fail(9, "a@x") == [0, 0, 0, 0, 0, 0.5, 1.0, 2.0, 2.0]
    assert await door.fail(1, "b@x") == [0]
    assert await door.fail(1, "a@x", _ELSEWHERE) == [0]


async def test_success_and_time_forgive(door: Door, account: UUID) -> None:
    """After the right password, and after a quarter of an hour, answers come at once again."""
    await door.fail(8, "a@x", account=account)
    await door.succeed(account, "a@x", _HERE, None)
    assert await door.fail(6, "a@x", account=account) == [0, 0, 0, 0, 0, 0.5]
    door.clock.now += timedelta(minutes=16)
    assert await door.fail(1, "a@x", account=account) == [0]


async def test_an_ipv6_client_is_its_network(door: Door) -> None:
    """A /64 is one client's, so another address of it starts no new count."""
    waited = [(await door.fail(1, "a@x", f"2001:db8:0:1::{host:x}"))[0] for host in range(8)]
    assert waited == [0, 0, 0, 0, 0, 0.5, 1.0, 2.0]
    await door.fail(6, "b@x", "::ffff:192.0.2.9")
    assert await door.fail(1, "b@x", "192.0.2.9") == [1.0]


async def test_many_addresses_are_slowed_down_together(door: Door) -> None:
    """Two guesses from each of fifty addresses meet the failures of all; the next wait 30 s."""
    waited = [(await door.fail(2, "a@x", f"198.51.100.{host}")) for host in range(50)]
    flat = [seconds for pair in waited for seconds in pair]
    assert flat[:10] == [0] * 10
    assert flat == sorted(flat)
    assert flat[40:] == [4.0] * 60
    assert await door.fail(2, "a@x", "203.0.113.1") == [30.0, 30.0]
    door.clock.now += timedelta(days=1)
    assert await door.fail(1, "a@x", "203.0.113.2") == [0]


async def test_many_accounts_from_one_network_are_slowed_down_together(
    door: Door, account: UUID
) -> None:
    """Whoever tries a password on everybody waits; those who log in there do not."""
    await door.succeed(account, "a@x", _HERE, None)
    waited = [(await door.fail(1, f"{n}@x"))[0] for n in range(160)]
    assert waited[:100] == [0] * 100
    # The others are taken for some who log in there.
    assert len([seconds for seconds in waited[120:] if seconds >= 0.5]) > 8
    assert await door.fail(1, "a@x", account=account) == [0]


async def test_a_loop_for_one_account_does_not_slow_the_network_down(
    door: Door, account: UUID
) -> None:
    """Others who log in there for the first time are not taken for part of it."""
    await door.fail(200, "a@x", account=account)
    assert await door.fail(1, "b@x") == [0]


async def test_guesses_side_by_side_count_each_other(door: Door) -> None:
    """Fifty at once get five free ones, as fifty in a row do, and not a place for each."""
    attempts = [await door.recognise("a@x") for _ in range(50)]
    go_on = asyncio.Event()

    async def guess(attempt: Attempt) -> None:
        async with door.guesses.attempt(attempt):
            await go_on.wait()

    tasks = [asyncio.create_task(guess(attempt)) for attempt in attempts]
    done = await _turned_away(tasks, 50 - 16)
    assert {type(task.exception()) for task in done} == {DomainError}
    async with asyncio.timeout(PATIENCE):
        while len(door.clock.slept) < 11:
            await asyncio.sleep(0.02)
    assert sorted(door.clock.slept) == [0.5, 1.0, *[2.0] * 9]
    go_on.set()
    await asyncio.wait(tasks)
    assert not door.guesses._places


async def _turned_away(tasks: list[asyncio.Task[None]], count: int) -> list[asyncio.Task[None]]:
    """Those who got no place: so many, and a moment later no more."""
    async with asyncio.timeout(PATIENCE):
        while sum(task.done() for task in tasks) < count:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    done = [task for task in tasks if task.done()]
    assert len(done) == count
    return done


async def test_replicas_and_restarts_go_on_counting(door: Door) -> None:
    """The counts are in the database, not in a process."""
    await door.fail(7, "a@x")
    other = Door(door.another, await door.another(), door.clock)
    assert await other.fail(1, "a@x") == [2.0]
    assert await door.fail(1, "a@x") == [2.0]


async def test_nobody_can_tell_who_exists(door: Door, account: UUID) -> None:
    """An address that nobody has is slowed down, and refused, like another one's."""
    real = await door.fail(120, "a@x", account=account)
    assert await door.fail(120, "nobody@x", _ELSEWHERE) == real
    assert real[-1] == 30.0


async def test_being_spared_does_not_tell_who_exists(door: Door, account: UUID) -> None:
    """Where somebody logs in, some of the addresses that nobody has are as one that logs in."""

    async def known(email: str, source: str = _HERE, account: UUID | None = None) -> bool:
        found = await door.recognise(email, source, account)
        assert found.spared == (found.standing is Standing.FAMILIAR)
        return found.spared

    await door.succeed(account, "a@x", _HERE, None)
    assert await known("a@x", account=account)
    made_up = [await known(f"{n}@x") for n in range(64)]
    assert 10 < sum(made_up) < 54
    assert [await known(f"{n}@x") for n in range(64)] == made_up
    assert not any([await known(f"{n}@x", _ELSEWHERE) for n in range(64)])
    # Nor do they wait for what their network did, as it would not.
    await door.fail(260, "c@x")
    for n in range(140):
        await door.fail(1, f"sweep{n}@x")
    waited = [(await door.fail(1, f"{n}@x"))[0] for n in range(64)]
    assert [seconds == 0 for seconds in waited] == made_up
    assert await door.fail(1, "a@x", account=account) == [0]


async def test_the_owner_stays_out_of_the_crowd(door: Door, account: UUID) -> None:
    """The own browser from anywhere, and the usual network, do not wait for an attack."""
    device = await door.succeed(account, "a@x", _HERE, "")
    await door.fail(150, "a@x", _ELSEWHERE, account)
    strange = await door.recognise("a@x", _ELSEWHERE, account)
    assert (strange.standing, strange.under_attack) == (Standing.STRANGE, True)
    assert await door.fail(1, "a@x", _ELSEWHERE, account) == [30.0]
    assert await door.fail(1, "a@x", _HERE, account) == [0]
    assert await door.fail(1, "a@x", _ELSEWHERE, account, device) == [0]
    # Another account is no business of this browser's, nor is a cookie that is made up.
    other = await door.recognise("b@x", _ELSEWHERE, None, device)
    assert other.standing is Standing.STRANGE
    made_up = await door.recognise("a@x", _ELSEWHERE, account, "made up")
    assert made_up.standing is Standing.STRANGE


async def test_a_month_without_a_login_makes_a_stranger(door: Door, account: UUID) -> None:
    """Of the browser and of the network; a secret that was forgotten is not taken again."""
    device = await door.succeed(account, "a@x", _HERE, "")
    assert await door.succeed(account, "a@x", _HERE, device) == device
    door.clock.now += timedelta(days=31)
    found = await door.recognise("a@x", _HERE, account, device)
    assert found.standing is Standing.STRANGE
    assert await door.succeed(account, "a@x", _HERE, device) != device


async def test_the_crowd_waits_in_places_of_its_own(door: Door, account: UUID) -> None:
    """However many wait for one account, its owner and everybody else come in."""
    device = await door.succeed(account, "a@x", _HERE, "")
    forever = asyncio.Event()

    async def hold(*which: Any) -> None:
        async with door.guesses.attempt(await door.recognise(*which)):
            await forever.wait()

    sources = [f"198.51.100.{host}" for host in range(8)]
    crowd = [
        asyncio.create_task(hold("a@x", source, account)) for source in sources for _ in range(16)
    ]
    await _turned_away(crowd, 128 - 32)
    with pytest.raises(DomainError) as full:
        await door.fail(1, "a@x", "203.0.113.1", account)
    assert full.value.code is Code.RESOURCE_EXHAUSTED
    assert full.value.retry_after is not None
    assert len(await door.fail(1, "a@x", _HERE, account)) == 1
    assert len(await door.fail(1, "a@x", "203.0.113.1", account, device)) == 1
    assert len(await door.fail(1, "b@x", "203.0.113.1")) == 1
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)


async def test_a_few_networks_do_not_take_the_places_of_all_strangers(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for long, because the network or the account is guessed at, waits apart."""
    monkeypatch.setattr("services.identity.authenticators.guesses._PLACES", 8)
    for n in range(100):
        await door.fail(1, f"{n}@x", _ELSEWHERE)
    async with door.holding(*[(f"sweep{n}@x", _ELSEWHERE) for n in range(8)]):
        with pytest.raises(DomainError):
            await door.fail(1, "one more@x", _ELSEWHERE)
        assert await door.fail(1, "teacher@x", "203.0.113.1") == [0]
    door.clock.now += timedelta(hours=2)
    await door.fail(ATTACK, "a@x", _HERE)
    async with door.holding(*[("a@x", f"198.51.100.{n}") for n in range(8)]):
        with pytest.raises(DomainError):
            await door.fail(1, "a@x", "203.0.113.2")
        assert await door.fail(1, "teacher@x", "203.0.113.2") == [0]


async def test_familiar_networks_do_not_take_the_places_of_browsers(
    door: Door, account: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait in networks of accounts, an account's own browser comes in."""
    monkeypatch.setattr("services.identity.authenticators.guesses._PLACES", 8)
    device = await door.succeed(account, "a@x", _HERE, "")
    async with door.holding(*[("a@x", _HERE, account)] * 8):
        with pytest.raises(DomainError):
            await door.fail(1, "a@x", _HERE, account)
        assert await door.fail(1, "a@x", _HERE, account, device) == [0]


async def test_counters_are_bounded_and_forgotten(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old ones go; of too many, those that say least."""
    monkeypatch.setattr("services.identity.authenticators.guesses._MOST_COUNTERS", 3)
    await door.fail(8, "a@x")
    for n in range(5):
        await door.fail(1, f"{n}@x", f"203.0.113.{n}")
    await door.guesses.forget_old()
    async with door.guesses._database.system_transaction("a test works on all rows") as connection:
        assert await connection.fetchval("SELECT count(*) FROM identity.guess") == 3
    assert await door.fail(1, "a@x") == [2.0]
    door.clock.now += timedelta(days=2)
    await door.guesses.forget_old()
    async with door.guesses._database.system_transaction("a test works on all rows") as connection:
        assert await connection.fetchval("SELECT count(*) FROM identity.guess") == 0


async def test_a_flood_makes_no_counter_of_an_account_go(
    door: Door, account: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is made up besides: failures of an account that is there stay counted."""
    monkeypatch.setattr("services.identity.authenticators.guesses._MOST_COUNTERS", 3)
    await door.fail(2, "a@x", _HERE, account)
    counted = guess_store.Counter(b"of an account", door.clock() + timedelta(hours=1), False, True)
    async with door.guesses._database.system_transaction("a test works on all rows") as connection:
        await guess_store.count(connection, [counted], door.clock())
    for n in range(20):
        await door.fail(3, f"{n}@x", f"203.0.113.{n}")
    await door.guesses.forget_old()
    async with door.guesses._database.system_transaction("a test works on all rows") as connection:
        assert await connection.fetchval("SELECT count(*) FROM identity.guess WHERE NOT kept") == 3
        assert await guess_store.failures(connection, counted.key, door.clock()) == 1
        accounts = door.guesses._key("account", "a@x")
        assert await guess_store.failures(connection, accounts, door.clock()) == 2


async def _login(identity: Identity, source: str, password: str = PASSWORD) -> pb.Session:
    return await identity.auth.Login(
        pb.LoginRequest(email=OWNER, password=password), metadata=callers.anonymous(source)
    )


async def _count(identity: Identity, failures: int) -> None:
    """As if so many guesses at each counter had failed."""
    connection = await identity.database.superuser()
    try:
        await connection.execute("UPDATE identity.guess SET failures = $1", failures)
    finally:
        await connection.close()


async def test_a_loop_does_not_lock_its_neighbour_out(identity: Identity) -> None:
    """2.5 wrong passwords a second for an account that is under attack, from the owner's own
    address, without a cookie: the right one gets in, and waits less than a stranger's 30 s."""
    await _login(identity, _HERE)
    with pytest.raises(grpc.aio.AioRpcError):
        await _login(identity, _HERE, "wrong password")
    await _count(identity, 1_000)

    async def loop() -> None:
        guesses = []
        while True:
            guesses.append(asyncio.ensure_future(_login(identity, _HERE, "wrong password")))
            await asyncio.sleep(0.4)

    looping = asyncio.create_task(loop())
    seconds = []
    try:
        await asyncio.sleep(3)
        for _ in range(6):
            started = time.monotonic()
            await _login(identity, _HERE)
            seconds.append(time.monotonic() - started)
            await asyncio.sleep(1)
    finally:
        looping.cancel()
    assert sorted(seconds)[-2] < 25


async def test_an_attack_is_told_once(identity: Identity) -> None:
    """An event for the audit log and integrators, with the count; a stranger waits from then on."""
    await _login(identity, _HERE)
    for failures in (0, ATTACK - 1, ATTACK):
        with pytest.raises(grpc.aio.AioRpcError):
            await _login(identity, _HERE, "wrong password")
        await _count(identity, failures or ATTACK - 1)
    (told,) = [
        event
        for event in await identity.events()
        if event["data"]["action"] == "identity.account_under_attack"
    ]
    assert told["data"]["after"]["email"] == OWNER
    assert told["data"]["after"]["failures"] == ATTACK
    assert told["data"]["sourceIp"] == _HERE
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await identity.auth.Login(
            pb.LoginRequest(email=OWNER, password=PASSWORD),
            metadata=callers.anonymous(_ELSEWHERE),
            timeout=3,
        )
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_flood_of_refreshes_leaves_logins_alone(identity: Identity) -> None:
    """Made-up refresh tokens, hundreds at once: logins from the same address succeed."""

    async def flood() -> None:
        while True:
            await asyncio.gather(
                *(
                    identity.auth.RefreshSession(
                        pb.RefreshSessionRequest(refresh_token="made up"),
                        metadata=callers.anonymous(_HERE),
                    )
                    for _ in range(200)
                ),
                return_exceptions=True,
            )

    flooding = asyncio.create_task(flood())
    try:
        for _ in range(5):
            await _login(identity, _HERE)
    finally:
        flooding.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await identity.auth.RefreshSession(
            pb.RefreshSessionRequest(refresh_token="made up"), metadata=callers.anonymous(_HERE)
        )
    assert refused(error)["details"][0]["reason"] in {"WRONG_REFRESH_TOKEN", "TOO_MANY_REFRESHES"}


async def test_a_reset_forgets_where_the_account_was_logged_in_from(identity: Identity) -> None:
    """Whoever had the old password may have been there."""
    owner = await identity.as_user()
    made = await identity.users.CreateUser(
        pb.CreateUserRequest(email="a@school.example", role="Auditor", password=PASSWORD),
        metadata=owner,
    )
    await identity.login("a@school.example")

    async def familiar() -> int:
        connection = await identity.database.superuser()
        try:
            found: int = await connection.fetchval(
                "SELECT count(*) FROM identity.familiar WHERE account_id = $1", UUID(made.id)
            )
            return found
        finally:
            await connection.close()

    assert await familiar() == 1
    await identity.users.InviteUser(pb.InviteUserRequest(id=made.id), metadata=owner)
    assert await familiar() == 0
