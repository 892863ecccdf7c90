"""Keys of tenants, rotation, and which key signs for which device."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import enrollment_pb2, policy_pb2, policy_pb2_grpc
from servicekit.ids import now
from servicekit.keys import log as key_log
from servicekit.keys.log import Envelope
from servicekit.rpc.channels import open_channel
from servicekit.security.sealing import Sealer
from servicekit.security.signing import Signer, dsse_encoding, read_pem_bundle
from services.policy.__main__ import build
from services.policy.keys.service import PURPOSE, KeyRing
from services.policy.settings import PolicySettings
from tests.conftest import MakeKit, ServeService
from tests.support import callers
from tests.support.neighbours import until_ready
from tests.support.policy import (
    ORG,
    RESELLER,
    ROOT,
    SISTER,
    STRANGER,
    TOKEN_LIFE,
    TREE,
    Device,
    World,
    verified,
    world,
)
from tests.support.refusals import refusal

__all__ = ["world"]

DOCUMENT = {"updates": {"channel": "stable"}}
OTHER = {"updates": {"channel": "beta"}}


class Owner:
    """An Owner of a tenant, who manages keys."""

    def __init__(
        self,
        world: World,
        tenant: UUID,
        role: Role = Role.OWNER,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self._stub = policy_pb2_grpc.PolicyKeyServiceStub(channel or world.channel)
        self.metadata = callers.user(tenant, role)

    async def call(self, method: str, **request: Any) -> Any:
        message = getattr(policy_pb2, f"{method}Request")(**request)
        return await getattr(self._stub, method)(message, metadata=self.metadata, timeout=60)

    async def keys(self, **request: Any) -> dict[str, policy_pb2.PolicyKey]:
        found = await self.call("ListManagedPolicyKeys", **request)
        return {key.key_id: key for key in found.policy_keys}

    async def rotate(self, org: UUID | None = None) -> policy_pb2.PolicyKey:
        key: policy_pb2.PolicyKey = await self.call(
            "CreatePolicyKey", org_id=str(org or ""), activate=True
        )
        return key

    async def entries(self) -> list[Envelope]:
        found = await self.call("ListPolicyKeyLog", page_size=500)
        return [*map(_envelope, found.entries)]

    async def log(self) -> key_log.Log:
        return key_log.read(await self.entries())


def _envelope(message: policy_pb2.SignedEnvelope) -> Envelope:
    return Envelope(
        message.payload_type,
        message.payload,
        tuple((one.keyid, one.sig) for one in message.signatures),
    )


def pinning(world: World, key: policy_pb2.PolicyKey | None, org: UUID = ORG.id) -> Device:
    """A device that the registry knows, with the key that it pins."""
    device = Device(world.kit, world.channel, uuid4(), org)
    world.neighbours.registry.add(
        device.id,
        org,
        membership=enrollment_pb2.Membership(
            revision=1, policy_key_id="" if key is None else key.key_id
        ),
    )
    return device


async def first_policy(world: World, key_id: str, org: UUID = ORG.id) -> Any:
    """What a device that enrolls and pins a key gets, as enrollment asks for it."""
    channel = open_channel(world.kit.settings.internal_listen, "enrollment")
    try:
        stub = policy_pb2_grpc.PolicyInternalServiceStub(channel)
        return await stub.GetDevicePolicy(
            policy_pb2.GetDevicePolicyRequest(
                tenant_id=str(org), device_id=str(uuid4()), first=True, policy_key_id=key_id
            ),
            timeout=60,
        )
    finally:
        await channel.close()


async def started(world: World) -> KeyRing:
    """The keys as a process finds them that starts now."""
    sealer = Sealer.from_file(world.kit.settings.master_key_file, PURPOSE)
    ring = KeyRing(world.kit.database, sealer, now)
    await ring.load()
    return ring


async def token_key(world: World, org: UUID, key_id: str = "") -> str:
    """The id of the key that a new enrollment token carries."""
    channel = open_channel(world.kit.settings.internal_listen, "enrollment")
    try:
        stub = policy_pb2_grpc.PolicyInternalServiceStub(channel)
        found = await stub.GetTokenPolicyKey(
            policy_pb2.GetTokenPolicyKeyRequest(tenant_id=str(org), policy_key_id=key_id),
            timeout=60,
        )
        return str(found.policy_key_id)
    finally:
        await channel.close()


async def test_each_device_is_answered_with_its_own_key(world: World) -> None:
    """After a rotation devices of before and of after have the same version, each verified by the
    key that it pins, over JSON and over gRPC; whoever has it gets 304 as ever."""
    first_pem = await world.pem()
    await world.admin.published(ORG.id, DOCUMENT)
    root = Owner(world, ROOT.id)
    old, new_key = pinning(world, None), await root.rotate()
    new = pinning(world, new_key)
    before = verified(first_pem, await old.pull())
    after = verified(new_key.public_key_pem, await new.pull())
    assert before["version"] == after["version"]
    assert before["policy"] == after["policy"]
    assert before["signature"] != after["signature"]
    for device, pem in ((old, first_pem), (new, new_key.public_key_pem)):
        assert (await device.pull(before["version"])).status_code == 304
        (key,) = read_pem_bundle(pem)
        statement = (await device.pull_grpc()).statement
        assert statement.key_id == key.id
        signed = dsse_encoding(statement.payload_type, statement.payload)
        assert key.verifies(signed, statement.signature)
    # The same in every later publish.
    await world.admin.published(ORG.id, OTHER)
    assert verified(first_pem, await old.pull("1"))["version"] == "2"
    assert verified(new_key.public_key_pem, await new.pull("1"))["version"] == "2"


async def test_a_device_that_enrolls_gets_the_key_of_its_token(world: World) -> None:
    """Tokens carry the nearest active key; a first policy is signed with that of the device."""
    await world.admin.published(ORG.id, DOCUMENT)
    first = (await Owner(world, ROOT.id).log()).keys
    assert await token_key(world, ORG.id) in first
    district = await Owner(world, RESELLER.id).rotate()
    school = await Owner(world, ORG.id).rotate()
    for org, key_id in (
        (ORG.id, school.key_id),
        (SISTER.id, district.key_id),
        (STRANGER.id, next(iter(first))),
    ):
        assert await token_key(world, org) == key_id
    # A key may be named: one of the tenant or above, and no other.
    assert await token_key(world, ORG.id, district.key_id) == district.key_id
    assert await token_key(world, SISTER.id, school.key_id) == ""
    assert await token_key(world, STRANGER.id, district.key_id) == ""
    found = await first_policy(world, school.key_id)
    assert found.statement.key_id == school.key_id
    (key,) = read_pem_bundle(school.public_key_pem)
    assert key.verifies(
        dsse_encoding(found.statement.payload_type, found.statement.payload),
        found.statement.signature,
    )
    assert (await first_policy(world, "")).statement.key_id == next(iter(first))
    refused = await refusal(first_policy(world, "unknown"))
    assert refused.reason == "POLICY_KEY_RETIRED"


async def test_a_key_is_not_retired_while_devices_pin_it(world: World) -> None:
    """The count is shown and listed, another number is refused, the number gives them up; then the
    devices keep what they have."""
    await world.admin.published(ORG.id, DOCUMENT)
    root = Owner(world, ROOT.id)
    (first,) = (await root.keys()).values()
    old = [pinning(world, None) for _ in range(3)]
    device = old[0]
    assert (await device.pull()).status_code == 200
    refused = await refusal(root.call("RetirePolicyKey", id=first.id))
    assert refused.reason == "KEY_ACTIVE"
    new = await root.rotate()
    pinning(world, new, STRANGER.id)
    listed = await root.call("ListPolicyKeyDevices", id=first.id, page_size=2)
    rest = await root.call("ListPolicyKeyDevices", id=first.id, page_token=listed.next_page_token)
    found = [*listed.devices, *rest.devices]
    assert {one.device_id for one in found} == {str(one.id) for one in old}
    counts = {key_id: key.devices for key_id, key in (await root.keys()).items()}
    assert counts == {first.key_id: 3, new.key_id: 1}
    for number in (0, 2, 4):
        refused = await refusal(root.call("RetirePolicyKey", id=first.id, lost_devices=number))
        assert refused.reason == "KEY_IN_USE"
        assert refused.body["details"][0]["metadata"]["devices"] == "3"
    retired = await root.call("RetirePolicyKey", id=first.id, lost_devices=3)
    assert retired.state == "retired"
    assert await root.call("RetirePolicyKey", id=first.id) == retired
    await world.admin.published(ORG.id, OTHER)
    assert (await device.pull("1")).status_code == 304
    assert verified(new.public_key_pem, await pinning(world, new).pull())["version"] == "2"
    refused = await refusal(first_policy(world, ""))
    assert refused.reason == "POLICY_KEY_RETIRED"
    assert read_pem_bundle(await world.pem()) == read_pem_bundle(new.public_key_pem)
    connection = await world.database.superuser()
    rows = await connection.fetch(
        "SELECT id, sealed_seed IS NULL AS erased, signs FROM policy.signing_keys"
    )
    await connection.close()
    assert {row["id"]: (row["erased"], row["signs"]) for row in rows} == {
        first.key_id: (True, False),
        new.key_id: (False, True),
    }


async def test_a_compromised_key_goes_to_no_new_device(world: World) -> None:
    """An active one has its successor at once, and signs on for the devices that pin it."""
    await world.admin.published(ORG.id, DOCUMENT)
    root, pem = Owner(world, ROOT.id), await world.pem()
    (first,) = (await root.keys()).values()
    old = pinning(world, None)
    marked = await root.call("MarkPolicyKeyCompromised", id=first.id)
    assert marked.state == "retiring" and marked.HasField("compromised_at")
    assert await root.call("MarkPolicyKeyCompromised", id=first.id) == marked
    (successor,) = [key for key in (await root.keys()).values() if key.state == "active"]
    assert await token_key(world, ORG.id) == successor.key_id
    assert await token_key(world, ORG.id, first.key_id) == ""
    verified(pem, await old.pull())
    log = await root.log()
    assert log.keys[first.key_id].state == "revoked"
    assert log.keys[successor.key_id].state == "in use"


async def test_the_log_tells_all_that_became_of_keys(world: World) -> None:
    """Its entries chain, a change in any is found, and the events name its entries."""
    root = Owner(world, ROOT.id)
    (first,) = (await root.keys()).values()
    new = await root.rotate()
    school = await Owner(world, ORG.id).rotate()
    await root.call("RetirePolicyKey", id=first.id)
    page = await root.call("ListPolicyKeyLog", page_size=500)
    entries = [*map(_envelope, page.entries)]
    log = key_log.read(entries, read_pem_bundle(first.public_key_pem))
    assert [one.state for one in log.keys.values()] == ["retired", "in use", "in use"]
    assert all(one.trusted for one in log.keys.values())
    assert log.keys[school.key_id].scope == key_log.scope_of(ORG.id)
    assert str(ORG.id) not in str(page)
    stranger = Signer(bytes(32)).public
    assert not any(one.trusted for one in key_log.read(entries, [stranger]).keys.values())
    told = {
        event["data"]["after"]["logSha256"]
        for event in await world.events()
        if event["data"]["action"].startswith("policy.key_")
        and "logSha256" in event["data"]["after"]
    }
    assert told == {one.sha256 for one in entries[1:]}
    for number, one in enumerate(entries, 1):
        said = json.loads(one.payload) | {"at": "2020-01-01T00:00:00Z"}
        changed = Envelope(one.payload_type, json.dumps(said).encode(), one.signatures)
        with pytest.raises(key_log.LogError, match=f"entry {number}:"):
            key_log.read([*entries[: number - 1], changed, *entries[number:]])
    with pytest.raises(key_log.LogError, match="entry 2:"):
        key_log.read([entries[0], *entries[2:]])
    assert new.key_id in log.keys


async def test_an_offline_root_certifies_keys(world: World) -> None:
    """Once there is one, no key is activated without it; another root's certificate is refused."""
    offline, other = Signer(bytes(range(32))), Signer(bytes(32))
    root = Owner(world, ROOT.id)
    await root.call("SetPolicyRootKey", public_key_pem=offline.public.pem())
    assert (await root.call("GetPolicyRootKey")).key_id == offline.public.id
    refused = await refusal(root.call("CreatePolicyKey", activate=True))
    assert refused.reason == "KEY_NOT_CERTIFIED"
    key = await root.call("CreatePolicyKey")
    assert key.state == "next"
    refused = await refusal(root.call("ActivatePolicyKey", id=key.id))
    assert refused.reason == "KEY_NOT_CERTIFIED"
    # Nor is it given to a token that names it.
    assert await token_key(world, ORG.id, key.key_id) == ""
    request = await root.call("ExportPolicyKey", id=key.id)
    signed = dsse_encoding(request.payload_type, request.payload)
    for payload, signature in (
        (request.payload, other.sign(signed)),
        (request.payload + b" ", offline.sign(signed)),
        (request.payload, b""),
    ):
        refused = await refusal(
            root.call("CertifyPolicyKey", id=key.id, payload=payload, signature=signature)
        )
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    certificate = {"payload": request.payload, "signature": offline.sign(signed)}
    certified = await root.call("CertifyPolicyKey", id=key.id, **certificate)
    assert await root.call("CertifyPolicyKey", id=key.id, **certificate) == certified
    assert await token_key(world, ORG.id, key.key_id) == key.key_id
    active = await root.call("ActivatePolicyKey", id=key.id)
    assert (active.state, active.certified_by) == ("active", offline.public.id)
    page = await root.call("ListPolicyKeyLog", page_size=500)
    entries = [*map(_envelope, page.entries)]
    log = key_log.read(entries, [offline.public])
    assert {id_ for id_, one in log.keys.items() if one.trusted} == {key.key_id}
    # A root that the one before did not sign is trusted by nobody who knows that alone.
    refused = await refusal(root.call("SetPolicyRootKey", public_key_pem=other.public.pem()))
    assert refused.reason == "ROOT_CHANGED"
    await root.call(
        "SetPolicyRootKey", public_key_pem=other.public.pem(), replaces=offline.public.id
    )
    page = await root.call("ListPolicyKeyLog", page_size=500)
    log = key_log.read(map(_envelope, page.entries), [offline.public])
    assert log.root == other.public and not log.root_trusted


