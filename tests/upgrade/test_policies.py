"""Groups, a rollout, a gate and values live through an upgrade, the way back and one more."""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from contract.contexts import CONTEXTS
from tests.e2e.load import Load
from tests.e2e.world import Org, make_org, ok
from tests.fakes.agent import Agent, Hardware
from tests.fakes.agent.gojson import marshal
from tests.fakes.agent.structs import DOCUMENT
from tests.support.paths import in_memory
from tests.support.stack import PATIENCE, Stack, until
from tests.upgrade.released import ROOT, released, unpack
from tests.upgrade.rolling import Product, product

pytestmark = pytest.mark.servers

_WITHOUT = "0.2.0"
"""The release that has no policies of groups, rollouts, gates that enforce and values."""
OF_ALL, ROLLED_OUT, RESTRICTED = ("https://all", "https://rolled-out", "https://restricted")
_GROUPS = {
    "plain": (),
    "first": ("first",),
    "cart": ("carts",),
    "both": ("carts", "first"),
    "gated": ("gated",),
}
"""The groups of each device."""
_WANTED = {
    "plain": (OF_ALL, "stable"),
    "first": (ROLLED_OUT, "stable"),
    "cart": (OF_ALL, "beta"),
    "both": (ROLLED_OUT, "beta"),
    "gated": (RESTRICTED, ""),
}
"""The page and the channel of updates that each is to have."""
_AT_THE_END = {
    name: (ROLLED_OUT, "beta" if "carts" in groups else "stable")
    for name, groups in _GROUPS.items()
}


def _says(document: dict[str, Any]) -> tuple[str, str]:
    found = json.loads(marshal(DOCUMENT, document))
    return found["browser"]["homepage"], found["updates"]["channel"]


@dataclass
class School:
    """An organisation with all of it."""

    org: Org
    agents: dict[str, Agent]
    policies: dict[str, str] = field(default_factory=dict)
    rollout: str = ""

    @classmethod
    def opened(cls, stack: Stack) -> School:
        """Devices with a policy, as the last release serves them."""
        org = make_org(stack, stack.first_owner())
        org.publish()
        prefix = uuid4().hex[:8]
        agents = {
            name: org.device(hardware=Hardware(serial=f"{name}-{prefix}")) for name in _GROUPS
        }
        return cls(org, agents)

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        return ok(self.org.root.post(path, json=body))

    def _policy(self, name: str, bundle: dict[str, Any], *group_ids: str) -> str:
        targets = {"targets": {"groupIds": group_ids}} if group_ids else {}
        made = self._post(
            "/api/policies", name=name, orgId=self.org.id, bundle=bundle, signed=True, **targets
        )
        self.policies[name] = made["id"]
        return str(made["id"])

    def set_up(self) -> None:
        """What releases since 0.3.0 have."""
        groups: dict[str, str] = {}
        for alias in ("first", "carts", "gated", "nobody"):
            made = self._post(
                "/api/device-groups", orgId=self.org.id, name=alias.title(), alias=alias
            )
            groups[alias] = made["id"]
            serials = [
                self.agents[name].hardware.serial for name, of in _GROUPS.items() if alias in of
            ]
            if serials:
                self._post(f"/api/device-groups/{made['id']}/members", add=serials)
        variables = {"page": OF_ALL, "wifi": "what opens the network"}
        for name, value in variables.items():
            self._post(
                "/api/policy-variables",
                orgId=self.org.id,
                name=name,
                value=value,
                secret=name == "wifi",
            )
        network = {"ssid": "Pupils", "security": "wpa-psk", "passphrase": "{{secret.wifi}}"}
        of_all: dict[str, Any] = {
            "browser": {"homepage": "{{var.page}}"},
            "updates": {"channel": "stable"},
            "network": {"wifi": [network]},
        }
        base = self._policy("Base", {"template": of_all})
        self._policy("Carts", {"updates": {"channel": "beta"}}, groups["carts"])
        other = self._policy("Other", {"browser": {"homepage": RESTRICTED}}, groups["nobody"])
        self._enforce(groups["gated"], other)
        changed = {"template": of_all | {"browser": {"homepage": ROLLED_OUT}}}
        ok(self.org.root.patch(f"/api/policies/{base}", json={"bundle": changed}))
        plan = {"batches": [{"name": "first", "groupIds": [groups["first"]], "soak": "1d"}]}
        self.rollout = self._post(f"/api/policies/{base}/publish", plan=plan)["rolloutId"]

    def _enforce(self, group_id: str, other: str) -> None:
        asked = {
            "orgId": self.org.id,
            "groupId": group_id,
            "atLeast": "KNOWN_TPM",
            "graceHours": 0,
        }

        def falls_short() -> bool:
            seen = ok(self.org.root.get("/api/attestation-gate/preview", params=asked))
            return bool(seen.get("fallingShort") == 1)

        until(falls_short, PATIENCE, "the device does not fall short")
        gate = {
            "mode": "ENFORCE",
            "otherwisePolicyId": other,
            "maxPercent": 100,
            "expectedDevices": 1,
        }
        ok(self.org.root.patch("/api/attestation-gate", json=asked | gate))

    def have(self, wanted: dict[str, tuple[str, str]]) -> None:
        """Waits until each device has what it is to have."""

        def found() -> dict[str, tuple[str, str]]:
            return {name: _says(one.applied[-1].document) for name, one in self.agents.items()}

        until(lambda: found() == wanted, PATIENCE, f"they do not have {wanted}")

    def is_whole(self) -> None:
        """Nothing of it is lost."""
        root, org = self.org.root, {"orgId": self.org.id}
        for name, id_ in self.policies.items():
            assert ok(root.get(f"/api/policies/{id_}"))["inForce"], name
        rollout = ok(root.get(f"/api/rollouts/{self.rollout}"))
        assert (rollout["state"], rollout["batch"]) == ("RUNNING", 1), rollout
        gates = ok(root.get("/api/attestation-gate", params=org | self._gated()))
        assert (gates["mode"], gates["restrictedDevices"]) == ("ENFORCE", 1), gates
        listed = ok(root.get("/api/policy-variables", params=org))["variables"]
        assert {one["name"] for one in listed} == {"page", "wifi"}

    def _gated(self) -> dict[str, str]:
        groups = ok(self.org.root.get("/api/device-groups", params={"orgId": self.org.id}))
        (gated,) = [one for one in groups["deviceGroups"] if one["alias"] == "gated"]
        return {"groupId": gated["id"]}

    def use_a_release_without(self) -> None:
        """What an administrator may try there changes nothing of it."""
        path = f"/api/policies/{self.policies['Base']}/publish"
        refused = self.org.root.post(path, json={})
        assert 400 <= refused.status_code < 500, refused.text
        # A group's policy is none of all devices.
        refused = self.org.root.post(f"/api/policies/{self.policies['Carts']}/publish", json={})
        assert refused.status_code >= 400, refused.text

    def complete(self) -> None:
        """All devices have the new version, and the gate's end frees the other one."""
        for _ in range(2):
            self._post(f"/api/rollouts/{self.rollout}/advance", reason="Enough")
        rollout = ok(self.org.root.get(f"/api/rollouts/{self.rollout}"))
        assert rollout["state"] == "COMPLETED"
        off = {"orgId": self.org.id, "mode": "OFF"} | self._gated()
        ok(self.org.root.patch("/api/attestation-gate", json=off))

    def check_numbers(self) -> None:
        """Each device got ever greater ones, and each stood for one content."""
        contents: dict[int, bytes] = {}
        for name, agent in self.agents.items():
            numbers = [int(one.version) for one in agent.applied]
            assert numbers == sorted(set(numbers)), (name, numbers)
            for number, one in zip(numbers, agent.applied, strict=True):
                document = marshal(DOCUMENT, one.document)
                assert contents.setdefault(number, document) == document, (name, number)


