"""Verdicts as lists have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.attestation.grades import Verdict


@dataclass(frozen=True, slots=True)
class Attested:
    """A device with the latest verdict over its boot."""

    device_id: UUID
    tenant_id: UUID
    serial: str
    model: str
    verdict: Verdict
    reasons: Sequence[str]
    bank: str
    secure_boot: bool | None
    reference_value_ids: Sequence[UUID]
    attested_at: datetime | None
    pcrs: Mapping[str, str]
    ek_sha256: bytes | None = None
    """Of the endorsement key of the TPM that it is bound to."""


@dataclass(frozen=True, slots=True)
class BootVerdict:
    """A verdict over one piece of evidence."""

    id: UUID
    device_id: UUID
    tenant_id: UUID
    verdict: Verdict
    reasons: Sequence[str]
    bank: str
    secure_boot: bool | None
    reference_value_ids: Sequence[UUID]
    attested_at: datetime
    pcrs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which devices to list."""

    verdict: str = ""
    reason: str = ""
    older_than: datetime | None = None
    """Only those whose evidence is older."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Devices in use, by verdict, and those whose evidence is too old."""

    by_verdict: Mapping[Verdict, int]
    stale: int
