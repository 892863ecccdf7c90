"""What identity makes of NATS's list of connections."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from nats.errors import TimeoutError as NatsTimeout

from services.identity.event_access import gatekeeper
from services.identity.event_access.gatekeeper import Gatekeeper, _connections


class FakeClient:
    """A server's answer to who is connected."""

    def __init__(self, *connections: dict[str, Any]) -> None:
        listed = {"total": len(connections), "connections": list(connections)}
        self._answers = [{"data": {"server_id": "S", **listed}}]

    def new_inbox(self) -> str:
        return "_INBOX.1"

    async def publish(self, *_: Any, **__: Any) -> None:
        pass

    async def subscribe(self, _: str) -> FakeClient:
        return self

    async def unsubscribe(self) -> None:
        pass

    async def next_msg(self, **_: Any) -> Any:
        if not self._answers:
            raise NatsTimeout
        return SimpleNamespace(data=json.dumps(self._answers.pop()))


@pytest.mark.parametrize(
    "start",
    [
        "2026-11-29T04:00:00.123456789-08:00",
        "2026-11-29T12:00:00.123456789Z",
        "2026-11-29T21:00:00.1234567+09:00",
    ],
)
async def test_a_connection_is_as_old_as_the_server_says(start: str) -> None:
    """In whatever time zone that runs: one west of Greenwich cut every integrator at once."""
    client: Any = FakeClient({"cid": 1, "authorized_user": "u", "start": start})
    (found,) = [connection async for connection in _connections(client)]
    began = datetime(2026, 11, 29, 12, tzinfo=UTC)
    assert timedelta(0) <= found["start"] - began < timedelta(seconds=1)
    assert found["user"] == "u"


async def test_a_connection_that_cannot_be_understood_hides_no_other() -> None:
    """Integrators whose credentials were revoked are still cut off."""
    good = {"authorized_user": "u", "start": "2026-11-29T12:00:00Z"}
    client: Any = FakeClient(
        {"cid": 1, **good},
        {"cid": 2, "authorized_user": "u", "start": "yesterday"},
        {"authorized_user": "u"},
        {"cid": 3, **good},
    )
    assert [found["cid"] async for found in _connections(client)] == [1, 3]


async def test_who_has_no_integrators_is_seldom_asked_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looks at once when a credential is made, and then again and again."""
    monkeypatch.setattr(gatekeeper, "_SECONDS", 0.01)
    monkeypatch.setattr(gatekeeper, "_CALM_SECONDS", 3600.0)
    working: dict[str, frozenset[str]] = {}
    passes = 0

    class Credentials:
        async def readers(self) -> dict[str, frozenset[str]]:
            nonlocal passes
            passes += 1
            return dict(working)

    messaging = AsyncMock()
    messaging.ensure_stream.return_value = "1"
    messaging.readers.return_value = {}
    keeper = Gatekeeper(Mock(), Mock(), messaging, Mock())
    task = asyncio.create_task(keeper.keep(Credentials()))  # type: ignore[arg-type]  # all it uses
    async with asyncio.timeout(60):
        while passes < gatekeeper._CALM_PASSES:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert passes == gatekeeper._CALM_PASSES
        working["a"] = frozenset({"evergreen.v1.b.>"})
        keeper.changed()
        while passes < 2 * gatekeeper._CALM_PASSES + 2:
            await asyncio.sleep(0.01)
    assert messaging.keep_reader.await_args.args[1] == "a"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
