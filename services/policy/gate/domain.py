"""What an organisation asks of its devices' boots, and what those get that fall short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Literal, NamedTuple, get_args
from uuid import UUID

from contract.events.attestation import VerdictName
from contract.events.policy import GatedDevices, GateSnapshot, HeldGate
from servicekit.errors import Code, DomainError, failed_precondition, invalid_field
from servicekit.etags import etag_of

VERDICTS: Final[tuple[VerdictName, ...]] = get_args(VerdictName)
"""From the least to the most."""
MOST_GATES: Final = 50
"""Of an organisation that are enforced: each of its devices is held against all of them."""
LEAST_SHARE: Final = 2
"""So many devices may fall short later, however small a share of the fleet was typed."""
_MOST_NAMED: Final = 100


class Mode(StrEnum):
    """What becomes of devices that fall short."""

    OFF = "OFF"
    """Nothing: they are not looked at."""
    OBSERVE = "OBSERVE"
    """They are shown and counted."""
    ENFORCE = "ENFORCE"
    """They get the gate's other policy."""


Held = Literal["", "SHARE_EXCEEDED", "RESTORED"]
"""Why no more devices get the other policy; empty where they do."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a boot."""

    at_least: VerdictName
    grace_hours: int
    """So long after its enrollment a device may be without evidence."""

    @property
    def below(self) -> tuple[VerdictName, ...]:
        """The verdicts that are not enough."""
        return VERDICTS[: VERDICTS.index(self.at_least)]

    @property
    def grace(self) -> timedelta:
        """So long after its enrollment a device may be without evidence."""
        return timedelta(hours=self.grace_hours)


UNSAID: Final = Demand("SELF_CONSISTENT", 24)
"""Of an organisation that has said nothing."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What is asked of the boots of an organisation's devices, or of those in a group."""

    tenant_id: UUID
    group_id: UUID | None = None
    """`None` for all devices."""
    mode: Mode = Mode.OFF
    demand: Demand = UNSAID
    id: UUID | None = None
    """Among the targets of devices that fall short; `None` where nobody said what they get."""
    otherwise_policy_id: UUID | None = None
    otherwise_version: int | None = None
    max_percent: int | None = None
    """The share of the devices that may have the other policy."""
    held: Held = ""
    updated_at: datetime | None = None
    restricted: int = 0
    """So many devices have the other policy, or get it by their next polls."""
    group_alias: str = ""

    @property
    def target_id(self) -> UUID:
        """The organisation or the group."""
        return self.group_id or self.tenant_id

    @property
    def etag(self) -> str:
        """Changes with every change that somebody makes."""
        said = (self.tenant_id, self.mode, self.demand.at_least, self.demand.grace_hours)
        if self.id is None:
            # As the release before has it.
            return etag_of(*said)
        return etag_of(*said, self.target_id, self.otherwise_policy_id, self.max_percent, self.held)

    def snapshot(self) -> GateSnapshot:
        """The gate as events have it."""
        return GateSnapshot(
            mode=self.mode.value,
            at_least=self.demand.at_least,
            grace_hours=self.demand.grace_hours,
            group_id=self.group_id,
            otherwise_policy_id=self.otherwise_policy_id,
            max_percent=self.max_percent or 0,
            held=self.held,
        )


class GatePosition(NamedTuple):
    """A position in a list of gates: by organisation, that of all of its devices first."""

    tenant_id: UUID
    is_of_group: bool
    target_id: UUID

    @classmethod
    def of(cls, gate: Gate) -> GatePosition:
        """Where a gate stands."""
        return cls(gate.tenant_id, gate.group_id is not None, gate.target_id)

    @classmethod
    def read(cls, tenant_id: str, is_of_group: str, target_id: str) -> GatePosition:
        """The position of a token's parts.

        Raises:
            ValueError: it is none that `Page.token` wrote.
        """
        if is_of_group not in {"True", "False"}:
            raise ValueError("whether it is a group's gate")
        return cls(UUID(tenant_id), is_of_group == "True", UUID(target_id))


