"""Variables and secrets of policies over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.errors import invalid_field
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import timestamp
from services.policy.authoring.api import to_warning
from services.policy.authoring.publishing import Publishing
from services.policy.variables.domain import Use, Variable
from services.policy.variables.service import Shown, Variables


class VariableApi(policy_pb2_grpc.PolicyVariableServiceServicer):
    """evergreen.v1.PolicyVariableService."""

    def __init__(
        self, variables: Variables, plan_of: Callable[[policy_pb2.RolloutPlan], object]
    ) -> None:
        self._variables = variables
        self._plan_of = plan_of

    async def ListPolicyVariables(
        self, request: policy_pb2.ListPolicyVariablesRequest, context: Context
    ) -> policy_pb2.ListPolicyVariablesResponse:
        """Lists variables and secrets."""
        after, size = asked_page(request, UUID)
        page = await self._variables.list_variables(
            context.call, given_id(request.org_id), after, size
        )
        return policy_pb2.ListPolicyVariablesResponse(
            variables=[_to_variable(one) for one in page.items], next_page_token=page.token
        )

    async def GetPolicyVariable(
        self, request: policy_pb2.GetPolicyVariableRequest, context: Context
    ) -> policy_pb2.PolicyVariable:
        """Answers one variable."""
        return _to_shown(await self._variables.get(context.call, UUID(request.id)))

    async def CreatePolicyVariable(
        self, request: policy_pb2.CreatePolicyVariableRequest, context: Context
    ) -> policy_pb2.PolicyVariable:
        """Adds a variable."""
        shown = await self._variables.create(
            context.call,
            UUID(request.org_id),
            request.name,
            request.value,
            is_secret=request.secret,
            overridable=request.overridable,
            urgent=request.urgent,
        )
        return _to_shown(shown)

    async def UpdatePolicyVariable(
        self, request: policy_pb2.UpdatePolicyVariableRequest, context: Context
    ) -> policy_pb2.PolicyVariable:
        """Gives a variable another value."""
        shown = await self._variables.update(
            context.call,
            UUID(request.id),
            request.value,
            self._publishing(request),
            overridable=request.overridable if request.HasField("overridable") else None,
            urgent=request.urgent,
        )
        return _to_shown(shown)

    async def DeletePolicyVariable(
        self, request: policy_pb2.DeletePolicyVariableRequest, context: Context
    ) -> policy_pb2.DeletePolicyVariableResponse:
        """Deletes a variable."""
        await self._variables.delete(context.call, UUID(request.id), urgent=request.urgent)
        return policy_pb2.DeletePolicyVariableResponse()

    def _publishing(self, request: policy_pb2.UpdatePolicyVariableRequest) -> Publishing | None:
        """How policies are published with a new value; `None` for not at all."""
        if request.HasField("plan") and request.apply != "ROLLOUT":
            raise invalid_field("plan", "counts with apply: ROLLOUT only")
        if request.apply not in {"NOW", "ROLLOUT"}:
            return None
        return Publishing(
            plan=self._plan_of(request.plan) if request.apply == "ROLLOUT" else None,
            at_once=request.apply == "NOW",
            urgent=request.urgent,
            keeps_rollouts=True,
        )


def _to_shown(shown: Shown) -> policy_pb2.PolicyVariable:
    message = _to_variable(shown.variable, shown.uses)
    message.sealed_when_published = shown.sealed_when_published
    message.taken_by.extend(one.name for one in shown.above)
    for one in shown.advice:
        warning = to_warning(one.warned)
        warning.policy_name = one.policy
        message.warnings.append(warning)
    return message


def _to_variable(variable: Variable, uses: Sequence[Use] = ()) -> policy_pb2.PolicyVariable:
    return policy_pb2.PolicyVariable(
        id=str(variable.id),
        org_id=str(variable.tenant_id),
        name=variable.name,
        secret=variable.is_secret,
        value=variable.value or "",
        fingerprint=variable.fingerprint,
        updated_at=timestamp(variable.updated_at),
        updated_by=variable.updated_by,
        overridable=variable.overridable,
        etag=variable.etag,
        policies=[
            policy_pb2.PolicyVariableUse(
                policy_id=str(use.policy_id),
                policy_name=use.name,
                in_force=use.in_force,
                has_unpublished_changes=use.changed_since_publish,
                has_older_value=use.has_older_value,
                rollout_id=str(use.rollout_id or ""),
            )
            for use in uses
        ],
    )
