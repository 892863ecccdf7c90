"""What is different between two versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.rpc.values import from_value
from services.policy.authoring.changes import changes
from services.policy.authoring.document import Document, parse_document
from services.policy.authoring.goencoding import encode_document
from services.policy.authoring.secret_values import MASKED
from services.policy.layers.fields import FIELDS
from tests.support.policy import ORG, SISTER, Admin, World, world
from tests.support.refusals import refusal

__all__ = ["world"]

WIFI = {"ssid": "Class", "passphrase": "a first passphrase", "security": "wpa-psk"}


def document(authored: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode_document(parse_document(authored)))
    return found


def test_the_table_has_every_field_of_a_document() -> None:
    """In the order of the document; a new field needs a line."""
    encoded = json.loads(encode_document(Document()))
    assert [one.path for one in FIELDS] == [
        f"{section}.{name}" for section, members in encoded.items() for name in members
    ]


def test_items_are_compared_by_their_names() -> None:
    """Their order does not count; that of DNS servers does."""
    before = document(
        {
            "apps": {"required": [{"id": "a.b.C"}, {"id": "a.b.D"}]},
            "network": {"wifi": [WIFI], "vpn_dns": ["192.0.2.1", "192.0.2.2"]},
        }
    )
    after = document(
        {
            "apps": {"required": [{"id": "a.b.D", "branch": "beta"}, {"id": "a.b.E"}]},
            "network": {
                "wifi": [{**WIFI, "passphrase": "another passphrase"}],
                "vpn_dns": ["192.0.2.2", "192.0.2.1"],
            },
            "security": {"selinux_enforce": True},
        }
    )
    found = changes(before, after, MASKED)
    assert [(c.path, c.name, c.before is None, c.after is None, c.secret) for c in found] == [
        ("apps.required", "a.b.C", False, True, False),
        ("apps.required", "a.b.D", False, False, False),
        ("apps.required", "a.b.E", True, False, False),
        ("network.wifi", "Class", False, False, True),
        ("network.vpn_dns", "", False, False, False),
        ("security.selinux_enforce", "", False, False, False),
    ]
    assert "passphrase" in found[3].after
    assert "a first" not in repr([(c.before, c.after) for c in found])
    assert changes(after, after, MASKED) == []


texts = st.text("ab", min_size=1, max_size=2)
documents = st.fixed_dictionaries(
    {},
    optional={
        "apps": st.fixed_dictionaries(
            {},
            optional={
                "required": st.lists(
                    st.fixed_dictionaries({"id": texts}, optional={"branch": texts}),
                    unique_by=lambda app: app["id"],
                )
            },
        ),
        "browser": st.fixed_dictionaries(
            {}, optional={"homepage": texts, "extensions": st.lists(texts, unique=True)}
        ),
        "security": st.fixed_dictionaries({}, optional={"usbguard_rules": st.lists(texts)}),
    },
).map(document)


@given(documents, documents)
def test_nothing_is_different_only_if_devices_get_the_same(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    """The changes, applied to what was, give what became, but for the order of items."""
    found = {(c.path, c.name): c for c in changes(before, after, MASKED)}
    for one in FIELDS:
        applied = dict(one.named(before))
        for (path, name), change in found.items():
            if path == one.path:
                if change.after is None and one.items:
                    applied.pop(name)
                else:
                    applied[name] = change.after
        assert applied == dict(one.named(after))


async def test_versions_of_a_policy_are_compared(world: World) -> None:
    """With the one before, or any other of the same policy; secrets are shown to nobody."""
    policy = await world.admin.published(ORG.id, {"network": {"wifi": [WIFI]}})
    other = await world.admin.published(ORG.id, {"updates": {"channel": "beta"}})
    await world.admin.call(
        "UpdatePolicy",
        id=policy.id,
        bundle={
            "network": {"wifi": [{**WIFI, "passphrase": "another passphrase", "metered": True}]}
        },
        signed=True,
    )
    answer = await world.admin.call("DiffPolicyVersions", policy_id=policy.id, version="3")
    (change,) = answer.changes
    assert (answer.base, change.path, change.item_key) == ("1", "network.wifi", "Class")
    assert change.secret_changed
    assert from_value(change.after)["metered"] is True
    assert from_value(change.after)["passphrase"] == MASKED
    first = await world.admin.call("DiffPolicyVersions", policy_id=policy.id, version="1")
    assert (first.base, first.changes[0].HasField("before")) == ("", False)
    back = await world.admin.call("DiffPolicyVersions", policy_id=policy.id, version="1", base="3")
    assert [c.item_key for c in back.changes] == ["Class"]
    assert not (
        await world.admin.call("DiffPolicyVersions", policy_id=policy.id, version="3", base="3")
    ).changes
    auditor = Admin(world.channel, ORG.id, "Auditor")
    shown = await auditor.call("DiffPolicyVersions", policy_id=policy.id, version="3")
    assert from_value(shown.changes[0].after)["passphrase"] == "[redacted]"
    assert "another passphrase" not in str(shown)
    for asked in ({"version": "2"}, {"version": "9"}, {"version": "3", "base": "2"}):
        refused = await refusal(
            world.admin.call("DiffPolicyVersions", policy_id=policy.id, **asked)
        )
        assert refused.code is grpc.StatusCode.NOT_FOUND
    assert (await world.admin.call("DiffPolicyVersions", policy_id=other.id, version="2")).changes
    stranger = Admin(world.channel, SISTER.id)
    refused = await refusal(stranger.call("DiffPolicyVersions", policy_id=policy.id, version="1"))
    assert refused.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["0", "x", "1" * 19, ""])
async def test_a_version_that_is_none_is_named(world: World, version: str) -> None:
    """With its field."""
    policy = await world.admin.published(ORG.id, {})
    refused = await refusal(
        world.admin.call("DiffPolicyVersions", policy_id=policy.id, version=version)
    )
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.body["message"].startswith("version:")
