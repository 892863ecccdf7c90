"""Secrets of policies: hidden from readers, kept when they come back, real for devices."""

from __future__ import annotations

import copy
import json
from typing import Any
from uuid import uuid4

import grpc
import pytest

from tests.support.policy import ORG, STRANGER, Admin, Device, World, bundle_of, verified, world
from tests.support.refusals import refusal

__all__ = ["world"]

SECRET = "the secret of the school"
DOCUMENT: dict[str, Any] = {
    "network": {
        "wifi": [
            {"ssid": "Staff", "security": "wpa-psk", "passphrase": SECRET + " 1"},
            {"ssid": "Pupils", "security": "wpa-psk", "passphrase": SECRET + " 2"},
            {
                "ssid": "Office",
                "security": "wpa-eap",
                "eap": {"identity": SECRET + " 3", "password": SECRET + " 4", "empty": ""},
            },
            {"ssid": "Guests", "security": "none", "passphrase": ""},
        ],
        "vpns": [
            {"name": "Home", "data": {"remote": SECRET + " 5"}, "secrets": {"key": SECRET + " 6"}}
        ],
    },
    "security": {"selinux_enforce": True, "usbguard": False},
}


def hidden(word: str) -> dict[str, Any]:
    """The document as its readers see it."""
    shown = copy.deepcopy(DOCUMENT)
    wifi, (vpn,) = shown["network"]["wifi"], shown["network"]["vpns"]
    for network in wifi[:2]:
        network["passphrase"] = word
    wifi[2]["eap"] = {"identity": word, "password": word, "empty": ""}
    vpn |= {"data": {"remote": word}, "secrets": {"key": word}}
    return shown


async def delivered(world: World, version: str = "") -> dict[str, Any]:
    """The network section that a device gets."""
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    answer = await device.pull(version)
    verified(await world.pem(), answer)
    network: dict[str, Any] = answer.json()["policy"]["network"]
    return network


async def test_readers_see_no_secret(world: World) -> None:
    """In each answer an Admin sees masks, and an Auditor that something is hidden."""
    created = await world.admin.create(ORG.id, DOCUMENT)
    assert bundle_of(created) == hidden("[masked]")
    published = await world.admin.call("PublishPolicy", id=created.id)
    updated = await world.admin.call("UpdatePolicy", id=created.id, name="N")
    back = await world.admin.call("RollbackPolicy", id=created.id, version="1")
    owner = await Admin(world.channel, ORG.id, "Owner").call("GetPolicy", id=created.id)
    for answer in (published, updated, back, owner):
        assert bundle_of(answer) == hidden("[masked]")
    auditor = Admin(world.channel, ORG.id, "Auditor")
    read = await auditor.call("GetPolicy", id=created.id)
    assert bundle_of(read) == hidden("[redacted]")
    listed = await auditor.call("ListPolicies")
    versions = await auditor.call("ListPolicyVersions", policy_id=created.id)
    assert [version.document_sha256 for version in versions.versions] == ["", ""]
    events = json.dumps(await world.events())
    assert SECRET not in f"{listed}{versions}{read}{events}"
    assert (await delivered(world))["wifi"][1]["passphrase"] == SECRET + " 2"


async def test_secrets_are_shown_when_asked_for(world: World) -> None:
    """It is recorded who saw them; an Auditor and a stranger see nothing."""
    policy = await world.admin.published(ORG.id, DOCUMENT)
    shown = await world.admin.call("GetPolicy", id=policy.id, reveal_secrets=True)
    assert bundle_of(shown) == DOCUMENT
    event = (await world.events())[-1]["data"]
    assert (event["action"], event["resource"]) == (
        "policy.secrets_revealed",
        f"policies/{policy.id}",
    )
    assert event["actor"] == "admin@school.example"
    assert event["after"] == {"name": "Policy", "version": "1"}
    before = len(await world.events())
    for role, tenant, code in (
        ("Auditor", ORG.id, grpc.StatusCode.PERMISSION_DENIED),
        ("Owner", STRANGER.id, grpc.StatusCode.NOT_FOUND),
    ):
        other = Admin(world.channel, tenant, role)
        refused = await refusal(other.call("GetPolicy", id=policy.id, reveal_secrets=True))
        assert refused.code is code
    assert len(await world.events()) == before


