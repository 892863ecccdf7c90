"""Feeds of changes: nothing is skipped, whatever commits when."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from servicekit.app import Kit
from servicekit.data.postgres import SYSTEM, Connection
from servicekit.feeds import feed
from servicekit.feeds.feed import Cursor, earlier, read_page
from servicekit.ids import new_id, now
from services.identity.tenants import store
from services.identity.tenants.domain import Tenant
from tests.conftest import MakeKit


async def _insert(connection: Connection, name: str, parent: UUID | None) -> UUID:
    kind = "org" if parent else "root"
    tenant = Tenant(new_id(), parent, kind, name, name, now(), now())
    await store.insert_tenant(connection, tenant)
    return tenant.id


async def _pass(kit: Kit, cursor: str, limit: int = 0) -> tuple[str, list[str]]:
    """One reading of all pages: the cursor behind them, and the names in their order."""
    found: list[str] = []
    more = True
    while more:
        async with kit.database.system_transaction("a test works on all rows") as connection:
            page = await read_page(connection, store.TENANT_CHANGES, Cursor.parse(cursor), limit)
        found += [row["name"] for row in page.rows]
        cursor, more = str(page.cursor), page.more
    return cursor, found


async def test_what_commits_late_is_told_late_and_not_skipped(make_kit: MakeKit) -> None:
    """A transaction that began first and commits last is behind every cursor until then."""
    kit = await make_kit("identity")
    async with kit.database.system_transaction("a test works on all rows") as connection:
        root = await _insert(connection, "root", None)
    cursor, found = await _pass(kit, "")
    assert found == ["root"]
    written, commit = asyncio.Event(), asyncio.Event()

    async def late() -> None:
        async with kit.database.system_transaction("a test works on all rows") as connection:
            await _insert(connection, "late", root)
            written.set()
            await commit.wait()

    task = asyncio.create_task(late())
    await written.wait()
    for name in ("a", "b", "c"):
        async with kit.database.system_transaction("a test works on all rows") as connection:
            await _insert(connection, name, root)
    # In pages of one, so that the late one lies before the place where a page ended.
    cursor, found = await _pass(kit, cursor, 1)
    assert found == ["a", "b", "c"]
    commit.set()
    await task
    cursor, found = await _pass(kit, cursor, 1)
    assert "late" in found
    cursor, found = await _pass(kit, cursor)
    assert found == []


async def test_a_row_that_changes_between_two_pages_is_told_as_it_is(make_kit: MakeKit) -> None:
    """It moves to the end of the feed, where the pass comes by; the others keep their turn."""
    kit = await make_kit("identity")
    async with kit.database.system_transaction("a test works on all rows") as connection:
        root = await _insert(connection, "root", None)
        for name in ("a", "b", "c"):
            await _insert(connection, name, root)
        first = await read_page(connection, store.TENANT_CHANGES, Cursor(), 2)
    assert [row["name"] for row in first.rows] == ["root", "a"]
    async with kit.database.system_transaction("a test works on all rows") as connection:
        found = await store.tenant(connection, SYSTEM, first.rows[1]["id"])
        assert found is not None
        await connection.execute(
            "UPDATE identity.tenant SET name = 'A', changed_xid = pg_current_xact_id()"
            " WHERE id = $1",
            found.id,
        )
    _, names = await _pass(kit, str(first.cursor), 2)
    assert names == ["b", "c", "A"]


async def test_a_page_ends_where_there_is_no_more_room(
    make_kit: MakeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least one row is told, and none is missed."""
    kit = await make_kit("identity")
    monkeypatch.setattr(feed, "PAGE_BYTES", 10)
    async with kit.database.system_transaction("a test works on all rows") as connection:
        root = await _insert(connection, "root", None)
        for name in ("a", "b", "c", "d"):
            await _insert(connection, name, root)
        pages, cursor, more = [], Cursor(), True
        while more:
            page = await read_page(
                connection,
                store.TENANT_CHANGES,
                cursor,
                0,
                size_of=lambda row: 11 if row["name"] == "b" else 5,
            )
            pages.append([row["name"] for row in page.rows])
            cursor, more = page.cursor, page.more
    assert pages == [["root", "a"], ["b"], ["c", "d"]]


def test_of_two_positions_the_earlier_one_misses_nothing() -> None:
    """By the transaction, then by the row; the beginning is before all."""
    rows = [str(Cursor(xid, UUID(int=key))) for xid, key in ((9, 5), (9, 6), (10, 1), (100, 0))]
    for number, one in enumerate(rows):
        for other in rows[number:]:
            assert earlier(one, other) == earlier(other, one) == one
        assert earlier("", one) == earlier(one, "") == ""
    assert earlier("another server's", rows[0]) == ""
