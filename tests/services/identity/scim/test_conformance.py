"""SCIM as others read the standard: scim2-tester against the service."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import httpx2

from tests.support.scim import World, world
from tests.support.single_sign_on import fake

__all__ = ["fake", "world"]  # the fixtures


def _named(request: httpx2.Request) -> None:
    request.headers["x-request-id"] = str(uuid4())


async def test_scim2_tester_finds_nothing(world: World) -> None:
    """Each of its checks is a success, and none is skipped."""
    # Not by every process that only looks for tests: it takes seconds.
    from scim2_client.engines.httpx2 import SyncSCIMClient  # noqa: PLC0415
    from scim2_tester import Status, check_server  # noqa: PLC0415

    def checked() -> list[tuple[str, str, str]]:
        with httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(world.identity.http_socket)),
            base_url="http://evergreen.example/scim/v2",
            headers={k: v for k, v in world.scim.headers.items() if k != "content-type"},
            event_hooks={"request": [_named]},
            timeout=60,
        ) as http:
            results = check_server(SyncSCIMClient(http))
        return [(one.status.name, str(one.title), str(one.reason)) for one in results]

    found = await asyncio.to_thread(checked)
    assert len(found) > 20
    assert [one for one in found if one[0] != Status.SUCCESS.name] == []
