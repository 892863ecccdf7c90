"""The pool of connections when calls are cancelled, and when there are too many of them."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from servicekit.data import postgres
from servicekit.data.postgres import Scope
from servicekit.errors import Code, DomainError
from tests.conftest import MakeKit

_INSERT = "INSERT INTO identity.outbox (id, subject, payload) VALUES (gen_random_uuid(), 's', '{}')"


async def test_a_cancelled_transaction_leaves_nothing_behind(make_kit: MakeKit) -> None:
    """Neither its changes nor its scope, for whoever gets the connection next."""
    database = (await make_kit("identity", database_pool_size=1)).database
    began = asyncio.Event()

    async def change() -> None:
        async with database.system_transaction("a test works on all rows") as connection:
            await connection.execute(_INSERT)
            began.set()
            await connection.execute("SELECT pg_sleep(10)")

    for _ in range(3):
        began.clear()
        task = asyncio.create_task(change())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with database.dedicated() as connection:
        assert await connection.fetchval("SELECT current_setting('evergreen.scope', true)") in (
            None,
            "",
        )
    async with database.system_transaction("a test works on all rows") as connection:
        assert await connection.fetchval("SELECT count(*) FROM identity.outbox") == 0


async def test_a_transaction_sees_its_scope_only(make_kit: MakeKit) -> None:
    """One that is bound to no tenant sees nothing, also on a connection that saw everything."""
    database = (await make_kit("identity", database_pool_size=1)).database
    async with database.system_transaction("a test works on all rows") as connection:
        assert await connection.fetchval("SELECT evergreen.system_scope()")
    async with database.transaction(Scope(())) as connection:
        assert not await connection.fetchval("SELECT evergreen.system_scope()")
    async with database.dedicated() as connection:
        assert not await connection.fetchval("SELECT evergreen.system_scope()")


async def test_who_gets_no_connection_is_told_to_come_back(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UNAVAILABLE with a delay, and the pool works on when its connections are back."""
    monkeypatch.setattr(postgres, "ACQUIRE_SECONDS", 0.2)
    database = (await make_kit("identity", database_pool_size=1)).database
    async with database.system_transaction("a test works on all rows"):
        with pytest.raises(DomainError) as refused:
            async with database.system_transaction("a test works on all rows"):
                pass
    assert refused.value.code is Code.UNAVAILABLE
    assert refused.value.retry_after is not None
    async with database.system_transaction("a test works on all rows") as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_value_that_cannot_be_stored_is_no_outage(make_kit: MakeKit) -> None:
    """It comes out as the defect that it is, not as UNAVAILABLE, which would be tried again."""
    database = (await make_kit("identity")).database
    with pytest.raises(asyncpg.DataError):
        async with database.system_transaction("a test works on all rows") as connection:
            await connection.fetchval("SELECT $1::bigint", 1 << 70)


async def test_each_statement_of_a_lane_is_committed_and_sees_everything(make_kit: MakeKit) -> None:
    """And no connection of the pool sees more for it."""
    database = (await make_kit("identity", database_pool_size=1)).database
    lane = database.system_lane("a test works on all rows")
    await lane.fetch(_INSERT)
    async with database.system_transaction("a test works on all rows") as connection:
        assert await connection.fetchval("SELECT count(*) FROM identity.outbox") == 1
    ((sees,),) = await lane.fetch("SELECT evergreen.system_scope()")
    assert sees
    async with database.dedicated() as connection:
        assert not await connection.fetchval("SELECT evergreen.system_scope()")
    with pytest.raises(asyncpg.DataError):
        await lane.fetch("SELECT $1::bigint", 1 << 70)


async def test_a_lane_is_made_anew_when_its_connection_is_lost(make_kit: MakeKit) -> None:
    """Who had a statement under way is told to come back; the next one works."""
    database = (await make_kit("identity")).database
    lane = database.system_lane("a test works on all rows")
    ((pid,),) = await lane.fetch("SELECT pg_backend_pid()")
    async with database.system_transaction("a test works on all rows") as connection:
        await connection.execute("SELECT pg_terminate_backend($1, 5000)", pid)
    with pytest.raises(DomainError) as refused:
        # That it is lost shows with the first statement, or had shown before.
        await lane.fetch("SELECT 1")
        raise DomainError(Code.UNAVAILABLE, "SHOWN_BEFORE", "")
    assert refused.value.code is Code.UNAVAILABLE
    ((other,),) = await lane.fetch("SELECT pg_backend_pid()")
    assert other != pid


async def test_a_cancelled_statement_leaves_its_lane_usable(make_kit: MakeKit) -> None:
    """It is not committed, and the next one is not mistaken for it."""
    database = (await make_kit("identity")).database
    lane = database.system_lane("a test works on all rows")
    await lane.fetch("SELECT 1")
    task = asyncio.create_task(lane.fetch("SELECT pg_sleep(60)"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [tuple(row) for row in await lane.fetch("SELECT 2")] == [(2,)]
