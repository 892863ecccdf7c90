"""The web console's policy editor against the policy service: drafts, and `signed`."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf import json_format

from contract.access import ACCESS
from evergreen.v1 import policy_pb2
from tests.support.console_editor import Form
from tests.support.policy import ORG, Admin, Device, World, bundle_of, verified, world
from tests.support.refusals import refusal

__all__ = ["world"]

DOCUMENT: dict[str, Any] = {"updates": {"channel": "stable"}, "security": {"selinux_enforce": True}}


async def save(admin: Admin, form: Form, policy_id: str = "new") -> dict[str, Any]:
    """What the editor does on "Save", and the JSON that it gets."""
    assert form.problems() == []
    body = form.body(policy_id)
    if policy_id == "new":
        answer = await admin.call("CreatePolicy", **_snake(body))
    else:
        answer = await admin.call("UpdatePolicy", id=policy_id, **_snake(body))
    return as_json(answer)


async def opened(admin: Admin, policy_id: str) -> Form:
    """What the editor shows of a policy."""
    return Form.opened(as_json(await admin.call("GetPolicy", id=policy_id)))


def as_json(policy: policy_pb2.Policy) -> dict[str, Any]:
    """The REST answer."""
    shown: dict[str, Any] = json_format.MessageToDict(
        policy, always_print_fields_with_no_presence=True
    )
    return shown


def _snake(body: dict[str, Any]) -> dict[str, Any]:
    return {"org_id" if key == "orgId" else key: value for key, value in body.items()}


async def actions(world: World) -> list[str]:
    return [event["data"]["action"] for event in await world.events()]


async def test_what_the_editor_sends_is_taken_and_opens_again(world: World) -> None:
    """A create and an update, as the released console sends them, and the form read back."""
    form = Form(name="Lab", org_id=str(ORG.id), apps=["chrome", "zoom"], allow_popups=True)
    created = await save(world.admin, form)
    assert created["bundle"] == form.body("new")["bundle"]
    again = await opened(world.admin, created["id"])
    assert again == Form(**{**vars(form), "version": "0"})
    again.homepage_url = "https://lab.example"
    again.lock_after_minutes = 7.5
    changed = await save(world.admin, again, created["id"])
    assert (changed["signed"], changed["inForce"], changed["version"]) == (False, False, "0")
    assert await opened(world.admin, created["id"]) == again


async def test_signed_publishes_in_the_same_step(world: World) -> None:
    """A create and an update with `signed` reach the device; each is one version and two events."""
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    created = await world.admin.call(
        "CreatePolicy", org_id=str(ORG.id), name="P", bundle=DOCUMENT, signed=True
    )
    assert (created.version, created.signed, created.in_force) == ("1", True, True)
    assert not created.has_unpublished_changes
    assert verified(await world.pem(), await device.pull())["version"] == "1"
    other = {**DOCUMENT, "browser": {"homepage": "https://a.example"}}
    changed = await world.admin.call(
        "UpdatePolicy", id=created.id, bundle=other, signed=True, etag=created.etag
    )
    assert (changed.version, changed.signed) == ("2", True)
    envelope = verified(await world.pem(), await device.pull("1"))
    assert (envelope["version"], envelope["policy"]["browser"]["homepage"]) == (
        "2",
        "https://a.example",
    )
    assert await actions(world) == [
        "policy.created",
        "policy.published",
        "policy.updated",
        "policy.published",
    ]


async def test_an_unsigned_save_is_a_draft(world: World) -> None:
    """What is in force stays in force, and `signed` says that this content is not."""
    policy = await world.admin.published(ORG.id, DOCUMENT)
    draft = {"browser": {"homepage": "https://draft.example"}}
    for signed in ({"signed": False}, {}):
        changed = await world.admin.call("UpdatePolicy", id=policy.id, bundle=draft, **signed)
        assert (changed.signed, changed.in_force, changed.version) == (False, True, "1")
        assert changed.has_unpublished_changes
    device = Device(world.kit, world.channel, uuid4(), ORG.id)
    assert verified(await world.pem(), await device.pull())["policy"]["browser"]["homepage"] == ""
    assert (await device.pull("1")).status_code == 304
    (listed,) = (await world.admin.call("ListPolicies")).policies
    assert (listed.signed, listed.in_force) == (False, True)
    published = await world.admin.call("UpdatePolicy", id=policy.id, signed=True)
    assert (published.signed, published.version) == (True, "2")
    assert bundle_of(published) == draft


async def test_a_policy_that_was_replaced_is_not_signed(world: World) -> None:
    """Who opens and saves it in the console does not put it in force by that."""
    first = await world.admin.published(ORG.id, DOCUMENT)
    await world.admin.published(ORG.id, {})
    read = await world.admin.call("GetPolicy", id=first.id)
    assert (read.signed, read.in_force, read.version) == (False, False, "1")
    back = await world.admin.call("UpdatePolicy", id=first.id, signed=True)
    assert (back.signed, back.in_force, back.version) == (True, True, "3")


async def test_a_repeated_save_publishes_once(world: World) -> None:
    """The same update twice, also at once, is one version; with an old etag it is refused."""
    policy = await world.admin.create(ORG.id, {})
    update = {"id": policy.id, "bundle": DOCUMENT, "signed": True}
    answers = await asyncio.gather(*(world.admin.call("UpdatePolicy", **update) for _ in range(5)))
    assert {(answer.version, answer.signed) for answer in answers} == {("1", True)}
    assert len({answer.etag for answer in answers}) == 1
    before = await actions(world)
    again = await world.admin.call("UpdatePolicy", **update, etag=answers[0].etag)
    assert again == answers[0]
    refused = await refusal(world.admin.call("UpdatePolicy", **update, etag=policy.etag))
    assert refused.code is grpc.StatusCode.ABORTED
    assert await actions(world) == before
    # A publish by its own call is a wish for a new version, as ever.
    assert (await world.admin.call("PublishPolicy", id=policy.id)).version == "2"


async def test_another_label_is_no_change_of_the_policy(world: World) -> None:
    """The editor writes another `version` and `signature` with each save; devices see neither."""
    bundle = {"version": "1.0.0", "signature": {"status": "signed"}, "configuration": {}}
    policy = await world.admin.published(ORG.id, bundle)
    bundle = {"version": "1", "signature": {"status": "unsigned"}, "configuration": {}}
    changed = await world.admin.call("UpdatePolicy", id=policy.id, bundle=bundle)
    assert (changed.signed, changed.has_unpublished_changes) == (True, False)
    assert bundle_of(changed) == bundle


async def test_a_refused_save_changes_nothing(world: World) -> None:
    """Neither policy, nor version, nor event is there when a part of it is refused."""
    bad = {"browser": {"homepage": 5}}
    refused = await refusal(
        world.admin.call("CreatePolicy", org_id=str(ORG.id), name="P", bundle=bad, signed=True)
    )
    assert refused.fields == ["bundle.browser.homepage"]
    assert not (await world.admin.call("ListPolicies")).policies
    policy = await world.admin.published(ORG.id, DOCUMENT)
    before = await actions(world)
    refused = await refusal(
        world.admin.call("UpdatePolicy", id=policy.id, name="N", bundle=bad, signed=True)
    )
    assert refused.fields == ["bundle.browser.homepage"]
    assert await world.admin.call("GetPolicy", id=policy.id) == policy
    assert await actions(world) == before


async def test_who_may_save_signed_may_publish(world: World) -> None:
    """`signed` is a publish: an Auditor is refused, and the table says the same of all three."""
    policy = await world.admin.create(ORG.id, DOCUMENT)
    auditor = Admin(world.channel, ORG.id, "Auditor")
    refused = await refusal(auditor.call("UpdatePolicy", id=policy.id, signed=True))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    rows = [
        ACCESS[f"/evergreen.v1.PolicyService/{name}"]
        for name in ("CreatePolicy", "UpdatePolicy", "PublishPolicy")
    ]
    assert len({(row.audience, row.roles, row.writes) for row in rows}) == 1
