"""Policy administration on a real database."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any
from uuid import uuid4

import grpc

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from tests.support.policy import (
    ORG,
    RESELLER,
    SISTER,
    STRANGER,
    Admin,
    Device,
    World,
    bundle_of,
    verified,
    world,
)
from tests.support.refusals import refusal

__all__ = ["world"]

DOCUMENT = {"updates": {"channel": "stable"}, "apps": {"required": [{"id": "<a>&b"}]}}
CONSOLE = {
    "name": "Lab",
    "configuration": {
        "apps": [{"id": "org.gimp.GIMP", "target": "all"}],
        "browser": {"homepageUrl": "https://school.example", "allowPopups": True},
        "security": {"diskEncryption": True, "lockAfterMinutes": 5},
    },
}


async def test_a_policy_is_created_read_changed_and_deleted(world: World) -> None:
    """The authored form comes back as it was given; nothing is signed before it is published."""
    created = await world.admin.create(ORG.id, DOCUMENT, "First")
    assert (created.version, created.signed, created.in_force) == ("0", False, False)
    assert created.has_unpublished_changes
    read = await world.admin.call("GetPolicy", id=created.id)
    assert read == created
    assert bundle_of(read) == DOCUMENT
    changed = await world.admin.call(
        "UpdatePolicy", id=created.id, name="Second", description="d", bundle=CONSOLE
    )
    assert (changed.name, changed.description) == ("Second", "d")
    assert bundle_of(changed) == CONSOLE
    assert changed.etag != created.etag
    assert changed.updated_at.ToDatetime() > created.updated_at.ToDatetime()
    listed = await world.admin.call("ListPolicies")
    assert [policy.name for policy in listed.policies] == ["Second"]
    assert not listed.policies[0].HasField("bundle")
    await world.admin.call("DeletePolicy", id=created.id)
    gone = await refusal(world.admin.call("GetPolicy", id=created.id))
    assert gone.code is grpc.StatusCode.NOT_FOUND


async def test_bad_bundles_name_their_fields(world: World) -> None:
    """Every broken field is named from the request's `bundle` on, in both forms."""
    cases: list[tuple[Any, list[str]]] = [
        (None, ["bundle"]),
        ([], ["bundle"]),
        (5, ["bundle"]),
        (
            {"apps": {"required": [{}, {"id": 1}]}, "x": 1},
            ["bundle.apps.required[1].id", "bundle.x"],
        ),
        ({"browser": {"homepage": "a\0"}}, ["bundle.browser.homepage"]),
        (
            {"configuration": {"browser": {"homepageUrl": 5}}},
            ["bundle.configuration.browser.homepageUrl"],
        ),
        ({"network": {"vpn_dns": ["x" * 8000] * 70}}, ["bundle"]),
    ]
    for bundle, fields in cases:
        refused = await refusal(world.admin.create(ORG.id, bundle))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert sorted(refused.fields) == sorted(fields), refused.body
    policy = await world.admin.create(ORG.id, DOCUMENT)
    refused = await refusal(world.admin.call("UpdatePolicy", id=policy.id, bundle={"apps": 1}))
    assert refused.fields == ["bundle.apps"]
    absent = await refusal(world.admin.call("CreatePolicy", org_id=str(ORG.id), name="a"))
    assert absent.fields == ["bundle"]
    assert len(await world.events()) == 1


async def test_versions_only_grow_and_survive_deletes(world: World) -> None:
    """Every publish of an org has a higher version, whichever policy it is of."""
    first = await world.admin.published(ORG.id, DOCUMENT)
    assert (first.version, first.signed, first.in_force) == ("1", True, True)
    assert not first.has_unpublished_changes
    second = await world.admin.published(ORG.id, CONSOLE)
    assert second.version == "2"
    first = await world.admin.call("GetPolicy", id=first.id)
    assert (first.version, first.in_force) == ("1", False)
    await world.admin.call("DeletePolicy", id=second.id, force=True)
    again = await world.admin.call("PublishPolicy", id=first.id)
    assert (again.version, again.in_force) == ("3", True)
    other = await Admin(world.channel, SISTER.id).published(SISTER.id, DOCUMENT)
    assert other.version == "1"


