"""Policies as code: planned, applied in one step, exported, and only its own deleted."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.json_format import MessageToDict

from contract.access import Role
from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.rpc.values import from_value, to_value
from tests.services.policy.simulation.test_simulation import codes, new_device, rows
from tests.services.policy.targets.test_targets import delivered, for_devices
from tests.services.policy.variables.test_own_values import Seen
from tests.services.policy.variables.test_variables import Keeper
from tests.support import callers
from tests.support.policy import ORG, RESELLER, SISTER, Admin, World, world
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["world"]

SECRET = "the passphrase of the class"
WIFI = {"ssid": "Class", "passphrase": SECRET, "security": "wpa-psk"}
BASE = {"network": {"wifi": [WIFI]}, "security": {"selinux_enforce": True, "usbguard": False}}
STAFF = {"browser": {"homepage": "https://staff.example"}}


def entry(alias: str, bundle: Any, **more: Any) -> policy_pb2.PolicySetEntry:
    found = policy_pb2.PolicySetEntry(alias=alias, **more)
    to_value(bundle, found.bundle)
    return found


def again(one: policy_pb2.ExportedPolicy) -> policy_pb2.PolicySetEntry:
    """An exported policy as an entry."""
    found = entry(
        one.alias,
        from_value(one.bundle),
        name=one.name,
        description=one.description,
        groups=one.groups,
        draft=one.draft,
    )
    if one.HasField("merging"):
        found.merging.locked_fields.extend(one.merging.locked_fields)
        found.merging.inherit = one.merging.inherit
    return found


async def apply(
    world: World, *entries: policy_pb2.PolicySetEntry, admin: Admin | None = None, **more: Any
) -> policy_pb2.ApplyPolicySetResponse:
    asked = {"org_id": str(ORG.id), "name": "school", **more}
    found: policy_pb2.ApplyPolicySetResponse = await (admin or world.admin).call(
        "ApplyPolicySet", policies=entries, **asked
    )
    return found


def actions(found: policy_pb2.ApplyPolicySetResponse) -> dict[str, str]:
    """What becomes of each policy; with a `!` where it is published."""
    return {
        one.alias or one.name: one.action + ("!" if one.publishes else "") for one in found.policies
    }


async def known_group(world: World, alias: str, priority: int) -> UUID:
    """A group that policy has heard of."""
    return world.neighbours.registry.group(ORG.id, alias, priority)


async def test_a_set_is_planned_applied_and_then_there_is_nothing_to_do(world: World) -> None:
    """The plan is what is done, and writes nothing; nor does the same set once more."""
    group = await known_group(world, "staff", 10)
    device = new_device(world, group)
    entries = [entry("base", BASE, name="Base"), entry("staff", STAFF, groups=["staff"])]
    async with asyncio.timeout(PATIENCE):
        while (await apply(world, *entries, validate_only=True)).simulation.devices != 1:
            await asyncio.sleep(0.05)
    before = await rows(world)
    plan = await apply(world, *entries, validate_only=True)
    assert await rows(world) == before
    assert (actions(plan), plan.applied) == ({"base": "CREATE!", "staff": "CREATE!"}, False)
    assert [one.policy_id for one in plan.policies] == ["", ""]
    simulated = plan.simulation
    assert (simulated.devices_affected, simulated.editions) == (1, 1)
    assert {one.path for one in simulated.changes} >= {"network.wifi", "browser.homepage"}
    assert SECRET not in str(plan)
    done = await apply(world, *entries, expected_plan_sha256=plan.plan_sha256)
    assert (actions(done), done.applied) == (actions(plan), True)
    assert not done.HasField("simulation")
    _, policy = await delivered(world, device)
    assert policy["browser"]["homepage"] == "https://staff.example"
    assert policy["network"]["wifi"][0]["passphrase"] == SECRET
    told = await world.events()
    assert [one["type"] for one in told if "set_applied" in one["type"]] == [
        "evergreen.v1.policy.set_applied"
    ]
    assert SECRET not in json.dumps(told)
    before = await rows(world)
    again = await apply(world, *entries)
    assert actions(again) == {"base": "UNCHANGED", "staff": "UNCHANGED"}
    assert await rows(world) == before
    # A plan of before is not done any more.
    refused = await refusal(apply(world, *entries, expected_plan_sha256=plan.plan_sha256))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "PLAN_OUTDATED")


async def test_only_what_belongs_to_the_set_is_deleted(world: World) -> None:
    """And only with prune; what somebody changed becomes what the set says."""
    mine = await world.admin.create(ORG.id, {"updates": {"channel": "beta"}}, "By hand")
    await apply(world, entry("base", BASE), entry("old", STAFF, draft=True))
    await apply(world, entry("elsewhere", {}, draft=True), name="another")
    policies = {one.name: one for one in (await world.admin.call("ListPolicies")).policies}
    old = policies["old"].id
    await world.admin.call("UpdatePolicy", id=old, name="old", bundle={"updates": {}})
    found = await apply(world, entry("base", BASE), validate_only=True)
    others = {"By hand": "OTHER", "elsewhere": "OTHER"}
    assert actions(found) == {"base": "UNCHANGED", "old": "LEFT", **others}
    assert {one.set_name for one in found.policies if one.action == "OTHER"} == {"", "another"}
    found = await apply(world, entry("base", BASE), entry("old", STAFF, draft=True))
    assert actions(found) == {"base": "UNCHANGED", "old": "RESTORE", **others}
    assert next(one for one in found.policies if one.alias == "old").changed == ["bundle"]
    # A rename keeps the policy.
    found = await apply(
        world, entry("base", BASE), entry("new", STAFF, name="old", renamed_from="old", draft=True)
    )
    assert actions(found)["new"] == "UPDATE"
    assert next(one for one in found.policies if one.alias == "new").policy_id == old
    found = await apply(world, prune=True, validate_only=True)
    assert actions(found) == {"base": "DELETE", "new": "DELETE", **others}
    assert codes(found.simulation) == {"ORPHANED": 0}
    found = await apply(world, prune=True)
    names = {one.name for one in (await world.admin.call("ListPolicies")).policies}
    assert names == {"By hand", "elsewhere"}
    assert mine.id in {one.policy_id for one in found.policies}
    # What is in force is told to devices: nothing is any more.
    assert (await world.admin.call("GetLayeredPolicy")).state in {"NONE", "PENDING"}


async def test_an_exported_set_is_adopted_and_changes_nothing(world: World) -> None:
    """In both forms, with masks in place of secrets; but for policies of single devices."""
    group = await known_group(world, "staff", 10)
    device = new_device(world, group)
    form = {
        "configuration": {
            "network": {"wifiNetworks": [{"ssid": "C", "security": "wpa2", "passphrase": SECRET}]}
        },
        "signature": {"status": "draft"},
    }
    await world.admin.create(ORG.id, form, "The Form!")
    await world.admin.create(ORG.id, {}, "The Form!")
    locks = policy_pb2.PolicyMergingChange(
        locked_fields=["security"], removed_items={}, inherit=False
    )
    made = await world.admin.call(
        "CreatePolicy", org_id=str(ORG.id), name="Base", bundle=BASE, merging=locks, signed=True
    )
    async with asyncio.timeout(PATIENCE):
        while not (await world.admin.call("SimulatePolicy", policy_id=made.id)).devices:
            await asyncio.sleep(0.05)
    await world.admin.call(
        "CreatePolicy",
        org_id=str(ORG.id),
        name="Own",
        bundle={},
        targets=for_devices(device.id),
    )
    exported = await world.admin.call("ExportPolicySet")
    assert [(one.alias, one.set_name) for one in exported.policies] == [
        ("the-form", ""),
        ("the-form-2", ""),
        ("base", ""),
    ]
    assert SECRET not in str(exported)
    assert from_value(exported.policies[2].bundle)["network"]["wifi"][0]["passphrase"] == (
        "[masked]"
    )
    entries = [*map(again, exported.policies)]
    refused = await refusal(apply(world, *entries))
    assert refused.reason == "POLICY_NOT_ADOPTED"
    found = await apply(world, *entries, adopt=True)
    assert actions(found) == {
        "the-form": "ADOPT",
        "the-form-2": "ADOPT",
        "base": "ADOPT",
        "Own": "OTHER",
    }
    policy = await world.admin.call("GetPolicy", id=made.id)
    assert (policy.etag, policy.signed) == (made.etag, True)
    exported = await world.admin.call("ExportPolicySet", org_id=str(ORG.id))
    assert {one.set_name for one in exported.policies} == {"school"}
    found = await apply(world, *map(again, exported.policies))
    assert actions(found) == {
        "the-form": "UNCHANGED",
        "the-form-2": "UNCHANGED",
        "base": "UNCHANGED",
        "Own": "OTHER",
    }
    # Another set takes over what it names only where that is said.
    refused = await refusal(apply(world, *entries, name="another"))
    assert refused.reason == "POLICY_OF_ANOTHER_SET"
    auditor = Admin(world.channel, ORG.id, "Auditor")
    seen = await auditor.call("ExportPolicySet")
    assert from_value(seen.policies[2].bundle)["network"]["wifi"][0]["passphrase"] == ("[redacted]")
    assert "District" not in json.dumps(MessageToDict(seen))


async def test_all_or_nothing(world: World) -> None:
    """What one entry breaks is named by its place, and nothing of the others is done."""
    await known_group(world, "staff", 10)
    good = entry("good", BASE)
    for bad, field in (
        (entry("bad", {"x": 1}, draft=True), "policies[1].bundle.x: "),
        (
            entry("bad", {"updates": {"channel": "-x"}}, draft=True),
            "policies[1].bundle.updates.channel: ",
        ),
        (entry("good", {}, draft=True), "policies[1].alias: is in the set twice"),
        (entry("bad", {}, renamed_from="good"), "policies[1].renamedFrom: is in the set twice"),
        (entry("bad", {}), "policies[1].groups: another policy of the set is for all devices"),
        (entry("bad", {}, groups=["none"]), "policies[1].groups: no group has the alias none"),
        (
            entry("bad", {}, draft=True, merging={"locked_fields": ["x"]}),
            "policies[1].merging.lockedFields[0]: ",
        ),
        (
            entry("bad", {"network": {"wifi": [{**WIFI, "passphrase": "[masked]"}]}}, draft=True),
            "policies[1].bundle.network.wifi[0].passphrase: ",
        ),
    ):
        refused = await refusal(apply(world, good, bad))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.body["message"].startswith(field), refused.body
    assert not (await world.admin.call("ListPolicies")).policies
    assert not [one for one in await world.events() if "calls_refused" not in one["type"]]
    # A group that is to be made before is planned with, and needed then.
    soon = entry("soon", STAFF, groups=["soon"])
    plan = await apply(world, soon, validate_only=True, planned_groups=["soon"])
    assert actions(plan) == {"soon": "CREATE!"}
    refused = await refusal(apply(world, soon, planned_groups=["soon"]))
    assert "no group has the alias soon" in refused.body["message"]
    await known_group(world, "soon", 20)
    done = await apply(world, soon, expected_plan_sha256=plan.plan_sha256)
    assert actions(done) == {"soon": "CREATE!"}


async def test_no_guess_of_a_districts_secret_is_told_right(world: World) -> None:
    """By no plan, its digest, an export or an error; nor is the secret in them."""
    district = Admin(world.channel, RESELLER.id)
    theirs = {"ssid": "District", "passphrase": "the district's own", "security": "wpa-psk"}
    await district.published(RESELLER.id, {"network": {"wifi": [theirs]}})
    new_device(world)
    async with asyncio.timeout(PATIENCE):
        while True:
            plans = [
                await apply(
                    world,
                    entry("base", {"network": {"wifi": [{**theirs, "passphrase": guess}]}}),
                    validate_only=True,
                )
                for guess in (theirs["passphrase"], "quite another one")
            ]
            if {plan.simulation.devices for plan in plans} == {1}:
                break
            await asyncio.sleep(0.05)
    assert plans[0] == plans[1]
    masked = entry("base", {"network": {"wifi": [{**theirs, "passphrase": "[masked]"}]}})
    refused = await refusal(apply(world, masked))
    said = [json.dumps(refused.body), str(plans), str(await world.admin.call("ExportPolicySet"))]
    assert not any(theirs["passphrase"] in one for one in said)


async def test_sets_are_of_a_tenant(world: World) -> None:
    """Those above may; others find nothing, and who may not write may export only."""
    district = Admin(world.channel, RESELLER.id)
    found = await apply(world, entry("base", BASE), admin=district)
    assert actions(found) == {"base": "CREATE!"}
    found = await apply(world, entry("base", STAFF), admin=district, org_id=str(RESELLER.id))
    assert actions(found) == {"base": "CREATE!"}
    stranger = Admin(world.channel, SISTER.id)
    auditor = Admin(world.channel, ORG.id, "Auditor")
    missing, denied = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED
    for admin, org_id, code in (
        (stranger, ORG.id, missing),
        (world.admin, RESELLER.id, missing),
        (auditor, ORG.id, denied),
    ):
        refused = await refusal(apply(world, admin=admin, org_id=str(org_id), prune=True))
        assert refused.code is code
    refused = await refusal(stranger.call("ExportPolicySet", org_id=str(ORG.id)))
    assert refused.code is missing
    assert not (await stranger.call("ExportPolicySet")).policies
    refused = await refusal(
        apply(world, entry("x", {}, groups=["g"]), admin=district, org_id=str(RESELLER.id))
    )
    assert refused.body["message"].startswith("policies[0].groups: only a policy of an organis")


async def test_a_group_is_renamed_between_plan_and_apply(world: World) -> None:
    """The policy that is for it stays as it is, and so does the plan."""
    group = await known_group(world, "staff", 10)
    new_device(world, group)
    await apply(world, entry("staff", STAFF, groups=["staff"]))
    renamed = [entry("staff", STAFF, groups=["teachers"])]
    other = [*renamed, entry("new", BASE, groups=["staff"])]
    asked: dict[str, Any] = {"validate_only": True, "renamed_groups": {"teachers": str(group)}}
    # Another group may get the alias.
    found = await apply(world, *other, planned_groups=["staff"], **asked)
    assert actions(found) == {"staff": "UNCHANGED", "new": "CREATE!"}
    plan = await apply(world, *renamed, **asked)
    assert actions(plan) == {"staff": "UNCHANGED"}
    world.neighbours.registry.group(ORG.id, "teachers", 10, group)
    done = await apply(world, *renamed, expected_plan_sha256=plan.plan_sha256)
    assert actions(done) == {"staff": "UNCHANGED"}


async def test_a_plan_is_told_and_counted_where_a_second_person_approves(world: World) -> None:
    """What is new and what is changed; then it is on its way, and stays so."""
    new_device(world)
    await apply(world, entry("base", BASE))
    rollouts = policy_pb2_grpc.PolicyRolloutServiceStub(world.channel)
    await rollouts.UpdatePolicySettings(
        policy_pb2.UpdatePolicySettingsRequest(org_id=str(ORG.id), require_approval=True),
        metadata=callers.user(ORG.id, Role.OWNER),
    )
    group = await known_group(world, "staff", 10)
    new_device(world, group)
    entries = [entry("base", STAFF), entry("staff", BASE, groups=["staff"])]
    async with asyncio.timeout(PATIENCE):
        while True:
            plan = await apply(world, *entries, validate_only=True)
            if plan.simulation.devices_affected == 2:
                break
            await asyncio.sleep(0.05)
    assert [one.awaits_approval for one in plan.policies] == [True, True]
    done = await apply(world, *entries, expected_plan_sha256=plan.plan_sha256)
    assert actions(done) == {"base": "UPDATE!", "staff": "CREATE!"}
    # The files say what is on its way.
    exported = [again(one) for one in (await world.admin.call("ExportPolicySet")).policies]
    assert [one.draft for one in exported] == [False, False]
    found = await apply(world, *exported)
    assert actions(found) == {"base": "UNCHANGED", "staff": "UNCHANGED"}
    # What waits for its first approval makes way for what is newer.
    found = await apply(world, entry("base", {}), entries[1], validate_only=True)
    assert actions(found) == {"base": "UPDATE!", "staff": "UNCHANGED"}


async def test_what_files_cannot_say_is_refused(world: World) -> None:
    """Unpublished changes, drafts of what is in force, single devices and groups that are gone."""
    made = await world.admin.call(
        "CreatePolicy", org_id=str(ORG.id), name="Base", bundle=BASE, signed=True
    )
    (exported,) = (await world.admin.call("ExportPolicySet")).policies
    draft = again(exported)
    draft.draft = True
    refused = await refusal(apply(world, draft, adopt=True))
    assert refused.body["message"].startswith("policies[0].draft: Base is in force")
    await world.admin.call("UpdatePolicy", id=made.id, name="Base", bundle=STAFF)
    group = await known_group(world, "staff", 10)
    targets = policy_pb2.PolicyTargetsChange(group_ids=[str(group)])
    await world.admin.call(
        "CreatePolicy", org_id=str(ORG.id), name="Gone", bundle={}, targets=targets
    )
    world.neighbours.registry.group(ORG.id, "staff", 10, group)
    world.neighbours.registry.groups[-1].deleted = True
    async with asyncio.timeout(PATIENCE):
        while "Gone" not in (await refusal(world.admin.call("ExportPolicySet"))).body["message"]:
            await asyncio.sleep(0.05)
    refused = await refusal(world.admin.call("ExportPolicySet"))
    assert refused.reason == "NOT_EXPORTABLE"
    assert refused.body["message"] == (
        "Base has unpublished changes: publish or undo them; "
        "Gone is for a group that was deleted: change its targets"
    )
    device = new_device(world)
    async with asyncio.timeout(PATIENCE):
        while not (await world.admin.call("SimulatePolicy", policy_id=made.id)).devices:
            await asyncio.sleep(0.05)
    await world.admin.call(
        "CreatePolicy", org_id=str(ORG.id), name="Own", bundle={}, targets=for_devices(device.id)
    )
    refused = await refusal(apply(world, entry("own", {}, name="Own"), adopt=True))
    assert refused.reason == "POLICY_OF_DEVICES"


def named(*pairs: tuple[str, str]) -> list[policy_pb2.PolicySetVariable]:
    return [policy_pb2.PolicySetVariable(name=name, value=value) for name, value in pairs]


def steps(found: policy_pb2.ApplyPolicySetResponse) -> dict[str, str]:
    """What becomes of each variable."""
    return {one.name: one.action for one in found.variables}


TEMPLATE = {
    "template": {
        "browser": {"homepage": "https://{{var.host}}"},
        "network": {"wifi": [{**WIFI, "passphrase": "{{secret.wifi}}"}]},
    }
}


async def test_variables_of_a_set_are_planned_applied_and_pruned(world: World) -> None:
    """Its policies have new values at once; a plan writes nothing, nor does the same set again.

    What somebody changed since is put back, and what is named by a policy stays.
    """
    keeper = Keeper(world.channel, ORG.id)
    entries = [entry("base", TEMPLATE)]
    asked: dict[str, Any] = {"variables": named(("host", "one.example")), "secrets": ["wifi"]}
    missing = await refusal(apply(world, *entries, **asked))
    assert missing.fields == ["secrets[0]"]
    await keeper.put(ORG.id, "wifi", SECRET, secret=True)
    before = await rows(world)
    plan = await apply(world, *entries, **asked, validate_only=True)
    assert await rows(world) == before
    assert (steps(plan), actions(plan)) == ({"host": "CREATE"}, {"base": "CREATE!"})
    done = await apply(world, *entries, **asked, expected_plan_sha256=plan.plan_sha256)
    assert steps(done) == steps(plan)
    before = await rows(world)
    again = await apply(world, *entries, **asked)
    assert (steps(again), actions(again)) == ({"host": "UNCHANGED"}, {"base": "UNCHANGED"})
    assert await rows(world) == before
    asked["variables"] = named(("host", "two.example"))
    changed = await apply(world, *entries, **asked)
    assert (steps(changed), actions(changed)) == ({"host": "UPDATE"}, {"base": "UNCHANGED!"})
    (host,) = [v for v in (await keeper.variable("List")).variables if v.name == "host"]
    await keeper.variable("Update", id=host.id, value="by.hand")
    restored = await apply(world, *entries, **asked, validate_only=True)
    assert steps(restored) == {"host": "RESTORE"}
    assert restored.plan_sha256 != changed.plan_sha256
    await apply(world, *entries, **asked)
    left = await apply(world, *entries, secrets=["wifi"])
    assert steps(left) == {"host": "LEFT"}
    still = await refusal(apply(world, *entries, secrets=["wifi"], prune=True))
    assert still.reason == "VARIABLE_USED"
    pruned = await apply(world, entry("base", STAFF), prune=True)
    assert (steps(pruned), actions(pruned)) == ({"host": "DELETE"}, {"base": "UPDATE!"})
    assert [v.name for v in (await keeper.variable("List")).variables] == ["wifi"]
    assert SECRET not in json.dumps([str(one) for one in (plan, done, changed, restored, pruned)])


async def test_a_set_says_which_variables_tenants_below_may_have(world: World) -> None:
    """It counts with the policies that name it; who leaves it out closes it again."""
    district = Keeper(world.channel, RESELLER.id)
    opened = policy_pb2.PolicySetVariable(name="host", value="district.example", overridable=True)
    template = {"template": {"browser": {"homepage": "https://{{var.host}}"}}}
    school = Keeper(world.channel, ORG.id)
    await school.put(ORG.id, "host", "school.example")
    device = Seen(world, ORG.id)

    async def applied(*variables: policy_pb2.PolicySetVariable, **more: Any) -> Any:
        return await district.call(
            "ApplyPolicySet",
            org_id=str(RESELLER.id),
            name="fleet",
            policies=[entry("base", template)],
            variables=variables,
            **more,
        )

    closed = named(("host", "district.example"))
    await applied(*closed)
    assert (await device.gets())["browser"]["homepage"] == "https://district.example"
    plan = await applied(opened, validate_only=True)
    assert (steps(plan), actions(plan)) == ({"host": "UPDATE"}, {"base": "UNCHANGED!"})
    assert plan.variables[0].overridable
    await applied(opened, expected_plan_sha256=plan.plan_sha256)
    assert (await device.gets())["browser"]["homepage"] == "https://school.example"
    again = await applied(opened)
    assert (steps(again), actions(again)) == ({"host": "UNCHANGED"}, {"base": "UNCHANGED"})
    exported = await district.call("ExportPolicySet", org_id=str(RESELLER.id))
    assert [one.overridable for one in exported.variables] == [True]
    assert steps(await applied(*closed)) == {"host": "UPDATE"}
    assert (await device.gets())["browser"]["homepage"] == "https://district.example"


async def test_variables_of_nobody_and_of_other_sets_are_adopted(world: World) -> None:
    """Only if that was said; an export has them, and of secrets the names."""
    keeper = Keeper(world.channel, ORG.id)
    await keeper.put(ORG.id, "host", "one.example")
    await keeper.put(ORG.id, "wifi", SECRET, secret=True)
    asked: dict[str, Any] = {"variables": named(("host", "one.example"))}
    assert steps(await apply(world)) == {"host": "OTHER"}
    refused = await refusal(apply(world, **asked))
    assert refused.reason == "VARIABLE_NOT_ADOPTED"
    exported = await world.admin.call("ExportPolicySet", org_id=str(ORG.id))
    assert [(one.name, one.value) for one in exported.variables] == [("host", "one.example")]
    assert exported.secrets == ["wifi"]
    assert SECRET not in str(exported)
    assert steps(await apply(world, **asked, adopt=True)) == {"host": "ADOPT"}
    assert steps(await apply(world, **asked)) == {"host": "UNCHANGED"}
    refused = await refusal(apply(world, **asked, name="other"))
    assert refused.reason == "VARIABLE_OF_ANOTHER_SET"
    for bad, field in (
        (named(("wifi", "x")), "variables[0].name"),
        (named(("a", "x"), ("a", "y")), "variables[1].name"),
        (named(("a", "{{var.b}}")), "variables[0].value"),
    ):
        assert (await refusal(apply(world, variables=bad))).fields == [field]
