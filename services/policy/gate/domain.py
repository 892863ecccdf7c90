"""What an organisation asks of its devices' boots."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, get_args
from uuid import UUID

from contract.events.attestation import VerdictName
from contract.events.policy import GateSnapshot
from servicekit.etags import etag_of

VERDICTS: Final[tuple[VerdictName, ...]] = get_args(VerdictName)
"""From the least to the most."""


class Mode(StrEnum):
    """What becomes of devices that fall short."""

    OFF = "OFF"
    """Nothing: they are not looked at."""
    OBSERVE = "OBSERVE"
    """They are shown and counted."""


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
    """What an organisation asks of its devices' boots."""

    tenant_id: UUID
    mode: Mode = Mode.OFF
    demand: Demand = UNSAID
    updated_at: datetime | None = None

    @property
    def etag(self) -> str:
        """Changes with every change."""
        return etag_of(self.tenant_id, self.mode, self.demand.at_least, self.demand.grace_hours)

    def snapshot(self) -> GateSnapshot:
        """The gate as events have it."""
        return GateSnapshot(
            mode=self.mode.value,
            at_least=self.demand.at_least,
            grace_hours=self.demand.grace_hours,
        )


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
    """Devices of an organisation."""

    in_use: int
    short: int
    in_grace: int
    """Without evidence, for which they still have time."""
