"""Who may write policies of a tenant finds out no secret of it by guesses: none is answered
otherwise when it is right."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import json_format

from evergreen.v1 import policy_pb2
from services.policy.authoring.document import MAX_DOCUMENT
from services.policy.variables.service import REFUSED_AN_HOUR
from tests.services.policy.variables.test_variables import SECRET, TEMPLATE, Keeper
from tests.support.policy import ORG, RESELLER, World, world
from tests.support.refusals import refusal

__all__ = ["world"]

WRONG = "what opens another one"


def _with(passphrase: str, *, template: bool = False) -> dict[str, Any]:
    """The policy with a passphrase in place of the secret's name."""
    text = json.dumps(TEMPLATE["template"])
    text = text.replace("{{secret.wifi}}", passphrase).replace("{{var.host}}", "one.example")
    document = json.loads(text)
    return {"template": document} if template else document


@pytest.fixture
def keeper(world: World) -> Keeper:
    return Keeper(world.channel, ORG.id)


async def _published(world: World, keeper: Keeper) -> tuple[Any, Any]:
    await keeper.put(ORG.id, "host", "one.example")
    wifi = await keeper.put(ORG.id, "wifi", SECRET, secret=True)
    return wifi, await world.admin.published(ORG.id, TEMPLATE)


def _said(found: Any) -> dict[str, Any]:
    said: dict[str, Any] = json_format.MessageToDict(found)
    return said


@pytest.mark.parametrize("template", [False, True])
async def test_a_simulation_does_not_say_that_a_guess_is_right(
    world: World, keeper: Keeper, *, template: bool
) -> None:
    """With the policy in force, and with what devices still have of one that was withdrawn. What
    stays as it is changes nothing, and a value that was set since does."""
    wifi, policy = await _published(world, keeper)
    same = await world.admin.call("SimulatePolicy", policy_id=policy.id)
    assert not same.changes
    for withdrawn in (False, True):
        answers = [
            _said(
                await world.admin.call(
                    "SimulatePolicy", policy_id=policy.id, bundle=_with(guess, template=template)
                )
            )
            for guess in (SECRET, WRONG)
        ]
        assert answers[0] == answers[1]
        if not withdrawn:
            (change,) = answers[0]["changes"]
            assert (change["itemKey"], change["secretChanged"]) == ("Pupils", True)
            await world.admin.call("WithdrawPolicy", id=policy.id)
    await world.admin.call("PublishPolicy", id=policy.id)
    await keeper.variable("Update", id=wifi.id, value=WRONG)
    (later,) = (await world.admin.call("SimulatePolicy", policy_id=policy.id)).changes
    assert (later.item_key, later.secret_changed) == ("Pupils", True)


@pytest.mark.parametrize("template", [False, True])
async def test_a_difference_does_not_say_that_a_guess_is_right(
    world: World, keeper: Keeper, *, template: bool
) -> None:
    """Neither of a guess in the policy, nor of one that is set as the secret."""
    wifi, policy = await _published(world, keeper)
    found = []
    for guess in (SECRET, WRONG):
        bundle = _with(guess, template=template)
        guessed = await world.admin.call("UpdatePolicy", id=policy.id, bundle=bundle, signed=True)
        versions = {"version": guessed.version, "base": policy.version}
        found.append(
            _said(await world.admin.call("DiffPolicyVersions", policy_id=policy.id, **versions))[
                "changes"
            ]
        )
    assert found[0] == found[1]
    assert [(one["itemKey"], one["secretChanged"]) for one in found[0]] == [("Pupils", True)]
    back = await world.admin.call("UpdatePolicy", id=policy.id, bundle=TEMPLATE, signed=True)
    again = await world.admin.call(
        "DiffPolicyVersions", policy_id=policy.id, version=back.version, base=policy.version
    )
    assert not again.changes
    await keeper.variable("Update", id=wifi.id, value=WRONG)
    set_back = await keeper.variable("Update", id=wifi.id, value=SECRET, apply="NOW")
    assert set_back.fingerprint != wifi.fingerprint
    now = await world.admin.call("GetPolicy", id=policy.id)
    later = await world.admin.call(
        "DiffPolicyVersions", policy_id=policy.id, version=now.version, base=policy.version
    )
    assert [(one.item_key, one.secret_changed) for one in later.changes] == [("Pupils", True)]


