"""The servers that tests run on."""

from __future__ import annotations

from tests.conftest import MakeKit
from tests.support.servers import TestDatabase


async def test_a_fresh_database_has_all_schemas(database: TestDatabase) -> None:
    """Every test starts from the migrated schema and may do what it likes with it."""
    connection = await database.superuser()
    try:
        found = await connection.fetch(
            "SELECT DISTINCT schema_name FROM evergreen.schema_migrations"
        )
    finally:
        await connection.close()
    assert {"evergreen", "identity"} <= {row["schema_name"] for row in found}


async def test_a_transaction_that_is_bound_to_nothing_sees_nothing(make_kit: MakeKit) -> None:
    """The second wall: a query without a scope gets no rows, whatever its WHERE says."""
    kit = await make_kit("identity")
    async with kit.database.dedicated() as connection:
        assert await connection.fetch("SELECT id FROM identity.tenant") == []
