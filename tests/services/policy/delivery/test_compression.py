"""Policies in gzip, for agents that take it; not where their length would tell a secret."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any, Final
from uuid import uuid4

import httpx

from tests.fakes.agent.gojson import unmarshal
from tests.fakes.agent.structs import ENVELOPE
from tests.fakes.agent.verify import check_envelope, load_pinned_key
from tests.services.policy.delivery.test_delivery import HALF
from tests.support.policy import ORG, RESELLER, Admin, Device, World, world

__all__ = ["world"]

PATH: Final = "/api/v1/devices/policy"
LARGE: Final = {
    "browser": {"extensions": [f"https://extensions.example/{n:03}" for n in range(100)]}
}
WIFI: Final = {"wifi": [{"ssid": "School", "security": "wpa-psk", "passphrase": "12345678"}]}


def new_device(world: World, **token: Any) -> Device:
    return Device(world.kit, world.channel, uuid4(), ORG.id, **token)


async def raw(
    world: World, device: Device, accepts: str | None, version: str = ""
) -> httpx.Response:
    """The released agent's call with an `Accept-Encoding`; the body as it came."""
    path = world.kit.settings.http_listen.removeprefix("unix:")
    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=path, verify=False), base_url="http://policy"
    ) as client:
        request = client.build_request(
            "POST", PATH, json={"current_version": version}, headers=device.headers
        )
        del request.headers["accept-encoding"]
        if accepts is not None:
            request.headers["accept-encoding"] = accepts
        answer = await client.send(request, stream=True)
        body = b"".join([part async for part in answer.aiter_raw()])
        await answer.aclose()
    return httpx.Response(
        answer.status_code,
        headers={name: value for name, value in answer.headers.items() if name != "content-length"}
        | {"x-length": answer.headers.get("content-length", "")},
        extensions={"raw": body},
    )


async def test_who_takes_gzip_gets_it(world: World) -> None:
    """The same bytes for all, which unpack to the signed document; who does not gets it plain."""
    await world.admin.published(ORG.id, LARGE)
    device = new_device(world)
    plain = await raw(world, device, None)
    body = plain.extensions["raw"]
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "accept-encoding"
    check_envelope(load_pinned_key(await world.pem()), unmarshal(ENVELOPE, body))
    for accepts in ("gzip", "deflate, gzip;q=0.5", "GZIP", "gzip; q=1, identity; q=0.5"):
        packed = await raw(world, device, accepts)
        assert packed.headers["content-encoding"] == "gzip", accepts
        assert packed.headers["vary"] == "accept-encoding"
        assert len(packed.extensions["raw"]) == int(packed.headers["x-length"]) < len(body) / 4
        assert gzip.decompress(packed.extensions["raw"]) == body
        assert packed.extensions["raw"] == (await raw(world, device, "gzip")).extensions["raw"]
    for accepts in ("", "identity", "br", "gzip;q=0", "gzip; q=0.0", "xgzip"):
        other = await raw(world, device, accepts)
        assert "content-encoding" not in other.headers, accepts
        assert other.extensions["raw"] == body
    unchanged = await raw(world, device, "gzip", version="1")
    assert unchanged.status_code == 304
    assert unchanged.extensions["raw"] == b""
    assert "content-encoding" not in unchanged.headers


async def test_what_is_small_or_carries_a_token_is_plain(world: World) -> None:
    """A policy of one packet gains nothing; a new token is a secret."""
    await world.admin.published(ORG.id, {"updates": {"channel": "beta"}})
    small = await raw(world, new_device(world), "gzip")
    assert "content-encoding" not in small.headers
    await world.admin.published(ORG.id, LARGE)
    old = new_device(world, age=HALF)
    told = await raw(world, old, "gzip")
    assert "device_token" in json.loads(told.extensions["raw"])
    assert "content-encoding" not in told.headers


async def test_a_secret_is_never_packed_with_what_another_tenant_writes(world: World) -> None:
    """A school that publishes guesses learns nothing of its district's passphrase from lengths. Its
    own secrets are packed with its own texts, and so are texts of both without secrets."""
    reseller = Admin(world.channel, RESELLER.id)
    district = await reseller.published(RESELLER.id, {"network": WIFI})
    await world.admin.published(ORG.id, LARGE)
    mixed = await raw(world, new_device(world), "gzip")
    assert b"12345678" in mixed.extensions["raw"]
    assert "content-encoding" not in mixed.headers
    await reseller.call(
        "UpdatePolicy", id=district.id, bundle={"updates": {"channel": "beta"}}, signed=True
    )

    async def packed() -> bool:
        answer = await raw(world, new_device(world), "gzip")
        return "content-encoding" in answer.headers

    async with asyncio.timeout(60):
        while not await packed():
            await asyncio.sleep(0.1)
    await reseller.call("WithdrawPolicy", id=district.id)
    await world.admin.published(ORG.id, LARGE | {"network": WIFI})
    async with asyncio.timeout(60):
        while True:
            own = await raw(world, new_device(world), "gzip")
            if "content-encoding" in own.headers:
                break
            await asyncio.sleep(0.1)
    assert b"12345678" in gzip.decompress(own.extensions["raw"])