async def test_owners_see_and_change_their_own_keys(world: World) -> None:
    """Those above see and change them too, neighbours do not, and nobody those of tenants above;
    counts are of the caller's devices."""
    school, sister = Owner(world, ORG.id), Owner(world, SISTER.id)
    district, root = Owner(world, RESELLER.id), Owner(world, ROOT.id)
    own = await school.rotate()
    above = await district.rotate()
    for device_of in (ORG.id, SISTER.id):
        pinning(world, above, device_of)
    await district.call("ListPolicyKeyDevices", id=above.id)
    assert own.key_id not in await sister.keys()
    assert (await sister.keys())[above.key_id].devices == 1
    assert (await district.keys())[above.key_id].devices == 2
    assert own.key_id in await root.keys()
    listed = await sister.call("ListPolicyKeyDevices", id=above.id)
    assert {one.org_id for one in listed.devices} == {str(SISTER.id)}
    for caller, key in ((sister, own), (school, above), (Owner(world, STRANGER.id), own)):
        for method in ("ActivatePolicyKey", "RetirePolicyKey", "MarkPolicyKeyCompromised"):
            refused = await refusal(caller.call(method, id=key.id))
            assert refused.code is grpc.StatusCode.NOT_FOUND
    refused = await refusal(sister.call("ListPolicyKeyDevices", id=own.id))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    refused = await refusal(sister.call("CreatePolicyKey", org_id=str(ORG.id)))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    for role in (Role.ADMIN, Role.AUDITOR):
        refused = await refusal(Owner(world, ORG.id, role).call("CreatePolicyKey"))
        assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    refused = await refusal(
        school.call("SetPolicyRootKey", public_key_pem=Signer(bytes(32)).public.pem())
    )
    assert refused.reason == "ROOT_ONLY"


