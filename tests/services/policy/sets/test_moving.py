"""Secrets that stand in policies get names: files of a set say everything, and a plan of them is
empty."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf import json_format

from evergreen.v1 import policy_pb2
from tests.services.policy.variables.test_variables import Keeper
from tests.support.policy import (
    ORG,
    RESELLER,
    SISTER,
    Admin,
    Device,
    World,
    bundle_of,
    verified,
    world,
)
from tests.support.refusals import refusal

__all__ = ["world"]

HOME = "the passphrase at home"
EAP = "the password of the radius"
FORM: dict[str, Any] = {
    "configuration": {
        "updateChannel": "beta",
        "network": {
            "wifiNetworks": [{"ssid": "Linden Pupils", "security": "wpa2", "passphrase": HOME}]
        },
    }
}
DOCUMENT: dict[str, Any] = {
    "network": {
        "wifi": [
            {"ssid": "Open", "security": "none"},
            {"ssid": "Linden Pupils", "security": "wpa-psk", "passphrase": HOME},
            {
                "ssid": "Staff",
                "security": "wpa-eap",
                "eap": {"eap": "peap", "identity": "laptop", "password": EAP},
            },
        ]
    }
}
SECRETS = [
    "wifi-linden-pupils",
    "wifi-staff-eap-eap",
    "wifi-staff-eap-identity",
    "wifi-staff-eap-password",
]


async def _got(world: World) -> tuple[str, dict[str, Any]]:
    answer = await Device(world.kit, world.channel, uuid4(), ORG.id).pull()
    verified(await world.pem(), answer)
    got = answer.json()
    return got["version"], got["policy"]


async def _move(world: World, admin: Admin | None = None, **asked: Any) -> Any:
    return await (admin or world.admin).call("MovePolicySecrets", org_id=str(ORG.id), **asked)


def _entries(exported: Any) -> list[policy_pb2.PolicySetEntry]:
    entries = []
    for one in exported.policies:
        entry = policy_pb2.PolicySetEntry(
            alias=one.alias, name=one.name, description=one.description, draft=one.draft
        )
        entry.bundle.CopyFrom(one.bundle)
        entries.append(entry)
    return entries


async def test_secrets_get_names_and_a_plan_of_the_export_is_empty(world: World) -> None:
    """Of the console's form and of documents, in force and drafts. Devices get what they had, and
    no answer has a secret. Once more does nothing."""
    form = await world.admin.published(ORG.id, FORM)
    await world.admin.create(ORG.id, DOCUMENT, "Draft")
    before, policy = await _got(world)
    planned = await _move(world, validate_only=True)
    assert (sorted(planned.secrets), planned.moved) == (SECRETS, False)
    assert (await world.admin.call("GetPolicy", id=form.id)).etag == form.etag
    moved = await _move(world)
    assert sorted(moved.secrets) == SECRETS
    assert [(one.name, one.published) for one in moved.policies] == [
        ("Policy", True),
        ("Draft", False),
    ]
    after, same = await _got(world)
    assert same == policy
    assert int(after) > int(before)
    shown = bundle_of(await world.admin.call("GetPolicy", id=form.id))
    (network,) = shown["template"]["configuration"]["network"]["wifiNetworks"]
    assert network["passphrase"] == "{{secret.wifi-linden-pupils}}"
    exported = await world.admin.call("ExportPolicySet")
    told = json_format.MessageToJson(exported) + json.dumps(await world.events())
    assert "[masked]" not in told
    assert HOME not in told
    assert EAP not in told
    plan = await world.admin.call(
        "ApplyPolicySet",
        org_id=str(ORG.id),
        name="school",
        adopt=True,
        policies=_entries(exported),
        secrets=list(exported.secrets),
        validate_only=True,
    )
    assert {(one.action, one.publishes) for one in plan.policies} == {("ADOPT", False)}
    events = await world.events()
    again = await _move(world)
    assert (list(again.secrets), list(again.policies)) == ([], [])
    assert await world.events() == events


async def test_what_cannot_be_moved_moves_nothing(world: World) -> None:
    """Unpublished changes, braces, and what is another tenant's."""
    form = await world.admin.published(ORG.id, FORM)
    other = await world.admin.create(ORG.id, DOCUMENT, "Other")
    for bundle in (
        {**DOCUMENT, "browser": {"homepage": "https://x.example/{{y}}"}},
        {"network": {"wifi": [{"ssid": "A", "security": "wpa-psk", "passphrase": "with {{ it"}]}},
    ):
        await world.admin.call("UpdatePolicy", id=other.id, bundle=bundle)
        refused = await refusal(_move(world))
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        assert "with {{ it" not in json.dumps(refused.body)
        assert not (await world.admin.call("ExportPolicySet", org_id=str(ORG.id))).secrets
    await world.admin.call("DeletePolicy", id=other.id)
    changed = {"configuration": {**FORM["configuration"], "updateChannel": "stable"}}
    await world.admin.call("UpdatePolicy", id=form.id, bundle=changed)
    assert (await refusal(_move(world))).reason == "NOT_EXPORTABLE"
    stranger = Admin(world.channel, SISTER.id)
    assert (await refusal(_move(world, stranger))).code is grpc.StatusCode.NOT_FOUND
    auditor = Admin(world.channel, ORG.id, "Auditor")
    assert (await refusal(_move(world, auditor))).code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_template_of_the_consoles_form_hides_its_secrets(world: World) -> None:
    """Those without a name are masked as in the form itself, and stay where they are masked."""
    made = await world.admin.create(ORG.id, {"template": FORM})
    shown = bundle_of(made)
    (network,) = shown["template"]["configuration"]["network"]["wifiNetworks"]
    assert network["passphrase"] == "[masked]"
    auditor = Admin(world.channel, ORG.id, "Auditor")
    assert HOME not in str(await auditor.call("GetPolicy", id=made.id))
    assert HOME not in json.dumps(await world.events())
    await world.admin.call("UpdatePolicy", id=made.id, bundle=shown, signed=True)
    _, policy = await _got(world)
    assert policy["network"]["wifi"][0]["passphrase"] == HOME


async def test_no_name_is_one_that_a_template_above_leaves_open(world: World) -> None:
    """There it would be a value of the school's own, which devices did not have before."""
    district = Keeper(world.channel, RESELLER.id)
    name = "wifi-linden-pupils"
    for open_ in (name, f"{name}-2"):
        await district.variable(
            "Create",
            org_id=str(RESELLER.id),
            name=open_,
            value="the passphrase of the district",
            secret=True,
            overridable=True,
        )
    networks = [
        {"ssid": ssid, "security": "wpa-psk", "passphrase": f"{{{{secret.{one}}}}}"}
        for ssid, one in (("Linden-Pupils", name), ("Other", f"{name}-2"))
    ]
    await district.published(RESELLER.id, {"template": {"network": {"wifi": networks}}})
    await world.admin.published(ORG.id, FORM)
    before, policy = await _got(world)
    moved = await _move(world)
    assert list(moved.secrets) == [f"{name}-3"]
    after, same = await _got(world)
    assert same == policy
    assert int(after) > int(before)
