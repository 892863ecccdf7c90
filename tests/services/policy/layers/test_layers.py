"""Policies of tenants above an organisation, and what its devices get of all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from prometheus_client import REGISTRY

from evergreen.v1 import policy_pb2
from servicekit.rpc.values import from_value
from services.policy.authoring.document import MAX_DOCUMENT, parse_document
from services.policy.authoring.goencoding import encode_document
from tests.conftest import tenant
from tests.support.policy import (
    ORG,
    RESELLER,
    ROOT,
    SISTER,
    STRANGER,
    Admin,
    Device,
    World,
    verified,
    world,
)
from tests.support.refusals import refusal
from tests.support.stack import PATIENCE

__all__ = ["world"]

SECRET = "the district's own passphrase"
DISTRICT = {"ssid": "District", "passphrase": SECRET, "security": "wpa-psk"}
SCHOOL = {"ssid": "School", "passphrase": "the school's passphrase", "security": "wpa-psk"}
HARD = {"selinux_enforce": True, "ssh_enabled": False}


def new_device(world: World, org: UUID = ORG.id) -> Device:
    return Device(world.kit, world.channel, uuid4(), org)


async def delivered(world: World, device: Device, version: str = "") -> dict[str, Any]:
    """What a device gets above a version, a moment later."""
    async with asyncio.timeout(PATIENCE):
        while (answer := await device.pull(version)).status_code == 304:
            await asyncio.sleep(0.05)
    verified(await world.pem(), answer)
    found: dict[str, Any] = answer.json()
    return found


async def settled(world: World, org: UUID, state: str = "CURRENT") -> policy_pb2.EffectivePolicy:
    """What an organisation's devices are to have, once it is put together."""
    admin = Admin(world.channel, org, "Auditor")
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await admin.call("GetLayeredPolicy")
            if found.state == state:
                return found
            await asyncio.sleep(0.05)


def ssids(envelope: dict[str, Any]) -> list[str]:
    return [network["ssid"] for network in envelope["policy"]["network"]["wifi"] or ()]


async def test_what_a_district_publishes_reaches_its_schools(world: World) -> None:
    """Also those without a policy of their own, which share the document; and no others."""
    district = Admin(world.channel, RESELLER.id)
    policy = await district.published(
        RESELLER.id, {"network": {"wifi": [DISTRICT]}, "security": HARD}
    )
    assert (policy.version, policy.in_force) == ("1", True)
    first = await delivered(world, new_device(world))
    assert (first["version"], ssids(first)) == ("1", ["District"])
    assert ssids(await delivered(world, new_device(world, SISTER.id))) == ["District"]
    assert (await new_device(world, STRANGER.id).pull()).status_code == 304
    connection = await world.database.superuser()
    count = "SELECT count(*) FROM policy.documents"
    assert await connection.fetchval(count) == 1
    # A school adds its network, by one publish under one number.
    mine = await world.admin.published(ORG.id, {"network": {"wifi": [SCHOOL]}})
    assert mine.version == "2"
    device = new_device(world)
    second = await delivered(world, device, "1")
    assert (second["version"], ssids(second)) == ("2", ["District", "School"])
    assert second["policy"]["security"]["selinux_enforce"] is True
    assert (await device.pull("2")).status_code == 304
    # What changes above reaches it, too, and only those for whom it changes something.
    await district.call(
        "UpdatePolicy", id=policy.id, bundle={"updates": {"channel": "beta"}}, signed=True
    )
    third = await delivered(world, device, "2")
    assert (third["version"], ssids(third)) == ("3", ["School"])
    assert third["policy"]["updates"]["channel"] == "beta"
    await settled(world, SISTER.id)
    await district.call("PublishPolicy", id=policy.id)
    await settled(world, ORG.id)
    assert (await device.pull("3")).status_code == 304
    # Withdrawn, the school's own is left; and withdrawn that as well, nothing.
    await district.call("WithdrawPolicy", id=policy.id)
    fourth = await delivered(world, device, "3")
    assert fourth["policy"]["updates"]["channel"] == ""
    await world.admin.call("WithdrawPolicy", id=mine.id)
    assert (await settled(world, ORG.id, "NONE")).wanted_version == ""
    assert (await new_device(world).pull()).status_code == 304
    await connection.close()


