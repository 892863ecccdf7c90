"""Bounds: bodies, rates, time, and who may call from a browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message

from deploy.gateway import Limits, Rate
from servicekit.ids import new_id
from tests.gateway.backends import HttpAnswer, Seen
from tests.gateway.harness import Gateway, bearer, error_of, eventually, running_gateway
from tests.gateway.upload import upload

MIB = 1024 * 1024
EVENTS = "/api/v1/devices/events"
STATE = "/api/v1/devices/state"
POLICY = "/api/v1/devices/policy"
_BURST = 3
_MANY = 60
"""Calls of which one is refused, however slowly they are made."""


@pytest.fixture(scope="module")
async def strict() -> AsyncIterator[Gateway]:
    """A gateway with small limits, and one page of another origin that may call."""
    few = Rate(burst=_BURST, per_second=1)
    limits = Limits(
        device=few,
        user=few,
        login=few,
        refresh=few,
        invitation=few,
        enroll=few,
        open=few,
        published=few,
        pages=few,
        timeout=1.5,
    )
    async with running_gateway(limits=limits, cors_origins=("https://console.example",)) as gateway:
        yield gateway


async def _chunks(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 65536):
        yield b" " * min(65536, size - start)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("path", ["/auth/login", POLICY, "/api/v1/devices/enroll"])
async def test_a_body_over_a_mebibyte_is_too_large(
    gateway: Gateway, path: str, chunked: bool
) -> None:
    """Whether its length is announced or not; one of that size is taken."""
    token = gateway.signer.device()
    json = b'{"email":"%s"}' % (b"x" * (MIB - 12))
    assert len(json) == MIB
    for client in (gateway.http, gateway.http1):
        answer = await client.post(path, headers=bearer(token), content=json)
        assert answer.status_code == 200
    assert len(gateway.backends.seen) == 2
    size = 3 * MIB
    answer = await gateway.http1.post(
        path, headers=bearer(token), content=_chunks(size) if chunked else b" " * size
    )
    error_of(answer, 413, "INVALID_ARGUMENT")
    status, body = await upload(gateway, path, size, token=token, announced=not chunked)
    assert (status, body["status"]) == (413, "INVALID_ARGUMENT")
    assert len(gateway.backends.seen) == 2


async def test_a_state_that_is_too_long_comes_through(gateway: Gateway) -> None:
    """Telemetry cuts it, which an agent that is refused could not."""
    token = gateway.signer.device()
    answer = await gateway.http1.post(STATE, headers=bearer(token), content=b" " * (4 * MIB))
    assert answer.status_code == 200
    status, body = await upload(gateway, STATE, 5 * MIB, token=token)
    assert (status, body["status"]) == (413, "INVALID_ARGUMENT")


async def test_a_batch_of_fifty_thousand_events_is_taken(gateway: Gateway) -> None:
    """An agent that was offline for long sends them in one body; there is a limit all the same."""
    token = gateway.signer.device()
    answer = await gateway.http1.post(EVENTS, headers=bearer(token), content=b" " * (96 * MIB))
    assert answer.status_code == 200
    assert await upload(gateway, EVENTS, 64 * MIB, token=token) == (200, {})
    assert [len(seen.body) for seen in gateway.backends.seen] == [96 * MIB, 64 * MIB]
    answer = await gateway.http1.post(EVENTS, headers=bearer(token), content=_chunks(97 * MIB))
    error_of(answer, 413, "INVALID_ARGUMENT")
    status, body = await upload(gateway, EVENTS, 97 * MIB, token=token)
    assert (status, body["status"]) == (413, "INVALID_ARGUMENT")


async def test_native_grpc_takes_large_batches_too(gateway: Gateway) -> None:
    """Up to a third of what one may have in JSON, for they take more memory."""
    rpc, token = "/evergreen.v1.DeviceService/ReportEvents", gateway.signer.device()
    await gateway.grpc(rpc, bytes(20 * MIB), token=token)
    assert len(gateway.backends.seen[0].body) == 20 * MIB
    with pytest.raises(grpc.aio.AioRpcError) as too_large:
        await gateway.grpc(rpc, bytes(40 * MIB), token=token)
    # Not UNKNOWN, which Envoy makes of 413: to send it again does not help.
    assert too_large.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError):
        await gateway.grpc(
            "/evergreen.v1.PolicyService/CreatePolicy", bytes(2 * MIB), gateway.signer.user()
        )


async def test_a_stranger_cannot_make_the_gateway_hold_a_large_body(gateway: Gateway) -> None:
    """The token is looked at before the body of a device's call is waited for."""
    reader, writer = await asyncio.open_connection(
        "localhost", gateway.settings.port, ssl=gateway.certificate.trust()
    )
    writer.write(
        f"POST {EVENTS} HTTP/1.1\r\nhost: a\r\ncontent-length: {30 * MIB}\r\n\r\n".encode()
    )
    assert b" 401 " in await reader.readline()
    writer.close()


