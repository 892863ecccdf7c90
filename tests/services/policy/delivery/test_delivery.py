"""What devices get of policies, and when: the released agent's call and its gRPC sibling."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from prometheus_client import REGISTRY

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.rpc.channels import open_channel
from servicekit.security.signing import PublicKey, dsse_encoding
from services.policy.__main__ import build
from services.policy.settings import PolicySettings
from tests.conftest import MakeKit, ServeService
from tests.support.policy import (
    ORG,
    SISTER,
    TOKEN_LIFE,
    TREE,
    Admin,
    Device,
    World,
    verified,
    world,
)
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["world"]

DOCUMENT = {
    "apps": {"required": [{"id": "<a>&\u2028", "branch": "", "source": "flathub"}]},
    "network": {"wifi": [{"ssid": "\U0001f600", "security": "none", "eap": {}}], "vpns": []},
}
OTHER = {"updates": {"channel": "beta"}}
HALF = TOKEN_LIFE / 2 + timedelta(days=1)


def new_device(world: World, org: UUID = ORG.id, **token: Any) -> Device:
    return Device(world.kit, world.channel, uuid4(), org, **token)


async def internal(world: World, method: str, request: Any) -> Any:
    """Calls the internal listener, as another service does."""
    channel = open_channel(world.kit.settings.internal_listen, "enrollment")
    try:
        stub = policy_pb2_grpc.PolicyInternalServiceStub(channel)
        return await getattr(stub, method)(request, timeout=60)
    finally:
        await channel.close()


async def applied(world: World, cursor: str) -> tuple[list[Any], str]:
    """What devices reported behind a cursor, a moment later, and the next cursor."""
    await asyncio.sleep(0.1)
    request = policy_pb2.ListAppliedVersionsRequest(cursor=cursor)
    page = await internal(world, "ListAppliedVersions", request)
    return list(page.versions), page.next_cursor


async def device_policy(world: World, device: Device, token_version: int = 1) -> Any:
    return await internal(
        world,
        "GetDevicePolicy",
        policy_pb2.GetDevicePolicyRequest(
            tenant_id=str(ORG.id), device_id=str(device.id), token_version=token_version
        ),
    )


async def test_the_agent_takes_a_policy_and_then_nothing(world: World) -> None:
    """200 with an envelope that verifies, then 304 without a body and without a content type."""
    device = new_device(world)
    nothing = await device.pull()
    assert (nothing.status_code, nothing.content) == (304, b"")
    await world.admin.published(ORG.id, DOCUMENT)
    answer = await device.pull()
    assert answer.headers["content-type"] == "application/json"
    envelope = verified(await world.pem(), answer)
    assert (envelope["version"], envelope["device_token"]) == ("1", "")
    (app,) = envelope["policy"]["apps"]["required"].shown()
    assert app["id"] == "<a>&\u2028"
    unchanged = await device.pull("1")
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert "content-type" not in unchanged.headers


async def test_a_policy_reaches_only_its_org(world: World) -> None:
    """A device of another org has nothing to take."""
    await world.admin.published(ORG.id, DOCUMENT)
    assert (await new_device(world, SISTER.id).pull()).status_code == 304


NOT_LOWER = ["2", "7", "999999999999999999", "0002"]


async def test_a_device_never_gets_a_lower_version(world: World) -> None:
    """A device that has the org's version, or a higher one, is left alone."""
    await world.admin.published(ORG.id, DOCUMENT)
    await world.admin.published(ORG.id, OTHER)
    for version in NOT_LOWER:
        assert (await new_device(world).pull(version)).status_code == 304, version


LESS = ["", "0", "1", "none", "-5", "1.5", "\u0662", "9" * 64, "1\n"]


async def test_a_device_with_less_or_nonsense_gets_the_policy(world: World) -> None:
    """What is not a version counts as none."""
    await world.admin.published(ORG.id, DOCUMENT)
    await world.admin.published(ORG.id, OTHER)
    for version in LESS:
        answer = await new_device(world).pull(version)
        assert answer.status_code == 200, version
        assert verified(await world.pem(), answer)["version"] == "2", version


