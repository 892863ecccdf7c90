"""What reports and schedules are, and the rules of what is asked of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from contract.rows import read_scope
from servicekit.errors import invalid_field
from servicekit.etags import etag_of
from servicekit.times import format_rfc3339, parse_rfc3339

FORMATS: Final = ("csv", "json", "html")
MOST_ROWS: Final = 500_000
"""Of a report."""
MOST_RUNNING: Final = 20
"""Reports that are not ready yet: on a tenant, and asked for by the users of one."""
MOST_KEPT: Final = 500
"""Reports of a tenant that people and programs asked for."""
MOST_SCHEDULED: Final = 5_000
"""Reports of a tenant that schedules made."""
MOST_MISSED: Final = 12
"""Runs of a schedule that are made up for, the newest."""
MOST_SCHEDULES: Final = 50
"""Schedules of a tenant."""
DEFAULT_KEEP: Final = 12

Cell = str | int | float | bool | datetime | None
Row = tuple[Cell, ...]
"""The values of a row, as many as its table has columns."""


_WORD: Final = re.compile(r"(?<=[a-z])[A-Z]")


def worded(name: str) -> str:
    """A name of ours as words: `in grace` of `inGrace`."""
    return _WORD.sub(lambda found: f" {found[0].lower()}", name)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    """In CSV and JSON."""
    label: str
    """In HTML; empty for one that is not printed."""
    total: bool = False
    """Whether the sum of its numbers means something."""
    coded: bool = False
    """Whether its values are names of ours, such as `inGrace`, which HTML shows as words."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a report."""

    name: str
    """In JSON, and in the names of CSV files of tables behind the first."""
    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the summary."""

    label: str
    value: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What stands above the tables, and is known when all rows were seen."""

    figures: tuple[Figure, ...]
    """Three to five."""
    chart: str
    """What the bars compare."""
    bars: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a report is asked for; `None` and empty is not given."""

    days: int | None = None
    grace_days: int | None = None
    inactive_days: int | None = None
    start: datetime | None = None
    until: datetime | None = None
    actor: str = ""
    resource: str = ""
    with_decommissioned: bool | None = None

    def given(self) -> dict[str, Any]:
        """What is given, by its name in JSON."""
        values = ((_JSON_NAMES[f.name], getattr(self, f.name)) for f in fields(self))
        return {
            name: format_rfc3339(value) if isinstance(value, datetime) else value
            for name, value in values
            if value is not None and value != ""
        }

    def canonical(self) -> str:
        """The JSON that stands in manifests: one line of ASCII."""
        return json.dumps(self.given(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Parameters:
        """What `given` wrote."""
        values: dict[str, Any] = {
            name: parse_rfc3339(given[json_name]) if name in _TIMES else given[json_name]
            for name, json_name in _JSON_NAMES.items()
            if json_name in given
        }
        return cls(**values)


_JSON_NAMES: Final = {
    "days": "days",
    "grace_days": "graceDays",
    "inactive_days": "inactiveDays",
    "start": "from",
    "until": "until",
    "actor": "actor",
    "resource": "resource",
    "with_decommissioned": "withDecommissioned",
}
_TIMES: Final = frozenset({"start", "until"})
PERIOD: Final = ("from", "until")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of report."""

    name: str
    title: str
    about: str
    tables: tuple[Table, ...]
    made_from: tuple[str, ...]
    """The services that know what it says."""
    areas: tuple[str, ...]
    """What an API token has to be for."""
    defaults: Parameters = Parameters()
    takes: tuple[str, ...] = ()
    """The names of its parameters in JSON."""
    with_deleted: bool = False
    """Whether tenants that were deleted are in it: their log stays."""

    @property
    def scopes(self) -> tuple[str, ...]:
        """What an API token has to have."""
        return tuple(map(read_scope, self.areas))

    @property
    def has_period(self) -> bool:
        """Whether it is about a time from and until."""
        return set(PERIOD) <= set(self.takes)

    def checked(self, wanted: Parameters) -> Parameters:
        """The parameters, with what the kind takes when they are not given.

        Raises:
            DomainError: INVALID_ARGUMENT with the field.
        """
        given = wanted.given()
        for name in given:
            if name not in self.takes:
                takes = f"it takes {', '.join(self.takes)}" if self.takes else "it takes none"
                raise invalid_field(f"parameters.{name}", f"is none of {self.name}: {takes}")
        if wanted.start and wanted.until and wanted.until <= wanted.start:
            raise invalid_field("parameters.until", "must be after from")
        return Parameters.read(self.defaults.given() | given)


def checked_formats(given: Sequence[str]) -> tuple[str, ...]:
    """The formats in their order; all when none is given.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    for index, one in enumerate(given):
        if one not in FORMATS:
            raise invalid_field(f"formats[{index}]", f"must be one of {', '.join(FORMATS)}")
    return tuple(one for one in FORMATS if not given or one in given)


class Status(StrEnum):
    """How far a report is."""

    RUNNING = "running"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class File:
    """A file of a report."""

    name: str
    media_type: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Report:
    """A report, without the content of its files."""

    id: UUID
    tenant_id: UUID
    kind: str
    parameters: Parameters
    formats: tuple[str, ...]
    status: Status
    as_of: datetime
    requested_by: str
    asked_from: UUID
    """The tenant of who asked; of a schedule, the schedule's own."""
    expires_at: datetime
    request_id: UUID | None = None
    schedule_id: UUID | None = None
    attempts: int = 0
    waiting_since: datetime | None = None
    finished_at: datetime | None = None
    rows: int = 0
    bytes: int = 0
    manifest: str = ""
    entry_id: UUID | None = None
    error: str = ""
    files: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """Reports that are made by themselves."""

    id: UUID
    tenant_id: UUID
    kind: str
    parameters: Parameters
    formats: tuple[str, ...]
    every: str
    on_day: int
    hour: int
    time_zone: str
    keep: int
    enabled: bool
    created_at: datetime
    created_by: str
    updated_at: datetime
    notify: tuple[str, ...] = ()
    """Who gets a mail when a report is ready, or could not be made."""
    revision: int = 1
    next_run_at: datetime | None = None
    """Whose period is reported next; in the past while it could not be."""
    not_before: datetime | None = None
    """Until when it is left alone after a refusal."""
    last_run_at: datetime | None = None
    last_error: str = ""

    @property
    def etag(self) -> str:
        """Changes with every change of what was asked for."""
        return etag_of(self.id, self.revision)


def to_second(at: datetime) -> datetime:
    """The time without what is smaller than a second."""
    return at.astimezone(UTC).replace(microsecond=0)


def written(at: datetime) -> str:
    """A time as reports have it: in UTC, to the second."""
    return format_rfc3339(to_second(at))


def days_between(earlier: datetime, later: datetime) -> int:
    """Whole days from one time to another; 0 when the other is not later."""
    return max((later - earlier).days, 0)
