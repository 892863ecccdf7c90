"""Readers of feeds wait for something to tell, and hear of everything that is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from evergreen.v1 import policy_pb2
from servicekit.app import Kit
from servicekit.data.postgres import Connection
from servicekit.feeds import changes as feed_changes
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import Cursor, FeedPage, Follower, asking, read_page, wait_seconds
from servicekit.ids import new_id, now
from services.identity.sessions import store as sessions_store
from services.identity.tenants import store as tenants_store
from services.identity.tenants.domain import Tenant
from tests.conftest import MakeKit

LONG = 60.0


async def _insert(connection: Connection, name: str) -> None:
    kind, moment = ("root" if name == "root" else "org"), now()
    root = await connection.fetchval("SELECT id FROM identity.tenant WHERE kind = 'root'")
    await tenants_store.insert_tenant(
        connection, Tenant(new_id(), root, kind, name, name, moment, moment)
    )


async def _page(kit: Kit, cursor: str) -> FeedPage:
    async with kit.database.system_transaction("a test works on all rows") as connection:
        return await read_page(connection, tenants_store.TENANT_CHANGES, Cursor.parse(cursor), 0)


def _names(page: FeedPage) -> list[str]:
    return [row["name"] for row in page.rows]


@asynccontextmanager
async def _looking(kit: Kit) -> AsyncIterator[Changes]:
    changes = Changes(
        kit.database.system_lane("a test works on all rows"), *sessions_store.CHANGING
    )
    task = asyncio.create_task(changes.run())
    try:
        yield changes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _told(kit: Kit, changes: Changes, cursor: str) -> FeedPage:
    """The first answer with something in it, as a reader gets it that asks again and again."""
    async with asyncio.timeout(LONG):
        while True:
            page = await changes.answer(
                partial(_page, kit, cursor), 4, has_news=lambda page: bool(page.rows)
            )
            if page.rows:
                return page
            cursor = str(page.cursor)


async def test_a_reader_that_waits_is_answered_when_something_changes(make_kit: MakeKit) -> None:
    """Whatever there is already, it is answered at once; else with what comes."""
    kit = await make_kit("identity")
    async with kit.database.system_transaction("a test works on all rows") as connection:
        await _insert(connection, "root")
    async with _looking(kit) as changes:
        first = await _told(kit, changes, "")
        assert _names(first) == ["root"]
        waiting = asyncio.create_task(_told(kit, changes, str(first.cursor)))
        async with kit.database.system_transaction("a test works on all rows") as connection:
            await _insert(connection, "school")
        assert _names(await waiting) == ["school"]


async def test_what_commits_late_wakes_readers_too(make_kit: MakeKit) -> None:
    """Also when something younger was told meanwhile."""
    kit = await make_kit("identity")
    async with kit.database.system_transaction("a test works on all rows") as connection:
        await _insert(connection, "root")
    async with _looking(kit) as changes:
        first = await _told(kit, changes, "")
        async with kit.database.system_transaction("a test works on all rows") as late:
            await _insert(late, "late")
            async with kit.database.system_transaction("a test works on all rows") as connection:
                await _insert(connection, "early")
            second = await _told(kit, changes, str(first.cursor))
            assert _names(second) == ["early"]
            wakes = changes.followed()
            heard = asyncio.create_task(wakes(""))
        await heard
        third = await _told(kit, changes, str(second.cursor))
        assert "late" in _names(third)


async def test_nobody_waits_for_a_service_that_stops_or_has_no_database(make_kit: MakeKit) -> None:
    """Readers are answered with what is known, and ask somebody else."""
    kit = await make_kit("identity")
    async with _looking(kit) as changes:
        changes.close()
        cursor = str((await _page(kit, "")).cursor)
        page = await changes.answer(
            lambda: _page(kit, cursor), LONG, has_news=lambda page: bool(page.rows)
        )
        assert not page.rows


async def test_a_question_waits_longer_where_a_dead_server_is_noticed_at_once() -> None:
    """On this machine. Over a network it is only noticed when the answer does not come."""
    asked = []

    async def list_applied(question: policy_pb2.ListAppliedVersionsRequest, timeout: float) -> Any:
        asked.append((question.cursor, question.wait_seconds, timeout > question.wait_seconds))
        return SimpleNamespace(versions=[])

    for target in ("unix:/run/policy.int.sock", "policy:9443"):
        seconds = wait_seconds(target)
        request = policy_pb2.ListAppliedVersionsRequest()
        assert not await asking(list_applied, request, "versions", seconds=seconds)("7")
    assert asked == [("7", 20, True), ("7", 4, True)]


async def test_a_reader_of_another_release_waits_no_longer_than_this_one_lets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is answered without news, and asks again."""
    monkeypatch.setattr(feed_changes, "LOCAL_WAIT_SECONDS", 0.05)

    async def read() -> int:
        return 0

    async with asyncio.timeout(LONG / 2):
        assert await Changes(Mock()).answer(read, LONG, has_news=bool) == 0


async def test_a_follower_reads_when_it_was_woken_and_catches_up_after_an_outage() -> None:
    """It waits only from where it has read everything; what fails is tried again."""
    news: asyncio.Queue[bool | Exception] = asyncio.Queue()
    read = asyncio.Semaphore(0)
    waited: list[str] = []

    async def fetch(cursor: str) -> tuple[str, bool]:
        read.release()
        return str(int(cursor or 0) + 1), False

    async def wait(cursor: str) -> bool:
        waited.append(cursor)
        answer = await news.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    follower = Follower("test", fetch, wait)
    task = asyncio.create_task(follower.run())
    async with asyncio.timeout(LONG):
        await read.acquire()
        for answer in (False, ConnectionError("away"), True):
            news.put_nowait(answer)
        await read.acquire()
        while len(waited) < 4:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert waited == ["1", "1", "1", "2"]