BAD_REQUESTS = [
    (b"", "body"),
    (b"[]", "body"),
    (b"null", "body"),
    (b'{"current_version": 5}', "current_version"),
    (b'{"current_version": true}', "current_version"),
    (b'{"current_version": ["1"]}', "current_version"),
    (b'{"current_version": "' + b"1" * 65 + b'"}', "current_version"),
    (b'{"current_version": "\xff"}', "body"),
    (b'{"current_version": "1"', "body"),
    (b"[" * 100_000, "body"),
]


async def test_a_bad_request_names_its_field(world: World) -> None:
    """A wrong type, broken JSON and invalid UTF-8 are answered 400 with the field's name."""
    for body, field in BAD_REQUESTS:
        answer = await new_device(world).post(body)
        assert answer.status_code == 400, body[:40]
        assert answer.json()["error"].startswith(f"{field}:"), body[:40]


async def test_absent_and_unknown_fields_are_taken(world: World) -> None:
    """A request without a version asks for any; fields of later agents are ignored."""
    await world.admin.published(ORG.id, DOCUMENT)
    device = new_device(world)
    for body in (b"{}", b'{"current_version": null}', b'{"current_version": "", "later": {}}'):
        assert (await device.post(body)).status_code == 200


async def test_deleting_what_is_in_force_takes_nothing_away(world: World) -> None:
    """Devices keep what they have, new ones get none, and the next publish is higher."""
    kept = await world.admin.create(ORG.id, OTHER)
    policy = await world.admin.published(ORG.id, DOCUMENT)
    device = new_device(world)
    assert json.loads((await device_policy(world, device)).envelope)["version"] == "1"
    await world.admin.call("DeletePolicy", id=policy.id, force=True)
    assert (await device.pull("1")).status_code == 304
    assert (await device.pull()).status_code == 304
    assert (await device_policy(world, device)).envelope == b""
    await world.admin.call("PublishPolicy", id=kept.id)
    assert verified(await world.pem(), await device.pull("1"))["version"] == "2"


async def test_grpc_agents_also_get_a_statement(world: World) -> None:
    """The second signature binds document, version, tenant and audience, and chains versions."""
    await world.admin.published(ORG.id, DOCUMENT)
    first = await new_device(world).pull_grpc()
    await world.admin.published(ORG.id, DOCUMENT)
    device = new_device(world)
    second = await device.pull_grpc("1")
    assert (second.version, second.policy.network.wifi[0].ssid) == ("2", "\U0001f600")
    keys = await policy_pb2_grpc.PolicyKeyServiceStub(world.channel).ListPolicyKeys(
        policy_pb2.ListPolicyKeysRequest()
    )
    statement = second.statement
    assert statement.key_id == keys.keys[0].kid
    key = PublicKey(base64.urlsafe_b64decode(keys.keys[0].x + "="))
    signed = dsse_encoding(statement.payload_type, statement.payload)
    assert key.verifies(signed, statement.signature)
    payload = json.loads(statement.payload)
    assert (payload["version"], payload["tenant"]) == ("2", str(ORG.id))
    assert payload["previous"] == hashlib.sha256(first.statement.payload).hexdigest()
    document = statement.payload.partition(b'"document":')[2][:-1]
    assert key.verifies(document, second.signature)
    # A device that enrolls gets the same.
    assert (await device_policy(world, device)).statement == statement
    same = await device.pull_grpc("2")
    assert (same.not_modified, same.version) == (True, "")


async def test_a_token_past_half_of_its_life_is_replaced(world: World) -> None:
    """A 200 with the version that the device has carries the new token, and it is audited."""
    await world.admin.published(ORG.id, DOCUMENT)
    young = new_device(world, age=TOKEN_LIFE / 2 - timedelta(days=1))
    assert (await young.pull("1")).status_code == 304
    device = new_device(world, age=HALF, token_version=3)
    envelope = verified(await world.pem(), await device.pull("1"))
    assert envelope["version"] == "1"
    assert envelope["device_token"] == f"token-{device.id}-3"
    rotated = (await world.events())[-1]["data"]
    assert rotated["action"] == "policy.device_token_rotated"
    assert rotated["resource"] == f"devices/{device.id}"
    assert (await device.pull_grpc("1")).device_token == f"token-{device.id}-3"


