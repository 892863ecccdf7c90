"""Rollouts over gRPC."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from typing import Any, Final
from uuid import UUID

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.errors import invalid_field
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import given_time, optional_timestamp, timestamp
from services.policy.authoring.api import asked_targets, to_policy
from services.policy.authoring.publishing import Publishing
from services.policy.authoring.secret_values import MASKED
from services.policy.rollouts.domain import Counts, Rollout, RolloutDevice
from services.policy.rollouts.outlook import Outlook
from services.policy.rollouts.outlooks import Asked, Outlooks
from services.policy.rollouts.plans import PRESETS, Batch, Health, Plan, checked, span_of
from services.policy.rollouts.publishing_settings import PlanChange, PublishingSettings
from services.policy.rollouts.service import Rollouts
from services.policy.rollouts.settings import Freeze, InEffect, Settings
from services.policy.sets.api import PolicySetApi

_LIMITS: Final = (
    "max_failed_percent",
    "max_trouble_percent",
    "max_lost_percent",
    "at_least",
    "min_seen_percent",
)


class PublishingApi(PolicySetApi):
    """evergreen.v1.PolicyService, whose publishes may come to devices in batches."""

    def __init__(self, outlooks: Outlooks, *others: Any) -> None:
        super().__init__(*others)
        self._outlooks = outlooks

    async def PublishPolicy(
        self, request: policy_pb2.PublishPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Signs a policy and puts it in force, or rolls it out."""
        publishing = Publishing(
            plan=asked_plan(request.plan) if request.HasField("plan") else None,
            urgent=request.urgent,
            supersede=request.supersede,
            note=request.note,
            starts_at=given_time(request, "starts_at"),
        )
        if publishing.plan is None:
            for field in ("supersede", "note", "starts_at"):
                if getattr(publishing, field):
                    name = "startsAt" if field == "starts_at" else field
                    raise invalid_field(name, "counts with a plan only")
        policy = await self._service.publish(context.call, UUID(request.id), publishing)
        answer = to_policy(policy, MASKED)
        frozen = await self._outlooks.frozen_orgs(policy.tenant_id)
        if frozen is not None:
            answer.frozen_orgs = frozen
        return answer

    async def SimulatePolicy(
        self, request: policy_pb2.SimulatePolicyRequest, context: Context
    ) -> policy_pb2.SimulatePolicyResponse:
        """Says what a publish or a withdrawal would change, and how it would come to devices."""
        plan = asked_plan(request.plan) if request.HasField("plan") else None
        if plan is not None:
            checked(plan)
        answer = await super().SimulatePolicy(request, context)
        found = await self._outlooks.of(
            context.call,
            Asked(
                policy_id=given_id(request.policy_id),
                org_id=given_id(request.org_id),
                targets=asked_targets(request.targets) if request.HasField("targets") else None,
                withdraw=request.withdraw,
                plan=plan,
                urgent=request.urgent,
                starts_at=given_time(request, "starts_at"),
            ),
        )
        answer.freeze = found.freeze
        answer.frozen_orgs = found.frozen_orgs
        if found.outlook is not None:
            answer.rollout.CopyFrom(_to_outlook(found.outlook, found.default_plan_of))
        return answer