async def _roll(running: Product, tree: Path, load: Load) -> None:
    for context in CONTEXTS:
        await running.replace(context, tree)
        before = load.calls
        await asyncio.to_thread(
            until, lambda b=before: load.calls > b + 10, PATIENCE, "the load does not go on"
        )


@pytest.mark.timeout(900)
async def test_policies_of_all_kinds_live_through_the_way_back(tmp_path: Path) -> None:
    """No call fails, no device gets a number that is not above its own, no number has two contents,
    and after the way there, back and there again each has what it is to have."""
    last = unpack(tmp_path / "last")
    with tempfile.TemporaryDirectory(prefix="eg-", dir=in_memory()) as short:
        await _there_back_and_there(Path(short), last)


async def _there_back_and_there(directory: Path, last: Path) -> None:
    async with product(directory / "home") as running:
        await running.migrate(last)
        await running.start(last)
        school = await asyncio.to_thread(School.opened, running.stack)
        load = Load([*school.agents.values()])
        work = load.running()
        await asyncio.to_thread(work.__enter__)
        try:
            await running.migrate(ROOT)
            await _roll(running, ROOT, load)
            await asyncio.to_thread(school.set_up)
            await asyncio.to_thread(school.have, _WANTED)
            await _roll(running, last, load)
            if released().version == _WITHOUT:
                await asyncio.to_thread(school.use_a_release_without)
            await _roll(running, ROOT, load)
            await asyncio.to_thread(school.have, _WANTED)
            await asyncio.to_thread(school.is_whole)
            await asyncio.to_thread(school.complete)
            await asyncio.to_thread(school.have, _AT_THE_END)
        finally:
            await asyncio.to_thread(work.__exit__, None, None, None)
        school.check_numbers()
        await asyncio.to_thread(load.check, running.stack)
    assert load.failures == []
