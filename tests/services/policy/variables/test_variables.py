"""Variables and secrets: templates get their values, and nobody else reads a secret."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

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

SECRET = "what opens the network"
TEMPLATE: dict[str, Any] = {
    "template": {
        "browser": {"homepage": "https://{{var.host}}/start"},
        "network": {
            "wifi": [
                {"ssid": "Pupils", "security": "wpa-psk", "passphrase": "{{secret.wifi}}"},
                {"ssid": "Staff", "security": "wpa-psk", "passphrase": "an inline secret"},
            ]
        },
    }
}


class Keeper(Admin):
    """A user who keeps variables."""

    def __init__(self, channel: grpc.aio.Channel, tenant: UUID, role: str = "Admin") -> None:
        super().__init__(channel, tenant, role)
        self._variables = policy_pb2_grpc.PolicyVariableServiceStub(channel)

    async def variable(self, method: str, **request: Any) -> Any:
        """Calls a method of PolicyVariableService."""
        message = getattr(policy_pb2, f"{method}PolicyVariable{'s' * (method == 'List')}Request")
        stub = getattr(self._variables, f"{method}PolicyVariable{'s' * (method == 'List')}")
        return await stub(message(**request), metadata=self.metadata, timeout=60)

    async def put(self, tenant: UUID, name: str, value: str, *, secret: bool = False) -> Any:
        return await self.variable(
            "Create", org_id=str(tenant), name=name, value=value, secret=secret
        )


async def _values(keeper: Keeper, tenant: UUID) -> tuple[Any, Any]:
    host = await keeper.put(tenant, "host", "one.example")
    return host, await keeper.put(tenant, "wifi", SECRET, secret=True)


async def _has(world: World, org: UUID, version: str = "") -> tuple[str, str, str]:
    """What a device gets: its version, homepage and the passphrase of the first network."""
    device = Device(world.kit, world.channel, uuid4(), org)
    answer = await device.pull(version)
    verified(await world.pem(), answer)
    got = answer.json()
    policy = got["policy"]
    return (
        got["version"],
        policy["browser"]["homepage"],
        policy["network"]["wifi"][0]["passphrase"],
    )


@pytest.fixture
def keeper(world: World) -> Keeper:
    return Keeper(world.channel, ORG.id)


async def test_devices_get_values_and_people_references(world: World, keeper: Keeper) -> None:
    """A secret is in no answer, event or row; an inline one is hidden as in other bundles."""
    _, wifi = await _values(keeper, ORG.id)
    policy = await world.admin.published(ORG.id, TEMPLATE)
    assert (await _has(world, ORG.id))[1:] == ("https://one.example/start", SECRET)
    shown = bundle_of(policy)["template"]
    assert shown["network"]["wifi"][0]["passphrase"] == "{{secret.wifi}}"
    assert shown["network"]["wifi"][1]["passphrase"] == "[masked]"
    again = await world.admin.call(
        "UpdatePolicy", id=policy.id, bundle=bundle_of(policy), signed=True
    )
    assert (again.version, again.etag) == (policy.version, policy.etag)
    found = await keeper.variable("Get", id=wifi.id)
    assert (found.secret, found.value, len(found.fingerprint)) == (True, "", 8)
    assert [(one.policy_name, one.in_force) for one in found.policies] == [("Policy", True)]
    # Nor can a guess be tried out by a digest.
    versions = await world.admin.call("ListPolicyVersions", policy_id=policy.id)
    assert [one.document_sha256 for one in versions.versions] == [""]
    assert not found.sealed_when_published
    auditor = Admin(world.channel, ORG.id, "Auditor")
    answers = [
        await world.admin.call("GetPolicy", id=policy.id, reveal_secrets=True),
        await auditor.call("GetPolicy", id=policy.id),
        await auditor.call("ListPolicyVersions", policy_id=policy.id),
        await world.admin.call("DiffPolicyVersions", policy_id=policy.id, version=policy.version),
        await world.admin.call("SimulatePolicy", policy_id=policy.id),
        await world.admin.call("GetLayeredPolicy", org_id=str(ORG.id)),
        await world.admin.call("ExportPolicySet", org_id=str(ORG.id)),
        await keeper.variable("List", org_id=str(ORG.id)),
        wifi,
        found,
    ]
    assert SECRET not in json.dumps([str(one) for one in answers])
    assert SECRET not in json.dumps(await world.events())
    superuser = await world.database.superuser()
    rows = await superuser.fetch("SELECT value, sealed_secrets FROM policy.variable")
    await superuser.close()
    assert SECRET.encode() not in b"".join(row["sealed_secrets"] or b"" for row in rows)
    assert {row["value"] for row in rows} == {None, "one.example"}


async def test_a_new_value_comes_with_a_publish(world: World, keeper: Keeper) -> None:
    """At once for policies in force that are as they were published; the others keep the old one
    until their own publish. The same value once more changes nothing."""
    host, wifi = await _values(keeper, ORG.id)
    policy = await world.admin.published(ORG.id, TEMPLATE)
    first = await _has(world, ORG.id)
    later = await keeper.variable("Update", id=host.id, value="two.example")
    assert await _has(world, ORG.id) == first
    now = await keeper.variable("Update", id=wifi.id, value="new secret", apply="NOW")
    second = await _has(world, ORG.id, first[0])
    assert second[1:] == ("https://two.example/start", "new secret")
    assert int(second[0]) > int(first[0])
    before = await world.events()
    same = await keeper.variable("Update", id=wifi.id, value="new secret", apply="NOW")
    assert (same.etag, await world.events()) == (now.etag, before)
    await world.admin.call("UpdatePolicy", id=policy.id, name="Draft", bundle=TEMPLATE)
    changed = json.loads(json.dumps(TEMPLATE))
    changed["template"]["browser"]["homepage"] = "https://draft.example"
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=changed)
    waits = await keeper.variable("Update", id=wifi.id, value="third secret", apply="NOW")
    assert [one.has_unpublished_changes for one in waits.policies] == [True]
    assert await _has(world, ORG.id) == second
    back = await world.admin.call("RollbackPolicy", id=policy.id, version=first[0])
    # A rollback has the secrets of today.
    assert await _has(world, ORG.id) == (back.version, "https://two.example/start", "third secret")
    actions = [event["data"]["action"] for event in await world.events()]
    assert actions.count("policy.variable_updated") == 3
    assert later.etag != host.etag


async def test_a_value_that_was_set_before_comes_once_it_is_to(
    world: World, keeper: Keeper
) -> None:
    """Set without a publish and then once more with one: policies that have an older value get it,
    and say so until then. A policy that has it is left alone."""
    _, wifi = await _values(keeper, ORG.id)
    await world.admin.published(ORG.id, TEMPLATE)
    first = await _has(world, ORG.id)
    waits = await keeper.variable("Update", id=wifi.id, value="new secret")
    assert [one.has_older_value for one in waits.policies] == [True]
    listed = await keeper.variable("Get", id=wifi.id)
    assert [one.has_older_value for one in listed.policies] == [True]
    now = await keeper.variable("Update", id=wifi.id, value="new secret", apply="NOW")
    assert [one.has_older_value for one in now.policies] == [False]
    assert now.etag == waits.etag
    second = await _has(world, ORG.id, first[0])
    assert second[2] == "new secret"
    before = await world.events()
    await keeper.variable("Update", id=wifi.id, value="new secret", apply="NOW")
    assert await world.events() == before
    assert await _has(world, ORG.id) == second


async def test_a_new_value_is_rolled_out(world: World, keeper: Keeper) -> None:
    """Each policy in force in a rollout of its own, all or none. What comes by a rollout with the
    same value is not begun again; another value waits for its end."""
    host, wifi = await _values(keeper, ORG.id)
    await world.admin.published(ORG.id, TEMPLATE)
    first = await _has(world, ORG.id)
    done = await keeper.variable("Update", id=wifi.id, value="new secret", apply="ROLLOUT")
    (use,) = done.policies
    assert use.rollout_id
    assert use.has_older_value
    assert await _has(world, ORG.id) == first
    rollouts = policy_pb2_grpc.PolicyRolloutServiceStub(world.channel)

    async def ask(method: str, **request: Any) -> Any:
        message = getattr(policy_pb2, f"{method}Request")(id=use.rollout_id, **request)
        return await getattr(rollouts, method)(message, metadata=keeper.metadata, timeout=60)

    begun = await ask("GetRollout")
    assert [batch.percent for batch in begun.plan.batches] == [1, 10, 50, 100]
    before = await world.events()
    again = await keeper.variable("Update", id=wifi.id, value="new secret", apply="ROLLOUT")
    assert (again.etag, again.policies[0].rollout_id) == (done.etag, "")
    assert await world.events() == before
    for apply in ("NOW", "ROLLOUT"):
        refused = await refusal(
            keeper.variable("Update", id=host.id, value="two.example", apply=apply)
        )
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (await keeper.variable("Get", id=host.id)).etag == host.etag
    await ask("CancelRollout", reason="another value")
    everybody = policy_pb2.RolloutPlan(preset="now")
    last = await keeper.variable(
        "Update", id=host.id, value="two.example", apply="ROLLOUT", plan=everybody
    )
    assert last.policies[0].rollout_id != use.rollout_id
    rest: dict[str, Any] = {"id": host.id, "value": "x"}
    refused = await refusal(keeper.variable("Update", **rest, apply="NOW", plan=everybody))
    assert refused.fields == ["plan"]


async def test_a_district_has_no_rollouts_of_values(world: World) -> None:
    """Its value is set now, or with a publish."""
    district = Keeper(world.channel, RESELLER.id)
    _, wifi = await _values(district, RESELLER.id)
    await district.published(RESELLER.id, TEMPLATE)
    refused = await refusal(
        district.variable("Update", id=wifi.id, value="new secret", apply="ROLLOUT")
    )
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["plan"])
    assert (await district.variable("Get", id=wifi.id)).etag == wifi.etag


async def test_a_value_that_devices_could_not_apply_changes_nothing(
    world: World, keeper: Keeper
) -> None:
    """It is checked where it ends up, and the policies it is published with are named."""
    _, wifi = await _values(keeper, ORG.id)
    await world.admin.published(ORG.id, TEMPLATE)
    first = await _has(world, ORG.id)
    refused = await refusal(keeper.variable("Update", id=wifi.id, value="a\nb", apply="NOW"))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "bundle.template.network.wifi[0].passphrase" in refused.fields
    assert "a\nb" not in json.dumps(refused.body)
    found = await keeper.variable("Get", id=wifi.id)
    assert (found.etag, found.fingerprint) == (wifi.etag, wifi.fingerprint)
    assert await _has(world, ORG.id) == first
    for value in ("{{var.host}}", "a\0b"):
        refused = await refusal(keeper.variable("Update", id=wifi.id, value=value))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.fields == ["value"]


async def test_templates_name_what_there_is_where_it_may_be(world: World, keeper: Keeper) -> None:
    """Every fault is named with its field, also in a draft and a simulation."""
    await _values(keeper, ORG.id)
    bad = {
        "template": {
            "browser": {"homepage": "https://{{secret.wifi}}", "extensions": ["{{device.serial}}"]},
            "network": {
                "wifi": [
                    {"ssid": "{{secret.wifi}}", "security": "wpa-psk", "passphrase": "{{ x"},
                    {"ssid": "B", "security": "wpa-psk", "passphrase": "{{secret.other}}"},
                    {"ssid": "C", "security": "wpa-psk", "passphrase": "{{var.wifi}}"},
                ],
                "vpns": [{"name": "V", "data": {"remote": "{{secret.wifi}}"}}],
            },
        },
        "other": 1,
    }
    wanted = {
        "bundle.other",
        "bundle.template.browser.homepage",
        "bundle.template.browser.extensions[0]",
        "bundle.template.network.wifi[0].ssid",
        "bundle.template.network.wifi[0].passphrase",
        "bundle.template.network.wifi[1].passphrase",
        "bundle.template.network.wifi[2].passphrase",
    }
    refused = await refusal(world.admin.create(ORG.id, bad))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refused.fields) == wanted
    simulated = await refusal(world.admin.call("SimulatePolicy", org_id=str(ORG.id), bundle=bad))
    assert set(simulated.fields) == wanted
    # Braces of other bundles are what they are.
    literal = {"browser": {"homepage": "https://{{var.host}}"}}
    await world.admin.published(ORG.id, literal)
    assert (await Device(world.kit, world.channel, uuid4(), ORG.id).pull()).json()["policy"][
        "browser"
    ]["homepage"] == "https://{{var.host}}"


async def test_what_a_policy_names_stays(world: World, keeper: Keeper) -> None:
    """Also for a draft; afterwards it goes. A name stands for one value."""
    host, wifi = await _values(keeper, ORG.id)
    policy = await world.admin.create(ORG.id, TEMPLATE)
    refused = await refusal(keeper.variable("Delete", id=wifi.id))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "VARIABLE_USED",
    )
    twice = await refusal(keeper.put(ORG.id, "host", "x"))
    assert twice.code is grpc.StatusCode.ALREADY_EXISTS
    await world.admin.call("DeletePolicy", id=policy.id)
    for one in (host, wifi):
        await keeper.variable("Delete", id=one.id)
    assert not (await keeper.variable("List", org_id=str(ORG.id))).variables


async def test_a_school_has_the_policy_of_its_district_and_no_answer_shows_its_secret(
    world: World,
) -> None:
    """By no call of a school's Owner that answers a policy; nor can its own policies name the
    secret, or a school's secret change the district's policy."""
    district = Keeper(world.channel, RESELLER.id)
    _, wifi = await _values(district, RESELLER.id)
    above = await district.published(RESELLER.id, TEMPLATE)
    owner = Keeper(world.channel, ORG.id, "Owner")
    own = await owner.published(ORG.id, {"security": {"ssh_enabled": True}})
    got = await _has(world, ORG.id)
    assert got[1:] == ("https://one.example/start", SECRET)
    assert (await _has(world, SISTER.id))[2] == SECRET
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    world.neighbours.registry.add(device.id, ORG.id)
    await device.pull()
    answers: list[str] = []
    own_calls: dict[str, dict[str, Any]] = {
        "ListPolicies": {},
        "GetPolicy": {"id": own.id, "reveal_secrets": True},
        "ListPolicyVersions": {"policy_id": own.id},
        "DiffPolicyVersions": {"policy_id": own.id, "version": own.version},
        "GetLayeredPolicy": {"org_id": str(ORG.id)},
        "SimulatePolicy": {"policy_id": own.id, "withdraw": True},
        "ExportPolicySet": {"org_id": str(ORG.id)},
    }
    for method, request in own_calls.items():
        answers.append(str(await owner.call(method, **request)))
    calls_above: dict[str, dict[str, Any]] = {
        "GetPolicy": {"id": above.id, "reveal_secrets": True},
        "ListPolicyVersions": {"policy_id": above.id},
        "DiffPolicyVersions": {"policy_id": above.id, "version": above.version},
        "SimulatePolicy": {"policy_id": above.id},
        "RollbackPolicy": {"id": above.id, "version": above.version},
    }
    for method, request in calls_above.items():
        refused = await refusal(owner.call(method, **request))
        assert refused.code is grpc.StatusCode.NOT_FOUND
        answers.append(json.dumps(refused.body))
    for call in (
        owner.variable("Get", id=wifi.id),
        owner.variable("Update", id=wifi.id, value="x"),
        owner.variable("Delete", id=wifi.id),
    ):
        refused = await refusal(call)
        assert refused.code is grpc.StatusCode.NOT_FOUND
    listed = await owner.variable("List")
    assert not listed.variables
    for bundle in (TEMPLATE, {"template": {"network": {"vpns": [
        {"name": "V", "data": {"remote": "{{secret.wifi}}"}}]}}}):  # fmt: skip
        refused = await refusal(owner.create(ORG.id, bundle))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        answers.append(json.dumps(refused.body))
    await owner.put(ORG.id, "wifi", "the school's own", secret=True)
    await owner.call("UpdatePolicy", id=own.id, name="Again", signed=True)
    assert (await _has(world, ORG.id))[2] == SECRET
    theirs = [one for one in await world.events() if str(ORG.id) in json.dumps(one)]
    assert SECRET not in json.dumps([*answers, theirs])
    stranger = Keeper(world.channel, STRANGER.id, "Owner")
    assert (await refusal(stranger.variable("Get", id=wifi.id))).code is grpc.StatusCode.NOT_FOUND
    assert not (await stranger.variable("List")).variables


@pytest.mark.parametrize("role", ["Auditor"])
async def test_who_only_reads_changes_nothing(world: World, keeper: Keeper, role: str) -> None:
    host, _ = await _values(keeper, ORG.id)
    reader = Keeper(world.channel, ORG.id, role)
    assert len((await reader.variable("List")).variables) == 2
    for call in (
        reader.put(ORG.id, "x", "y"),
        reader.variable("Update", id=host.id, value="x"),
        reader.variable("Delete", id=host.id),
    ):
        assert (await refusal(call)).code is grpc.StatusCode.PERMISSION_DENIED


async def test_the_release_before_reads_masks_of_a_template(world: World, keeper: Keeper) -> None:
    """It hides nothing of a form that it does not know. What it makes of it is not published."""
    await _values(keeper, ORG.id)
    policy = await world.admin.create(ORG.id, TEMPLATE)
    superuser = await world.database.superuser()
    authored = await superuser.fetchval("SELECT authored FROM policy.policies")
    assert "an inline secret" not in authored
    # As it stores a new name.
    await superuser.execute("UPDATE policy.policies SET name = 'N', form_extra = NULL")
    await superuser.close()
    refused = await refusal(world.admin.call("PublishPolicy", id=policy.id))
    assert (refused.code, refused.fields) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        ["bundle.template"],
    )
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=TEMPLATE, signed=True)
    assert (await _has(world, ORG.id))[2] == SECRET