class RolloutApi(policy_pb2_grpc.PolicyRolloutServiceServicer):
    """evergreen.v1.PolicyRolloutService."""

    def __init__(self, rollouts: Rollouts, settings: PublishingSettings) -> None:
        self._rollouts = rollouts
        self._settings = settings

    async def ListRollouts(
        self, request: policy_pb2.ListRolloutsRequest, context: Context
    ) -> policy_pb2.ListRolloutsResponse:
        """Lists rollouts."""
        before, size = asked_page(request, UUID)
        page = await self._rollouts.list_rollouts(
            context.call,
            given_id(request.org_id),
            given_id(request.policy_id),
            before,
            size,
            only_open=request.only_open,
        )
        return policy_pb2.ListRolloutsResponse(
            rollouts=map(to_rollout, page.items), next_page_token=page.token
        )

    async def GetRollout(
        self, request: policy_pb2.GetRolloutRequest, context: Context
    ) -> policy_pb2.Rollout:
        """Answers one rollout."""
        return to_rollout(await self._rollouts.get(context.call, UUID(request.id)))

    async def ListRolloutDevices(
        self, request: policy_pb2.ListRolloutDevicesRequest, context: Context
    ) -> policy_pb2.ListRolloutDevicesResponse:
        """Lists the devices of a rollout that were seen."""
        after, size = asked_page(request, UUID)
        page = await self._rollouts.devices(
            context.call, UUID(request.rollout_id), request.state, after, size
        )
        return policy_pb2.ListRolloutDevicesResponse(
            devices=map(_to_device, page.items), next_page_token=page.token
        )

    async def ApproveRollout(
        self, request: policy_pb2.ApproveRolloutRequest, context: Context
    ) -> policy_pb2.Rollout:
        """Lets a rollout go on."""
        return to_rollout(await self._rollouts.approve(context.call, UUID(request.id)))

    async def PauseRollout(
        self, request: policy_pb2.PauseRolloutRequest, context: Context
    ) -> policy_pb2.Rollout:
        """Pauses a rollout."""
        found = await self._rollouts.pause(context.call, UUID(request.id), request.reason)
        return to_rollout(found)

    async def ResumeRollout(
        self, request: policy_pb2.ResumeRolloutRequest, context: Context
    ) -> policy_pb2.Rollout:
        """Goes on with a rollout."""
        found = await self._rollouts.resume(context.call, UUID(request.id), request.reason)
        return to_rollout(found)

    async def AdvanceRollout(
        self, request: policy_pb2.AdvanceRolloutRequest, context: Context
    ) -> policy_pb2.Rollout:
        """Opens the next batch."""
        found = await self._rollouts.advance(context.call, UUID(request.id), request.reason)
        return to_rollout(found)

    async def CancelRollout(
        self, request: policy_pb2.CancelRolloutRequest, context: Context
    ) -> policy_pb2.Rollout:
        """Ends a rollout."""
        found = await self._rollouts.cancel(context.call, UUID(request.id), request.reason)
        return to_rollout(found)

    async def RollBackRollout(
        self, request: policy_pb2.RollBackRolloutRequest, context: Context
    ) -> policy_pb2.Rollout:
        """Takes a rollout back."""
        found = await self._rollouts.roll_back(context.call, UUID(request.id), request.reason)
        return to_rollout(found)

    async def GetPolicySettings(
        self, request: policy_pb2.GetPolicySettingsRequest, context: Context
    ) -> policy_pb2.PolicySettings:
        """Answers how a tenant publishes."""
        return self._shown(*await self._settings.get(context.call, given_id(request.org_id)))

    async def UpdatePolicySettings(
        self, request: policy_pb2.UpdatePolicySettingsRequest, context: Context
    ) -> policy_pb2.PolicySettings:
        """Says how a tenant publishes."""
        freezes = None
        if request.HasField("freezes"):
            freezes = [(one.name, one.first_day, one.last_day) for one in request.freezes.items]
        found, effect = await self._settings.update(
            context.call,
            given_id(request.org_id),
            time_zone=request.time_zone if request.HasField("time_zone") else None,
            require_approval=request.require_approval
            if request.HasField("require_approval")
            else None,
            freezes=freezes,
            default_plan=_asked_default(request.default_plan)
            if request.HasField("default_plan")
            else None,
        )
        return self._shown(found, effect)

    def _shown(self, found: Settings, effect: InEffect) -> policy_pb2.PolicySettings:
        return _to_settings(found, effect, self._settings.today(effect))


def _asked_default(message: policy_pb2.DefaultPlanChange) -> PlanChange:
    """The default plan that is asked for."""
    if not message.HasField("plan"):
        return PlanChange(None)
    return PlanChange(asked_plan(message.plan, "defaultPlan.plan"))


def asked_plan(message: policy_pb2.RolloutPlan, field: str = "plan") -> Plan:
    """The plan of a message, or `careful` where it says none.

    Args:
        field: where it is in the request.
    """
    plan = PRESETS[message.preset or "careful"]
    if message.batches:
        if message.preset:
            raise invalid_field(f"{field}.preset", "takes no batches beside it")
        plan = Plan(
            tuple(
                Batch(
                    one.name or f"batch {index + 1}",
                    one.percent,
                    tuple(map(UUID, one.group_ids)),
                    span_of(one.soak, f"{field}.batches[{index}].soak")
                    if one.soak
                    else Batch(one.name).soak,
                    one.approval,
                )
                for index, one in enumerate(message.batches)
            )
        )
    return replace(
        plan,
        health=_health(message.health, plan.health, field),
        roll_back=message.on_failure == "ROLL_BACK",
        windows=tuple(message.windows),
        max_per_minute=message.max_per_minute,
    )


def _health(message: policy_pb2.RolloutHealth, usual: Health, field: str) -> Health:
    given: dict[str, Any] = {
        name: getattr(message, name) for name in _LIMITS if message.HasField(name)
    }
    if message.confirm_within:
        given["confirm_within"] = span_of(message.confirm_within, f"{field}.health.confirmWithin")
    return replace(usual, **given)


