"""The released agent's rules in the service: refused, shown, withheld, and still delivered."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from evergreen.v1 import policy_pb2
from servicekit.data.postgres import Scope
from servicekit.ids import now
from servicekit.security.sealing import Sealer
from services.policy.authoring import store
from services.policy.authoring.document import parse_document
from services.policy.authoring.goencoding import encode_document
from services.policy.keys.service import PURPOSE, KeyRing
from services.policy.stamps.numbers import lock_counter
from services.policy.vault import PURPOSE as POLICY_SECRETS
from services.policy.vault import Vault
from services.policy.versions import Version
from tests.services.policy.authoring.test_console import as_json, opened, save
from tests.services.policy.delivery.test_delivery import internal
from tests.support.console_editor import Form
from tests.support.policy import ORG, Admin, Device, World, bundle_of, verified, world
from tests.support.refusals import refusal

__all__ = ["world"]

SOUND: dict[str, Any] = {"security": {"selinux_enforce": True, "usbguard": False}}
BAD: dict[str, Any] = {
    "updates": {"maintenance_windows": ["* 01:00-03:00", "whenever you like"]},
    "network": {
        "wifi": [
            {"ssid": "Class A", "security": "wpa2", "passphrase": "long enough"},
            {"ssid": "Class_A", "security": "wpa-psk", "passphrase": "long\n[enough]"},
        ]
    },
    "apps": {"required": [{"id": ""}]},
}
FAULTS = [
    "bundle.apps.required[0].id",
    "bundle.network.wifi[0].security",
    "bundle.network.wifi[1].passphrase",
    "bundle.network.wifi[1].ssid",
    "bundle.updates.maintenance_windows[1]",
]


async def stored_before(world: World, policy_id: str, authored: Any, document: Any) -> int:
    """Puts a version in force as a release without the rules did; answers its number."""
    kit = world.kit
    keys = KeyRing(kit.database, Sealer.from_file(kit.settings.master_key_file, PURPOSE), now)
    await keys.load()
    vault = Vault(Sealer.from_file(kit.settings.master_key_file, POLICY_SECRETS), seals=False)
    encoded, text = encode_document(parse_document(document)), json.dumps(authored)
    async with kit.database.transaction(Scope((ORG.id,))) as connection:
        policy = await store.get_policy(
            connection, vault, Scope((ORG.id,)), UUID(policy_id), for_update=True
        )
        assert policy is not None
        number = (await lock_counter(connection, ORG.id))[0] + 1
        statement = keys.signer.state(
            encoded, version=number, tenant=str(ORG.id), previous=None, issued_at=now()
        )
        version = Version(
            tenant_id=ORG.id,
            version=number,
            policy_id=policy.id,
            authored=text,
            document=encoded,
            signature=keys.signer.sign(encoded),
            statement=statement,
            rollback_of=None,
            published_at=now(),
            published_by="before",
        )
        await store.insert_version(connection, vault, version)
        await store.put_version_in_force(connection, vault, version)
        await connection.execute(
            "UPDATE policy.policies SET authored = $2, published_version = $3,"
            " changed_since_publish = false WHERE id = $1",
            policy.id,
            text,
            number,
        )
    return number


async def first_policy(world: World) -> bytes:
    """What a device that enrolls gets."""
    request = policy_pb2.GetDevicePolicyRequest(
        tenant_id=str(ORG.id), device_id=str(uuid4()), first=True
    )
    return bytes((await internal(world, "GetDevicePolicy", request)).envelope)


async def test_what_devices_cannot_apply_is_refused(world: World) -> None:
    """A create and an update name every field; nothing is stored."""
    refused = await refusal(world.admin.create(ORG.id, BAD))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(refused.fields) == FAULTS
    policy = await world.admin.create(ORG.id, SOUND)
    refused = await refusal(world.admin.call("UpdatePolicy", id=policy.id, bundle=BAD))
    assert sorted(refused.fields) == FAULTS
    assert bundle_of(await world.admin.call("GetPolicy", id=policy.id)) == SOUND


async def test_what_is_stored_already_is_told_and_not_published(world: World) -> None:
    """It is read with its warnings, cannot be published or gone back to, and works when mended."""
    policy = await world.admin.create(ORG.id, SOUND)
    bad = await stored_before(world, policy.id, BAD, BAD)
    for admin in (world.admin, Admin(world.channel, ORG.id, "Auditor")):
        read = await admin.call("GetPolicy", id=policy.id)
        blocking = [warning for warning in read.warnings if warning.blocks_publishing]
        assert sorted(warning.field for warning in blocking) == FAULTS
        assert all(warning.rule and warning.message for warning in read.warnings)
    renamed = await world.admin.call("UpdatePolicy", id=policy.id, name="Still editable")
    assert renamed.warnings == read.warnings
    for method, request in (
        ("PublishPolicy", {}),
        ("UpdatePolicy", {"description": "d", "signed": True}),
        ("RollbackPolicy", {"version": str(bad)}),
    ):
        refused = await refusal(world.admin.call(method, id=policy.id, **request))
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION, method
        assert sorted(refused.fields) == FAULTS
    mended = await world.admin.call("UpdatePolicy", id=policy.id, bundle=SOUND, signed=True)
    assert (mended.version, list(mended.warnings)) == (str(bad + 1), [])


async def test_what_is_in_force_goes_on_being_delivered(world: World) -> None:
    """A device has it as before; one that enrolls is not ended by it, and gets it by its polls."""
    policy = await world.admin.published(ORG.id, SOUND)
    assert json.loads(await first_policy(world))["version"] == "1"
    bad = await stored_before(world, policy.id, BAD, BAD)
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    while (answer := await device.pull("1")).status_code == 304:
        pass
    assert verified(await world.pem(), answer)["version"] == str(bad)
    assert await first_policy(world) == b""
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=SOUND, signed=True)
    assert json.loads(await first_policy(world))["version"] == str(bad + 1)
    # Only what ends the agent is withheld: it applies all else and stays reachable.
    odd = {"network": {"wifi": [{"ssid": "x", "security": "wpa2"}]}}
    odd_version = await stored_before(world, policy.id, odd, odd)
    while (await device.pull(str(bad + 1))).status_code == 304:
        pass
    assert json.loads(await first_policy(world))["version"] == str(odd_version)


async def test_the_console_form_never_weakens(world: World) -> None:
    """What is published has the baseline, and USBGuard as it was in force."""
    guarded = {"security": {"usbguard": True, "usbguard_rules": ["allow id 1d6b:*"]}}
    await world.admin.published(ORG.id, guarded)
    policy = await world.admin.create(ORG.id, {"configuration": {}})
    for _ in range(2):
        policy = await world.admin.call("PublishPolicy", id=policy.id)
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    assert (await device.pull()).json()["policy"]["security"] == {
        "selinux_enforce": True,
        "ssh_enabled": False,
        "usbguard": True,
        "usbguard_rules": ["allow id 1d6b:*"],
        "allow_root_login": False,
    }
    again = await world.admin.call("UpdatePolicy", id=policy.id, signed=True)
    assert again.version == policy.version


async def test_a_form_that_weakened_before_is_compiled_anew(world: World) -> None:
    """A save with `signed`, and a rollback, of a version from before bring the baseline."""
    form = {"configuration": {"updateChannel": "beta"}}
    policy = await world.admin.create(ORG.id, form)
    before = await stored_before(world, policy.id, form, {"updates": {"channel": "beta"}})
    saved = await world.admin.call("UpdatePolicy", id=policy.id, bundle=form, signed=True)
    back = await world.admin.call("RollbackPolicy", id=policy.id, version=str(before))
    assert (saved.version, back.version) == (str(before + 1), str(before + 2))
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    document = (await device.pull()).json()["policy"]
    assert (document["updates"]["channel"], document["security"]["selinux_enforce"]) == (
        "beta",
        True,
    )


async def test_a_network_of_the_console_needs_a_passphrase(world: World) -> None:
    """A draft is kept and told; published it is refused with what to do; given once, it stays."""
    form = Form(name="Lab", org_id=str(ORG.id))
    field = "bundle.configuration.network.wifiNetworks[0].passphrase"
    draft = await save(world.admin, form)
    (warning,) = [found for found in draft["warnings"] if found["blocksPublishing"]]
    assert (warning["field"], warning["rule"]) == (field, "wifi-passphrase")
    form = await opened(world.admin, draft["id"])
    form.signed = True
    body = form.body(draft["id"])
    refused = await refusal(
        world.admin.call("UpdatePolicy", id=draft["id"], bundle=body["bundle"], signed=True)
    )
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert "passphrase" in refused.body["error"]
    refused = await refusal(world.admin.call("PublishPolicy", id=draft["id"]))
    assert (refused.code, refused.fields) == (grpc.StatusCode.FAILED_PRECONDITION, [field])
    # Once, by a call that has a field for it.
    network = body["bundle"]["configuration"]["network"]["wifiNetworks"][0]
    network["passphrase"] = "a passphrase"
    given = await world.admin.call("UpdatePolicy", id=draft["id"], bundle=body["bundle"])
    assert bundle_of(given)["configuration"]["network"]["wifiNetworks"][0]["passphrase"] == (
        "[masked]"
    )
    published = await save(world.admin, form, draft["id"])
    assert (published["signed"], published["version"]) == (True, "1")
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    document = (await device.pull()).json()["policy"]
    assert document["network"]["wifi"] == [
        {
            "ssid": "EvergreenNet",
            "passphrase": "a passphrase",
            "security": "wpa-psk",
            "hidden": False,
            "metered": False,
            "eap": None,
        }
    ]
    assert [app["id"] for app in document["apps"]["required"]] == ["com.google.Chrome"]
    assert "a passphrase" not in json.dumps(await world.events())
    # The last release, which knows no such field, finds the form without it.
    connection = await world.database.superuser()
    for table in ("policies", "versions"):
        texts = await connection.fetch(f"SELECT authored FROM policy.{table}")
        assert texts
        assert not any("passphrase" in row["authored"] for row in texts)
        assert not any("signature" in row["authored"] for row in texts)
    await connection.close()
    # Another save, and another policy for the same network, need it no more.
    form = await opened(world.admin, draft["id"])
    form.homepage_url = "https://lab.example"
    assert (await save(world.admin, form, draft["id"]))["version"] == "2"
    other = await save(world.admin, Form(name="B", org_id=str(ORG.id), signed=True))
    assert (other["signed"], other["version"]) == (True, "3")
    assert (await device.pull()).json()["policy"]["network"] == document["network"]


async def test_a_passphrase_is_taken_away_on_purpose_only(world: World) -> None:
    """An empty one is a change, and another name has none."""
    networks = [{"ssid": "A", "security": "wpa3", "passphrase": "a passphrase"}]
    form: dict[str, Any] = {"configuration": {"network": {"wifiNetworks": networks}}}
    policy = await world.admin.create(ORG.id, form)
    for change in ({"passphrase": ""}, {"ssid": "B", "passphrase": None}):
        network = {key: text for key, text in (networks[0] | change).items() if text is not None}
        changed: dict[str, Any] = {"configuration": {"network": {"wifiNetworks": [network]}}}
        answer = as_json(await world.admin.call("UpdatePolicy", id=policy.id, bundle=changed))
        assert answer["bundle"] == changed
        assert [found["rule"] for found in answer["warnings"]] == ["wifi-passphrase"]


@pytest.mark.parametrize(
    ("networks", "field"),
    [
        ([{"ssid": "a\nb"}], "[0].ssid"),
        ([{"ssid": "a b"}, {"ssid": "a_b"}], "[1].ssid"),
        ([{"ssid": "a"}, {"ssid": "a"}], "[1].ssid"),
        ([{"ssid": ""}], "[0].ssid"),
        ([{"ssid": "a", "security": "wep"}], "[0].security"),
        ([{"ssid": "a", "passphrase": "a\rb"}], "[0].passphrase"),
    ],
)
async def test_a_draft_of_the_form_keeps_the_rules(
    world: World, networks: list[Any], field: str
) -> None:
    """What the form does have a field for is checked at once, by the form's own paths."""
    form = {"configuration": {"network": {"wifiNetworks": networks}}}
    refused = await refusal(world.admin.create(ORG.id, form))
    assert refused.fields == [f"bundle.configuration.network.wifiNetworks{field}"]