async def test_keys_are_bounded_and_retries_make_none(world: World) -> None:
    """A request's id names its key; a second next key is refused."""
    school = Owner(world, ORG.id)
    asked = str(uuid4())
    key = await school.call("CreatePolicyKey", request_id=asked)
    assert await school.call("CreatePolicyKey", request_id=asked) == key
    refused = await refusal(school.call("CreatePolicyKey"))
    assert refused.reason == "ROTATION_IN_PROGRESS"
    assert (await school.call("RetirePolicyKey", id=key.id)).state == "retired"
    for _ in range(8):
        await school.rotate()
    refused = await refusal(school.rotate())
    assert refused.reason == "TOO_MANY_KEYS"


async def test_another_process_signs_with_a_key_at_once(
    world: World, make_kit: MakeKit, serve: ServeService
) -> None:
    """Two processes make the same signature, also right after the key was made; and processes that
    rotate at the same time leave one active key and a log without a gap."""
    await world.admin.published(ORG.id, DOCUMENT)
    settings = {
        name: f"{getattr(world.kit.settings, name)}2"
        for name in ("grpc_listen", "internal_listen", "http_listen")
    }
    kit = await make_kit("policy", PolicySettings, tenants=TREE, **settings)
    await serve(kit, build)
    channel = open_channel(kit.settings.grpc_listen, "test")
    await until_ready(channel)
    here, there = Owner(world, ROOT.id), Owner(world, ROOT.id, channel=channel)
    key = await here.rotate()
    device = pinning(world, key)
    twin = Device(kit, channel, device.id, ORG.id)
    assert (await twin.pull()).content == (await device.pull()).content
    verified(key.public_key_pem, await twin.pull())
    await asyncio.gather(
        here.rotate(), there.rotate(ORG.id), here.rotate(SISTER.id), there.rotate()
    )
    states = [one.state for one in (await here.keys()).values() if not one.org_id]
    assert sorted(states) == ["active", "retiring", "retiring", "retiring"]
    assert len((await there.log()).keys) == 6
    await channel.close()