async def test_locks_and_sources_are_explained(world: World) -> None:
    """A school's value for a locked field is kept and ignored; every value says whose it is."""
    root, district = Admin(world.channel, ROOT.id), Admin(world.channel, RESELLER.id)
    await root.published(ROOT.id, {"security": HARD, "browser": {"homepage": "https://root"}})
    base = await district.create(RESELLER.id, {"security": {"usbguard": False}}, "Base")
    locked = policy_pb2.PolicyMergingChange(locked_fields=["security"])
    await district.call("UpdatePolicy", id=base.id, merging=locked, signed=True)
    own = {"security": {"selinux_enforce": False}, "browser": {"homepage": "https://school"}}
    policy = await world.admin.published(ORG.id, own)
    device = new_device(world)
    envelope = await delivered(world, device)
    assert envelope["policy"]["security"]["selinux_enforce"] is True
    assert envelope["policy"]["browser"]["homepage"] == "https://school"
    found = await settled(world, ORG.id)
    assert [(one.level, one.policy_name) for one in found.layers] == [
        ("ROOT", "Policy"),
        ("RESELLER", "Base"),
        ("ORG", "Policy"),
    ]
    fields = {one.path: one for one in found.fields}
    selinux = fields["security.selinux_enforce"]
    assert (selinux.how, selinux.source.level) == ("LOCKED", "ROOT")
    (lost,) = selinux.overridden
    assert (lost.source.level, lost.reason) == ("ORG", "LOCKED_ABOVE")
    homepage = fields["browser.homepage"]
    assert (homepage.how, homepage.source.level) == ("MERGED", "ORG")
    assert homepage.overridden[0].reason == "LOWER_PRIORITY"
    assert (fields["updates.channel"].how, fields["updates.channel"].HasField("source")) == (
        "DEFAULT",
        False,
    )
    # A device's view says whether it has it.
    world.neighbours.registry.add(UUID(str(device.id)), ORG.id)
    has = envelope["version"]
    await device.pull(has)
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                mine = await world.admin.call("GetEffectivePolicy", id=str(device.id))
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
                continue
            if mine.state == "CURRENT":
                break
            await asyncio.sleep(0.05)
    assert (mine.applied_version, mine.wanted_version) == (has, has)
    assert mine.fields == found.fields
    refused = await refusal(
        Admin(world.channel, SISTER.id).call("GetEffectivePolicy", id=str(device.id))
    )
    assert refused.code is grpc.StatusCode.NOT_FOUND
    alone = policy_pb2.PolicyMergingChange(inherit=False)
    await world.admin.call("UpdatePolicy", id=policy.id, merging=alone, signed=True)
    shown = await world.admin.call("GetPolicy", id=policy.id)
    assert (shown.merging.inherit, list(shown.merging.locked_fields)) == (False, [])
    envelope = await delivered(world, device, has)
    assert envelope["policy"]["security"]["selinux_enforce"] is True
    back = await world.admin.call("RollbackPolicy", id=policy.id, version=has)
    assert not back.HasField("merging")