def to_plan(plan: Plan) -> policy_pb2.PlannedRollout:
    """A plan as the API answers it."""
    health = plan.health
    return policy_pb2.PlannedRollout(
        batches=[
            policy_pb2.PlannedBatch(
                name=one.name,
                percent=one.percent,
                group_ids=map(str, one.group_ids),
                soak=_span(one.soak.total_seconds()),
                approval=one.approval,
            )
            for one in plan.batches
        ],
        health=policy_pb2.PlannedHealth(
            confirm_within=_span(health.confirm_within.total_seconds()),
            **{name: getattr(health, name) for name in _LIMITS},
        ),
        on_failure="ROLL_BACK" if plan.roll_back else "PAUSE",
        windows=plan.windows,
        max_per_minute=plan.max_per_minute,
    )


def _to_outlook(outlook: Outlook, default_of: UUID | None) -> policy_pb2.SimulatedRollout:
    return policy_pb2.SimulatedRollout(
        plan=to_plan(outlook.plan),
        default_plan_org_id=str(default_of or ""),
        batches=[
            policy_pb2.SimulatedBatch(
                name=one.name,
                devices=one.devices,
                opens_at=optional_timestamp(one.opens_at),
                approval=one.approval,
            )
            for one in outlook.steps
        ],
        completes_at=optional_timestamp(outlook.completes_at),
        outside_windows=outlook.outside_windows,
        awaits_approval=outlook.steps[0].approval,
    )


def _span(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60}h" if minutes % 60 == 0 else f"{minutes}m"


def to_rollout(rollout: Rollout) -> policy_pb2.Rollout:
    """A rollout as the API answers it."""
    return policy_pb2.Rollout(
        id=str(rollout.id),
        org_id=str(rollout.tenant_id),
        policy_id=str(rollout.policy_id),
        policy_name=rollout.policy_name,
        version=str(rollout.version),
        state=rollout.state.value,
        reason=rollout.reason,
        detail=rollout.detail,
        plan=to_plan(rollout.plan),
        batch=rollout.batch + 1,
        batch_opened_at=optional_timestamp(rollout.batch_opened_at),
        serving=rollout.serves,
        urgent=rollout.urgent,
        note=rollout.note,
        counts=None if rollout.counts is None else _to_counts(rollout.counts),
        created_at=timestamp(rollout.created_at),
        created_by=rollout.created_by_name,
        approved_by=rollout.approved_by_name,
        starts_at=timestamp(rollout.starts_at),
        ended_at=optional_timestamp(rollout.ended_at),
        etag=rollout.etag,
    )


def _to_counts(counts: Counts) -> policy_pb2.RolloutCounts:
    return policy_pb2.RolloutCounts(
        expected=counts.expected,
        served=counts.served,
        applied=counts.applied,
        failed=counts.failed,
        trouble=counts.trouble if counts.trouble_known else None,
        lost=counts.lost,
        control=counts.control,
        control_lost=counts.control_lost,
        returned=counts.returned,
        excused=counts.excused,
        waiting=counts.waiting,
    )


def _to_device(device: RolloutDevice) -> policy_pb2.RolloutDevice:
    return policy_pb2.RolloutDevice(
        device_id=str(device.device_id),
        state=device.state.value,
        trouble=device.trouble,
        seen_at=timestamp(device.seen_at),
        delivered_at=optional_timestamp(device.delivered_at),
        applied_at=optional_timestamp(device.applied_at),
    )


def _to_freezes(freezes: Iterable[Freeze]) -> list[policy_pb2.PolicyFreeze]:
    return [
        policy_pb2.PolicyFreeze(name=one.name, first_day=str(one.first), last_day=str(one.last))
        for one in freezes
    ]


def _to_settings(found: Settings, effect: InEffect, today: date) -> policy_pb2.PolicySettings:
    return policy_pb2.PolicySettings(
        org_id=str(found.tenant_id),
        time_zone=found.time_zone,
        require_approval=found.require_approval,
        freezes=_to_freezes(found.freezes),
        updated_at=optional_timestamp(found.updated_at),
        etag=found.etag,
        default_plan=None if found.default_plan is None else to_plan(found.default_plan),
        in_effect=policy_pb2.PolicySettingsInEffect(
            time_zone=effect.zone.key,
            require_approval=effect.require_approval,
            freezes=_to_freezes(one for one in effect.freezes if one.last >= today),
            default_plan=None if effect.default_plan is None else to_plan(effect.default_plan),
            default_plan_org_id=str(effect.default_plan_of or ""),
        ),
    )
