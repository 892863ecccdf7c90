"""Rollouts of versions: who gets them, what stops them, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio

from contract.access import ACCESS
from evergreen.v1 import policy_pb2, policy_pb2_grpc
from services.policy.rollouts import worker
from tests.conftest import MakeKit, ServeService
from tests.services.policy.delivery.test_delivery import internal
from tests.services.policy.rollouts.school import NEW, OLD, School, opened
from tests.support.policy import ORG, RESELLER, SISTER, Admin
from tests.support.refusals import refusal
from tests.support.servers import TestDatabase
from tests.support.stack import PATIENCE

TENTH = policy_pb2.RolloutPlan(
    batches=[
        policy_pb2.RolloutBatch(name="first", percent=10, soak="1h"),
        policy_pb2.RolloutBatch(name="all", percent=100, soak="1h"),
    ]
)
BACK = policy_pb2.RolloutPlan(batches=TENTH.batches, on_failure="ROLL_BACK")


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


async def with_devices(school: School, count: int) -> str:
    """Devices with an old version; answers the policy."""
    policy = await school.world.admin.published(ORG.id, OLD)
    await school.enroll(count)
    assert len(school.having("https://old")) == count
    return str(policy.id)


async def names(school: School) -> list[str]:
    """What was told of rollouts."""
    found = [event["type"] for event in await school.world.events()]
    return [one.rpartition("rollout_")[2] for one in found if ".policy.rollout_" in f".{one}"]


async def test_a_version_comes_in_batches_and_is_in_force_at_the_end(school: School) -> None:
    """No device outside of the batch gets it, one that enrolls gets what is proven, and the end
    brings nothing to those that have it."""
    policy_id = await with_devices(school, 60)
    begun = await school.roll_out(NEW, TENTH, policy_id)
    assert (begun.state, begun.batch, begun.serving) == ("RUNNING", 1, True)
    await school.quiet()
    first = school.having("https://new")
    assert 0 < len(first) < 20
    await school.counted(begun.id, served=len(first), applied=len(first))
    question = policy_pb2.GetDevicePolicyRequest(tenant_id=str(ORG.id), first=True)
    assert b"https://old" in (await internal(school.world, "GetDevicePolicy", question)).envelope
    shown = await school.world.admin.call("GetPolicy", id=policy_id)
    assert (shown.rollout_id, shown.version, shown.signed) == (begun.id, "1", False)
    school.later(hours=1.1)
    await school.poll()
    async with asyncio.timeout(PATIENCE):
        while (await school.rollout(begun.id)).batch != 2:
            await asyncio.sleep(0.1)
    await school.quiet()
    assert len(school.having("https://new")) == 60
    await school.counted(begun.id, applied=60)
    school.later(hours=1.1)
    await school.poll()
    await school.looked("COMPLETED", begun.id)
    # Quiet afterwards: whoever has it is left alone.
    assert await school.poll() == 0
    await school.quiet()
    assert all(len(one.numbers) == 2 for one in school.laptops)
    (fresh,) = await school.enroll(1)
    assert fresh.homepage == "https://new"
    assert b"https://new" in (await internal(school.world, "GetDevicePolicy", question)).envelope
    shown = await school.world.admin.call("GetPolicy", id=policy_id)
    assert (shown.rollout_id, shown.version, shown.signed) == ("", begun.version, True)
    assert await names(school) == [
        "created",
        "started",
        "batch_opened",
        "batch_passed",
        "batch_opened",
        "batch_passed",
        "completed",
    ]


@pytest.mark.parametrize("reason", ["NOT_APPLIED", "WENT_SILENT", "TROUBLE"])
async def test_a_bad_version_stops_at_its_first_batch(school: School, reason: str) -> None:
    """By each criterion, of 200 devices, with nobody watching; what can be reached goes back, and
    the rest is listed."""
    policy_id = await with_devices(school, 200)
    if reason == "NOT_APPLIED":
        for one in school.laptops:
            one.applies = False
    begun = await school.roll_out(NEW, BACK, policy_id)
    if reason == "NOT_APPLIED":
        async with asyncio.timeout(PATIENCE):
            while (await school.rollout(begun.id)).state != "ROLLED_BACK":
                await school.poll()
    else:
        await school.quiet()
    got = [one for one in school.laptops if len(one.numbers) > 1]
    assert 5 <= len(got) <= 40
    if reason == "TROUBLE":
        school.telemetry.failing = {one.id for one in got}
        # Those that failed before prove nothing.
        school.telemetry.failed_before = {got[0].id}
        # Each is asked for once in five minutes.
        school.later(minutes=6)
    elif reason == "WENT_SILENT":
        await school.counted(begun.id, served=len(got))
        for one in got:
            one.is_on = False
        school.later(minutes=11)
        await school.poll()
        await school.counted(begun.id, lost=len(got), control_lost=0)
        # It has to last.
        await asyncio.sleep(1)
        assert (await school.rollout(begun.id)).state == "RUNNING"
        school.later(minutes=31)
        await school.poll()
    stopped = await school.looked("ROLLED_BACK", begun.id)
    assert (stopped.reason, stopped.batch) == (reason, 1)
    for one in school.laptops:
        one.applies = True
    await school.quiet()
    # Nobody else ever got it.
    assert len([one for one in school.laptops if len(one.numbers) > 1]) == len(got)
    reached = [one for one in got if one.is_on]
    assert all(one.homepage == "https://old" for one in reached)
    listed = await school.call("ListRolloutDevices", rollout_id=begun.id, state="LOST")
    silent = {one.id for one in got if not one.is_on}
    assert {one.device_id for one in listed.devices} == silent
    assert bool(silent) == (reason == "WENT_SILENT")
    if reason != "NOT_APPLIED":
        await school.counted(begun.id, returned=len(reached))
    events = [one for one in await school.world.events() if one["type"].endswith("_stopped")]
    assert len(events) == 1
    assert 0 < len(events[0]["data"]["after"]["devices"]) <= 20
    # Who comes back later gets what is in force, too.
    for one in got:
        one.is_on = True
    await school.quiet()
    assert len(school.having("https://old")) == 200


async def test_lids_that_close_for_all_stop_nothing(school: School) -> None:
    """Devices without it went silent at the same time; and without telemetry no batch passes."""
    policy_id = await with_devices(school, 60)
    begun = await school.roll_out(NEW, TENTH, policy_id)
    school.telemetry.down = True
    await school.quiet()
    served = len(school.having("https://new"))
    await school.counted(begun.id, applied=served)
    school.later(minutes=30)
    await school.counted(begun.id, lost=served, control_lost=60 - served)
    school.later(minutes=60)
    await asyncio.sleep(1)
    assert (await school.rollout(begun.id)).batch == 1
    school.telemetry.down = False
    async with asyncio.timeout(PATIENCE):
        while (await school.rollout(begun.id)).batch != 2:
            await asyncio.sleep(0.1)


async def test_paused_resumed_canceled(school: School) -> None:
    """Devices keep what they have, and the next publish reaches all."""
    policy_id = await with_devices(school, 40)
    begun = await school.roll_out(NEW, TENTH, policy_id)
    await school.quiet()
    first = len(school.having("https://new"))
    assert first
    paused = await school.call("PauseRollout", id=begun.id, reason="Lunch", etag=begun.etag)
    assert (paused.state, paused.serving, paused.detail) == ("PAUSED", False, "Lunch")
    assert await school.call("PauseRollout", id=begun.id) == paused
    stale = await refusal(school.call("CancelRollout", id=begun.id, etag=begun.etag))
    assert stale.code is grpc.StatusCode.ABORTED
    await school.enroll(40)
    await school.quiet()
    assert len(school.having("https://new")) == first
    await school.call("ResumeRollout", id=begun.id)
    await school.quiet()
    more = len(school.having("https://new"))
    assert more > first
    canceled = await school.call("CancelRollout", id=begun.id, reason="No")
    assert canceled.state == "CANCELED"
    await school.quiet()
    assert len(school.having("https://new")) == more
    for method in ("PauseRollout", "ResumeRollout", "AdvanceRollout", "ApproveRollout"):
        refused = await refusal(school.call(method, id=begun.id))
        assert refused.reason == "ROLLOUT_STATE"
    # Another one may follow, and three contents are side by side.
    third: dict[str, Any] = {"browser": {"homepage": "https://third"}}
    second = await school.roll_out(third, TENTH, policy_id)
    await school.quiet()
    assert {one.homepage for one in school.laptops} == {
        "https://old",
        "https://new",
        "https://third",
    }
    await school.call("AdvanceRollout", id=second.id, reason="Now")
    await school.quiet()
    assert len(school.having("https://third")) == 80
    await school.call("AdvanceRollout", id=second.id)
    assert (await school.rollout(second.id)).state == "COMPLETED"
    assert await school.poll() == 0
    await school.world.admin.call("RollbackPolicy", id=policy_id, version="1")
    await school.quiet()
    assert len(school.having("https://old")) == 80


async def test_one_rollout_at_a_time(school: School) -> None:
    """A plan is refused while another one runs, a plain publish ends it."""
    policy_id = await with_devices(school, 20)
    begun = await school.roll_out(NEW, TENTH, policy_id)
    refused = await refusal(school.roll_out(NEW, TENTH))
    assert refused.reason == "ROLLOUT_RUNNING"
    other = await school.roll_out(NEW, TENTH, supersede=True)
    assert (await school.rollout(begun.id)).state == "SUPERSEDED"
    await school.world.admin.call("PublishPolicy", id=policy_id)
    assert (await school.rollout(other.id)).state == "SUPERSEDED"
    await school.quiet()
    assert len(school.having("https://new")) == 20
    third = await school.roll_out(OLD, TENTH, policy_id)
    await school.world.admin.call("WithdrawPolicy", id=policy_id)
    ended = await school.rollout(third.id)
    assert (ended.state, ended.reason) == ("SUPERSEDED", "WITHDRAWN")


async def test_a_group_gets_a_version_in_batches(school: School) -> None:
    """And all others nothing; a batch may be a group."""
    await with_devices(school, 10)
    registry = school.world.neighbours.registry
    group, pilots = registry.group(ORG.id, "staff", 10), registry.group(ORG.id, "pilots", 20)
    staff = await school.enroll(10, group)
    pilot = await school.enroll(3, *sorted((group, pilots)))
    admin = school.world.admin
    targets = policy_pb2.PolicyTargetsChange(group_ids=[str(group)])
    policy = await admin.call(
        "CreatePolicy", org_id=str(ORG.id), name="Staff", bundle=NEW, targets=targets
    )
    plan = policy_pb2.RolloutPlan(
        batches=[policy_pb2.RolloutBatch(group_ids=[str(pilots)], soak="1h")]
    )
    answer = await admin.call("PublishPolicy", id=policy.id, plan=plan)
    await school.quiet()
    assert school.having("https://new") == pilot
    await school.call("AdvanceRollout", id=answer.rollout_id)
    await school.quiet()
    assert school.having("https://new") == staff + pilot
    await school.call("AdvanceRollout", id=answer.rollout_id)
    before = [list(one.numbers) for one in school.laptops]
    await school.quiet()
    assert [one.numbers for one in school.laptops] == before
    assert school.having("https://new") == staff + pilot


async def test_bad_plans_are_refused(school: School) -> None:
    """With the field, and nothing is published."""
    policy_id = await with_devices(school, 0)
    batch = policy_pb2.RolloutBatch
    bad: list[tuple[dict[str, Any], str]] = [
        ({"batches": [batch(name="x")]}, "plan.batches[0]"),
        ({"batches": [batch(percent=10), batch(percent=10)]}, "plan.batches[1].percent"),
        ({"batches": [batch(percent=10, soak="1y")]}, "plan.batches[0].soak"),
        ({"batches": [batch(percent=10, soak="40d")]}, "plan.batches[0].soak"),
        ({"batches": [batch(percent=10)], "preset": "now"}, "plan.preset"),
        ({"batches": [batch(group_ids=[policy_id])]}, "plan.batches[0].groupIds[0]"),
        ({"windows": ["when it rains"]}, "plan.windows[0]"),
        (
            {"health": policy_pb2.RolloutHealth(confirm_within="soon")},
            "plan.health.confirmWithin",
        ),
    ]
    for plan, field in bad:
        refused = await refusal(
            school.world.admin.call(
                "PublishPolicy", id=policy_id, plan=policy_pb2.RolloutPlan(**plan)
            )
        )
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.fields == [field]
    refused = await refusal(school.world.admin.call("PublishPolicy", id=policy_id, note="Why"))
    assert refused.fields == ["note"]
    assert (await school.call("ListRollouts")).rollouts == []


async def test_no_other_tenant_sees_or_steers_a_rollout(school: School) -> None:
    """Nor does an Auditor steer one."""
    policy_id = await with_devices(school, 5)
    begun = await school.roll_out(NEW, TENTH, policy_id)
    steering = [
        f"{verb}Rollout" for verb in ("Approve", "Pause", "Resume", "Advance", "Cancel", "RollBack")
    ]
    channel = school.world.channel
    for method in ("GetRollout", *steering):
        refused = await refusal(school.call(method, Admin(channel, SISTER.id), id=begun.id))
        assert refused.code is grpc.StatusCode.NOT_FOUND
    refused = await refusal(
        school.call("ListRolloutDevices", Admin(channel, SISTER.id), rollout_id=begun.id)
    )
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert (await school.call("ListRollouts", Admin(channel, SISTER.id))).rollouts == []
    auditor = Admin(channel, ORG.id, "Auditor")
    for method in steering:
        refused = await refusal(school.call(method, auditor, id=begun.id))
        assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    assert (await school.call("GetRollout", auditor, id=begun.id)).state == "RUNNING"
    assert len((await school.call("ListRollouts", auditor)).rollouts) == 1


def another(school: School, role: str = "Admin") -> Admin:
    """A second person of the organisation."""
    admin = Admin(school.world.channel, ORG.id, role)
    admin.metadata = tuple(
        (name, str(uuid4()) if name == "x-evergreen-subject" else value)
        for name, value in admin.metadata
    )
    return admin


async def test_a_second_person_freezes_and_urgent_publishes(school: School) -> None:
    """Who asks does not approve; a freeze refuses publishes and holds rollouts, unless urgent."""
    admin, world = school.world.admin, school.world
    policy_id = await with_devices(school, 20)
    found = await school.call("UpdatePolicySettings", require_approval=True)
    assert await school.call("UpdatePolicySettings", require_approval=True) == found
    await admin.call("UpdatePolicy", id=policy_id, bundle=NEW, signed=True)
    waiting = await school.rollout((await admin.call("GetPolicy", id=policy_id)).rollout_id)
    assert waiting.state == "AWAITING_APPROVAL"
    refused = await refusal(school.call("ApproveRollout", id=waiting.id))
    assert refused.reason == "SECOND_PERSON_NEEDED"
    # The same save again publishes nothing more.
    again = await admin.call("UpdatePolicy", id=policy_id, bundle=NEW, signed=True)
    assert again.rollout_id == waiting.id
    assert await school.poll() == 0
    day = policy_pb2.PolicyFreezeChange(
        name="Exams", first_day=f"{school.now.date()}", last_day=f"{school.now.date()}"
    )
    freezes = policy_pb2.PolicyFreezesChange(items=[day])
    await school.call("UpdatePolicySettings", freezes=freezes)
    approved = await school.call("ApproveRollout", another(school), id=waiting.id)
    assert approved.state == "SCHEDULED"
    await asyncio.sleep(1)
    assert await school.poll() == 0
    # Without approval, what is published at once is refused.
    await school.call("UpdatePolicySettings", another(school, "Owner"), require_approval=False)
    refused = await refusal(admin.call("PublishPolicy", id=policy_id))
    assert refused.reason == "POLICIES_FROZEN"
    other = await refusal(
        school.call("UpdatePolicySettings", Admin(world.channel, SISTER.id), org_id=str(ORG.id))
    )
    assert other.code is grpc.StatusCode.NOT_FOUND
    await admin.call("PublishPolicy", id=policy_id, urgent=True)
    await school.quiet()
    assert len(school.having("https://new")) == 20
    assert (await school.rollout(waiting.id)).state == "SUPERSEDED"


async def test_what_was_never_in_force_comes_back_by_a_plan_alone(school: School) -> None:
    """A rollback would give it to all devices past its batches and its approval."""
    policy_id = await with_devices(school, 5)
    await school.call("UpdatePolicySettings", require_approval=True)
    begun = await school.roll_out(NEW, TENTH, policy_id)
    assert begun.state == "AWAITING_APPROVAL"
    admin = school.world.admin
    for _ in range(2):
        refused = await refusal(admin.call("RollbackPolicy", id=policy_id, version=begun.version))
        assert refused.reason == "NEVER_IN_FORCE"
        # Nor when it has ended.
        await school.call("CancelRollout", id=begun.id)
    versions = (await admin.call("ListPolicyVersions", policy_id=policy_id)).versions
    assert [one.never_in_force for one in versions] == [True, False]
    await admin.call("RollbackPolicy", id=policy_id, version="1")
    await school.quiet()
    assert len(school.having("https://old")) == 5


async def test_a_second_person_approves(school: School) -> None:
    """No token does, nobody who logged in long ago, and an Admin does not do without; a plan's
    first batch can ask for it alone."""
    policy_id = await with_devices(school, 0)
    first = policy_pb2.RolloutBatch(name="first", percent=10, approval=True)
    begun = await school.roll_out(NEW, policy_pb2.RolloutPlan(batches=[first]), policy_id)
    assert (begun.state, begun.batch) == ("AWAITING_APPROVAL", 0)
    refused = await refusal(school.call("ApproveRollout", id=begun.id))
    assert refused.reason == "SECOND_PERSON_NEEDED"
    # No area: API tokens cannot.
    assert not ACCESS["/evergreen.v1.PolicyRolloutService/ApproveRollout"].area
    stub = policy_pb2_grpc.PolicyRolloutServiceStub(school.world.channel)
    refused = await refusal(
        stub.ApproveRollout(
            policy_pb2.ApproveRolloutRequest(id=begun.id), metadata=another(school).metadata
        )
    )
    assert refused.reason == "STEP_UP_NEEDED"
    assert (await school.rollout(begun.id)).state == "AWAITING_APPROVAL"
    approved = await school.call("ApproveRollout", another(school), id=begun.id)
    assert approved.state == "SCHEDULED"
    await school.looked("RUNNING", begun.id)
    # Who may do without a second person.
    exams = policy_pb2.PolicyFreezeChange(
        name="Exams", first_day="2001-01-01", last_day="2999-01-01"
    )
    items = policy_pb2.PolicyFreezesChange(items=[exams])
    settings = await school.call("UpdatePolicySettings", require_approval=True, freezes=items)
    for less in (
        {"require_approval": False},
        {"freezes": policy_pb2.PolicyFreezesChange()},
    ):
        refused = await refusal(school.call("UpdatePolicySettings", **less))
        assert refused.reason == "OWNER_NEEDED"
    assert await school.call("GetPolicySettings") == settings
    above = Admin(school.world.channel, RESELLER.id)
    changed = await school.call(
        "UpdatePolicySettings", above, org_id=str(ORG.id), require_approval=False
    )
    assert not changed.require_approval
    changed = await school.call(
        "UpdatePolicySettings",
        another(school, "Owner"),
        freezes=policy_pb2.PolicyFreezesChange(),
    )
    assert not changed.freezes


async def test_a_freeze_holds_what_takes_policies_away(school: School) -> None:
    """And what gives them to more devices; urgent calls pass, and a policy that a rollout brings is
    not deleted by mistake."""
    policy_id = await with_devices(school, 0)
    begun = await school.roll_out(NEW, TENTH, policy_id)
    exams = policy_pb2.PolicyFreezeChange(
        name="Exams", first_day="2001-01-01", last_day="2999-01-01"
    )
    items = policy_pb2.PolicyFreezesChange(items=[exams])
    await school.call("UpdatePolicySettings", freezes=items)
    admin = school.world.admin
    for refusing in (
        admin.call("WithdrawPolicy", id=policy_id),
        admin.call("DeletePolicy", id=policy_id, force=True),
        school.call("AdvanceRollout", id=begun.id),
    ):
        assert (await refusal(refusing)).reason == "POLICIES_FROZEN"
    await school.call("PauseRollout", id=begun.id)
    assert (await refusal(school.call("AdvanceRollout", id=begun.id))).reason == "POLICIES_FROZEN"
    withdrawn = await admin.call("WithdrawPolicy", id=policy_id, urgent=True)
    assert not withdrawn.signed
    urgent = await admin.call("PublishPolicy", id=policy_id, plan=TENTH, urgent=True)
    assert (await refusal(admin.call("DeletePolicy", id=policy_id))).reason == "POLICY_IN_FORCE"
    assert (await school.rollout(urgent.rollout_id)).state == "RUNNING"
    await school.call("AdvanceRollout", id=urgent.rollout_id)
    await admin.call("DeletePolicy", id=policy_id, force=True, urgent=True)


async def test_a_fourth_rollout_waits_for_room(school: School) -> None:
    """Three are looked at; those that wait take no place."""
    admin, registry = school.world.admin, school.world.neighbours.registry
    rollouts: list[policy_pb2.Rollout] = []
    for number in range(4):
        group = registry.group(ORG.id, f"class-{number}", 10 * number + 10)
        targets = policy_pb2.PolicyTargetsChange(group_ids=[str(group)])
        policy = await admin.call(
            "CreatePolicy", org_id=str(ORG.id), name=f"P{number}", bundle=NEW, targets=targets
        )
        answer = await admin.call("PublishPolicy", id=policy.id, plan=TENTH)
        rollouts.append(await school.rollout(answer.rollout_id))
    assert [one.state for one in rollouts] == ["RUNNING"] * 3 + ["SCHEDULED"]
    await school.call("PauseRollout", id=rollouts[3].id)
    refused = await refusal(school.call("AdvanceRollout", id=rollouts[3].id))
    assert refused.reason == "TOO_MANY_ROLLOUTS"
    await school.call("ResumeRollout", id=rollouts[3].id)
    await school.call("CancelRollout", id=rollouts[0].id)
    await school.looked("RUNNING", rollouts[3].id)


async def test_a_kill_between_decision_and_commit_has_decided_nothing(school: School) -> None:
    """The batch stays as it was, no more devices get the version, and nothing is told; another look
    decides anew, once."""
    half = policy_pb2.RolloutPlan(batches=[policy_pb2.RolloutBatch(percent=50, soak="1h")])
    policy_id = await with_devices(school, 20)
    begun = await school.roll_out(NEW, half, policy_id)
    await school.quiet()
    served = len(school.having("https://new"))
    assert 0 < served < 20
    await school.counted(begun.id, served=served, applied=served)
    connection = await school.world.database.superuser()
    try:
        await connection.execute("""
            CREATE SEQUENCE policy.kills;
            CREATE FUNCTION policy.kill() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN
                PERFORM nextval('policy.kills'), pg_terminate_backend(pg_backend_pid());
                RETURN NEW;
            END $$;
            CREATE TRIGGER kill BEFORE INSERT ON policy.outbox FOR EACH ROW
                WHEN (NEW.payload::text LIKE '%rollout_batch_opened%')
                EXECUTE FUNCTION policy.kill();
        """)
        school.later(hours=1.1)
        await school.poll()
        async with asyncio.timeout(PATIENCE):
            while await connection.fetchval("SELECT last_value FROM policy.kills") < 3:
                await asyncio.sleep(0.1)
        shown = await school.rollout(begun.id)
        assert (shown.state, shown.batch) == ("RUNNING", 1)
        await school.quiet()
        assert len(school.having("https://new")) == served
        told = ["created", "started", "batch_opened"]
        assert await names(school) == told
        await connection.execute("DROP TRIGGER kill ON policy.outbox")
    finally:
        await connection.close()
    async with asyncio.timeout(PATIENCE):
        while (await school.rollout(begun.id)).batch != 2:
            await asyncio.sleep(0.1)
    await school.quiet()
    assert len(school.having("https://new")) == 20
    assert await names(school) == [*told, "batch_passed", "batch_opened"]