async def test_the_first_key_stays_the_first(world: World) -> None:
    """Also where the clock was ahead when it was made, and is right when the second one is."""
    await world.admin.published(ORG.id, DOCUMENT)
    root = Owner(world, ROOT.id)
    (first,) = (await root.keys()).values()
    connection = await world.database.superuser()
    await connection.execute(
        "UPDATE policy.signing_keys SET created_at = now() + interval '1 day',"
        " changed_xid = pg_current_xact_id()"
    )
    await connection.close()
    old, new = pinning(world, None), await root.rotate()
    assert new.created_at.seconds < (await root.keys())[first.key_id].created_at.seconds
    newer = pinning(world, new)
    verified(new.public_key_pem, await newer.pull())
    counts = {key_id: key.devices for key_id, key in (await root.keys()).items()}
    assert counts == {first.key_id: 1, new.key_id: 1}
    assert (await started(world)).first_id == first.key_id
    verified(first.public_key_pem, await old.pull())


async def test_the_log_says_what_the_root_has_certified(world: World) -> None:
    """A row of the database that says so alone activates nothing, and no token carries the key."""
    offline = Signer(bytes(range(32)))
    root = Owner(world, ROOT.id)
    await root.call("SetPolicyRootKey", public_key_pem=offline.public.pem())
    key = await root.call("CreatePolicyKey")
    connection = await world.database.superuser()
    await connection.execute(
        "UPDATE policy.signing_keys SET certified_by = $1, changed_xid = pg_current_xact_id()"
        " WHERE id = $2",
        offline.public.id,
        key.key_id,
    )
    await connection.close()
    refused = await refusal(root.call("ActivatePolicyKey", id=key.id))
    assert refused.reason == "KEY_NOT_CERTIFIED"
    assert await token_key(world, ORG.id, key.key_id) == ""