async def test_no_school_sees_its_districts_secrets(world: World) -> None:
    """By no answer, digest, difference, error, event or export."""
    district = Admin(world.channel, RESELLER.id)
    await district.published(RESELLER.id, {"network": {"wifi": [DISTRICT]}})
    policy = await world.admin.published(ORG.id, {"network": {"wifi": [SCHOOL]}})
    changed = await world.admin.call(
        "UpdatePolicy", id=policy.id, bundle={"updates": {"channel": "beta"}}, signed=True
    )
    said = [
        await settled(world, ORG.id),
        await world.admin.call("GetPolicy", id=policy.id, reveal_secrets=True),
        await world.admin.call("ListPolicies"),
        await world.admin.call("ListPolicyVersions", policy_id=policy.id),
        await world.admin.call("DiffPolicyVersions", policy_id=policy.id, version=changed.version),
        await world.admin.call("RollbackPolicy", id=policy.id, version=policy.version),
    ]
    shown = [json.dumps(MessageToDict(one)) for one in said]
    assert not any(SECRET in one for one in shown)
    assert not any("District" in one for one in shown[1:])
    assert not any(version.document_sha256 for version in said[3].versions)
    wifi = next(one for one in said[0].fields if one.item_key == "District")
    assert from_value(wifi.value)["passphrase"] == "[redacted]"
    assert SECRET not in json.dumps(await world.events())
    # The word for a stored secret stands for the school's own alone.
    refused = await refusal(
        world.admin.create(ORG.id, {"network": {"wifi": [{**DISTRICT, "passphrase": "[masked]"}]}})
    )
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    # And a form of the console does not take it over by naming the network.
    form = {"configuration": {"network": {"wifiNetworks": [{"ssid": "District"}]}}}
    made = await world.admin.create(ORG.id, form)
    refused = await refusal(world.admin.call("PublishPolicy", id=made.id))
    assert SECRET not in json.dumps(refused.body)
    # The policies of a tenant above are not there.
    above = await district.call("ListPolicies", org_id=str(RESELLER.id))
    theirs = next(one for one in above.policies if one.org_id == str(RESELLER.id))
    for method in ("GetPolicy", "PublishPolicy", "WithdrawPolicy", "DeletePolicy"):
        refused = await refusal(world.admin.call(method, id=theirs.id))
        assert refused.code is grpc.StatusCode.NOT_FOUND
    refused = await refusal(world.admin.create(RESELLER.id, {}))
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_the_consoles_form_takes_its_baseline_from_above(world: World) -> None:
    """The form has no switch for security; a root's policy says it, and else the baseline does."""
    form = {"configuration": {"updateChannel": "stable"}}
    await world.admin.published(ORG.id, form)
    before = await delivered(world, new_device(world))
    assert before["policy"]["security"]["selinux_enforce"] is True
    root = Admin(world.channel, ROOT.id)
    rules = {"usbguard": True, "usbguard_rules": ["allow id 1d6b:0002"], "selinux_enforce": True}
    await root.published(ROOT.id, {"security": rules, "updates": {"channel": "beta"}})
    after = await delivered(world, new_device(world), before["version"])
    assert after["policy"]["security"]["usbguard"] is True
    assert after["policy"]["updates"]["channel"] == "stable"
    fields = {one.path: one for one in (await settled(world, ORG.id)).fields}
    assert fields["security.ssh_enabled"].source.level == "BASELINE"
    assert fields["security.usbguard"].source.level == "ROOT"
    again = await world.admin.published(ORG.id, form)
    last = await delivered(world, new_device(world), after["version"])
    assert (last["version"], last["policy"]) == (again.version, after["policy"])


async def test_layers_that_do_not_fit_are_held(world: World) -> None:
    """A school whose document would be too large keeps what it had; the others go on."""
    long = {"usbguard_rules": [f"allow {number} {'x' * 8000}" for number in range(40)]}
    apps = {"required": [{"id": f"org.a.B{n}", "source": "x" * 4000} for n in range(60)]}
    await world.admin.published(ORG.id, {"security": long})
    before = await delivered(world, new_device(world))
    district = Admin(world.channel, RESELLER.id)
    await district.published(RESELLER.id, {"apps": apps})
    assert (await delivered(world, new_device(world, SISTER.id)))["policy"]["apps"]["required"]
    held = await settled(world, ORG.id, "HELD")
    assert held.state_reason.endswith(f"more than {MAX_DOCUMENT} bytes")
    device = new_device(world)
    assert (await device.pull(before["version"])).status_code == 304
    assert await gauge("evergreen_policy_editions_held", 1)
    # It does not escape what is locked above by saying too much.
    root = Admin(world.channel, ROOT.id)
    lock = await root.create(ROOT.id, {"security": {"selinux_enforce": True}})
    locks = policy_pb2.PolicyMergingChange(locked_fields=["security.selinux_enforce"])
    await root.call("UpdatePolicy", id=lock.id, merging=locks, signed=True)
    after = await delivered(world, device, before["version"])
    mine = before["policy"]
    mine["security"]["selinux_enforce"] = True
    assert after["policy"] == mine
    assert (await settled(world, ORG.id, "HELD")).wanted_version == after["version"]
    await root.call("WithdrawPolicy", id=lock.id)
    refused = await refusal(world.admin.published(ORG.id, {"security": long}))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "LAYERS_DO_NOT_FIT",
    )


async def test_the_same_update_publishes_nothing(world: World) -> None:
    """Also where a list has something twice, which layers together do not."""
    await Admin(world.channel, RESELLER.id).published(RESELLER.id, {"updates": {"channel": "beta"}})
    twice = {"browser": {"extensions": ["a", "a"]}}
    policy = await world.admin.published(ORG.id, twice)
    again = await world.admin.call("UpdatePolicy", id=policy.id, bundle=twice, signed=True)
    assert (again.version, again.signed) == (policy.version, True)


