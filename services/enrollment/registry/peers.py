"""What enrollment asks of the other services for a device that is let in."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import grpc

from evergreen.v1 import (
    device_pb2,
    enrollment_pb2,
    identity_pb2,
    identity_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
)
from servicekit.errors import DomainError, invalid_field, permission_denied, unavailable
from servicekit.observability import logs
from services.enrollment.registry.domain import Device

log = logs.get(__name__)

_SECONDS: Final = 5.0
NO_POLICY: Final = (
    b'{"version":"","signature":"","policy":{'
    b'"apps":{"required":[]},'
    b'"updates":{"channel":"","reboot_required":false,"maintenance_windows":[]},'
    b'"browser":{"homepage":"","extensions":[],"allow_dev_tools":false,"managed_bookmarks":[]},'
    b'"network":{"wifi":[],"vpns":[],"vpn_dns":[]},'
    b'"security":{"selinux_enforce":false,"ssh_enabled":false,"usbguard":false,'
    b'"usbguard_rules":[],"allow_root_login":false}}}'
)
"""The ENVELOPE of an organisation without a policy: agents apply nothing of an empty version.
The document has all that a decoder may look for."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A token for a device, the policy in force as exact JSON bytes, and whether it has called.

    The statement is the policy's second signature, which gRPC alone carries.
    """

    token: str = field(repr=False)
    envelope: bytes = field(repr=False)
    has_called: bool
    statement: device_pb2.PolicyStatement | None = field(default=None, repr=False)


def membership_of(device: Device) -> enrollment_pb2.Membership | None:
    """The labels and groups of a device, as far as they are known."""
    if not device.groups_are_known:
        return None
    return enrollment_pb2.Membership(
        group_ids=map(str, device.group_ids),
        labels=device.labels,
        revision=device.revision,
        policy_key_id=device.policy_key_id,
    )


def key_retired() -> DomainError:
    """A device would end at once: nothing is signed with the key that it pins."""
    return permission_denied(
        "POLICY_KEY_RETIRED",
        "the policy key that the device pins is retired; use an enrollment token and a"
        " configuration with another one",
    )


class Peers:
    """Identity and policy."""

    def __init__(self, identity: grpc.aio.Channel, policy: grpc.aio.Channel) -> None:
        self._identity = identity_pb2_grpc.IdentityInternalServiceStub(identity)
        self._policy = policy_pb2_grpc.PolicyInternalServiceStub(policy)

    async def issue(self, device: Device, *, ask_has_called: bool = False) -> Issued:
        """Everything that a device starts with; whether it has called only when asked.

        Raises:
            DomainError: UNAVAILABLE when one of the services is away; PERMISSION_DENIED when the
                key that the device pins is retired.
        """
        try:
            token, policy = await asyncio.gather(
                self._identity.IssueDeviceToken(
                    identity_pb2.IssueDeviceTokenRequest(
                        device_id=str(device.id),
                        tenant_id=str(device.tenant_id),
                        token_version=device.token_version,
                    ),
                    timeout=_SECONDS,
                ),
                self._first_policy(device, ask_has_called=ask_has_called),
            )
        except grpc.aio.AioRpcError as error:
            log.warning(
                "device registration not completed",
                device=str(device.id),
                error=f"{error.code().name}: {error.details()}",
            )
            raise unavailable("the device is registered, but not all services answer") from error
        return Issued(
            token.device_token,
            policy.envelope or NO_POLICY,
            policy.has_called,
            policy.statement if policy.HasField("statement") else None,
        )

    async def _first_policy(
        self, device: Device, *, ask_has_called: bool
    ) -> policy_pb2.GetDevicePolicyResponse:
        try:
            return await self._policy.GetDevicePolicy(
                policy_pb2.GetDevicePolicyRequest(
                    tenant_id=str(device.tenant_id),
                    device_id=str(device.id),
                    token_version=device.token_version if ask_has_called else 0,
                    first=True,
                    membership=membership_of(device),
                    policy_key_id=device.policy_key_id,
                ),
                timeout=_SECONDS,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise key_retired() from error
            raise

    async def admits(self, tenant_id: UUID, key_id: str) -> bool:
        """Whether devices that pin a key for policies may be let in; so while policy is away."""
        try:
            found = await self._policy.GetTokenPolicyKey(
                policy_pb2.GetTokenPolicyKeyRequest(
                    tenant_id=str(tenant_id), policy_key_id=key_id, enrolling=True
                ),
                timeout=_SECONDS,
            )
        except grpc.aio.AioRpcError as error:
            log.info("policy key not checked", key_id=key_id, error=error.code().name)
            return True
        return bool(found.policy_key_id)

    async def token_key(self, tenant_id: UUID, asked: str) -> tuple[str, str]:
        """The key for policies that new devices of an organisation pin: its id, and in PEM.

        Both are empty where policy is of a release that knows one key.

        Args:
            asked: the id of the key that is wanted; empty for the active one.

        Raises:
            DomainError: INVALID_ARGUMENT when it is none that they may have; UNAVAILABLE when
                policy is away.
        """
        try:
            found = await self._policy.GetTokenPolicyKey(
                policy_pb2.GetTokenPolicyKeyRequest(tenant_id=str(tenant_id), policy_key_id=asked),
                timeout=_SECONDS,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED and not asked:
                return "", ""
            raise unavailable("policy, which knows the keys, is away; try again") from error
        if not found.policy_key_id:
            raise invalid_field(
                "policyKeyId", "is no policy key that new devices of the organisation may pin"
            )
        return found.policy_key_id, found.public_key_pem