async def test_a_tenant_does_not_use_up_the_keys(world: World) -> None:
    """However it makes and ends them; the installation goes on, and a key in wrong hands is marked
    as such in any case."""
    school = Owner(world, ORG.id)
    made = 0
    with pytest.raises(grpc.aio.AioRpcError) as error:
        while made < 20:
            key = await school.call("CreatePolicyKey")
            made += 1
            await school.call("RetirePolicyKey", id=key.id)
    assert made == 10
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "TOO_MANY_NEW_KEYS" in str(error.value.trailing_metadata())
    sister = Owner(world, SISTER.id)
    active = await sister.rotate()
    for _ in range(12):
        await sister.call("MarkPolicyKeyCompromised", id=active.id)
        own = [one for one in (await sister.keys()).values() if one.org_id == str(SISTER.id)]
        following = [one for one in own if one.state == "active"]
        if not following:
            break
        (active,) = following
    assert len(own) == 8
    assert all(one.HasField("compromised_at") for one in own)
    root = await Owner(world, ROOT.id).rotate()
    assert await token_key(world, SISTER.id) == root.key_id
    assert len((await sister.log()).keys) == 1 + 10 + 8 + 1


async def test_devices_of_an_archived_organisation_pin_their_key(world: World) -> None:
    """They come back with it; those that were decommissioned before do not."""
    await world.admin.published(ORG.id, DOCUMENT)
    root = Owner(world, ROOT.id)
    (first,) = (await root.keys()).values()
    await root.rotate()
    for archived in (True, False):
        world.neighbours.registry.add(
            uuid4(),
            STRANGER.id,
            "decommissioned",
            archived=archived,
            membership=enrollment_pb2.Membership(revision=1),
        )
    refused = await refusal(root.call("RetirePolicyKey", id=first.id))
    assert refused.reason == "KEY_IN_USE"
    assert refused.body["details"][0]["metadata"]["devices"] == "1"
    listed = await root.call("ListPolicyKeyDevices", id=first.id)
    assert [one.status for one in listed.devices] == ["decommissioned"]