async def gauge(name: str, value: float) -> bool:
    """Whether a metric comes to a value."""
    async with asyncio.timeout(PATIENCE):
        while REGISTRY.get_sample_value(name) != value:
            await asyncio.sleep(0.05)
    return True


@asynccontextmanager
async def nothing_is_made(world: World) -> AsyncIterator[Any]:
    """While this holds, no process puts layers together; yields a superuser's connection."""
    connection = await world.database.superuser()
    await connection.execute("SET evergreen.scope = '*'")
    await connection.execute("SELECT pg_advisory_lock(hashtext('policy:editions'))")
    try:
        yield connection
    finally:
        await connection.close()


async def test_a_form_that_inherits_nothing_leaves_selinux_on(world: World) -> None:
    """Its baseline is its own, not one of the policies above that do not count."""
    root = Admin(world.channel, ROOT.id)
    await root.published(ROOT.id, {"security": {"selinux_enforce": False, "ssh_enabled": True}})
    alone = policy_pb2.PolicyMergingChange(inherit=False)
    form = await world.admin.create(ORG.id, {"configuration": {"updateChannel": "stable"}})
    await world.admin.call("UpdatePolicy", id=form.id, merging=alone, signed=True)
    envelope = await delivered(world, new_device(world))
    assert envelope["policy"]["security"] == {
        "selinux_enforce": True,
        "ssh_enabled": False,
        "usbguard": False,
        "usbguard_rules": None,
        "allow_root_login": False,
    }


async def test_nothing_is_put_together_without_all_tenants_above(world: World) -> None:
    """An organisation whose reseller is not known yet waits, and stops no other one."""
    lost = tenant(77, tenant(78, ROOT, "reseller"))
    world.kit.tenants.learn([lost])
    refused = await refusal(Admin(world.channel, lost.id).published(lost.id, {}))
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    connection = await world.database.superuser()
    await connection.execute("SET evergreen.scope = '*'")
    await connection.execute(
        "INSERT INTO policy.editions (tenant_id, recipe) VALUES ($1, '')", lost.id
    )
    async with asyncio.timeout(PATIENCE):
        while not REGISTRY.get_sample_value("evergreen_policy_editions_waiting"):
            await asyncio.sleep(0.05)
    await Admin(world.channel, ROOT.id).published(ROOT.id, {"updates": {"channel": "beta"}})
    for org in (ORG.id, STRANGER.id):
        device = new_device(world, org)
        assert (await delivered(world, device))["policy"]["updates"]["channel"] == "beta"
    recipe = "SELECT recipe FROM policy.editions WHERE tenant_id = $1"
    assert await connection.fetchval(recipe, lost.id) == ""
    await connection.close()


PUBLISHED_BEFORE = """
    WITH number AS (
        UPDATE policy.version_counters SET last_version = last_version + 1
            WHERE tenant_id = $1 RETURNING last_version
    ), version AS (
        INSERT INTO policy.versions (tenant_id, version, policy_id, authored, document, signature,
            statement_payload, statement_signature, key_id, published_at, published_by)
        SELECT v.tenant_id, n.last_version, v.policy_id, '{}', $2, v.signature,
            v.statement_payload, v.statement_signature, v.key_id, now(), ''
        FROM policy.versions v, number n WHERE v.tenant_id = $1 ORDER BY v.version DESC LIMIT 1
        RETURNING version
    ) SELECT version FROM version
"""
DRAWN_BEFORE = """
    INSERT INTO policy.stamps (tenant_id, version, document_tenant, digest, key_id,
        statement_head, statement_signature, cause, stamped_at)
    SELECT tenant_id, $2, document_tenant, digest, key_id, statement_head, statement_signature,
        'draw', now() FROM policy.stamps WHERE tenant_id = $1 AND version = $3
"""