@pytest.mark.parametrize("http2", [True, False])
async def test_large_headers_are_refused(gateway: Gateway, http2: bool) -> None:
    """Sixteen KiB of headers are enough for everybody."""
    client = gateway.client(http2=http2)
    async with client:
        answer = await client.get("/healthz", headers={"x-large": "y" * 14_000})
        assert answer.status_code == 200
        try:
            answer = await client.get("/healthz", headers={"x-large": "y" * 20_000})
        except httpx.RemoteProtocolError:
            assert http2  # h2 resets the stream
        else:
            assert answer.status_code == 431


async def test_idle_connections_are_closed_sooner_when_memory_runs_short() -> None:
    """Long before their time is over, so that others find room; who calls then is served."""
    limits = Limits(heap=36 * MIB, idle=3600)
    async with running_gateway(limits=limits) as gateway:
        idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def connect() -> None:
            idle.append(
                await asyncio.open_connection(
                    "localhost", gateway.settings.port, ssl=gateway.certificate.trust()
                )
            )

        async def some_are_closed() -> bool:
            # One that is closed while something is on its way to the gateway ends with an error.
            return any(reader.at_eof() or reader.exception() for reader, _ in idle)

        for _ in range(100):
            await asyncio.gather(*(connect() for _ in range(20)), return_exceptions=True)
            if await some_are_closed():
                break
        await eventually(some_are_closed)

        async def served() -> bool:
            try:
                return (await gateway.http.get("/healthz")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(served)
        for _, writer in idle:
            writer.transport.abort()


async def _exhaust(gateway: Gateway, verb: str, path: str, token: str) -> None:
    """Calls until it is refused; the burst is served."""
    for count in range(_MANY):
        answer = await gateway.http.request(
            verb, path, headers=bearer(token), content=b"{}" if verb == "POST" else None
        )
        if answer.status_code == 429:
            error_of(answer, 429, "RESOURCE_EXHAUSTED")
            assert int(answer.headers["retry-after"]) >= 1
            assert count >= _BURST
            return
        assert answer.status_code == 200
    raise AssertionError("nothing was refused")


async def test_each_caller_has_a_rate_of_its_own(strict: Gateway) -> None:
    """One device that calls too often is told when to come back; no other is touched."""
    first, second = (strict.signer.device(sub=str(new_id())) for _ in range(2))
    await _exhaust(strict, "POST", STATE, first)
    await _exhaust(strict, "POST", STATE, second)
    await _exhaust(strict, "GET", "/api/users", strict.signer.user(sub=str(new_id())))


async def test_the_devices_of_a_tenant_have_a_rate_together() -> None:
    """A tenant of many devices is told, at different times, to come back; no other tenant is."""
    limits = Limits(tenant=Rate(burst=20, per_second=1))
    async with running_gateway(limits=limits) as gateway:
        noisy, quiet = str(new_id()), str(new_id())

        async def state(tenant: str) -> httpx.Response:
            token = gateway.signer.device(sub=str(new_id()), tid=tenant)
            return await gateway.http.post(STATE, headers=bearer(token), json={})

        answers = [await state(noisy) for _ in range(_MANY)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) >= 10
        assert [answer.status_code for answer in answers[:20]] == [200] * 20
        for answer in refused:
            error_of(answer, 429, "RESOURCE_EXHAUSTED")
        assert len({int(answer.headers["retry-after"]) for answer in refused}) > 1
        assert [(await state(quiet)).status_code for _ in range(5)] == [200] * 5
        with pytest.raises(grpc.aio.AioRpcError) as grpc_refused:
            for _ in range(_MANY):
                token = gateway.signer.device(sub=str(new_id()), tid=noisy)
                await gateway.grpc("/evergreen.v1.DeviceService/ReportState", token=token)
        assert grpc_refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        metadata = dict(grpc_refused.value.initial_metadata() or ()) | dict(
            grpc_refused.value.trailing_metadata() or ()
        )
        assert int(metadata["retry-after"]) >= 2


async def test_both_forms_of_a_devices_calls_count_together(strict: Gateway) -> None:
    """It has as many calls as one form has, whichever it takes."""
    token = strict.signer.device(sub=str(new_id()))
    served = 0
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        for _ in range(_MANY):
            await strict.http.post(STATE, headers=bearer(token), json={})
            served += 1
            await strict.grpc("/evergreen.v1.DeviceService/PullPolicy", token=token)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert served >= 2


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("POST", "/auth/refresh"),
        ("POST", "/auth/accept-invitation"),
        ("POST", "/auth/login"),
        ("POST", "/api/v1/devices/enroll"),
        ("GET", "/api/v1/policy-keys"),
        ("GET", "/login"),
        ("GET", "/api/v1/audit-log/checkpoint"),
    ],
)
async def test_strangers_are_counted_by_address(strict: Gateway, verb: str, path: str) -> None:
    """Each kind of open call has a rate of its own per address; no kind uses up another's."""
    await _exhaust(strict, verb, path, strict.signer.user(sub=str(new_id())))


