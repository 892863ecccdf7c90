"""What a call knows goes with it to the next service: its request id, and how long it has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio
import structlog.testing

from evergreen.v1 import (
    identity_pb2,
    identity_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
)
from servicekit import call
from servicekit.errors import Code, DomainError
from servicekit.feeds.feed import Follower
from servicekit.observability import logs
from servicekit.rpc.chain import CallChain
from servicekit.rpc.channels import open_channel
from servicekit.rpc.server import Context, GrpcServer
from tests.support import callers

FIRST = "/evergreen.v1.PolicyInternalService/GetDevicePolicy"
SECOND = "/evergreen.v1.IdentityInternalService/IssueDeviceToken"
LIST = "/evergreen.v1.PolicyService/ListPolicies"
ID = "01930000-0000-7000-8000-00000000beef"


@dataclass
class Service:
    """A service that notes the calls that reach it, and how much time each has."""

    work: Callable[[], Awaitable[Any]] = lambda: asyncio.sleep(0)
    seen: list[tuple[str, float]] = field(default_factory=list)

    async def serve(self, answer: Any, context: Context) -> Any:
        """Notes a call and does its work."""
        self.seen.append((context.call.request_id, call.seconds_left()))
        await self.work()
        return answer

    async def GetDevicePolicy(  # noqa: N802  # as the RPC
        self, _request: Any, context: Context
    ) -> Any:
        """The first service's RPC."""
        return await self.serve(policy_pb2.GetDevicePolicyResponse(), context)

    async def IssueDeviceToken(  # noqa: N802  # as the RPC
        self, _request: Any, context: Context
    ) -> Any:
        """The second service's RPC."""
        return await self.serve(identity_pb2.IssueDeviceTokenResponse(), context)

    async def ListPolicies(  # noqa: N802  # as the RPC
        self, _request: Any, context: Context
    ) -> Any:
        """What users call."""
        return await self.serve(policy_pb2.ListPoliciesResponse(), context)

    def __getattr__(self, _name: str) -> Any:
        return self.serve


@dataclass
class Both:
    """Two services, the first of which asks the second one."""

    first: Service
    second: Service
    ask_first: Callable[..., Awaitable[Any]]
    """As enrollment does."""
    ask_second: Callable[..., Awaitable[Any]]
    as_user: Callable[..., Awaitable[Any]]
    """A user's call that the gateway passed on to the first service."""


@pytest_asyncio.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    first, second = Service(), Service()
    servers = [
        GrpcServer(
            f"unix:{tmp_path}/{name}",
            CallChain(max_calls=8),
            [partial(cast("Any", add), servicer)],
            (),
            internal=internal,
        )
        for name, add, servicer, internal in (
            ("first", policy_pb2_grpc.add_PolicyInternalServiceServicer_to_server, first, True),
            ("gw", policy_pb2_grpc.add_PolicyServiceServicer_to_server, first, False),
            (
                "second",
                identity_pb2_grpc.add_IdentityInternalServiceServicer_to_server,
                second,
                True,
            ),
        )
    ]
    await asyncio.gather(*(server.start() for server in servers))
    async with (
        open_channel(f"unix:{tmp_path}/first", "enrollment") as to_first,
        open_channel(f"unix:{tmp_path}/second", "policy") as to_second,
        grpc.aio.insecure_channel(f"unix:{tmp_path}/gw") as gateway,
    ):
        issue = identity_pb2_grpc.IdentityInternalServiceStub(to_second).IssueDeviceToken
        device = identity_pb2.IssueDeviceTokenRequest(device_id=ID, tenant_id=ID, token_version=1)
        get = policy_pb2_grpc.PolicyInternalServiceStub(to_first).GetDevicePolicy
        found = policy_pb2.GetDevicePolicyRequest(tenant_id=ID, device_id=ID)
        listed = policy_pb2_grpc.PolicyServiceStub(gateway).ListPolicies
        yield Both(
            first,
            second,
            partial(get, found),
            partial(issue, device),
            partial(listed, policy_pb2.ListPoliciesRequest()),
        )
    await asyncio.gather(*(server.stop(0) for server in servers))


def _headers(**more: str) -> tuple[tuple[str, str], ...]:
    said = dict(callers.user(ID)) | {call.H_REQUEST_ID: ID}
    return tuple((said | {name.replace("_", "-"): value for name, value in more.items()}).items())