@pytest.mark.parametrize("word", ["[masked]", "[redacted]"])
async def test_what_was_read_may_be_sent_back(world: World, word: str) -> None:
    """Unchanged it changes nothing; moved entries keep their own secret; a new value is taken."""
    policy = await world.admin.published(ORG.id, DOCUMENT)
    same = await world.admin.call("UpdatePolicy", id=policy.id, bundle=hidden(word), signed=True)
    assert (same.etag, same.version, same.signed) == (policy.etag, "1", True)
    edited = hidden(word)
    edited["network"]["wifi"].reverse()
    edited["network"]["wifi"][2]["passphrase"] = "a new passphrase"
    edited["browser"] = {"homepage": "https://a.example"}
    await world.admin.call("UpdatePolicy", id=policy.id, bundle=edited, signed=True)
    network = await delivered(world, "1")
    assert [(entry["ssid"], entry["passphrase"]) for entry in network["wifi"]] == [
        ("Guests", ""),
        ("Office", ""),
        ("Pupils", "a new passphrase"),
        ("Staff", SECRET + " 1"),
    ]
    assert network["wifi"][1]["eap"] == DOCUMENT["network"]["wifi"][2]["eap"]
    assert network["vpns"][0]["data"] == {"remote": SECRET + " 5"}
    assert network["vpns"][0]["secrets"] == {"key": SECRET + " 6"}


async def test_a_mask_that_stands_for_nothing_is_refused(world: World) -> None:
    """In a create, under another name, and under a key that has no value; each field is named."""
    refused = await refusal(world.admin.create(ORG.id, hidden("[masked]")))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields[0] == "bundle.network.wifi[0].passphrase"
    policy = await world.admin.create(ORG.id, DOCUMENT)
    edited = hidden("[masked]")
    edited["network"]["wifi"][0]["ssid"] = "Renamed"
    edited["network"]["wifi"][3]["passphrase"] = "[masked]"
    edited["network"]["wifi"][2]["eap"]["empty"] = "[masked]"
    edited["network"]["vpns"][0]["secrets"]["other"] = "[masked]"
    refused = await refusal(world.admin.call("UpdatePolicy", id=policy.id, bundle=edited))
    assert sorted(refused.fields) == [
        "bundle.network.vpns[0].secrets.other",
        "bundle.network.wifi[0].passphrase",
        "bundle.network.wifi[2].eap.empty",
        "bundle.network.wifi[3].passphrase",
    ]
    assert (await world.admin.call("GetPolicy", id=policy.id)).etag == policy.etag


async def test_errors_and_warnings_show_no_secret(world: World) -> None:
    """What is refused or advised about is named by its field."""
    bad = copy.deepcopy(DOCUMENT)
    bad["network"]["wifi"][0]["passphrase"] = SECRET + "\n"
    bad["network"]["vpns"][0]["secrets"]["key"] = SECRET + "\n"
    refused = await refusal(world.admin.create(ORG.id, bad))
    assert len(refused.fields) == 2
    assert SECRET not in json.dumps(refused.body)
    odd = copy.deepcopy(DOCUMENT)
    odd["network"]["wifi"][0]["passphrase"] = "\\" + SECRET
    policy = await world.admin.create(ORG.id, odd)
    assert [warning.rule for warning in policy.warnings] == ["passphrase-escape"]
    assert SECRET not in str(policy)


async def test_a_digest_is_hidden_only_where_it_covers_secrets(world: World) -> None:
    """An Auditor still sees which document a version without secrets held."""
    text = {"browser": {"homepage": '"passphrase":"x", "eap":{"a'}}
    policy = await world.admin.published(ORG.id, text)
    auditor = Admin(world.channel, ORG.id, "Auditor")
    for admin in (auditor, world.admin):
        (version,) = (await admin.call("ListPolicyVersions", policy_id=policy.id)).versions
        assert len(version.document_sha256) == 64
