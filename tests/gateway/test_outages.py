"""Services that come late, die, and come back; keys that change; a configuration that changes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import ssl
import time

import grpc
import pytest

from deploy.gateway import Limits, Rate, write
from tests.gateway.certificates import Certificate
from tests.gateway.harness import Gateway, bearer, error_of, eventually, running_gateway
from tests.gateway.tokens import Signer

POLICIES = "/api/policies"
POLICY = "/api/v1/devices/policy"


async def test_a_late_identity_is_found_at_once() -> None:
    """Without keys a token cannot be checked: 503, not 401; with them it is."""
    async with running_gateway(backends_up=False) as gateway:
        user, device = bearer(gateway.signer.user()), bearer(gateway.signer.device())
        for answer in (
            await gateway.http.get(POLICIES, headers=user),
            await gateway.http.post(POLICY, headers=device, json={}),
            await gateway.http.post("/auth/login", json={}),
            await gateway.http.get("/readyz"),
        ):
            error_of(answer, 503, "UNAVAILABLE")
            assert int(answer.headers["retry-after"]) >= 1
        error_of(await gateway.http.get(POLICIES), 401, "UNAUTHENTICATED")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await gateway.grpc(
                "/evergreen.v1.PolicyService/ListPolicies", token=gateway.signer.user()
            )
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await gateway.backends.start()

        async def served() -> bool:
            answers = await asyncio.gather(
                gateway.http.get(POLICIES, headers=user),
                gateway.http.post(POLICY, headers=device, json={}),
            )
            assert {answer.status_code for answer in answers} <= {200, 503}
            return all(answer.status_code == 200 for answer in answers)

        await eventually(served)


async def test_keys_outlive_identity_and_change_with_it() -> None:
    """An outage of identity keeps the keys; a new one is known, an old one gone, with a look."""
    plenty = Rate(burst=100_000, per_second=100_000)
    async with running_gateway(limits=Limits(user=plenty), key_refresh=1) as gateway:
        old, new = gateway.signer, Signer("second")

        async def status(signer: Signer) -> int:
            return (await gateway.http.get(POLICIES, headers=bearer(signer.user()))).status_code

        await gateway.backends.stop_context("identity")
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            assert await status(old) == 200
            await asyncio.sleep(0.1)
        assert await status(new) == 401
        gateway.backends.jwks = {"keys": [old.jwk, new.jwk]}
        await gateway.backends.start_context("identity")

        async def knows_the_new_key() -> bool:
            assert await status(old) == 200
            return await status(new) == 200

        await eventually(knows_the_new_key)
        gateway.backends.jwks = {"keys": [new.jwk]}

        async def forgot_the_old_key() -> bool:
            assert await status(new) == 200
            return await status(old) == 401

        await eventually(forgot_the_old_key)


@pytest.mark.parametrize("form", ["json", "device"])
async def test_a_service_that_dies_is_missed_and_found_again(gateway: Gateway, form: str) -> None:
    """While it is away: 503 in the one shape. The first call after it is back is served."""
    user, device = bearer(gateway.signer.user()), bearer(gateway.signer.device())

    async def call() -> int:
        if form == "json":
            answer = await gateway.http.get(POLICIES, headers=user)
        else:
            answer = await gateway.http.post(POLICY, headers=device, json={})
        if answer.status_code != 200:
            error_of(answer, 503, "UNAVAILABLE")
            assert 1 <= int(answer.headers["retry-after"]) <= 5
        return answer.status_code

    assert await call() == 200
    for away in (0.2, 1.5):
        await gateway.backends.stop_context("policy")
        end = time.monotonic() + away
        while time.monotonic() < end:
            assert await call() == 503
            await asyncio.sleep(0.02)
        # Other contexts are not touched.
        answer = await gateway.http.get("/api/tenants", headers=user)
        assert answer.status_code == 200
        await gateway.backends.start_context("policy")
        assert [await call() for _ in range(5)] == [200] * 5


async def test_the_configuration_changes_without_a_failed_call() -> None:
    """A new listener and new clusters under load; open connections are closed in good order."""
    plenty = Rate(burst=100_000, per_second=100_000)
    before = Limits(user=plenty, device=plenty)
    async with running_gateway(limits=before) as gateway:
        user, device = bearer(gateway.signer.user()), bearer(gateway.signer.device())
        stop = asyncio.Event()
        calls = 0

        async def json_load() -> None:
            nonlocal calls
            async with gateway.client(http2=False) as client:
                while not stop.is_set():
                    for answer in (
                        await client.get(POLICIES, headers=user),
                        await client.post(POLICY, headers=device, json={}),
                    ):
                        assert answer.status_code == 200
                        calls += 1

        async def grpc_load() -> None:
            nonlocal calls
            while not stop.is_set():
                await gateway.grpc("/evergreen.v1.PolicyService/ListPolicies", token=token)
                calls += 1

        token = gateway.signer.user()
        running = [asyncio.create_task(load()) for load in (json_load, json_load, grpc_load)]

        async def reaches_the_new() -> bool:
            answer = await gateway.http1.options(
                "/api/tenants",
                headers={"origin": "https://a.example", "access-control-request-method": "GET"},
            )
            return "access-control-allow-origin" in answer.headers

        assert not await reaches_the_new()
        changed = dataclasses.replace(
            gateway.settings,
            cors_origins=("https://a.example",),
            limits=dataclasses.replace(before, upstream_requests=500),
        )
        write(changed)
        await eventually(reaches_the_new)
        so_far = calls

        async def went_on() -> bool:
            return calls > so_far + 150

        await eventually(went_on)
        stop.set()
        await asyncio.gather(*running)


async def test_a_renewed_certificate_is_taken_over(gateway: Gateway) -> None:
    """New connections get it once the files are written again."""

    address = ("localhost", gateway.settings.port)

    async def is_served(certificate: Certificate) -> bool:
        served: str = await asyncio.to_thread(ssl.get_server_certificate, address, timeout=60)
        return served == certificate.certificate_file.read_text()

    assert await is_served(gateway.certificate)
    renewed = Certificate.make(gateway.settings.directory, "renewed")
    write(
        dataclasses.replace(
            gateway.settings,
            certificate_file=renewed.certificate_file,
            private_key_file=renewed.private_key_file,
        )
    )
    try:
        await eventually(lambda: is_served(renewed))
    finally:
        write(gateway.settings)
    await eventually(lambda: is_served(gateway.certificate))


async def test_failures_are_logged_without_secrets(gateway: Gateway) -> None:
    """One JSON line a request: what, who, how long; no query, no token."""
    token = gateway.signer.user()
    answer = await gateway.http.get(f"{POLICIES}?secret=hidden", headers=bearer(token))
    request_id = answer.headers["x-request-id"]

    async def logged() -> bool:
        return request_id in gateway.log

    await eventually(logged)
    (line,) = [json.loads(line) for line in gateway.log.splitlines() if request_id in line]
    assert line["path"] == POLICIES
    assert line["method"] == "GET"
    assert line["status"] == 200
    assert line["subject"]
    assert "hidden" not in gateway.log
    assert token not in gateway.log