async def test_open_calls_keep_nobody_from_the_pages() -> None:
    """A loop on the docs from a school's address takes neither its login nor its session away."""
    ours = {"sec-fetch-site": "same-origin", "content-type": "application/json"}
    async with running_gateway(limits=Limits(open=Rate(burst=_BURST, per_second=1))) as gateway:
        await _exhaust(gateway, "GET", "/docs", "")
        for verb, path in (
            ("GET", "/login"),
            ("GET", "/auth/account"),
            ("GET", "/api/auth/session"),
            ("POST", "/api/auth/logout"),
        ):
            for _ in range(2 * _BURST):
                answer = await gateway.http.request(verb, path, headers=ours)
                assert answer.status_code == 200, path


async def test_a_rate_recovers(strict: Gateway) -> None:
    """Who waits is served again."""
    token = strict.signer.device(sub=str(new_id()))
    await _exhaust(strict, "POST", STATE, token)

    async def served() -> bool:
        answer = await strict.http.post(STATE, headers=bearer(token), json={})
        return answer.status_code == 200

    await eventually(served)


@pytest.mark.parametrize("form", ["grpc", "http"])
async def test_a_slow_service_is_given_up(strict: Gateway, form: str) -> None:
    """504 in the one shape."""
    strict.backends.reset()

    async def slow(seen: Seen, context: Any) -> Message | None:
        await asyncio.Event().wait()
        return None

    async def slow_http(seen: Seen) -> HttpAnswer:
        await asyncio.Event().wait()
        return HttpAnswer()

    strict.backends.answers["/evergreen.v1.UserService/ListUsers"] = slow
    strict.backends.http_answers[STATE] = slow_http
    if form == "grpc":
        user = bearer(strict.signer.user(sub=str(new_id())))
        answer = await strict.http.get("/api/users", headers=user)
    else:
        device = bearer(strict.signer.device(sub=str(new_id())))
        answer = await strict.http.post(STATE, headers=device, json={})
    error_of(answer, 504, "DEADLINE_EXCEEDED")
    # A call that takes too long is not made a second time.
    assert len(strict.backends.seen) == 1
    strict.backends.reset()


async def test_a_configured_origin_may_call(strict: Gateway) -> None:
    """With credentials, and no other origin may."""
    asked = {"access-control-request-method": "PATCH", "access-control-request-headers": "x"}
    user = bearer(strict.signer.user(sub=str(new_id())))
    for origin, allowed in (("https://console.example", True), ("https://evil.example", False)):
        answer = await strict.http.options("/api/tenants", headers={"origin": origin, **asked})
        assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
        if allowed:
            assert answer.status_code == 200
            assert "PATCH" in answer.headers["access-control-allow-methods"]
            assert answer.headers["access-control-allow-credentials"] == "true"
        answer = await strict.http.get("/api/tenants", headers={"origin": origin, **user})
        assert answer.status_code == 200
        assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
        # An error can be read by the page too.
        answer = await strict.http.get("/api/tenants", headers={"origin": origin})
        assert answer.status_code == 401
        assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
