"""How tenants publish that name no plan, and what a publish above does to those in a freeze."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
import pytest
import pytest_asyncio

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from services.policy.rollouts import worker
from services.policy.rollouts.outlooks import Outlooks
from tests.conftest import MakeKit, ServeService
from tests.services.policy.rollouts.school import NEW, OLD, School, opened
from tests.services.policy.rollouts.test_rollouts import another, with_devices
from tests.support.policy import ORG, RESELLER, ROOT, SISTER, Admin
from tests.support.refusals import refusal
from tests.support.servers import TestDatabase

HALF = policy_pb2.RolloutPlan(
    batches=[policy_pb2.RolloutBatch(name="half", percent=50, soak="1h")],
    windows=["* 00:00-00:00"],
    max_per_minute=1000,
)


@pytest_asyncio.fixture
async def school(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[School]:
    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.25)
    async with opened(make_kit, serve, database) as found:
        yield found


def usual(plan: policy_pb2.RolloutPlan | None = HALF) -> policy_pb2.DefaultPlanChange:
    return policy_pb2.DefaultPlanChange(plan=plan)


def above(school: School) -> Admin:
    return Admin(school.world.channel, RESELLER.id)


async def says(school: School, tenant_id: UUID, admin: Admin, **what: Any) -> Any:
    return await school.call("UpdatePolicySettings", admin, org_id=str(tenant_id), **what)


def today(school: School, name: str = "Exams") -> policy_pb2.PolicyFreezesChange:
    """A freeze of today, as in any time zone."""
    return policy_pb2.PolicyFreezesChange(
        items=[
            policy_pb2.PolicyFreezeChange(
                name=name,
                first_day=str(school.now.date() - timedelta(days=1)),
                last_day=str(school.now.date() + timedelta(days=1)),
            )
        ]
    )


async def test_a_publish_without_a_plan_comes_by_the_default_one(school: School) -> None:
    """As the console saves; half of the devices get it. An urgent one comes so, too; a plan of its
    own counts instead, and a rollback is for all."""
    policy_id = await with_devices(school, 12)
    admin = school.world.admin
    found = await school.call("UpdatePolicySettings", default_plan=usual())
    assert [one.percent for one in found.default_plan.batches] == [50, 100]
    assert found.default_plan.max_per_minute == 1000
    assert found.in_effect.default_plan == found.default_plan
    assert found.in_effect.default_plan_org_id == str(ORG.id)
    assert await school.call("GetPolicySettings") == found
    assert await school.call("UpdatePolicySettings", default_plan=usual()) == found
    saved = await admin.call("UpdatePolicy", id=policy_id, bundle=NEW, signed=True)
    first = await school.rollout(saved.rollout_id)
    assert (first.state, [one.percent for one in first.plan.batches]) == ("RUNNING", [50, 100])
    await school.quiet()
    assert 0 < len(school.having("https://new")) < 12
    # Saved once more it is on its way already.
    again = await admin.call("UpdatePolicy", id=policy_id, bundle=NEW, signed=True)
    assert again.rollout_id == first.id
    # And a repeated publish begins no other one, with other devices, but where it does not go on.
    repeated = await admin.call("PublishPolicy", id=policy_id)
    assert repeated.rollout_id == first.id
    await school.call("PauseRollout", id=first.id)
    anew = await admin.call("PublishPolicy", id=policy_id)
    assert anew.rollout_id != first.id
    first = await school.rollout(anew.rollout_id)
    other = {"browser": {"homepage": "https://other"}}
    await admin.call("UpdatePolicy", id=policy_id, bundle=other)
    urgent = await admin.call("PublishPolicy", id=policy_id, urgent=True)
    second = await school.rollout(urgent.rollout_id)
    assert (second.state, second.urgent) == ("RUNNING", True)
    assert [one.percent for one in second.plan.batches] == [50, 100]
    assert (await school.rollout(first.id)).state == "SUPERSEDED"
    now = await admin.call(
        "PublishPolicy",
        id=policy_id,
        plan=policy_pb2.RolloutPlan(preset="now"),
        supersede=True,
    )
    await school.quiet()
    assert len(school.having("https://other")) == 12
    await school.call("CancelRollout", id=now.rollout_id)
    await admin.call("RollbackPolicy", id=policy_id, version="1")
    await school.quiet()
    assert len(school.having("https://old")) == 12
    # Without one, all get it at once again.
    found = await school.call("UpdatePolicySettings", default_plan=usual(None))
    assert not found.HasField("default_plan")
    assert not found.in_effect.HasField("default_plan")
    assert not (await admin.call("PublishPolicy", id=policy_id)).rollout_id
    told = [
        event["data"]["after"]
        for event in await school.world.events()
        if event["data"]["action"] == "policy.settings_updated"
    ]
    assert [one["defaultPlan"] is None for one in told] == [False, True]


async def test_the_nearest_tenant_with_a_default_plan_counts(school: School) -> None:
    """A reseller's is for the organisations below, which see it; its own policies come at once."""
    world, reseller = school.world, above(school)
    await says(school, RESELLER.id, reseller, default_plan=usual())
    found = await school.call("GetPolicySettings")
    assert not found.HasField("default_plan")
    assert found.in_effect.default_plan_org_id == str(RESELLER.id)
    policy_id = (await world.admin.create(ORG.id, NEW)).id
    rolled = await world.admin.call("PublishPolicy", id=policy_id)
    assert [one.percent for one in (await school.rollout(rolled.rollout_id)).plan.batches] == [
        50,
        100,
    ]
    await school.call("CancelRollout", id=rolled.rollout_id)
    await says(
        school, ORG.id, world.admin, default_plan=usual(policy_pb2.RolloutPlan(preset="now"))
    )
    found = await school.call("GetPolicySettings")
    assert found.in_effect.default_plan_org_id == str(ORG.id)
    rolled = await world.admin.call("PublishPolicy", id=policy_id)
    assert len((await school.rollout(rolled.rollout_id)).plan.batches) == 1
    theirs = await reseller.create(RESELLER.id, OLD)
    assert not (await reseller.call("PublishPolicy", id=theirs.id)).rollout_id
    # Nobody else's counts, or is shown.
    stranger = await school.call("GetPolicySettings", Admin(world.channel, ROOT.id))
    assert not stranger.in_effect.HasField("default_plan")
    refused = await refusal(
        says(school, ORG.id, Admin(world.channel, SISTER.id), default_plan=usual())
    )
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_a_bad_default_plan_is_refused_by_its_field(school: School) -> None:
    """Nothing changes; a group that goes later refuses publishes without a plan, and says why."""
    world = school.world
    batch = policy_pb2.RolloutBatch
    bad: list[tuple[policy_pb2.RolloutPlan, str]] = [
        (policy_pb2.RolloutPlan(batches=[batch(name="x")]), "batches[0]"),
        (policy_pb2.RolloutPlan(batches=[batch(percent=1, soak="1y")]), "batches[0].soak"),
        (policy_pb2.RolloutPlan(preset="now", batches=[batch(percent=1)]), "preset"),
        (policy_pb2.RolloutPlan(windows=["when it rains"]), "windows[0]"),
        (policy_pb2.RolloutPlan(max_per_minute=-1), "maxPerMinute"),
        (
            policy_pb2.RolloutPlan(batches=[batch(group_ids=[str(ORG.id)])]),
            "batches[0].groupIds[0]",
        ),
    ]
    for plan, field in bad:
        refused = await refusal(school.call("UpdatePolicySettings", default_plan=usual(plan)))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.fields == [f"defaultPlan.plan.{field}"]
    group = world.neighbours.registry.group(ORG.id, "pilots", 1)
    await school.enroll(1, group)
    pilots = policy_pb2.RolloutPlan(batches=[batch(group_ids=[str(group)])])
    refused = await refusal(says(school, RESELLER.id, above(school), default_plan=usual(pilots)))
    assert refused.fields == ["defaultPlan.plan.batches[0].groupIds"]
    assert not (await school.call("GetPolicySettings")).HasField("default_plan")
    await school.call("UpdatePolicySettings", default_plan=usual(pilots))
    connection = await world.database.superuser()
    await connection.execute("UPDATE policy.groups SET deleted = true WHERE id = $1", group)
    await connection.close()
    policy_id = (await world.admin.create(ORG.id, NEW)).id
    refused = await refusal(world.admin.call("PublishPolicy", id=policy_id))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "DEFAULT_PLAN",
    )
    assert not (await world.admin.call("GetPolicy", id=policy_id)).rollout_id


