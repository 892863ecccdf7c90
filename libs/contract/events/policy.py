"""What policy tells: policies, and what devices get of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, Literal
from uuid import UUID

from contract.events.attestation import VerdictName
from contract.events.base import AT, ID, TENANT_ID, Action, CallsRefused, Since, resources


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySnapshot:
    """A policy, its secrets blotted out; a very large bundle is replaced by its SHA-256."""

    name: str
    description: str | None
    org_id: UUID
    version: Annotated[str, "The version that was published last; 0 if none."]
    in_force: bool
    bundle: object
    merging: Annotated[
        object, "What it does with the policies of tenants above and below.", Since("0.3.0")
    ]
    targets: Annotated[
        object, "The groups and devices that it is for; none for all devices.", Since("0.3.0")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredPolicySnapshot(PolicySnapshot):
    """A policy after a rollback, its secrets blotted out as in every policy."""

    # 0.1.0 sent it as well, but its schema did not have it.
    rollback_of: Annotated[str, "The version that is in force again.", Since("0.2.0")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealedSecrets:
    """Whose secrets were shown."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedSync:
    """The wish."""

    requested_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenExpiry:
    """When the token expires."""

    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSnapshot:
    """What an organisation asks of its devices' boots."""

    mode: Literal["OFF", "OBSERVE", "ENFORCE"]
    at_least: Annotated[VerdictName, "The least verdict."]
    grace_hours: Annotated[
        int, "So many hours after its enrollment a device that sent no evidence falls short."
    ]
    group_id: Annotated[
        UUID | None, "The group that it is for; null for all devices.", Since("0.3.0")
    ]
    otherwise_policy_id: Annotated[
        UUID | None, "What devices get that fall short; null for nothing else.", Since("0.3.0")
    ]
    max_percent: Annotated[
        int, "The share of the devices that may have it, in percent; 0 for none.", Since("0.3.0")
    ]
    held: Annotated[
        Literal["", "SHARE_EXCEEDED", "RESTORED"],
        "Why no more devices get it; empty where they do.",
        Since("0.3.0"),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldGate:
    """A gate of which more devices fall short than may have its other policy."""

    group_id: Annotated[UUID | None, "The group that it is for; null for all devices."]
    falling_short: int
    devices_in_use: int
    max_percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDevices:
    """Devices that an attestation gate gives another policy, or their own one again."""

    group_id: Annotated[UUID | None, "The group that the gate is for; null for all devices."]
    count: int
    devices: Annotated[tuple[UUID, ...], "The first 100 of them."]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSnapshot:
    """A version that comes to devices in batches."""

    policy_id: UUID
    policy_name: str
    org_id: UUID
    version: str
    state: Literal[
        "AWAITING_APPROVAL",
        "SCHEDULED",
        "RUNNING",
        "PAUSED",
        "STOPPED",
        "COMPLETED",
        "ROLLED_BACK",
        "CANCELED",
        "SUPERSEDED",
    ]
    reason: Annotated[str, "Why, as a word; empty where nothing is to be said."]
    detail: Annotated[str, "The same as a sentence, or what an administrator said."]
    batch: Annotated[int, "The number of the batch that was opened last, from 1; 0 for none."]
    batches: int
    counts: Annotated[object, "What was counted of devices; null where nothing was."]
    devices: Annotated[
        tuple[UUID, ...], "Up to 20 devices that failed, went silent or tell of trouble."
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeSnapshot:
    """Days on which devices get nothing new."""

    name: str
    first_day: str
    last_day: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettingsSnapshot:
    """How a tenant publishes."""

    time_zone: str
    require_approval: bool
    freezes: tuple[FreezeSnapshot, ...]
    default_plan: Annotated[
        object, "How publishes without a plan come to devices; null where nothing is said."
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKeySnapshot:
    """A key that signs policies."""

    key_id: str
    tenant_id: Annotated[UUID | None, "Whose; null for the whole installation's."]
    state: Literal["next", "active", "retiring", "retired"]
    compromised: bool
    certified_by: Annotated[str, "The offline root that certified it; empty for none."]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedKeySnapshot(PolicyKeySnapshot):
    """A key, and the entry of the published log of keys that says the same."""

    log_sequence: int
    log_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetiredKeySnapshot(LoggedKeySnapshot):
    """A key that signs nothing any more."""

    lost_devices: Annotated[int, "So many devices pin it, and were given up."]


@dataclass(frozen=True, slots=True, kw_only=True)
class RootSnapshot:
    """The offline key that certifies keys."""

    key_id: Annotated[str, "Empty for none."]


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableSnapshot:
    """A variable or secret that policies name, without its value."""

    name: str
    kind: Literal["VARIABLE", "SECRET"]
    org_id: UUID
    published: Annotated[int, "How many policies were published with the new value."]
    overridable: Annotated[
        bool, "Whether tenants below may have a value of their own in its place."
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _VariableAction(Action):
    RESOURCE: ClassVar[str] = "policy-variables/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _PolicyAction(Action):
    RESOURCE: ClassVar[str] = "policies/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _DeviceAction(Action):
    RESOURCE: ClassVar[str] = "devices/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCreated(_PolicyAction):
    """A policy was made."""

    NAME: ClassVar[str] = "policy.created"
    after: PolicySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyUpdated(_PolicyAction):
    """A policy was changed; devices keep what was published."""

    NAME: ClassVar[str] = "policy.updated"
    before: PolicySnapshot
    after: PolicySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDeleted(_PolicyAction):
    """A policy was deleted."""

    NAME: ClassVar[str] = "policy.deleted"
    before: PolicySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPublished(_PolicyAction):
    """A policy is in force from now on."""

    NAME: ClassVar[str] = "policy.published"
    before: PolicySnapshot
    after: PolicySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyWithdrawn(_PolicyAction):
    """A policy is not in force any more, and was kept; devices keep it, too."""

    NAME: ClassVar[str] = "policy.withdrawn"
    before: PolicySnapshot
    after: PolicySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRolledBack(_PolicyAction):
    """An older version is in force again, under a new number."""

    NAME: ClassVar[str] = "policy.rolled_back"
    before: PolicySnapshot
    after: RestoredPolicySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsRevealed(_PolicyAction):
    """Somebody asked to see the passphrases and other secrets of a policy."""

    NAME: ClassVar[str] = "policy.secrets_revealed"
    after: RevealedSecrets


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVariableCreated(_VariableAction):
    """A variable or secret was added that policies can name."""

    NAME: ClassVar[str] = "policy.variable_created"
    after: VariableSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVariableUpdated(_VariableAction):
    """A variable or secret of policies got another value."""

    NAME: ClassVar[str] = "policy.variable_updated"
    before: VariableSnapshot
    after: VariableSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVariableDeleted(_VariableAction):
    """A variable or secret of policies was deleted."""

    NAME: ClassVar[str] = "policy.variable_deleted"
    before: VariableSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSyncRequested(_DeviceAction):
    """An admin wants a device to fetch its policy soon."""

    NAME: ClassVar[str] = "policy.device_sync_requested"
    after: RequestedSync


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTokenRotated(_DeviceAction):
    """A device got a new token."""

    NAME: ClassVar[str] = "policy.device_token_rotated"
    before: TokenExpiry
    after: TokenExpiry


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationGateUpdated(Action):
    """An organisation asks for another verdict over its devices' boots."""

    NAME: ClassVar[str] = "policy.attestation_gate_updated"
    RESOURCE: ClassVar[str] = "tenants/{id}/attestation-gate"
    before: GateSnapshot
    after: GateSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class _GateAction(Action):
    RESOURCE: ClassVar[str] = "tenants/{id}/attestation-gate"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationGateHeld(_GateAction):
    """More devices fall short of a gate than may have its other policy: no more get it."""

    NAME: ClassVar[str] = "policy.attestation_gate_held"
    after: HeldGate


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesRestricted(_GateAction):
    """Devices fall short of a gate, and get its other policy."""

    NAME: ClassVar[str] = "policy.devices_restricted"
    after: GatedDevices


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesReleased(_GateAction):
    """Devices do not fall short of a gate any more, and get their own policy again."""

    NAME: ClassVar[str] = "policy.devices_released"
    after: GatedDevices


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedPolicySet:
    """What was done with the policies of a set."""

    name: Annotated[str, "The set's name."]
    plan_sha256: Annotated[str, "Names the plan that was done."]
    created: int
    updated: int
    deleted: int
    published: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySetApplied(Action):
    """A tenant's policies became what a set says; an event of each policy says what of it."""

    NAME: ClassVar[str] = "policy.set_applied"
    RESOURCE: ClassVar[str] = "tenants/{id}/policy-set"
    after: AppliedPolicySet


@dataclass(frozen=True, slots=True, kw_only=True)
class _RolloutAction(Action):
    RESOURCE: ClassVar[str] = "rollouts/{id}"
    after: RolloutSnapshot

    @property
    def related(self) -> Sequence[str]:
        """The policy, and the devices that it names."""
        after = self.after
        return [*resources("policies", [after.policy_id]), *resources("devices", after.devices)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCreated(_RolloutAction):
    """A version is to come to devices in batches."""

    NAME: ClassVar[str] = "policy.rollout_created"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutApproved(_RolloutAction):
    """Somebody else than who asked for it lets a rollout go on."""

    NAME: ClassVar[str] = "policy.rollout_approved"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStarted(_RolloutAction):
    """The first devices get a version."""

    NAME: ClassVar[str] = "policy.rollout_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatchOpened(_RolloutAction):
    """More devices get a version."""

    NAME: ClassVar[str] = "policy.rollout_batch_opened"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatchPassed(_RolloutAction):
    """The devices that have a version do well with it."""

    NAME: ClassVar[str] = "policy.rollout_batch_passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPaused(_RolloutAction):
    """No more devices get a version for now."""

    NAME: ClassVar[str] = "policy.rollout_paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutResumed(_RolloutAction):
    """A rollout goes on."""

    NAME: ClassVar[str] = "policy.rollout_resumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStopped(_RolloutAction):
    """A rollout stopped by itself, because a limit was broken."""

    NAME: ClassVar[str] = "policy.rollout_stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRolledBack(_RolloutAction):
    """Devices that have a version get what is in force."""

    NAME: ClassVar[str] = "policy.rollout_rolled_back"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCompleted(_RolloutAction):
    """A version is in force after its last batch."""

    NAME: ClassVar[str] = "policy.rollout_completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSuperseded(_RolloutAction):
    """A rollout ended because something else was published."""

    NAME: ClassVar[str] = "policy.rollout_superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCanceled(_RolloutAction):
    """A rollout was ended; devices that have its version keep it."""

    NAME: ClassVar[str] = "policy.rollout_canceled"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettingsUpdated(Action):
    """A tenant publishes otherwise."""

    NAME: ClassVar[str] = "policy.settings_updated"
    RESOURCE: ClassVar[str] = "tenants/{id}/policy-settings"
    before: PolicySettingsSnapshot
    after: PolicySettingsSnapshot


_ROLLOUT: Final = RolloutSnapshot(
    policy_id=ID,
    policy_name="Laptops",
    org_id=TENANT_ID,
    version="4",
    state="STOPPED",
    reason="NOT_APPLIED",
    detail="5 of 20 devices did not apply it; the limit is 2 percent",
    batch=1,
    batches=4,
    counts={"served": 20, "applied": 15, "failed": 5},
    devices=(ID,),
)
_SETTINGS: Final = PolicySettingsSnapshot(
    time_zone="Europe/Berlin",
    require_approval=True,
    freezes=(FreezeSnapshot(name="Exams", first_day="2027-06-03", last_day="2027-06-14"),),
    default_plan=None,
)
_POLICY: Final = PolicySnapshot(
    name="Laptops",
    description="",
    org_id=TENANT_ID,
    version="3",
    in_force=True,
    bundle={"browser": {"homepage": "https://school.example"}},
    merging={"locked": ["security"]},
    targets={},
)
_RESTORED: Final = RestoredPolicySnapshot(
    name="Laptops",
    description="",
    org_id=TENANT_ID,
    version="3",
    in_force=True,
    bundle=_POLICY.bundle,
    merging=_POLICY.merging,
    targets=_POLICY.targets,
    rollback_of="1",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PolicyKeyAction(Action):
    RESOURCE: ClassVar[str] = "policy-keys/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKeyCreated(_PolicyKeyAction):
    """There is a new key for policies; no device pins it yet."""

    NAME: ClassVar[str] = "policy.key_created"
    after: LoggedKeySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKeyActivated(_PolicyKeyAction):
    """New enrollment tokens carry a key; the one before it signs on for its devices."""

    NAME: ClassVar[str] = "policy.key_activated"
    before: PolicyKeySnapshot
    after: PolicyKeySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKeyCertified(_PolicyKeyAction):
    """The offline root certified a key."""

    NAME: ClassVar[str] = "policy.key_certified"
    before: PolicyKeySnapshot
    after: LoggedKeySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKeyCompromised(_PolicyKeyAction):
    """A key is in wrong hands. It signs on for the devices that pin it, and take nothing else."""

    NAME: ClassVar[str] = "policy.key_compromised"
    before: PolicyKeySnapshot
    after: LoggedKeySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKeyRetired(_PolicyKeyAction):
    """A key signs nothing any more; its private half is erased."""

    NAME: ClassVar[str] = "policy.key_retired"
    before: PolicyKeySnapshot
    after: RetiredKeySnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRootSet(Action):
    """An offline root certifies keys from now on."""

    NAME: ClassVar[str] = "policy.root_set"
    RESOURCE: ClassVar[str] = "tenants/{id}/policy-root-key"
    before: RootSnapshot
    after: RootSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCallsRefused(CallsRefused):
    """Calls of a user to policy were refused.

    Told every ten seconds, once for each user, RPC and reason. `ROLE_MAY_NOT`: the user's role may
    not do this. `FOREIGN_TENANT`: the call names a tenant that exists, and is not below the user's.
    """

    NAME: ClassVar[str] = "policy.calls_refused"


_KEY: Final = PolicyKeySnapshot(
    key_id="kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    tenant_id=None,
    state="active",
    compromised=False,
    certified_by="",
)
_LOGGED_KEY: Final = LoggedKeySnapshot(
    key_id=_KEY.key_id,
    tenant_id=None,
    state="retiring",
    compromised=True,
    certified_by="",
    log_sequence=7,
    log_sha256="9b" * 32,
)
_VARIABLE: Final = VariableSnapshot(name="wifi", kind="SECRET", org_id=ID, published=0)
_OPEN_GATE: Final = GateSnapshot(
    mode="OFF",
    at_least="SELF_CONSISTENT",
    grace_hours=24,
    group_id=None,
    otherwise_policy_id=None,
    max_percent=0,
    held="",
)
_GATED: Final = GatedDevices(group_id=None, count=1, devices=(ID,))

EXAMPLES: Final[tuple[Action, ...]] = (
    PolicyCreated(id=ID, after=_POLICY),
    PolicyUpdated(id=ID, before=_POLICY, after=_POLICY),
    PolicyDeleted(id=ID, before=_POLICY),
    PolicyPublished(id=ID, before=_POLICY, after=_POLICY),
    PolicyWithdrawn(id=ID, before=_POLICY, after=_POLICY),
    PolicyRolledBack(id=ID, before=_POLICY, after=_RESTORED),
    SecretsRevealed(id=ID, after=RevealedSecrets(name="Classroom", version="7")),
    PolicyVariableCreated(id=ID, after=_VARIABLE),
    PolicyVariableUpdated(id=ID, before=_VARIABLE, after=replace(_VARIABLE, published=1)),
    PolicyVariableDeleted(id=ID, before=_VARIABLE),
    DeviceSyncRequested(id=ID, after=RequestedSync(requested_at=AT)),
    DeviceTokenRotated(
        id=ID,
        before=TokenExpiry(expires_at=AT),
        after=TokenExpiry(expires_at=datetime(2027, 9, 1, 7, 58, 3, tzinfo=UTC)),
    ),
    AttestationGateUpdated(
        id=ID,
        before=_OPEN_GATE,
        after=replace(_OPEN_GATE, mode="OBSERVE", at_least="KNOWN_TPM"),
    ),
    AttestationGateHeld(
        id=ID,
        after=HeldGate(group_id=None, falling_short=12, devices_in_use=40, max_percent=20),
    ),
    DevicesRestricted(id=ID, after=_GATED),
    DevicesReleased(id=ID, after=_GATED),
    PolicySetApplied(
        id=ID,
        after=AppliedPolicySet(
            name="school", plan_sha256="9b" * 32, created=1, updated=2, deleted=0, published=2
        ),
    ),
    RolloutCreated(id=ID, after=_ROLLOUT),
    RolloutApproved(id=ID, after=_ROLLOUT),
    RolloutStarted(id=ID, after=_ROLLOUT),
    RolloutBatchOpened(id=ID, after=_ROLLOUT),
    RolloutBatchPassed(id=ID, after=_ROLLOUT),
    RolloutPaused(id=ID, after=_ROLLOUT),
    RolloutResumed(id=ID, after=_ROLLOUT),
    RolloutStopped(id=ID, after=_ROLLOUT),
    RolloutRolledBack(id=ID, after=_ROLLOUT),
    RolloutCompleted(id=ID, after=_ROLLOUT),
    RolloutSuperseded(id=ID, after=_ROLLOUT),
    RolloutCanceled(id=ID, after=_ROLLOUT),
    PolicySettingsUpdated(id=TENANT_ID, before=_SETTINGS, after=_SETTINGS),
    PolicyKeyCreated(id=ID, after=_LOGGED_KEY),
    PolicyKeyActivated(id=ID, before=_KEY, after=_KEY),
    PolicyKeyCertified(id=ID, before=_KEY, after=_LOGGED_KEY),
    PolicyKeyCompromised(id=ID, before=_KEY, after=_LOGGED_KEY),
    PolicyKeyRetired(
        id=ID,
        before=_KEY,
        after=RetiredKeySnapshot(
            key_id=_KEY.key_id,
            tenant_id=None,
            state="retired",
            compromised=False,
            certified_by="",
            log_sequence=8,
            log_sha256="9c" * 32,
            lost_devices=0,
        ),
    ),
    PolicyRootSet(
        id=TENANT_ID, before=RootSnapshot(key_id=""), after=RootSnapshot(key_id=_KEY.key_id)
    ),
    PolicyCallsRefused.example("PolicyService/PublishPolicy"),
)
"""One of each; this is the list of what policy sends."""