async def test_the_request_id_goes_along_and_is_in_both_logs(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    """One id finds all that was done for a call, wherever it was done."""
    caplog.set_level(logging.DEBUG)
    both.first.work = partial(both.ask_second, timeout=60)
    with structlog.testing.capture_logs(processors=[logs.add_call]) as lines:
        await both.as_user(metadata=_headers(), timeout=60)
    assert [request for request, _ in both.first.seen + both.second.seen] == [ID, ID]
    logged = {line["rpc"]: line["request_id"] for line in lines if line["event"] == "call"}
    assert logged == {LIST: ID, SECOND: ID}


async def test_a_hop_has_the_time_that_is_left_and_no_more(both: Both) -> None:
    """The smaller one of its own timeout and the call's; a little less at each hop."""
    both.first.work = partial(both.ask_second, timeout=600)
    await both.ask_first(timeout=60)
    ((_, first),), ((_, second),) = both.first.seen, both.second.seen
    assert second + call.RETURN_SECONDS <= first <= 60 - call.RETURN_SECONDS
    both.first.work = partial(both.ask_second, timeout=30)
    await both.ask_first(timeout=60)
    assert both.first.seen[-1][1] > 30 > both.second.seen[-1][1]
    both.first.work = both.ask_second
    await both.ask_first(timeout=60)
    assert both.second.seen[-1][1] < both.first.seen[-1][1] < 60


async def test_a_call_from_outside_has_the_time_that_the_gateway_waits(both: Both) -> None:
    """Or the client's, when that is less; a gateway of the release before says nothing.

    gRPC rounds the client's up to a second.
    """
    both.first.work = partial(both.ask_second, timeout=600)
    for told, timeout, most in (("45", None, 45), ("45", 600, 45), ("300", 60, 61)):
        await both.as_user(metadata=_headers(x_evergreen_timeout=told), timeout=timeout)
        assert most - 30 < both.second.seen[-1][1] < both.first.seen[-1][1] < most
    await both.as_user(metadata=_headers())
    assert both.first.seen[-1][1] == float("inf")
    assert both.second.seen[-1][1] < 600


async def test_a_call_that_is_too_late_reaches_no_handler(both: Both) -> None:
    """Whoever notices first: the service that would call, or the one that is called."""
    both.first.work = partial(both.ask_second, timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await both.ask_first(timeout=call.RETURN_SECONDS * 0.9)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    # Its time ends while it works: what it would ask for is of no use any longer.
    async def too_long() -> None:
        await asyncio.sleep(call.seconds_left())
        with pytest.raises(DomainError) as refused:
            await both.ask_second(timeout=60)
        assert refused.value.code is Code.DEADLINE_EXCEEDED
        raise refused.value

    both.first.work = too_long
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await both.ask_first(timeout=2)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(both.first.seen) == 1
    assert not both.second.seen


async def test_too_late_is_told_in_the_one_shape() -> None:
    """Before the handler runs."""
    reached: list[call.Call] = []

    async def handle(served: call.Call) -> None:
        reached.append(served)

    chain = CallChain(max_calls=1)
    with pytest.raises(DomainError) as refused:
        await chain.run(LIST, dict(_headers()), handle, time_remaining=0)
    assert (refused.value.code, refused.value.reason) == (Code.DEADLINE_EXCEEDED, "TOO_LATE")
    assert not reached
    # It took no place.
    await chain.run(LIST, dict(_headers()), handle)
    assert len(reached) == 1


async def test_background_work_has_no_deadline_but_its_own(both: Both) -> None:
    """A feed's questions have an id of their own, the same on both sides."""
    asked = asyncio.Event()
    ids = []

    async def fetch(cursor: str) -> tuple[str, bool]:
        ids.append(call.current_call.get().request_id)
        await both.ask_second(timeout=60)
        asked.set()
        return cursor, False

    task = asyncio.create_task(Follower("hops", fetch).run())
    await asyncio.wait_for(asked.wait(), 60)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    ((request, left),) = both.second.seen
    assert ids == [request]
    assert 0 < left < 60
    assert call.seconds_left() == float("inf")
    await both.ask_second()
    assert both.second.seen[-1][1] == float("inf")