async def test_two_polls_at_once_with_a_wished_sync_are_both_answered(world: World) -> None:
    """The second one finds the wish fulfilled when it has its token."""
    await world.admin.published(ORG.id, DOCUMENT)
    device = new_device(world, age=HALF)
    world.neighbours.registry.add(device.id, ORG.id)
    await world.admin.call("SyncDevice", id=str(device.id))
    world.neighbours.identity.at_once = asyncio.Barrier(2)
    answers = await asyncio.gather(device.pull("1"), device.pull("1"))
    for answer in answers:
        assert verified(await world.pem(), answer)["device_token"]
    served = Device(world.kit, world.channel, device.id, ORG.id)
    assert (await served.pull("1")).status_code == 304


async def test_an_expired_token_is_replaced_for_ninety_days(world: World) -> None:
    """After that the device is refused, with the one error shape."""
    await world.admin.published(ORG.id, DOCUMENT)
    lapsed = new_device(world, age=TOKEN_LIFE + timedelta(days=89))
    assert verified(await world.pem(), await lapsed.pull("1"))["device_token"]
    too_late = await new_device(world, age=TOKEN_LIFE + timedelta(days=91)).pull("1")
    assert too_late.status_code == 401
    assert too_late.json()["status"] == "UNAUTHENTICATED"
    assert too_late.json()["requestId"] == "request-2"


async def test_a_deleted_policy_still_carries_a_token(world: World) -> None:
    """The device gets exactly the version that it has, as it was signed, and the new token."""
    policy = await world.admin.published(ORG.id, DOCUMENT)
    await world.admin.call("DeletePolicy", id=policy.id, force=True)
    device = new_device(world, age=HALF)
    envelope = verified(await world.pem(), await device.pull("1"))
    assert (envelope["version"], bool(envelope["device_token"])) == ("1", True)


async def test_a_device_without_any_policy_keeps_its_token(world: World) -> None:
    """No document is made up to carry a token: it would be applied. The first policy carries it."""
    device = new_device(world, age=TOKEN_LIFE + timedelta(days=80))
    assert (await device.pull()).status_code == 304
    assert not world.neighbours.identity.issued
    await world.admin.published(ORG.id, DOCUMENT)
    assert verified(await world.pem(), await device.pull())["device_token"]


async def test_without_identity_devices_go_on_with_their_tokens(world: World) -> None:
    """A token that cannot be replaced now is replaced at a later poll."""
    await world.admin.published(ORG.id, DOCUMENT)
    world.neighbours.identity.down = True
    device = new_device(world, age=HALF)
    assert (await device.pull("1")).status_code == 304
    assert verified(await world.pem(), await device.pull())["device_token"] == ""
    world.neighbours.identity.down = False
    assert verified(await world.pem(), await device.pull("1"))["device_token"]


async def test_reported_versions_are_written_behind_and_fed(world: World) -> None:
    """Each device's version is told once, and again only when it changes."""
    devices = [new_device(world) for _ in range(5)]
    for device in devices:
        await device.pull("3")
    seen: dict[str, str] = {}
    cursor = ""
    versions: list[Any] = []
    # A feed tells again what was written while another transaction ran, until that is over.
    while len(seen) < 5 or versions:
        versions, cursor = await applied(world, cursor)
        seen |= {entry.device_id: entry.version for entry in versions}
    assert seen == {str(device.id): "3" for device in devices}
    await devices[0].pull("3")
    await devices[1].pull("4")
    told: list[Any] = []
    while not told:
        told, cursor = await applied(world, cursor)
    assert [(entry.device_id, entry.version) for entry in told] == [(str(devices[1].id), "4")]
    assert told[0].tenant_id == str(ORG.id)


async def test_a_report_that_cannot_be_written_keeps_no_other(world: World) -> None:
    """Before it and behind it in the same write: they are fed to the other services."""
    place = {"where": "policy.write_behind"}
    before = REGISTRY.get_sample_value("evergreen_rows_quarantined_total", place) or 0.0
    good = [new_device(world) for _ in range(4)]
    bad = new_device(world, token_version=1 << 40)
    await asyncio.gather(*(device.pull("3") for device in (*good[:2], bad, *good[2:])))
    last = new_device(world)
    await last.pull("3")
    seen: set[str] = set()
    cursor = ""
    async with asyncio.timeout(PATIENCE):
        while len(seen) < 5:
            versions, cursor = await applied(world, cursor)
            seen |= {entry.device_id for entry in versions}
    assert seen == {str(device.id) for device in (*good, last)}
    assert REGISTRY.get_sample_value("evergreen_rows_quarantined_total", place) == before + 1


