"""Simulations over gRPC."""

from __future__ import annotations

from typing import Any

from evergreen.v1 import policy_pb2
from servicekit.ids import given_id
from servicekit.rpc.server import Context
from servicekit.rpc.values import from_value, to_value
from services.policy.authoring.api import asked_merging, asked_targets
from services.policy.editions.api import EffectiveApi
from services.policy.simulation.domain import TEXTS, Counted, Difference, Tally
from services.policy.simulation.service import Asked, Simulations


def _to_changes(tally: Tally) -> list[policy_pb2.SimulatedChange]:
    """What is different, as the API answers it."""
    return [_to_change(one, counted) for one, counted in tally.changes.values()]


def _to_warnings(tally: Tally) -> list[policy_pb2.SimulationWarning]:
    """What is to be looked at, as the API answers it."""
    return [
        policy_pb2.SimulationWarning(
            code=one.code,
            path=one.path,
            item_key=one.name,
            message=TEXTS[one.code],
            devices=counted.devices,
            sample_device_ids=map(str, counted.sample),
        )
        for one, counted in tally.warnings.items()
    ]


def _to_change(one: Difference, counted: Counted) -> policy_pb2.SimulatedChange:
    message = policy_pb2.SimulatedChange(
        path=one.path, item_key=one.name, secret_changed=one.secret, devices=counted.devices
    )
    if one.before is not None:
        to_value(one.before, message.before)
    if one.after is not None:
        to_value(one.after, message.after)
    return message


def to_simulation(tally: Tally) -> policy_pb2.SimulatePolicyResponse:
    """What was found, as the API answers it."""
    return policy_pb2.SimulatePolicyResponse(
        devices=tally.devices,
        devices_affected=tally.affected,
        already_pending=tally.pending,
        editions=len(tally.editions),
        changes=_to_changes(tally),
        changes_omitted=tally.left_out,
        warnings=_to_warnings(tally),
        warnings_omitted=tally.warnings.omitted,
        complete=tally.complete,
    )


class SimulationApi(EffectiveApi):
    """evergreen.v1.PolicyService, with simulations."""

    def __init__(self, simulations: Simulations, *others: Any) -> None:
        super().__init__(*others)
        self._simulations = simulations

    async def SimulatePolicy(
        self, request: policy_pb2.SimulatePolicyRequest, context: Context
    ) -> policy_pb2.SimulatePolicyResponse:
        """Says what a publish or a withdrawal would change."""
        has_bundle = request.HasField("bundle")
        tally = await self._simulations.simulate(
            context.call,
            Asked(
                policy_id=given_id(request.policy_id),
                org_id=given_id(request.org_id),
                bundle=from_value(request.bundle) if has_bundle else None,
                has_bundle=has_bundle,
                merging=asked_merging(request.merging) if request.HasField("merging") else None,
                targets=asked_targets(request.targets) if request.HasField("targets") else None,
                withdraw=request.withdraw,
            ),
        )
        return to_simulation(tally)
