"""What all kinds of reports share."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Final, Protocol
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from evergreen.v1 import enrollment_pb2
from servicekit.peers.tenants import TenantNode
from services.audit.reports.domain import (
    Cell,
    Column,
    Figure,
    Kind,
    Parameters,
    Row,
    Summary,
    worded,
)
from services.audit.reports.log import Log
from services.audit.reports.sources import Sources

Page = tuple[int, list[Row]]
"""Rows of a table, with the table's number."""

ORG: Final = (Column("orgId", ""), Column("orgName", "Organisation"))
"""What every row begins with,"""
DEVICE: Final = (
    *ORG,
    Column("deviceId", ""),
    Column("serialNumber", "Serial number"),
    Column("hostname", "Host name"),
    Column("model", "Model"),
)
"""and every row of a device."""
MOST_BARS: Final = 12


@dataclass(frozen=True, slots=True)
class Asked:
    """What a report is made for."""

    orgs: Sequence[TenantNode]
    """The tenant and all below it, by name."""
    parameters: Parameters
    """With those that the kind takes when they are not given."""
    as_of: datetime
    sources: Sources
    log: Log
    above: Callable[[UUID], Sequence[UUID]]
    """The tenants above a tenant."""

    @property
    def until(self) -> datetime:
        """The end of the period."""
        return self.parameters.until or self.as_of


class Producer(Protocol):
    """Makes the rows of a kind of report."""

    KIND: ClassVar[Kind]

    def __init__(self, asked: Asked) -> None: ...

    def pages(self) -> AsyncGenerator[Page, None]:
        """The rows, in an order that depends on nothing but the data."""

    def summary(self) -> Summary:
        """What stands above the tables, when all rows were made."""


def org_cells(org: TenantNode) -> tuple[Cell, ...]:
    """The cells of an organisation."""
    return (str(org.id), org.name)


def device_cells(
    org: TenantNode, device: enrollment_pb2.DeviceRecord, hostname: str = ""
) -> tuple[Cell, ...]:
    """The cells of a device."""
    return (*org_cells(org), device.device_id, device.serial, hostname, device.model)


def time_of(message: object, field: str) -> datetime | None:
    """A time of an answer, if it has it."""
    if not message.HasField(field):  # type: ignore[attr-defined]
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(UTC)


def figures(named: Mapping[str, int]) -> tuple[Figure, ...]:
    """Figures by their labels."""
    return tuple(Figure(label, value) for label, value in named.items())


def org_bars(counts: Counter[TenantNode]) -> tuple[Figure, ...]:
    """Bars of organisations; those of equal names have their ids, too."""
    names = Counter(node.name for node in counts)
    return bars(
        Counter(
            {
                node.name if names[node.name] == 1 else f"{node.name} ({str(node.id)[-6:]})": count
                for node, count in counts.items()
            }
        )
    )


def bars(counts: Counter[str], order: Iterable[str] = ()) -> tuple[Figure, ...]:
    """Bars: in an order that is given, else the largest first, of as many as a picture holds."""
    given = tuple(order)
    if given:
        return tuple(Figure(worded(name), counts[name]) for name in given)
    found = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    shown = [Figure(label, count) for label, count in found[:MOST_BARS]]
    if rest := sum(count for _, count in found[MOST_BARS:]):
        shown.append(Figure("all others", rest))
    return tuple(shown)
