"""Sets of policies over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from evergreen.v1 import policy_pb2
from servicekit.errors import invalid_field
from servicekit.ids import given_id
from servicekit.rpc.rules import is_uuid
from servicekit.rpc.server import Context
from servicekit.rpc.values import from_value, to_value
from services.policy.authoring.api import asked_merging, mask_for, to_merging
from services.policy.authoring.secret_values import hide
from services.policy.sets.domain import Action, Entry, Step, VariableStep
from services.policy.sets.moving import MovingSecrets
from services.policy.sets.service import Asked, Exported, PolicySets
from services.policy.sets.variables import Given, Named
from services.policy.simulation.api import SimulationApi, to_simulation


def _entry(message: policy_pb2.PolicySetEntry) -> Entry:
    return Entry(
        alias=message.alias,
        name=message.name or message.alias,
        description=message.description,
        bundle=from_value(message.bundle),
        merging=asked_merging(message.merging),
        groups=tuple(message.groups),
        draft=message.draft,
        renamed_from=message.renamed_from,
    )


def _ids(groups: Mapping[str, str]) -> dict[str, UUID]:
    for alias, id_ in groups.items():
        if not is_uuid(id_):
            raise invalid_field(f"renamedGroups[{alias}]", "must be a UUID")
    return {alias: UUID(id_) for alias, id_ in groups.items()}


def _to_step(step: Step, *, planned: bool) -> policy_pb2.PlannedPolicy:
    is_new = planned and step.action is Action.CREATE
    return policy_pb2.PlannedPolicy(
        action=step.action.value,
        alias=step.alias,
        policy_id="" if is_new else str(step.policy.id),
        name=step.policy.name,
        changed=step.changed,
        publishes=step.publishes,
        set_name=step.set_name,
        awaits_approval=step.awaits_approval,
    )


def _to_variable_step(step: VariableStep) -> policy_pb2.PlannedVariable:
    variable = step.variable
    is_other = step.action in {Action.LEFT, Action.OTHER}
    return policy_pb2.PlannedVariable(
        action=step.action.value,
        name=variable.name,
        value=variable.value or "",
        set_name=variable.set_name if is_other else "",
        overridable=variable.overridable,
    )


def _to_exported(one: Exported, mask: str) -> policy_pb2.ExportedPolicy:
    message = policy_pb2.ExportedPolicy(
        alias=one.entry.alias,
        name=one.entry.name,
        description=one.entry.description,
        merging=to_merging(one.entry.merging),
        groups=one.entry.groups,
        draft=one.entry.draft,
        policy_id=str(one.policy.id),
        set_name=one.set_name,
    )
    to_value(hide(one.entry.bundle, mask), message.bundle)
    return message


class PolicySetApi(SimulationApi):
    """evergreen.v1.PolicyService, with sets of policies."""

    def __init__(self, sets: PolicySets, moving: MovingSecrets, *others: Any) -> None:
        super().__init__(*others)
        self._sets = sets
        self._moving = moving

    async def MovePolicySecrets(
        self, request: policy_pb2.MovePolicySecretsRequest, context: Context
    ) -> policy_pb2.MovePolicySecretsResponse:
        """Gives names to the secrets that stand in policies."""
        moved = await self._moving.move(
            context.call,
            UUID(request.org_id),
            validate_only=request.validate_only,
            urgent=request.urgent,
        )
        return policy_pb2.MovePolicySecretsResponse(
            secrets=moved.secrets,
            policies=[
                policy_pb2.PolicyWithMovedSecrets(
                    policy_id=str(policy.id), name=policy.name, published=published
                )
                for policy, published in moved.policies
            ],
            moved=not request.validate_only,
        )

    async def ApplyPolicySet(
        self, request: policy_pb2.ApplyPolicySetRequest, context: Context
    ) -> policy_pb2.ApplyPolicySetResponse:
        """Applies a set, or says what that would do."""
        plan, tally = await self._sets.apply(
            context.call,
            Asked(
                tenant_id=UUID(request.org_id),
                name=request.name,
                entries=tuple(map(_entry, request.policies)),
                prune=request.prune,
                adopt=request.adopt,
                validate_only=request.validate_only,
                expected_sha256=request.expected_plan_sha256,
                planned_groups=frozenset(request.planned_groups),
                renamed_groups=_ids(request.renamed_groups),
                named=Named(
                    tuple(Given(one.name, one.value, one.overridable) for one in request.variables),
                    tuple(request.secrets),
                ),
            ),
        )
        return policy_pb2.ApplyPolicySetResponse(
            policies=[_to_step(step, planned=request.validate_only) for step in plan.steps],
            plan_sha256=plan.sha256,
            applied=not request.validate_only,
            simulation=None if tally is None else to_simulation(tally),
            variables=map(_to_variable_step, plan.variables),
        )

    async def ExportPolicySet(
        self, request: policy_pb2.ExportPolicySetRequest, context: Context
    ) -> policy_pb2.ExportPolicySetResponse:
        """Answers a tenant's policies as a set would have them."""
        org_id = given_id(request.org_id)
        found, named = await self._sets.export(context.call, org_id)
        mask = mask_for(context.call.caller)
        return policy_pb2.ExportPolicySetResponse(
            org_id=str(org_id or context.call.caller.tenant_id),
            policies=[_to_exported(one, mask) for one in found],
            variables=[policy_pb2.ExportedVariable(**one._asdict()) for one in named.variables],
            secrets=named.secrets,
        )
