"""The signs of life that the alerts look at."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from prometheus_client import REGISTRY

from contract.events.identity.sign_in import PasswordChanged
from servicekit.messaging.events import CloudEvent
from servicekit.vitals import Vitals
from tests.conftest import MakeKit


def metric(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def nothing() -> Sequence[str]:
    return ()


async def test_events_that_wait_are_seen(make_kit: MakeKit) -> None:
    """How many there are, and how old the oldest one is."""
    kit = await make_kit("identity")
    vitals = Vitals("identity", kit.database, nothing)
    await vitals.look()
    assert metric("evergreen_ready") == 1
    assert metric("evergreen_outbox_waiting") == 0
    assert metric("evergreen_outbox_oldest_seconds") == 0
    async with kit.database.system_transaction("a test works on all rows") as connection:
        events = [CloudEvent(PasswordChanged(id=uuid4()), uuid4()) for _ in range(3)]
        await kit.outbox.append(connection, *events)
    await vitals.look()
    assert metric("evergreen_outbox_waiting") == 3
    assert (metric("evergreen_outbox_oldest_seconds") or 0) > 0
    assert (metric("evergreen_database_connections", state="idle") or 0) >= 1


async def test_what_is_missing_has_a_name(make_kit: MakeKit) -> None:
    """And goes away with its cause; without the database, nothing of it is asked for."""
    kit = await make_kit("identity")
    lacks = ["database", "enrollment"]

    async def missing() -> Sequence[str]:
        return lacks

    vitals = Vitals("identity", kit.database, missing)
    await vitals.look()
    assert metric("evergreen_ready") == 0
    assert metric("evergreen_missing", what="enrollment") == 1
    lacks.clear()
    await vitals.look()
    assert metric("evergreen_ready") == 1
    assert metric("evergreen_missing", what="enrollment") is None
