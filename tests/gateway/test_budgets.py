"""What anybody may call keeps nobody else out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.api import httpbody_pb2
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.gateway import Limits
from tests.gateway.backends import HttpAnswer, Seen
from tests.gateway.conftest import PLENTY
from tests.gateway.harness import Gateway, bearer, error_of, eventually, running_gateway

EXPORT = "/evergreen.v1.AuditService/ExportAuditEntries"
OPEN = 4
_SECONDS = 2.0


def _limits(seconds: float) -> Limits:
    return Limits(
        user=PLENTY,
        login=PLENTY,
        refresh=PLENTY,
        enroll=PLENTY,
        open=PLENTY,
        published=PLENTY,
        upstream_requests=40,
        upstream_waiting=40,
        open_requests=OPEN,
        open_waiting=OPEN,
        unauthenticated=seconds,
    )


@pytest.fixture(scope="module")
async def small_gateway() -> AsyncIterator[Gateway]:
    """One with few places."""
    async with running_gateway(limits=_limits(60), reflection=True) as gateway:
        yield gateway


@pytest.fixture(scope="module")
async def impatient() -> AsyncIterator[Gateway]:
    """One that waits for two seconds for what has no token."""
    async with running_gateway(limits=_limits(_SECONDS), reflection=True) as gateway:
        yield gateway


@pytest.fixture
def gateway(small_gateway: Gateway) -> Iterator[Gateway]:
    """Instead of the package's."""
    small_gateway.backends.reset()
    yield small_gateway
    small_gateway.backends.reset()


async def _everybody_gets_in(gateway: Gateway) -> None:
    """A login, a refresh, an enrollment, and calls with tokens."""
    user, device = bearer(gateway.signer.user()), bearer(gateway.signer.device())
    ours = {"sec-fetch-site": "same-origin"}
    for path in ("/auth/login", "/auth/refresh", "/api/v1/devices/enroll", "/api/auth/login"):
        answer = await gateway.http.post(path, headers=ours, json={})
        assert answer.status_code == 200, path
    answer = await gateway.http.post("/api/v1/devices/policy", headers=device, json={})
    assert answer.status_code == 200
    for path in ("/api/users", "/api/policies"):
        assert (await gateway.http.get(path, headers=user)).status_code == 200
    await gateway.grpc("/evergreen.v1.AuthService/Login")
    await gateway.grpc("/evergreen.v1.DeviceService/EnrollDevice")


@pytest.mark.parametrize(
    ("path", "rpc"),
    [
        ("/readyz", None),
        ("/docs/a.js", None),
        ("/login", None),
        ("/api/auth/session", None),
        ("/.well-known/jwks.json", "TokenKeyService/GetJwks"),
        ("/api/v1/policy-keys", "PolicyKeyService/ListPolicyKeys"),
        ("/api/v1/policy-keys.pem", "PolicyKeyService/GetPolicyKeysPem"),
        ("/api/v1/audit-keys.pem", "AuditService/GetAuditKeysPem"),
        ("/api/v1/audit-log/checkpoint", "AuditService/GetPublicAuditLogCheckpoint"),
        ("/api/v1/audit-log/tile/0/000", "AuditService/GetPublicAuditLogTile"),
    ],
)
async def test_open_calls_have_places_of_their_own(
    gateway: Gateway, path: str, rpc: str | None
) -> None:
    """When all of them are taken, the next is told to come later, and everybody else gets in."""
    free, asked = asyncio.Event(), asyncio.Semaphore(0)

    async def hangs(seen: Seen, *_: Any) -> Any:
        asked.release()
        await free.wait()
        return HttpAnswer() if rpc is None else None

    if rpc is None:
        gateway.backends.http_answers[path] = hangs
    else:
        gateway.backends.answers[f"/evergreen.v1.{rpc}"] = hangs
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(gateway.http1.get(path, timeout=60)) for _ in range(OPEN)]
        for _ in range(OPEN):
            await asyncio.wait_for(asked.acquire(), 60)
        more = [asyncio.create_task(_refusal(gateway, path)) for _ in range(3 * OPEN)]
        await next(asyncio.as_completed(more))
        for task in more:
            task.cancel()  # some may wait
        await asyncio.wait(more)
        await _everybody_gets_in(gateway)
        free.set()
    assert [task.result().status_code for task in waiting] == [200] * OPEN


async def _refusal(gateway: Gateway, path: str) -> None:
    answer = await gateway.http1.get(path, timeout=60)
    assert answer.headers["retry-after"]
    error_of(answer, 503, "UNAVAILABLE")


