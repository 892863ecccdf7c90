"""The places of a service are shared between tenants."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from servicekit import call
from servicekit.call import Call
from servicekit.errors import Code, DomainError
from servicekit.rpc.chain import CallChain

RPC = "/evergreen.v1.PolicyService/ListPolicies"
STATE = "/evergreen.v1.DeviceService/ReportState"


def _headers(tenant: str) -> dict[str, str]:
    return {
        call.H_KIND: "user",
        call.H_SUBJECT: str(uuid4()),
        call.H_TENANT: tenant,
        call.H_ROLE: "Owner",
        call.H_EMAIL: "owner@example.org",
        call.H_SESSION: str(uuid4()),
    }


async def test_a_tenants_flood_leaves_places_for_others() -> None:
    """It is refused when it holds its share; another tenant's call is served meanwhile."""
    chain = CallChain(max_calls=30)
    release = asyncio.Event()
    reached = []

    async def handle(served: Call) -> str:
        reached.append(served.caller.tenant_id)
        await release.wait()
        return "served"

    def calls(tenant: str, count: int) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(chain.run(RPC, _headers(tenant), handle)) for _ in range(count)]

    noisy, quiet = str(uuid4()), str(uuid4())
    flood = calls(noisy, 100)
    await asyncio.sleep(0)
    others = calls(quiet, 3)
    await asyncio.sleep(0)
    assert reached == [noisy] * 20 + [quiet] * 3
    refused = [task.exception() for task in flood if task.done()]
    assert len(refused) == 80
    for error in refused:
        assert isinstance(error, DomainError)
        assert error.code is Code.RESOURCE_EXHAUSTED
        assert error.retry_after is not None
    release.set()
    assert await asyncio.gather(*others) == ["served"] * 3
    await asyncio.gather(*flood, return_exceptions=True)
    # All places were given back, those of calls that were given up too.
    release.clear()
    given_up = calls(noisy, 20)
    await asyncio.sleep(0)
    for task in given_up:
        task.cancel()
    await asyncio.gather(*given_up, return_exceptions=True)
    release.set()
    assert await asyncio.gather(*calls(noisy, 20)) == ["served"] * 20


def _device(device: str, tenant: str) -> dict[str, str]:
    return {
        call.H_KIND: "device",
        call.H_SUBJECT: device,
        call.H_TENANT: tenant,
        call.H_TOKEN_VERSION: "1",
    }


async def test_a_lapsed_token_is_good_for_the_policy_alone() -> None:
    """The gateway lets devices' tokens through for 90 days after their end."""
    access: Any = SimpleNamespace(check=lambda caller: None)
    at = datetime(2026, 11, 24, tzinfo=UTC)
    chain = CallChain(max_calls=30, devices=access, clock=lambda: at)

    def headers(ended: timedelta) -> dict[str, str]:
        expires = {call.H_TOKEN_EXPIRES: str(int((at - ended).timestamp()))}
        return _device(str(uuid4()), str(uuid4())) | expires

    async def answer(served: Call) -> str:
        return "served"

    for ended in (timedelta(days=-1), timedelta(seconds=29)):
        assert await chain.run(STATE, headers(ended), answer) == "served"
    for ended in (timedelta(seconds=31), timedelta(days=89)):
        with pytest.raises(DomainError) as refused:
            await chain.run(STATE, headers(ended), answer)
        assert refused.value.code is Code.UNAUTHENTICATED
        assert refused.value.reason == "TOKEN_EXPIRED"
        poll = "/evergreen.v1.DeviceService/PullPolicy"
        assert await chain.run(poll, headers(ended), answer) == "served"


async def test_a_full_service_refuses_everybody() -> None:
    """Without asking who it is."""
    chain = CallChain(max_calls=2)
    release = asyncio.Event()

    async def handle(served: Call) -> None:
        await release.wait()

    held = [asyncio.create_task(chain.run(RPC, _headers(str(uuid4())), handle)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(DomainError) as refused:
        await chain.run(RPC, {}, handle)
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    release.set()
    await asyncio.gather(*held)


async def test_a_wait_for_a_turn_is_no_part_of_a_calls_time() -> None:
    """Of that call alone: the next one in the same task has not waited."""
    chain = CallChain(max_calls=30)

    async def handle(served: Call) -> None:
        call.waited_seconds.set(1000.0)

    async def at_once(served: Call) -> None:
        pass

    def seconds() -> float:
        return REGISTRY.get_sample_value("evergreen_call_seconds_sum", {"rpc": RPC}) or 0.0

    before = seconds()
    await chain.run(RPC, _headers(str(uuid4())), handle)
    waited = seconds()
    assert waited - before < -900
    await chain.run(RPC, _headers(str(uuid4())), at_once)
    assert seconds() >= waited