async def test_concurrent_publishes_get_versions_of_their_own(world: World) -> None:
    """Two dozen publishes at once, of two policies, take two dozen versions."""
    policies = [await world.admin.create(ORG.id, DOCUMENT) for _ in range(2)]
    answers = await asyncio.gather(
        *(world.admin.call("PublishPolicy", id=policy.id) for policy in policies for _ in range(12))
    )
    assert sorted(int(answer.version) for answer in answers) == list(range(1, 25))
    listed = await world.admin.call("ListPolicies")
    assert sorted(policy.in_force for policy in listed.policies) == [False, True]


async def test_a_lost_update_is_refused(world: World) -> None:
    """An update with an etag from before another change changes nothing."""
    policy = await world.admin.create(ORG.id, DOCUMENT)
    await world.admin.call("UpdatePolicy", id=policy.id, name="A", etag=policy.etag)
    refused = await refusal(
        world.admin.call("UpdatePolicy", id=policy.id, name="B", etag=policy.etag)
    )
    assert refused.code is grpc.StatusCode.ABORTED
    assert (await world.admin.call("GetPolicy", id=policy.id)).name == "A"


async def test_a_policy_does_not_move(world: World) -> None:
    """Its own org may be given back, another one not."""
    admin = Admin(world.channel, RESELLER.id)
    policy = await admin.create(ORG.id, DOCUMENT)
    await admin.call("UpdatePolicy", id=policy.id, org_id=str(ORG.id))
    refused = await refusal(admin.call("UpdatePolicy", id=policy.id, org_id=str(SISTER.id)))
    assert refused.fields == ["orgId"]


async def test_a_rollback_is_a_new_higher_version(world: World) -> None:
    """What an earlier version held is delivered, and is what the editor opens, again."""
    policy = await world.admin.published(ORG.id, DOCUMENT)
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=CONSOLE)
    await world.admin.call("PublishPolicy", id=policy.id)
    back = await world.admin.call("RollbackPolicy", id=policy.id, version="1")
    assert (back.version, back.has_unpublished_changes) == ("3", False)
    assert bundle_of(back) == DOCUMENT
    listed = await world.admin.call("ListPolicyVersions", policy_id=policy.id)
    shown = [(v.version, v.rollback_of) for v in listed.versions]
    assert shown == [("3", "1"), ("2", ""), ("1", "")]
    assert listed.versions[0].document_sha256 == listed.versions[2].document_sha256
    assert listed.versions[0].published_by == "admin@school.example"
    missing = await refusal(world.admin.call("RollbackPolicy", id=policy.id, version="9"))
    assert missing.code is grpc.StatusCode.NOT_FOUND
    other = await world.admin.published(ORG.id, DOCUMENT)
    foreign = await refusal(world.admin.call("RollbackPolicy", id=policy.id, version=other.version))
    assert foreign.code is grpc.StatusCode.NOT_FOUND


async def test_lists_have_pages(world: World) -> None:
    """Pages follow each other without gaps, and a forged token is refused."""
    made = [(await world.admin.create(ORG.id, DOCUMENT, f"P{n}")).id for n in range(5)]
    seen: list[str] = []
    token = ""
    while True:
        page = await world.admin.call("ListPolicies", page_size=2, page_token=token)
        seen += [policy.id for policy in page.policies]
        token = page.next_page_token
        if not token:
            break
    assert seen == made
    for forged in ("x", "WzFd", "WyJhIl0"):
        refused = await refusal(world.admin.call("ListPolicies", page_token=forged))
        assert refused.fields == ["pageToken"]
    for _ in range(3):
        await world.admin.call("PublishPolicy", id=made[0])
    page = await world.admin.call("ListPolicyVersions", policy_id=made[0], page_size=2)
    assert [v.version for v in page.versions] == ["3", "2"]
    page = await world.admin.call(
        "ListPolicyVersions", policy_id=made[0], page_token=page.next_page_token
    )
    assert [v.version for v in page.versions] == ["1"]