@pytest.mark.parametrize("what", ["watch", "list", "reflection"])
async def test_nobody_opens_a_stream_without_a_token(gateway: Gateway, what: str) -> None:
    """Health is asked by `Check` alone, and reflection by users."""
    health: Any = health_pb2_grpc.HealthStub(gateway.channel)
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        match what:
            case "watch":
                await health.Watch(health_pb2.HealthCheckRequest()).read()
            case "list":
                await health.List(health_pb2.HealthListRequest())
            case _:
                dialogue = reflection.ServerReflectionInfo()
                await dialogue.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
                await dialogue.read()
    # A refusal that overtakes what is being sent may be taken for a broken stream.
    expected = {"UNAUTHENTICATED", "INTERNAL"} if what == "reflection" else {"UNIMPLEMENTED"}
    assert refused.value.code().name in expected


async def test_reflection_is_off_unless_it_is_asked_for() -> None:
    """With a user's token neither."""
    async with running_gateway() as gateway:
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            await _listed(gateway)


async def _listed(gateway: Gateway) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
    token = ("authorization", f"Bearer {gateway.signer.user()}")
    dialogue = stub.ServerReflectionInfo(metadata=(token,))
    await dialogue.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
    listed = await dialogue.read()
    dialogue.cancel()
    return {service.name for service in listed.list_services_response.service}


async def test_a_dialogue_ends(impatient: Gateway) -> None:
    """Reflection answers users, for a time."""

    async def is_listed() -> bool:
        # On a slow machine an answer may come too late.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return "evergreen.v1.PolicyService" in await _listed(impatient)
        return False

    await eventually(is_listed)
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(impatient.channel)
    token = ("authorization", f"Bearer {impatient.signer.user()}")
    dialogue = stub.ServerReflectionInfo(metadata=(token,))
    began = time.monotonic()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
        while True:
            await dialogue.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
            await dialogue.read()
            await asyncio.sleep(0.1)
    assert _SECONDS * 0.9 <= time.monotonic() - began < 60


@pytest.mark.parametrize("path", ["/auth/login", "/api/policies", "/api/v1/devices/enroll"])
async def test_a_body_that_never_comes_is_not_waited_for(impatient: Gateway, path: str) -> None:
    """Nor one that comes byte by byte."""
    reader, writer = await asyncio.open_connection(
        "localhost", impatient.settings.port, ssl=impatient.certificate.trust()
    )
    began = time.monotonic()
    writer.write(f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 9999\r\n\r\n".encode())

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.1)

    dripping = asyncio.create_task(drip())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    dripping.cancel()
    writer.close()
    assert head.split()[1] == b"408"
    assert time.monotonic() - began > _SECONDS * 0.9
    assert impatient.backends.seen == []


async def test_a_download_lasts_longer(impatient: Gateway) -> None:
    """The time for what has no token ends with the token."""

    async def parts(seen: Seen, context: Any) -> AsyncIterator[Message]:
        for _ in range(10):
            yield httpbody_pb2.HttpBody(content_type="text/csv", data=b"1,a\n")
            await asyncio.sleep(_SECONDS / 5)

    impatient.backends.streams[EXPORT] = parts
    user = bearer(impatient.signer.user())
    answer = await impatient.http.get("/api/audit/export", headers=user, timeout=60)
    assert answer.content == b"1,a\n" * 10


async def test_a_flood_of_streams_keeps_no_login_out(gateway: Gateway) -> None:
    """48 a second, each with a tiny message now and then, from one address; logins from another."""
    stop = asyncio.Event()
    channel = gateway.open_channel()

    async def stream(number: int) -> None:
        health: Any = health_pb2_grpc.HealthStub(channel)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        try:
            if number % 2:
                await health.Watch(health_pb2.HealthCheckRequest()).read()
            dialogue = reflection.ServerReflectionInfo()
            while not stop.is_set():
                await dialogue.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
                await asyncio.wait_for(stop.wait(), 30)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass

    async def flood(group: asyncio.TaskGroup) -> None:
        for number in range(200):
            group.create_task(stream(number))
            await asyncio.sleep(1 / 48)

    elsewhere = httpx.AsyncHTTPTransport(
        verify=gateway.certificate.trust(), local_address="127.0.0.2"
    )
    statuses = []
    async with (
        httpx.AsyncClient(base_url=gateway.url, transport=elsewhere) as other,
        asyncio.TaskGroup() as group,
    ):
        flooding = group.create_task(flood(group))
        while not flooding.done() or len(statuses) < 6:
            statuses.append((await other.post("/auth/login", json={}, timeout=60)).status_code)
            await asyncio.sleep(0.05)
        stop.set()
    await channel.close()
    assert set(statuses) == {200}
