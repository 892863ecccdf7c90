"""Policies over gRPC."""

from __future__ import annotations

import json
from uuid import UUID

from contract.access import Role
from evergreen.v1 import policy_pb2
from servicekit.call import Caller
from servicekit.errors import invalid_field
from servicekit.ids import given_id
from servicekit.rpc.pagination import asked_page
from servicekit.rpc.server import Context
from servicekit.rpc.values import from_value, timestamp, to_value
from services.policy.authoring.changes import Change
from services.policy.authoring.domain import Policy, Published, Warned, warnings_of
from services.policy.authoring.secret_values import MASKED, REDACTED, hide
from services.policy.authoring.service import Change as PolicyChange
from services.policy.authoring.service import PolicyService
from services.policy.authoring.violations import child
from services.policy.gate.api import GateApi
from services.policy.gate.service import Gates
from services.policy.layers.merging import Merging
from services.policy.orphans.domain import Orphan
from services.policy.orphans.service import Orphans
from services.policy.syncs.service import Syncs
from services.policy.targets.domain import PolicyTargets
from services.policy.versions import MAX_VERSION


class PolicyApi(GateApi):
    """evergreen.v1.PolicyService."""

    def __init__(
        self, service: PolicyService, syncs: Syncs, orphans: Orphans, gates: Gates
    ) -> None:
        super().__init__(gates)
        self._service = service
        self._syncs = syncs
        self._orphans = orphans

    async def ListPolicies(
        self, request: policy_pb2.ListPoliciesRequest, context: Context
    ) -> policy_pb2.ListPoliciesResponse:
        """Lists policies."""
        after, size = asked_page(request, UUID)
        page = await self._service.list_policies(
            context.call, given_id(request.org_id), after, size
        )
        return policy_pb2.ListPoliciesResponse(
            policies=[to_policy(policy, None, with_bundle=False) for policy in page.items],
            next_page_token=page.token,
        )

    async def GetPolicy(
        self, request: policy_pb2.GetPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Answers one policy."""
        reveal = request.reveal_secrets
        policy = await self._service.get(context.call, UUID(request.id), reveal=reveal)
        return to_policy(policy, None if reveal else mask_for(context.call.caller))

    async def CreatePolicy(
        self, request: policy_pb2.CreatePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Creates a policy."""
        policy = await self._service.create(
            context.call,
            org_id=UUID(request.org_id),
            name=request.name,
            description=request.description if request.HasField("description") else None,
            bundle=from_value(request.bundle),
            publish=request.signed,
            merging=asked_merging(request.merging),
            targets=asked_targets(request.targets),
        )
        return to_policy(policy, MASKED)

    async def UpdatePolicy(
        self, request: policy_pb2.UpdatePolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Changes a policy."""
        has_bundle = request.HasField("bundle")
        change = PolicyChange(
            name=request.name if request.HasField("name") else None,
            description=request.description if request.HasField("description") else None,
            org_id=given_id(request.org_id),
            bundle=from_value(request.bundle) if has_bundle else None,
            has_bundle=has_bundle,
            publish=request.signed,
            merging=asked_merging(request.merging) if request.HasField("merging") else None,
            targets=asked_targets(request.targets) if request.HasField("targets") else None,
        )
        policy = await self._service.update(context.call, UUID(request.id), change)
        return to_policy(policy, MASKED)

    async def DeletePolicy(
        self, request: policy_pb2.DeletePolicyRequest, context: Context
    ) -> policy_pb2.DeletePolicyResponse:
        """Deletes a policy."""
        await self._service.delete(
            context.call, UUID(request.id), force=request.force, urgent=request.urgent
        )
        return policy_pb2.DeletePolicyResponse()

    async def PublishPolicy(
        self, request: policy_pb2.PublishPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Signs a policy and puts it in force."""
        policy = await self._service.publish(context.call, UUID(request.id))
        return to_policy(policy, MASKED)

    async def WithdrawPolicy(
        self, request: policy_pb2.WithdrawPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Takes a policy out of force."""
        policy = await self._service.withdraw(context.call, UUID(request.id), urgent=request.urgent)
        return to_policy(policy, MASKED)

    async def RollbackPolicy(
        self, request: policy_pb2.RollbackPolicyRequest, context: Context
    ) -> policy_pb2.Policy:
        """Publishes an earlier version again."""
        policy = await self._service.rollback(context.call, UUID(request.id), request.version)
        return to_policy(policy, MASKED)

    async def ListPolicyVersions(
        self, request: policy_pb2.ListPolicyVersionsRequest, context: Context
    ) -> policy_pb2.ListPolicyVersionsResponse:
        """Lists what was published of a policy."""
        before, size = asked_page(request, _version_position)
        page = await self._service.list_versions(
            context.call, UUID(request.policy_id), before, size
        )
        return policy_pb2.ListPolicyVersionsResponse(
            versions=[_to_version(version) for version in page.items],
            next_page_token=page.token,
        )

    async def DiffPolicyVersions(
        self, request: policy_pb2.DiffPolicyVersionsRequest, context: Context
    ) -> policy_pb2.DiffPolicyVersionsResponse:
        """Says what a version sets otherwise than another one."""
        base, found = await self._service.diff(
            context.call,
            UUID(request.policy_id),
            request.version,
            request.base,
            mask_for(context.call.caller),
        )
        return policy_pb2.DiffPolicyVersionsResponse(
            base=base, version=request.version, changes=map(_to_change, found)
        )

    async def ListOrphanedDevices(
        self, request: policy_pb2.ListOrphanedDevicesRequest, context: Context
    ) -> policy_pb2.ListOrphanedDevicesResponse:
        """Lists the devices that run a policy of an organisation that has none in force."""
        after, size = asked_page(request, UUID)
        page, total = await self._orphans.list(context.call, given_id(request.org_id), after, size)
        return policy_pb2.ListOrphanedDevicesResponse(
            devices=[_to_orphan(orphan) for orphan in page.items],
            next_page_token=page.token,
            total_size=total,
        )

    async def SyncDevice(
        self, request: policy_pb2.SyncDeviceRequest, context: Context
    ) -> policy_pb2.SyncDeviceResponse:
        """Has a device apply its policy again."""
        asked = await self._syncs.request(context.call, UUID(request.id))
        return policy_pb2.SyncDeviceResponse(requested_at=timestamp(asked))


def asked_merging(message: policy_pb2.PolicyMergingChange) -> Merging:
    """What a request says of layers.

    Raises:
        DomainError: INVALID_ARGUMENT for names that are no texts.
    """
    removed: dict[str, tuple[str, ...]] = {}
    for path, names in message.removed_items.items():
        found = [from_value(name) for name in names.values]
        if not all(isinstance(name, str) for name in found):
            raise invalid_field(child("merging.removedItems", path), "must be a list of names")
        removed[path] = tuple(found)
    return Merging(
        locked=tuple(message.locked_fields),
        replaced=tuple(message.replaced_fields),
        removed=removed,
        inherit=message.inherit if message.HasField("inherit") else True,
    )


def asked_targets(message: policy_pb2.PolicyTargetsChange) -> PolicyTargets:
    """The groups and devices that a request names."""
    return PolicyTargets(tuple(map(UUID, message.group_ids)), tuple(map(UUID, message.device_ids)))


def _to_targets(targets: PolicyTargets) -> policy_pb2.PolicyTargets | None:
    if not targets:
        return None
    return policy_pb2.PolicyTargets(
        group_ids=map(str, targets.group_ids), device_ids=map(str, targets.device_ids)
    )


def to_merging(merging: Merging) -> policy_pb2.PolicyMerging | None:
    """What a policy does with layers, as the API answers it; `None` for nothing."""
    if not merging.stored():
        return None
    message = policy_pb2.PolicyMerging(
        locked_fields=merging.locked, replaced_fields=merging.replaced, inherit=merging.inherit
    )
    for path, names in merging.removed.items():
        message.removed_items[path].extend(names)
    return message


def mask_for(caller: Caller) -> str:
    """What a caller reads in place of secrets."""
    return REDACTED if caller.role is Role.AUDITOR else MASKED


def to_policy(policy: Policy, mask: str | None, *, with_bundle: bool = True) -> policy_pb2.Policy:
    """A policy as the API answers it, with `mask` in place of its secrets."""
    message = policy_pb2.Policy(
        id=str(policy.id),
        org_id=str(policy.tenant_id),
        name=policy.name,
        version=str(policy.published_version or 0),
        created_at=timestamp(policy.created_at),
        updated_at=timestamp(policy.updated_at),
        signed=policy.delivered,
        description=policy.description,
        in_force=policy.in_force,
        has_unpublished_changes=policy.changed_since_publish,
        etag=policy.etag,
        merging=to_merging(policy.merging),
        targets=_to_targets(policy.targets),
        rollout_id=str(policy.rollout_id or ""),
    )
    if with_bundle:
        bundle = json.loads(policy.authored)
        to_value(bundle if mask is None else hide(bundle, mask), message.bundle)
        message.warnings.extend(map(to_warning, warnings_of(policy)))
    return message


def to_warning(warned: Warned) -> policy_pb2.PolicyWarning:
    """What is wrong at a place in a policy, as the API answers it."""
    return policy_pb2.PolicyWarning(
        field=warned.field,
        rule=warned.rule,
        message=warned.text,
        blocks_publishing=warned.blocks,
    )


def _to_version(version: Published) -> policy_pb2.PolicyVersion:
    return policy_pb2.PolicyVersion(
        version=str(version.version),
        published_at=timestamp(version.published_at),
        published_by=version.published_by,
        rollback_of=str(version.rollback_of or ""),
        key_id=version.key_id,
        # A digest over secrets lets its reader try out guesses.
        document_sha256="" if version.holds_secrets else version.document_sha256,
        never_in_force=version.never_in_force,
    )


def _to_change(change: Change) -> policy_pb2.PolicyChange:
    message = policy_pb2.PolicyChange(
        path=change.path, item_key=change.name, secret_changed=change.secret
    )
    if change.before is not None:
        to_value(change.before, message.before)
    if change.after is not None:
        to_value(change.after, message.after)
    return message


def _to_orphan(orphan: Orphan) -> policy_pb2.OrphanedDevice:
    return policy_pb2.OrphanedDevice(
        device_id=str(orphan.device_id),
        org_id=str(orphan.tenant_id),
        policy_version=str(orphan.version),
        policy_id=str(orphan.policy_id or ""),
        policy_name=orphan.policy_name or "",
        reported_at=timestamp(orphan.reported_at),
    )


def _version_position(text: str) -> int:
    version = int(text)
    if not 0 < version <= MAX_VERSION:
        raise ValueError(text)
    return version
