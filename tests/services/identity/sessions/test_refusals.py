"""Logins with addresses that nobody has: what the root's log is told of them."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from evergreen.v1 import identity_pb2 as pb
from servicekit.ids import now
from services.identity.sessions import refusals
from tests.conftest import MakeKit, ServeService
from tests.support import callers
from tests.support.events import check_event
from tests.support.identity import Identity, running
from tests.support.servers import TestDatabase

_HERE, _NEAR, _ELSEWHERE = "192.0.2.9", "192.0.2.77", "198.51.100.4"


async def _try(identity: Identity, email: str, source: str = _HERE) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await identity.auth.Login(
            pb.LoginRequest(email=email, password="what is wrong"),
            metadata=callers.anonymous(source),
        )
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def _told(identity: Identity, action: str) -> list[dict[str, Any]]:
    return [e for e in await identity.events() if e["data"]["action"] == f"identity.{action}"]


async def test_the_first_of_a_network_is_told_and_the_others_are_counted(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is no address is not told; after ten minutes there is one entry for the others."""
    ahead = timedelta(0)

    def clock() -> datetime:
        return now() + ahead

    monkeypatch.setattr(refusals, "_LOOK_SECONDS", 0.05)
    async with running(make_kit, serve, database, tmp_path, clock) as identity:
        await _try(identity, "nobody@school.example")
        await _try(identity, "else@school.example", _NEAR)
        await _try(identity, "my secret password", _ELSEWHERE)
        await _try(identity, "nobody@school.example")
        here, elsewhere = await _told(identity, "login_refused")
        for entry in (here, elsewhere):
            check_event(entry)
        assert here["data"]["after"] == {
            "email": "nobody@school.example", "reason": "UNKNOWN_ADDRESS",
        }  # fmt: skip
        assert here["data"]["sourceIp"] == _HERE
        assert (here["data"]["outcome"], here["data"]["reason"]) == ("refused", "UNKNOWN_ADDRESS")
        assert here["data"]["actorKind"] == "anonymous"
        assert elsewhere["data"]["after"]["email"] == ""
        assert "my secret" not in str(await identity.events())
        assert await _told(identity, "logins_refused") == []
        ahead = timedelta(minutes=11)
        summed: list[dict[str, Any]] = []
        for _ in range(1200):
            if summed := await _told(identity, "logins_refused"):
                break
            await asyncio.sleep(0.05)
        (entry,) = summed
        check_event(entry)
        assert entry["data"]["after"]["count"] == 2
        assert entry["data"]["after"]["sources"] == ["192.0.2.0/24"]
        await _try(identity, "nobody@school.example")
        assert len(await _told(identity, "login_refused")) == 3