async def test_guesses_that_are_refused_are_few(world: World, keeper: Keeper) -> None:
    """A value that may not be published now changes nothing, and only a wrong one is refused. So
    there are no more tries, not even with the right one; those that are taken count for nothing."""
    wifi, _ = await _published(world, keeper)
    plan = policy_pb2.RolloutPlan(batches=[policy_pb2.RolloutBatch(group_ids=[str(uuid4())])])

    async def guess(value: str) -> Any:
        return await keeper.variable("Update", id=wifi.id, value=value, apply="ROLLOUT", plan=plan)

    for _ in range(REFUSED_AN_HOUR + 1):
        assert (await guess(SECRET)).etag == wifi.etag
    for number in range(REFUSED_AN_HOUR):
        refused = await refusal(guess(f"{WRONG} {number}"))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    for value in (SECRET, WRONG):
        refused = await refusal(guess(value))
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_REFUSED_VALUES",
        )
    assert (await keeper.variable("Get", id=wifi.id)).etag == wifi.etag
    other = await keeper.put(ORG.id, "other", SECRET, secret=True)
    assert (await keeper.variable("Update", id=other.id, value=WRONG)).etag != other.etag


async def test_no_limit_tells_how_long_a_secret_is(world: World, keeper: Keeper) -> None:
    """What fits beside a short one fits beside a longer one, and no error has a length."""
    await keeper.put(ORG.id, "short", "x" * 20, secret=True)
    await keeper.put(ORG.id, "long", "x" * 300, secret=True)

    def of(name: str, filler: int) -> dict[str, Any]:
        each = 60_000
        data = {f"k{at}": "y" * min(each, filler - at * each) for at in range(-(-filler // each))}
        secrets = {"password": f"{{{{secret.{name}}}}}"}
        return {
            "template": {"network": {"vpns": [{"name": "V", "data": data, "secrets": secrets}]}}
        }

    async def fits(name: str, filler: int) -> bool:
        try:
            await world.admin.call("SimulatePolicy", org_id=str(ORG.id), bundle=of(name, filler))
        except grpc.aio.AioRpcError as error:
            assert "not 5" not in (error.details() or "")
            return False
        return True

    low, high = MAX_DOCUMENT - 5_000, MAX_DOCUMENT
    assert await fits("short", low)
    assert not await fits("short", high)
    while high - low > 1:
        middle = (low + high) // 2
        if await fits("short", middle):
            low = middle
        else:
            high = middle
    assert await fits("long", low)
    assert not await fits("long", high)
    refused = await refusal(world.admin.create(ORG.id, of("short", MAX_DOCUMENT - 100)))
    assert "not " not in json.dumps(refused.body)


async def test_no_limit_tells_a_school_how_long_a_districts_secret_is(world: World) -> None:
    """It has exactly the same room beside a short one and a very long one."""
    district = Keeper(world.channel, RESELLER.id)
    wifi = await district.put(RESELLER.id, "wifi", "short one", secret=True)
    network = {"ssid": "Pupils", "security": "wpa-eap", "eap": {"key": "{{secret.wifi}}"}}
    await district.published(RESELLER.id, {"template": {"network": {"wifi": [network]}}})

    async def fits(filler: int) -> bool:
        each = 8_000
        texts = [f"{at:06}{'x' * each}"[: min(each, filler - at)] for at in range(0, filler, each)]
        try:
            await world.admin.call(
                "SimulatePolicy", org_id=str(ORG.id), bundle={"browser": {"extensions": texts}}
            )
        except grpc.aio.AioRpcError as error:
            assert str(MAX_DOCUMENT) in (error.details() or "")
            return False
        return True

    low, high = MAX_DOCUMENT - 2_000, MAX_DOCUMENT
    while high - low > 1:
        middle = (low + high) // 2
        if await fits(middle):
            low = middle
        else:
            high = middle
    await district.variable("Update", id=wifi.id, value="x" * 50_000, apply="NOW")
    assert await fits(low)
    assert not await fits(low + 1)