async def test_the_release_before_takes_no_lock_from_devices(world: World) -> None:
    """What it publishes is folded before it is delivered, and it draws nothing else."""
    district = Admin(world.channel, RESELLER.id)
    mine = await world.admin.published(ORG.id, {"network": {"wifi": [SCHOOL]}})
    theirs = await district.create(RESELLER.id, {"security": HARD})
    locks = policy_pb2.PolicyMergingChange(locked_fields=["security"])
    await district.call("UpdatePolicy", id=theirs.id, merging=locks, signed=True)
    device = new_device(world)
    first = await delivered(world, device, mine.version)
    old = encode_document(parse_document({"security": {"selinux_enforce": False}}))
    async with nothing_is_made(world) as connection:
        async with connection.transaction():
            number = await connection.fetchval(PUBLISHED_BEFORE, ORG.id, old)
            await connection.execute(
                "UPDATE policy.assignments SET version = $2, changed_xid = pg_current_xact_id()"
                " WHERE tenant_id = $1",
                ORG.id,
                number,
            )
        async with asyncio.timeout(PATIENCE):
            while (await settled(world, ORG.id, "PENDING")).wanted_version:
                await asyncio.sleep(0.05)
        assert (await device.pull(first["version"])).status_code == 304
        assert (await device.pull()).status_code == 304
        with pytest.raises(asyncpg.LockNotAvailableError):
            await drawn_before(connection, number + 1, number)
    after = await delivered(world, device, first["version"])
    assert after["policy"]["security"]["selinux_enforce"] is True
    assert int(after["version"]) == number + 1
    connection = await world.database.superuser()
    await connection.execute("SET evergreen.scope = '*'")
    with pytest.raises(asyncpg.LockNotAvailableError):
        await drawn_before(connection, number + 2, number)
    await drawn_before(connection, number + 2, number + 1)
    # A restore brings back what there was.
    await connection.execute(DRAWN_BEFORE, ORG.id, number + 3, number)
    await connection.close()


async def drawn_before(connection: Any, version: int, like: int) -> None:
    """A draw by the statement of 0.2.0 and its role."""
    async with connection.transaction():
        await connection.execute("SET LOCAL ROLE evergreen_policy; SET LOCAL evergreen.scope = '*'")
        await connection.execute(DRAWN_BEFORE, ORG.id, version, like)


@pytest.mark.parametrize(
    ("merging", "field"),
    [
        ({"locked_fields": ["nothing"]}, "merging.lockedFields[0]"),
        ({"replaced_fields": ["updates.channel"]}, "merging.replacedFields[0]"),
        ({"removed_items": {"security": ["x"]}}, "merging.removedItems.security"),
        ({"removed_items": {"network.wifi": [1]}}, 'merging.removedItems["network.wifi"]'),
        ({"locked_fields": ["updates", "updates"]}, "merging.lockedFields[1]"),
        (
            {"removed_items": {"network.wifi": ["a", "a"]}},
            'merging.removedItems["network.wifi"][1]',
        ),
        (
            {"removed_items": {"apps.required": [str(n) for n in range(1001)]}},
            'merging.removedItems["apps.required"]',
        ),
        (
            {"removed_items": {"apps.required": [f"{n} {'x' * 8000}" for n in range(15)]}},
            "merging",
        ),
    ],
)
async def test_merging_names_what_there_is(
    world: World, merging: dict[str, Any], field: str
) -> None:
    """A path that is none is refused by its place."""
    removed = merging.pop("removed_items", {})
    change = policy_pb2.PolicyMergingChange(**merging)
    for path, names in removed.items():
        change.removed_items[path].extend(names)
    refused = await refusal(
        world.admin.call("CreatePolicy", org_id=str(ORG.id), name="x", bundle={}, merging=change)
    )
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.body["message"].startswith(f"{field}: ")


async def test_what_is_inherited_again_is_drawn_above_a_schools_own(world: World) -> None:
    """The document is the district's; who has it under an older number is left alone."""
    await Admin(world.channel, RESELLER.id).published(
        RESELLER.id, {"network": {"wifi": [DISTRICT]}}
    )
    stays, device = new_device(world), new_device(world)
    assert (await delivered(world, device))["version"] == "1"
    mine = await world.admin.published(ORG.id, {"network": {"wifi": [SCHOOL]}})
    assert (await delivered(world, device, "1"))["version"] == "2"
    await world.admin.call("WithdrawPolicy", id=mine.id)
    again = await delivered(world, device, "2")
    assert (again["version"], ssids(again)) == ("3", ["District"])
    for has in ("1", "3"):
        assert (await stays.pull(has)).status_code == 304
    # The next number's statement follows the drawn one.
    await world.admin.call("PublishPolicy", id=mine.id)
    last = await new_device(world).pull_grpc("3")
    payload = json.loads(last.statement.payload)
    assert (last.version, bool(payload["previous"])) == ("4", True)
    orphans = await world.admin.call("ListOrphanedDevices")
    assert orphans.total_size == 0
