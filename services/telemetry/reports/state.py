"""The state of a device: how it is read, which of two is the newer one, and what it says."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final
from uuid import UUID

from servicekit.times import TOO_LATE, parse_rfc3339

MAX_APPS: Final = 5_000
MAX_UINT64: Final = (1 << 64) - 1
_MAX_APP_TEXT: Final = 256
_MAX_UPDATE_STATUS: Final = 1_024
_MAX_LAST_ERROR: Final = 65_536

SETTLED: Final = timedelta(minutes=15)
"""How long a stored state holds out against one that claims to be older (see `is_newer`)."""

NO_TIME: Final = TOO_LATE
"""Stands for a time that cannot be used, and is later than all others (see `is_newer`)."""
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")

_DISK_CRITICAL: Final = 0.05
_DISK_WARNING: Final = 0.15
_BATTERY_WARNING: Final = 10.0


_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Health(Enum):
    """How well a device, or a part of it, is."""

    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"


_BY_SEVERITY: Final = (Health.HEALTHY, Health.WARNING, Health.CRITICAL)


@dataclass(frozen=True, slots=True)
class State:
    """What a device said about itself at a moment. Sizes are in bytes, the battery in percent."""

    observed_at: datetime
    installed_apps: str | None
    """The JSON text of a list of `{"id","version","branch"}`; `None` when not known."""
    update_status: str = ""
    disk_total_bytes: int = 0
    disk_free_bytes: int = 0
    battery_percent: float = 0.0
    last_error: str = ""
    sanitised: frozenset[str] = frozenset()
    """The fields that could not be taken as they were sent, in snake_case."""

    @property
    def disk_health(self) -> Health:
        """How full the system disk is; one without a size is not known, and healthy."""
        if self.disk_total_bytes <= 0:
            return Health.HEALTHY
        free = self.disk_free_bytes / self.disk_total_bytes
        if free < _DISK_CRITICAL:
            return Health.CRITICAL
        return Health.WARNING if free < _DISK_WARNING else Health.HEALTHY

    @property
    def battery_health(self) -> Health:
        """How empty the battery is; the agent reports 0 for a machine that has none."""
        return Health.WARNING if 0 < self.battery_percent < _BATTERY_WARNING else Health.HEALTHY

    @property
    def health(self) -> Health:
        """The worst of all parts."""
        error = Health.WARNING if self.last_error else Health.HEALTHY
        return max(self.disk_health, self.battery_health, error, key=_BY_SEVERITY.index)


@dataclass(frozen=True, slots=True)
class StateReport:
    """A state on its way to the database."""

    device_id: UUID
    tenant_id: UUID
    state: State
    received_at: datetime

    @property
    def order(self) -> datetime:
        """When the state was true at the latest, whatever the device's clock says."""
        return min(self.state.observed_at, self.received_at)


def is_newer(report: StateReport, stored: StateReport) -> bool:
    """Whether a report replaces the stored one of its device.

    An agent sends what it queued again, and a request that was given up on may still arrive, so
    the device's own time decides, not the order of arrival. Its clock is not to be trusted either:

    - a time in the future counts as the moment of arrival, so that a clock that jumped ahead and
      was set right again does not leave the device with an old state;
    - what came from the far future, or with no time at all, gives way to anything: when it was
      true nobody knows, and what follows it in a queue may well be of before it arrived;
    - what has been stored for a while gives way to anything, so that a clock that fell back (an
      empty battery, say) freezes the state for `SETTLED` at most.
    """
    return (
        report.order >= stored.order
        or stored.state.observed_at > stored.received_at + SETTLED
        or stored.received_at < report.received_at - SETTLED
    )


def newest_per_device(reports: Iterable[StateReport]) -> list[StateReport]:
    """The reports of a batch that are to be stored, one per device, in the order of their ids."""
    kept: dict[UUID, StateReport] = {}
    for report in reports:
        other = kept.get(report.device_id)
        if other is None or is_newer(report, other):
            kept[report.device_id] = report
    return [kept[key] for key in sorted(kept)]