@dataclass(frozen=True, slots=True)
class DeviceVerdict:
    """The verdict over a device's latest boot, as attestation has it."""

    device_id: UUID
    tenant_id: UUID
    verdict: str
    attested_at: datetime


@dataclass(frozen=True, slots=True)
class ShortDevice:
    """A device in use whose boot is not what is asked for."""

    device_id: UUID
    tenant_id: UUID
    verdict: str
    attested_at: datetime | None
    enrolled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Devices that a gate is about."""

    in_use: int
    short: int
    in_grace: int
    """Without evidence, or not bound to their TPM any more, for which they still have time."""
    restricted: int = 0
    """With the gate's other policy."""

    def is_within(self, devices: int, percent: int) -> bool:
        """Whether some devices are at most a share of all."""
        return devices * 100 <= percent * self.in_use


@dataclass(frozen=True, slots=True)
class Restriction:
    """Why a device has the other policy of a gate."""

    gate_id: UUID
    group_id: UUID | None
    group_alias: str
    at_least: str
    verdict: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Shortfall:
    """How many devices fall short of an enforced gate, where no stronger one is theirs."""

    gate: Gate
    in_use: int
    short: int
    new: int
    """Those that do not have its other policy yet."""

    @property
    def exceeds(self) -> bool:
        """Whether some would get the other policy and more have it then than may.

        Two may have it in a fleet of which they are a greater share: one device that sends bad
        evidence would else be all that it takes to shield the others.
        """
        assert self.gate.max_percent is not None
        is_within = self.short * 100 <= self.gate.max_percent * self.in_use
        return self.new > 0 and not is_within and self.short > LEAST_SHARE

    def told(self) -> HeldGate:
        """As the event has it."""
        return HeldGate(
            group_id=self.gate.group_id,
            falling_short=self.short,
            devices_in_use=self.in_use,
            max_percent=self.gate.max_percent or 0,
        )


def gated(group_id: UUID | None, devices: Sequence[UUID]) -> GatedDevices:
    """Devices as events have them."""
    return GatedDevices(
        group_id=group_id, count=len(devices), devices=tuple(sorted(devices)[:_MOST_NAMED])
    )


def check_preview(gate: Gate, counts: Counts, expected: int | None) -> None:
    """Refuses to enforce a gate without a preview, or for more devices than was said.

    Args:
        gate: as it would be.
        counts: of now.
        expected: so many devices fell short in the preview.

    Raises:
        DomainError: INVALID_ARGUMENT with the field; ABORTED when more fall short by now;
            FAILED_PRECONDITION when that is a greater share than was typed.
    """
    if gate.otherwise_policy_id is None:
        raise invalid_field("otherwisePolicyId", "is required to enforce the gate")
    if gate.max_percent is None:
        raise invalid_field("maxPercent", "is required to enforce the gate")
    if expected is None:
        raise invalid_field(
            "expectedDevices", "is required to enforce the gate: the preview's fallingShort"
        )
    if not counts.is_within(max(expected, counts.short), gate.max_percent):
        raise failed_precondition(
            "SHARE_EXCEEDED",
            f"{max(expected, counts.short)} of {counts.in_use} devices are more than"
            f" {gate.max_percent} percent; see to them first, or give a greater maxPercent",
        )
    if counts.short > expected:
        raise DomainError(
            Code.ABORTED,
            "PREVIEW_OUTDATED",
            f"{counts.short} devices fall short by now, and not {expected}; look at the preview"
            " again",
        )


def too_many_gates() -> DomainError:
    """An organisation with as many enforced gates as there may be."""
    return failed_precondition(
        "TOO_MANY_GATES", f"an organisation enforces at most {MOST_GATES} attestation gates"
    )


def gives_otherwise(name: str) -> DomainError:
    """A policy that a gate gives to devices that fall short."""
    return failed_precondition(
        "POLICY_OF_GATE",
        f"an attestation gate gives {name} to devices that fall short: give the gate another"
        " policy first, or do not enforce it",
    )