async def test_a_device_is_let_in_while_its_key_is_retired(world: World) -> None:
    """It is counted, or gets no signature: from the moment on at which those are counted that are
    in, nobody is let in. A key that stays is given again afterwards."""
    await world.admin.published(ORG.id, DOCUMENT)
    school = Owner(world, ORG.id)
    former, _ = await school.rotate(), await school.rotate()
    registry = world.neighbours.registry
    connection = await world.database.superuser()
    answers: list[str] = []

    async def once_closed() -> None:
        closed = await connection.fetchval(
            "SELECT ending_until NOTNULL FROM policy.signing_keys WHERE id = $1", former.key_id
        )
        if closed and not answers:
            answers.append("being asked")
            # One that was registered a moment ago, and one that comes now.
            pinning(world, former)
            refused = await refusal(first_policy(world, former.key_id))
            answers.append(refused.reason)
            answers.append(await token_key(world, ORG.id, former.key_id))

    registry.before_answer = once_closed
    refused = await refusal(school.call("RetirePolicyKey", id=former.id))
    registry.before_answer = None
    await connection.close()
    assert answers == ["being asked", "POLICY_KEY_RETIRED", ""]
    assert refused.reason == "KEY_IN_USE"
    assert refused.body["details"][0]["metadata"]["devices"] == "1"
    found = await first_policy(world, former.key_id)
    assert found.statement.key_id == former.key_id
    assert await token_key(world, ORG.id, former.key_id) == former.key_id
    retired = await school.call("RetirePolicyKey", id=former.id, lost_devices=1)
    assert retired.state == "retired"


