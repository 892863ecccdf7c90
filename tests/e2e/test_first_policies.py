"""Devices that enroll while a version is on its way that they cannot apply."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.world import Org, ok
from tests.fakes.agent.agent import Agent, AgentEndedError
from tests.fakes.agent.apply import ApplyError, Machine
from tests.support.stack import PATIENCE, until


class WithoutNightly(Machine):
    """A machine whose image has no nightly updates."""

    def apply(self, document: dict[str, Any]) -> None:
        if document["updates"]["channel"] == "nightly":
            raise ApplyError("rpm-ostree: no such branch")
        super().apply(document)


def bundle(channel: str) -> dict[str, Any]:
    return {"updates": {"channel": channel}, "security": {"selinux_enforce": True}}


def new_device(org: Org) -> Agent:
    device = org.agent()
    device.machine = WithoutNightly()
    return device


def pulls(device: Agent) -> str:
    """The channel that a device has after another poll, or why it could not apply what it got."""
    try:
        device.pull()
    except ApplyError as error:
        return str(error)
    assert device.document is not None
    return str(device.document["updates"]["channel"])


def test_a_device_that_enrolls_amid_a_bad_rollout_can_be_helped(org: Org) -> None:
    """It enrolls with what is in force, fails at the version as all others do, and takes the next
    one. With a bad first policy it would have ended for good."""
    policy = org.publish(bundle("stable"))
    where = f"/api/policies/{policy['id']}"
    ok(org.root.patch(where, json={"bundle": bundle("nightly")}))
    rolled = ok(org.root.post(f"{where}/publish", json={"plan": {"preset": "now"}}))
    rollout = ok(org.root.get(f"/api/rollouts/{rolled['rolloutId']}"))
    assert (rollout["state"], rollout["batch"]) == ("RUNNING", 1)
    device = new_device(org)
    device.enroll()
    assert device.version == policy["version"]
    until(lambda: pulls(device) == "rpm-ostree: no such branch", PATIENCE, "it never gets it", 0.2)
    assert device.version == policy["version"]
    ok(org.root.post(f"/api/rollouts/{rollout['id']}/roll-back", json={"reason": "no branch"}))
    until(lambda: pulls(device) == "stable", PATIENCE, "it is not taken back", 0.2)
    ok(org.root.patch(where, json={"bundle": bundle("beta"), "signed": True}))
    until(lambda: pulls(device) == "beta", PATIENCE, "it takes nothing more", 0.2)
    # In force for all at once there is nothing else to enroll with: the reason for rollouts.
    ok(org.root.patch(where, json={"bundle": bundle("nightly"), "signed": True}))
    with pytest.raises(AgentEndedError):
        new_device(org).enroll()