def parse_state(value: Mapping[str, Any]) -> State:
    """Reads a state out of the released agent's JSON, whatever it holds.

    Nothing is refused: the agent would send the same again for ever, and with it hold up all that
    waits behind it. A field that is absent or null has its zero value, as in Go, and so has one of
    a wrong type; texts and lists are cut where they are too long, and numbers brought into their
    range. What was changed in this way is in the state's `sanitised`.
    """
    return make_state(parse_state_time(value.get("timestamp")), value)


def parse_state_time(text: object) -> datetime | None:
    """Of when a state is; `None` when its time cannot be used."""
    try:
        return parse_rfc3339(text)
    except ValueError:
        return None


def make_state(observed_at: datetime | None, value: Mapping[str, Any]) -> State:
    """As `parse_state`, with the time already read."""
    reader = _Reader(value)
    if observed_at is None:
        observed_at = NO_TIME
        reader.sanitised.add("timestamp")
    return State(
        observed_at=observed_at,
        installed_apps=reader.apps("installed_apps"),
        update_status=reader.text("update_status", _MAX_UPDATE_STATUS),
        disk_total_bytes=reader.uint64("disk_total_bytes"),
        disk_free_bytes=reader.uint64("disk_free_bytes"),
        battery_percent=reader.number("battery_percent"),
        last_error=reader.text("last_error", _MAX_LAST_ERROR),
        sanitised=frozenset(reader.sanitised),
    )


class _Reader:
    """Reads fields; the names of those that it had to change are in `sanitised`."""

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._value = value
        self.sanitised: set[str] = set()

    def text(self, name: str, most: int) -> str:
        return self._text(name, self._value.get(name), most)

    def _text(self, name: str, value: Any, most: int) -> str:
        if value is None:
            return ""
        if text_rule(value, most) is None:
            return str(value)
        self.sanitised.add(name)
        return _UNSTORABLE.sub("\ufffd", value[:most]) if isinstance(value, str) else ""

    def uint64(self, name: str) -> int:
        value = self._value.get(name)
        if value is None:
            return 0
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and 0 <= value <= MAX_UINT64 and int(value) == value:
            return int(value)
        self.sanitised.add(name)
        if not is_number or not value > 0:  # NaN too
            return 0
        return MAX_UINT64 if value > MAX_UINT64 else int(value)

    def number(self, name: str) -> float:
        value = self._value.get(name)
        if value is None:
            return 0.0
        try:
            if isinstance(value, int | float) and not isinstance(value, bool):
                number = float(value)
                if math.isfinite(number):
                    return number
        except OverflowError:
            pass
        self.sanitised.add(name)
        return 0.0

    def apps(self, name: str) -> str | None:
        value = self._value.get(name)
        if value is None:
            return None
        if not isinstance(value, list):
            self.sanitised.add(name)
            return None
        if len(value) > MAX_APPS:
            self.sanitised.add(name)
            value = value[:MAX_APPS]
        apps = _plain_apps(value)
        if apps is None:
            apps = [self._app(name, item) for item in value if isinstance(item, dict)]
            if len(apps) < len(value):
                self.sanitised.add(name)
        return _encode(apps)

    def _app(self, name: str, value: dict[str, Any]) -> dict[str, str]:
        return {
            key: self._text(name, value.get(key), _MAX_APP_TEXT)
            for key in ("id", "version", "branch")
        }


def _plain_apps(value: list[Any]) -> list[dict[str, str]] | None:
    """The applications, if none needs a closer look: nearly always, and in a third of the time."""
    try:
        apps = [{"id": a["id"], "version": a["version"], "branch": a["branch"]} for a in value]
        texts = [text for app in apps for text in app.values()]
        joined = "".join(texts)
    except (KeyError, TypeError):
        return None
    if not joined.isascii() or "\0" in joined or max(map(len, texts), default=0) > _MAX_APP_TEXT:
        return None
    return apps


def text_rule(value: Any, most: int) -> str | None:
    """The rule that a text breaks; `None` when it can be stored."""
    if not isinstance(value, str):
        return "must be a string"
    if len(value) > most:
        return f"must have at most {most} characters"
    if "\x00" in value:
        return "must not contain the character NUL"
    if not value.isascii() and not _is_unicode(value):
        return "must not contain half of a surrogate pair"
    return None


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