async def test_tenants_do_not_meet(world: World) -> None:
    """Whoever is not above an org finds none of its policies and can do nothing to them."""
    policy = await world.admin.published(ORG.id, DOCUMENT)
    stranger = Admin(world.channel, STRANGER.id, "Owner")
    assert not (await stranger.call("ListPolicies")).policies
    attempts: list[tuple[str, dict[str, Any]]] = [
        ("ListPolicies", {"org_id": str(ORG.id)}),
        ("GetPolicy", {"id": policy.id}),
        ("UpdatePolicy", {"id": policy.id, "name": "x"}),
        ("DeletePolicy", {"id": policy.id}),
        ("PublishPolicy", {"id": policy.id}),
        ("WithdrawPolicy", {"id": policy.id}),
        ("RollbackPolicy", {"id": policy.id, "version": "1"}),
        ("ListPolicyVersions", {"policy_id": policy.id}),
        ("CreatePolicy", {"org_id": str(ORG.id), "name": "x", "bundle": DOCUMENT}),
    ]
    for method, request in attempts:
        refused = await refusal(stranger.call(method, **request))
        assert refused.code is grpc.StatusCode.NOT_FOUND, method
    above = Admin(world.channel, RESELLER.id)
    assert len((await above.call("ListPolicies")).policies) == 1
    assert not (await above.call("ListPolicies", org_id=str(SISTER.id))).policies
    # A policy of the tenant above is its own, and not there for those below.
    theirs = await above.create(RESELLER.id, DOCUMENT)
    assert theirs.org_id == str(RESELLER.id)
    refused = await refusal(world.admin.call("GetPolicy", id=theirs.id))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert len((await world.admin.call("ListPolicies")).policies) == 1
    assert len(await world.events()) == 3


async def test_auditors_only_read(world: World) -> None:
    """An Auditor lists and gets, and is refused everything else."""
    policy = await world.admin.create(ORG.id, DOCUMENT)
    auditor = Admin(world.channel, ORG.id, "Auditor")
    assert (await auditor.call("GetPolicy", id=policy.id)).name == policy.name
    for method in ("UpdatePolicy", "DeletePolicy", "PublishPolicy", "WithdrawPolicy"):
        refused = await refusal(auditor.call(method, id=policy.id))
        assert refused.code is grpc.StatusCode.PERMISSION_DENIED


async def test_every_action_has_its_event_without_secrets(world: World) -> None:
    """Who did what, from where, before and after; passphrases appear nowhere."""
    secret = {
        "network": {
            "wifi": [{"ssid": "s", "passphrase": "hunter2", "eap": {"password": "hunter2"}}],
            "vpns": [{"name": "v", "secrets": {"key": "hunter2"}, "data": {"k": "hunter2"}}],
        }
    }
    policy = await world.admin.create(ORG.id, secret)
    await world.admin.call("UpdatePolicy", id=policy.id, name="Renamed")
    await world.admin.call("PublishPolicy", id=policy.id)
    await world.admin.call("RollbackPolicy", id=policy.id, version="1")
    await world.admin.call("WithdrawPolicy", id=policy.id)
    await world.admin.call("DeletePolicy", id=policy.id)
    events = await world.events()
    assert [event["data"]["action"] for event in events] == [
        "policy.created",
        "policy.updated",
        "policy.published",
        "policy.rolled_back",
        "policy.withdrawn",
        "policy.deleted",
    ]
    assert "hunter2" not in json.dumps(events)
    data = events[1]["data"]
    assert data["actor"] == "admin@school.example"
    assert data["sourceIp"] == "192.0.2.1"
    assert data["resource"] == f"policies/{policy.id}"
    assert (data["before"]["name"], data["after"]["name"]) == ("Policy", "Renamed")
    assert events[0]["data"]["after"]["bundle"]["network"]["wifi"][0]["passphrase"] == "[redacted]"
    assert events[2]["data"]["after"]["version"] == "1"
    assert events[3]["data"]["after"]["rollbackOf"] == "1"
    assert events[5]["data"]["after"] is None
    assert all(event["tenantid"] == str(ORG.id) for event in events)


async def test_a_huge_policy_does_not_make_a_huge_event(world: World) -> None:
    """A policy that is too large for a message is audited by its digest."""
    await world.admin.create(ORG.id, {"network": {"vpn_dns": ["x" * 4000] * 100}})
    (event,) = await world.events()
    assert "sha256" in event["data"]["after"]["bundle"]


async def test_a_device_is_synchronised_once(world: World) -> None:
    """The next poll of that device is answered 200 with what it has; then 304 again."""
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    world.neighbours.registry.add(device.id, ORG.id)
    await world.admin.published(ORG.id, DOCUMENT)
    assert (await device.pull("1")).status_code == 304
    answer = await world.admin.call("SyncDevice", id=str(device.id))
    assert answer.requested_at.ToDatetime().year >= 2024
    assert verified(await world.pem(), await device.pull("1"))["version"] == "1"
    for _ in range(4):
        assert (await device.pull("1")).status_code == 304
        await asyncio.sleep(0.4)
    await world.admin.call("SyncDevice", id=str(device.id))
    assert (await device.pull("1")).status_code == 200
    actions = [event["data"]["action"] for event in await world.events()]
    assert actions.count("policy.device_sync_requested") == 2


