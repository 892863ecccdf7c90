"""What a restore has to repair in audit's schema, and how an archive's log is verified."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from uuid import UUID

from services.audit import restore
from services.audit.restore import ArchivedLog, Known, RestoredFrom, Row
from tests.support.backups import ORG, repairing, seed
from tests.support.servers import TestDatabase


async def test_every_chain_tells_of_the_restore(database: TestDatabase) -> None:
    """Up to which entry it was restored, from what, and by whom."""
    await seed(database)
    point = datetime(2026, 11, 1, tzinfo=UTC)
    async with repairing(database) as connection:
        await connection.execute(
            "INSERT INTO audit.tree_log (number, origin, before, size, root, began_at)"
            " VALUES (1, 'school.example/audit/0000aaaa', '', 9, sha256('x'), now())"
        )
        await restore.repair(connection, Known(), RestoredFrom(UUID(int=7), point, "0.1.0", "root"))
        log = await connection.fetchrow("SELECT * FROM audit.tree_log ORDER BY number DESC LIMIT 1")
        (told,) = await connection.fetch("SELECT subject, payload FROM audit.outbox")
        head = await connection.fetchrow("SELECT sequence, hash FROM audit.chain_head")
        assert head is not None
        assert log is not None
    assert told["subject"] == f"evergreen.v1.{ORG}.audit.restored"
    data = json.loads(told["payload"])["data"]
    assert data["resource"] == f"backups/{UUID(int=7)}"
    assert data["actorId"] == "root"
    assert data["after"] == {
        "point": "2026-11-01T00:00:00Z",
        "sequence": 9,
        "hash": head["hash"].hex(),
        "release": "0.1.0",
        "treeBefore": "school.example/audit/0000aaaa",
        "tree": log["origin"],
    }
    assert (log["number"], log["size"]) == (2, 0)
    assert log["origin"].startswith("school.example/audit/")
    assert log["origin"] != "school.example/audit/0000aaaa"
    assert log["before"].startswith("school.example/audit/0000aaaa\n9\n")


async def test_a_backup_of_before_the_tree_is_taken(database: TestDatabase) -> None:
    """Its schema has no tables for one."""
    await seed(database)
    async with repairing(database) as connection:
        await connection.execute("DROP TABLE audit.tree_log")
        await restore.repair(
            connection,
            Known(),
            RestoredFrom(UUID(int=7), datetime(2026, 11, 1, tzinfo=UTC), "0.1.0", "x"),
        )
        (told,) = await connection.fetch("SELECT payload FROM audit.outbox")
    assert json.loads(told["payload"])["data"]["after"]["tree"] == ""


async def test_a_log_is_verified_from_its_rows(database: TestDatabase) -> None:
    """Changed entries, and a chain that is cut off at its end, are found."""
    await seed(database)
    async with repairing(database) as connection:
        heads, entries = [
            [
                {name: None if value is None else str(value) for name, value in row.items()}
                for row in await connection.fetch(query)
            ]
            for query in (
                "SELECT tenant_id, sequence, hash::text FROM audit.chain_head",
                "SELECT id, tenant_id, sequence, previous_hash::text, hash::text, record,"
                " occurred_at::text, actor, actor_id, action, resource FROM audit.entry"
                " ORDER BY tenant_id, sequence",
            )
        ]

    def findings(entries: Iterable[Row]) -> list[str]:
        log = ArchivedLog()
        log.take("chain_head", heads)
        log.take("entry", entries)
        assert log.heads == {str(ORG): 9}
        return log.finish()

    assert findings(entries) == []
    record = (entries[3]["record"] or "").replace("line", "lime")
    assert "entry 4" in findings([*entries[:3], entries[3] | {"record": record}, *entries[4:]])[0]
    assert findings(entries[:-1]) == [f"the chain of {ORG} does not end where it should"]
