"""What a restore has to repair in attestation's schema."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from cli.backup import catalog
from servicekit.data import migrate
from servicekit.data.backup import Recorded
from services.attestation import restore
from services.attestation.references.domain import State
from tests.support.backups import ORG, repairing
from tests.support.servers import TestDatabase


def told(action: str, value: UUID, **after: str) -> Recorded:
    """An entry of the audit log."""
    name = f"attestation.reference_value_{action}"
    return Recorded(
        ORG, datetime(2026, 11, 1, tzinfo=UTC), name, "reference-values", str(value), after
    )


async def test_a_boot_that_is_not_accepted_any_more_does_not_come_back(
    database: TestDatabase,
) -> None:
    """Retired, staged again or deleted since the backup; the last word counts."""
    retired, deleted, staged, kept, again, untold = (uuid4() for _ in range(6))
    known = restore.Known()
    for entry in (
        told("retired", retired, state="RETIRED"),
        told("deleted", deleted),
        told("updated", staged, state="STAGED"),
        told("updated", kept, state="ACTIVE"),
        told("retired", again, state="RETIRED"),
        told("updated", again, state="ACTIVE"),
        told("retired", uuid4(), state="RETIRED"),
    ):
        known.learn(entry)
    async with repairing(database) as connection:
        for value in (retired, deleted, staged, kept, again, untold):
            await connection.execute(
                "INSERT INTO attestation.reference_value VALUES"
                " ($1, $2, 'A value', 'FIRMWARE', '', '{}', 'ACTIVE', 'UPLOADED', now(), now())",
                value,
                ORG,
            )
        await restore.repair(connection, known)
        rows = await connection.fetch("SELECT id, state FROM attestation.reference_value")
    states = {row["id"]: row["state"] for row in rows}
    assert (states[retired], states[deleted], states[staged]) == ("RETIRED", "RETIRED", "STAGED")
    assert (states[kept], states[again], states[untold]) == ("ACTIVE", "ACTIVE", "ACTIVE")


def test_an_entry_that_nobody_makes_is_refused() -> None:
    """An export that was tampered with ends the restore."""
    with pytest.raises(ValueError, match="BROKEN"):
        restore.Known().learn(told("updated", uuid4(), state="BROKEN"))


@pytest.mark.parametrize("version", range(migrate.latest_version("attestation") + 1))
async def test_an_older_archives_schema_is_repaired_as_far_as_it_goes(
    database: TestDatabase, version: int
) -> None:
    """The release that made the archive may have had fewer tables; an upgrade makes them later."""
    known = restore.Known(freed={uuid4()}, roots={uuid4()}, values={uuid4(): State.RETIRED})
    older = [
        migration
        for migration in migrate.all_migrations()
        if migration.schema != "attestation" or migration.version <= version
    ]
    async with repairing(database) as connection:
        nested = connection.transaction()
        await nested.start()
        for schema in catalog.SCHEMAS:
            await connection.execute(f"DROP SCHEMA {schema} CASCADE")
        await migrate.make(connection, older)
        await restore.repair(connection, known)
        await nested.rollback()