async def test_the_log_has_the_ends_that_a_restore_knew(world: World) -> None:
    """A restore sets them in the database, by the audit log; the next start enters them, once."""
    root = Owner(world, ROOT.id)
    (first,) = (await root.keys()).values()
    stolen, active = await root.rotate(), await root.rotate()
    connection = await world.database.superuser()
    await connection.execute("UPDATE policy.signing_keys SET signs = false")
    for key, change in (
        (first, "state = 'retired', sealed_seed = NULL, retired_at = now()"),
        (stolen, "compromised_at = now()"),
        (active, "signs = true"),
    ):
        await connection.execute(
            f"UPDATE policy.signing_keys SET {change} WHERE id = $1", key.key_id
        )
    await connection.close()
    for _ in range(2):
        await started(world)
        log = await root.log()
        assert {one.key.id: one.state for one in log.keys.values()} == {
            first.key_id: "retired",
            stolen.key_id: "revoked",
            active.key_id: "in use",
        }
        assert log.head.sequence == 3 + 2


async def test_public_keys_are_for_everybody(world: World) -> None:
    """The installation's, that of new devices first; a tenant's by its id."""
    root = Owner(world, ROOT.id)
    new, own = await root.rotate(), await Owner(world, ORG.id).rotate()
    found = read_pem_bundle(await world.pem())
    assert found[0].id == new.key_id
    assert own.key_id not in {key.id for key in found}
    stub = policy_pb2_grpc.PolicyKeyServiceStub(world.channel)
    pem = await stub.GetPolicyKeysPem(policy_pb2.GetPolicyKeysPemRequest(key_id=own.key_id))
    assert pem.data.decode() == own.public_key_pem
    jwks = await stub.ListPolicyKeys(policy_pb2.ListPolicyKeysRequest())
    assert [key.kid for key in jwks.keys] == [key.id for key in found]
    refused = await refusal(
        stub.GetPolicyKeysPem(policy_pb2.GetPolicyKeysPemRequest(key_id="x" * 43))
    )
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_devices_with_the_first_key_take_no_room(world: World) -> None:
    """Whether the registry names it or not: nothing is stored or kept in memory of them."""
    await world.admin.published(ORG.id, DOCUMENT)
    root = Owner(world, ROOT.id)
    (first,) = (await root.keys()).values()
    new = await root.rotate()
    devices = {key.key_id: pinning(world, key) for key in (first, new)}
    verified(first.public_key_pem, await pinning(world, None).pull())
    for key in (first, new):
        verified(key.public_key_pem, await devices[key.key_id].pull())
    connection = await world.database.superuser()
    rows = await connection.fetch("SELECT device_id FROM policy.memberships")
    await connection.close()
    assert [row["device_id"] for row in rows] == [devices[new.key_id].id]


async def test_a_new_token_travels_with_the_devices_own_signature(world: World) -> None:
    """Also where the version that it has is in force no more."""
    policy = await world.admin.published(ORG.id, DOCUMENT)
    key = await Owner(world, ROOT.id).rotate()
    device = pinning(world, key)
    await world.admin.call("WithdrawPolicy", id=policy.id)
    aged = Device(
        world.kit, world.channel, device.id, ORG.id, age=TOKEN_LIFE / 2 + timedelta(days=1)
    )
    answer = verified(key.public_key_pem, await aged.pull("1"))
    assert (answer["version"], answer["device_token"]) == ("1", f"token-{device.id}-1")


async def test_each_key_signs_without_the_database(world: World) -> None:
    """Devices that were seen before get what is known, signed with the key that each pins."""
    first_pem = await world.pem()
    await world.admin.published(ORG.id, DOCUMENT)
    key = await Owner(world, ROOT.id).rotate()
    devices = ((pinning(world, None), first_pem), (pinning(world, key), key.public_key_pem))
    for device, pem in devices:
        verified(pem, await device.pull())
    admin = await world.database.servers.postgres.connect()
    name = world.database.name
    await admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
    )
    for device, pem in devices:
        verified(pem, await device.pull())
        assert (await device.pull("1")).status_code == 304
    await admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
    await admin.close()