async def test_a_second_person_and_freezes_count_beside_it(school: School) -> None:
    """The plan's first batch waits for approval; a freeze refuses what names no plan."""
    policy_id = await with_devices(school, 4)
    admin = school.world.admin
    await school.call("UpdatePolicySettings", default_plan=usual(), require_approval=True)
    saved = await admin.call("UpdatePolicy", id=policy_id, bundle=NEW, signed=True)
    asked = await school.rollout(saved.rollout_id)
    assert (asked.state, len(asked.plan.batches)) == ("AWAITING_APPROVAL", 2)
    await school.call("ApproveRollout", another(school), id=asked.id)
    await school.looked("RUNNING", asked.id)
    await school.call("CancelRollout", id=asked.id)
    owner = another(school, "Owner")
    await school.call("UpdatePolicySettings", owner, require_approval=False, freezes=today(school))
    refused = await refusal(admin.call("PublishPolicy", id=policy_id))
    assert refused.reason == "POLICIES_FROZEN"
    urgent = await admin.call("PublishPolicy", id=policy_id, urgent=True)
    assert (await school.rollout(urgent.rollout_id)).state == "RUNNING"


async def test_a_value_that_is_applied_now_is_for_all_at_once(school: School) -> None:
    """Whatever the default plan is."""
    world = school.world
    stub = policy_pb2_grpc.PolicyVariableServiceStub(world.channel)
    made = await stub.CreatePolicyVariable(
        policy_pb2.CreatePolicyVariableRequest(
            org_id=str(ORG.id), name="page", value="https://one"
        ),
        metadata=world.admin.metadata,
    )
    template = {"template": {"browser": {"homepage": "{{var.page}}"}}}
    policy = await world.admin.published(ORG.id, template)
    await school.enroll(4)
    await school.call("UpdatePolicySettings", default_plan=usual())
    changed = await stub.UpdatePolicyVariable(
        policy_pb2.UpdatePolicyVariableRequest(id=made.id, value="https://two", apply="NOW"),
        metadata=world.admin.metadata,
    )
    assert [(one.policy_id, one.rollout_id) for one in changed.policies] == [(policy.id, "")]
    await school.quiet()
    assert len(school.having("https://two")) == 4