async def test_whether_a_device_called_is_known_at_once(world: World) -> None:
    """By the generation of its token, and also after it was written."""
    device = new_device(world, token_version=2)
    assert not (await device_policy(world, device)).has_called
    await device.pull()
    for _ in range(2):
        assert (await device_policy(world, device, 1)).has_called
        assert (await device_policy(world, device, 2)).has_called
        assert not (await device_policy(world, device, 3)).has_called
        await asyncio.sleep(1)


async def test_the_internal_listener_is_not_the_gateways(world: World) -> None:
    """Internal calls are refused where the gateway comes in, and public ones where it does not."""
    stub = policy_pb2_grpc.PolicyInternalServiceStub(world.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetDevicePolicy(policy_pb2.GetDevicePolicyRequest(tenant_id=str(ORG.id)))
    assert caught.value.code() in (
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    )


async def test_after_a_restored_backup_versions_go_on_above_the_devices(world: World) -> None:
    """Devices that are ahead of the database get the next publish; absurd claims move nothing."""
    policy = await world.admin.published(ORG.id, DOCUMENT)
    ahead, liar = new_device(world), new_device(world)
    assert (await ahead.pull("41")).status_code == 304
    assert (await liar.pull("999999999999999999")).status_code == 304
    seen: set[str] = set()
    while not {str(ahead.id), str(liar.id)} <= seen:
        seen = {entry.device_id for entry in (await applied(world, ""))[0]}
    again = await world.admin.call("PublishPolicy", id=policy.id)
    assert again.version == "42"
    assert verified(await world.pem(), await ahead.pull("41"))["version"] == "42"


async def test_devices_are_served_without_the_database(world: World) -> None:
    """Polls are answered from memory; what they report is written when the database is back."""
    await world.admin.published(ORG.id, DOCUMENT)
    connection = await world.database.superuser()
    admin = await world.database.servers.postgres.connect()
    assert admin is not None
    name = world.database.name
    await admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    await connection.close()
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
    )
    device = new_device(world)
    assert verified(await world.pem(), await device.pull())["version"] == "1"
    assert (await device.pull("1")).status_code == 304
    assert (await new_device(world, age=HALF).pull("1")).status_code == 304
    refused = await refusal(world.admin.create(ORG.id, DOCUMENT))
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    await admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
    await admin.close()
    written: list[str] = []
    while str(device.id) not in written:
        written = [entry.device_id for entry in (await applied(world, ""))[0]]
    assert (await world.admin.published(ORG.id, OTHER)).version == "2"


async def test_two_processes_and_a_restart_agree(
    world: World, make_kit: MakeKit, serve: ServeService
) -> None:
    """What one process publishes another delivers; a new one has the same keys."""
    policy = await world.admin.published(ORG.id, DOCUMENT)
    settings = {
        name: f"{getattr(world.kit.settings, name)}2"
        for name in ("grpc_listen", "internal_listen", "http_listen")
    }
    twin = await make_kit("policy", PolicySettings, tenants=TREE, **settings)
    await serve(twin, build)
    channel = open_channel(twin.settings.grpc_listen, "test")
    pem = await world.pem()
    device = Device(twin, channel, uuid4(), ORG.id)
    assert verified(pem, await device.pull())["version"] == "1"
    for version in range(2, 6):
        await world.admin.call("PublishPolicy", id=policy.id)
        while (await device.pull(str(version - 1))).status_code == 304:
            await asyncio.sleep(0.01)
    world.neighbours.registry.add(device.id, ORG.id)
    await Admin(channel, ORG.id).call("SyncDevice", id=str(device.id))
    first = Device(world.kit, world.channel, device.id, ORG.id)
    while (await first.pull("5")).status_code == 304:
        await asyncio.sleep(0.05)
    while (await device.pull("5")).status_code == 200:
        await asyncio.sleep(0.05)  # until it has heard that the other one served it
    assert (await first.pull("5")).status_code == 304
    await channel.close()
