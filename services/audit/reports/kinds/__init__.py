"""The kinds of reports; each file has those that are alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from servicekit.errors import invalid_field
from services.audit.reports.domain import Kind
from services.audit.reports.kinds.access import AccessReview
from services.audit.reports.kinds.base import Asked, Producer
from services.audit.reports.kinds.devices import (
    AssetRegister,
    AttestationReport,
    DeviceHealth,
    DevicesNotSeen,
)
from services.audit.reports.kinds.inventory import DataInventory
from services.audit.reports.kinds.logs import AuditExtract
from services.audit.reports.kinds.policies import PolicyCompliance, PolicyHistory

__all__ = ["PRODUCERS", "Asked", "Producer", "kind_of", "kinds"]

PRODUCERS: Final[Mapping[str, type[Producer]]] = {
    producer.KIND.name: producer
    for producer in (
        DevicesNotSeen,
        PolicyCompliance,
        PolicyHistory,
        DeviceHealth,
        AttestationReport,
        AssetRegister,
        AccessReview,
        AuditExtract,
        DataInventory,
    )
}
"""What makes each kind, by its name."""


def kinds() -> list[Kind]:
    """All kinds, in the order of the documentation."""
    return [producer.KIND for producer in PRODUCERS.values()]


def kind_of(name: str) -> Kind:
    """The kind with a name.

    Raises:
        DomainError: INVALID_ARGUMENT when there is none.
    """
    producer = PRODUCERS.get(name)
    if producer is None:
        raise invalid_field("kind", f"must be one of {', '.join(PRODUCERS)}")
    return producer.KIND