async def test_only_ones_own_live_devices_are_synchronised(world: World) -> None:
    """Unknown and foreign devices are not found; a decommissioned one is not synchronised."""
    foreign, dead = uuid4(), uuid4()
    world.neighbours.registry.add(foreign, STRANGER.id)
    world.neighbours.registry.add(dead, ORG.id, "decommissioned")
    for device_id in (foreign, uuid4()):
        refused = await refusal(world.admin.call("SyncDevice", id=str(device_id)))
        assert refused.code is grpc.StatusCode.NOT_FOUND
    refused = await refusal(world.admin.call("SyncDevice", id=str(dead)))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_device_is_synchronised_the_moment_it_is_admitted(world: World) -> None:
    """What the service remembers of a device may be a second old; it asks before it refuses."""
    device = uuid4()
    world.neighbours.registry.add(device, ORG.id, "pending")
    refused = await refusal(world.admin.call("SyncDevice", id=str(device)))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    world.neighbours.registry.add(device, ORG.id)
    assert (await world.admin.call("SyncDevice", id=str(device))).HasField("requested_at")


async def test_the_service_role_sees_no_other_tenant(world: World) -> None:
    """Row security hides a tenant's rows from a transaction that is bound to another one."""
    await world.admin.published(ORG.id, DOCUMENT)
    tables = ("policies", "versions", "version_counters", "assignments")
    for scope, expected in ((STRANGER.id, 0), (ORG.id, 1)):
        async with world.kit.database.transaction(world.kit.tenants.scope(scope)) as connection:
            for table in tables:
                count = await connection.fetchval(f"SELECT count(*) FROM policy.{table}")
                assert count == expected, table


async def test_keys_are_kept_and_sealed(world: World) -> None:
    """The public keys are answered in both forms; the private one is not in the database."""
    keys = policy_pb2_grpc.PolicyKeyServiceStub(world.channel)
    jwks = await keys.ListPolicyKeys(policy_pb2.ListPolicyKeysRequest())
    assert [(key.kty, key.crv, key.alg) for key in jwks.keys] == [("OKP", "Ed25519", "EdDSA")]
    assert (await world.pem()).count("BEGIN PUBLIC KEY") == 1
    policy = await world.admin.published(ORG.id, DOCUMENT)
    listed = await world.admin.call("ListPolicyVersions", policy_id=policy.id)
    assert listed.versions[0].key_id == jwks.keys[0].kid
    connection = await world.database.superuser()
    sealed = await connection.fetchval("SELECT sealed_seed FROM policy.signing_keys")
    await connection.close()
    assert len(sealed) > 32


def _json(random: Random, depth: int = 0) -> Any:
    """Any JSON, made of the words that policies are made of."""
    words = [
        "apps",
        "required",
        "id",
        "network",
        "wifi",
        "eap",
        "configuration",
        "",
        "\0",
        "\U0001f600",
    ]
    kind = random.randrange(5 if depth > 4 else 8)
    if kind == 0:
        return random.choice([None, True, False])
    if kind in (1, 2):
        return random.choice([0, -1, 2.5, 1e300, float("nan"), float("-inf"), 2**53])
    if kind in (3, 4):
        return random.choice(words)
    if kind == 5:
        return [_json(random, depth + 1) for _ in range(random.randrange(3))]
    return {random.choice(words): _json(random, depth + 1) for _ in range(random.randrange(4))}


async def test_no_bundle_makes_the_service_fail(world: World) -> None:
    """Whatever JSON is sent, also deeply nested, is stored or refused with its fields."""
    random = Random(7)
    deep: Any = "x"
    for _ in range(30):
        deep = [deep]
    bundles = [deep, {"apps": deep}, {"configuration": {"apps": deep}}]
    for bundle in bundles + [_json(random) for _ in range(150)]:
        try:
            policy = await world.admin.create(ORG.id, bundle)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, bundle
        else:
            assert bundle_of(policy) == bundle