async def test_a_simulation_tells_the_batches(school: School) -> None:
    """Of the default plan or of one that is asked for; with the freeze that is on, and nothing is
    written. A plan of no organisation is refused."""
    policy_id = await with_devices(school, 10)
    admin = school.world.admin
    at_once = await admin.call("SimulatePolicy", policy_id=policy_id)
    assert not at_once.HasField("rollout")
    await school.call("UpdatePolicySettings", default_plan=usual())
    found = (await admin.call("SimulatePolicy", policy_id=policy_id)).rollout
    assert [(one.name, one.devices) for one in found.batches] == [("half", 5), ("everybody", 5)]
    assert found.default_plan_org_id == str(ORG.id)
    hours = [
        (one.ToDatetime() - found.batches[0].opens_at.ToDatetime()).total_seconds() / 3600
        for one in (found.batches[1].opens_at, found.completes_at)
    ]
    assert hours == [1, 2]
    await school.call("UpdatePolicySettings", freezes=today(school), require_approval=True)
    careful = policy_pb2.RolloutPlan(preset="careful")
    asked = await admin.call("SimulatePolicy", policy_id=policy_id, plan=careful)
    assert asked.freeze == "Exams"
    assert asked.rollout.awaits_approval
    assert not asked.rollout.default_plan_org_id
    opens_at = asked.rollout.batches[0].opens_at.ToDatetime()
    assert opens_at.date() == school.now.date() + timedelta(days=2)
    urgent = await admin.call("SimulatePolicy", policy_id=policy_id, plan=careful, urgent=True)
    assert urgent.rollout.batches[0].opens_at.ToDatetime().date() == school.now.date()
    withdrawn = await admin.call("SimulatePolicy", policy_id=policy_id, withdraw=True)
    assert not withdrawn.HasField("rollout")
    for more, field in (
        ({"withdraw": True, "plan": careful}, "plan"),
        ({"plan": policy_pb2.RolloutPlan(windows=["x"])}, "plan.windows[0]"),
    ):
        refused = await refusal(admin.call("SimulatePolicy", policy_id=policy_id, **more))
        assert refused.fields == [field]
    reseller = above(school)
    theirs = await reseller.create(RESELLER.id, OLD)
    refused = await refusal(reseller.call("SimulatePolicy", policy_id=theirs.id, plan=careful))
    assert refused.fields == ["plan"]
    assert (await school.call("ListRollouts")).rollouts == []


async def test_who_publishes_above_is_told_of_freezes_below(school: School) -> None:
    """They do not hold it. A freeze of its own refuses it, and counts as none below."""
    world, reseller = school.world, above(school)
    await school.enroll(1)
    policy = await reseller.create(RESELLER.id, OLD)
    told = await reseller.call("SimulatePolicy", policy_id=policy.id)
    assert (told.freeze, told.frozen_orgs) == ("", 0)
    await school.call("UpdatePolicySettings", freezes=today(school))
    told = await reseller.call("SimulatePolicy", policy_id=policy.id)
    assert (told.freeze, told.frozen_orgs) == ("", 1)
    answer = await reseller.call("PublishPolicy", id=policy.id)
    assert answer.frozen_orgs == 1
    await school.quiet()
    assert len(school.having("https://old")) == 1
    own = await world.admin.create(ORG.id, NEW)
    assert not (await world.admin.call("PublishPolicy", id=own.id, urgent=True)).HasField(
        "frozen_orgs"
    )
    await says(school, RESELLER.id, reseller, freezes=today(school, "Holidays"))
    told = await reseller.call("SimulatePolicy", policy_id=policy.id)
    assert (told.freeze, told.frozen_orgs) == ("Holidays", 1)
    found = await school.call("GetPolicySettings")
    assert [one.name for one in found.freezes] == ["Exams"]
    assert [one.name for one in found.in_effect.freezes] == ["Holidays", "Exams"]
    refused = await refusal(reseller.call("PublishPolicy", id=policy.id))
    assert refused.reason == "POLICIES_FROZEN"


async def test_a_publish_is_answered_without_a_count(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away just after it: an error would have it published once more."""
    reseller = above(school)
    policy = await reseller.create(RESELLER.id, OLD)

    async def away(*_: object) -> int:
        raise ConnectionResetError

    monkeypatch.setattr(Outlooks, "_frozen_below", away)
    answer = await reseller.call("PublishPolicy", id=policy.id)
    assert answer.in_force
    assert not answer.HasField("frozen_orgs")
