"""What devices would get otherwise, and what of it an administrator is warned of.

No answer tells of a secret of another tenant: where one stands in a value, the version that says it
is compared in its place.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from services.policy.authoring.secret_values import REDACTED, hide
from services.policy.layers.merging import Level, Source, Value, Why
from services.policy.simulation.made import Made, Values, got

MOST_CHANGES: Final = 500
"""Of one answer; how many are left out is said."""
MOST_WARNINGS: Final = 500
_MOST_SHOWN: Final = 1_000_000
"""Characters of changes, and as many of warnings, in one answer: it stays a message that gRPC
takes."""
MOST_SAMPLED: Final = 5
_MANY_APPS: Final = 10
_MANY_MADE: Final = 1_000
"""Editions makes some 30 a second."""
_STRICT_WHEN: Final = {
    "security.selinux_enforce": True,
    "security.ssh_enabled": False,
    "security.usbguard": True,
    "security.allow_root_login": False,
    "browser.allow_dev_tools": False,
}
"""The switches that harden a device, and how."""
_UNSET: Final = ("security.selinux_enforce", "security.usbguard")
"""Switches that are off where nobody sets them, and should not be."""

TEXTS: Final = {
    "WIFI_LOST": "devices lose every network that they were given, and may not be reached again",
    "HELD": "the policies do not fit together: devices keep what they have, but for locked fields",
    "SECURITY_WEAKENED": "devices are less protected than before",
    "UNSET_SECURITY": "nobody sets this switch, and devices switch it off",
    "ORPHANED": "nothing is in force for devices any more: they keep what they have",
    "ORPHANED_BEFORE": "nothing is in force for devices now, and what they have is not known: what"
    " they lose is not said",
    "TOO_MANY_SETS": "devices get nothing new: their organisation has more sets of policies of"
    " groups and devices than are put together",
    "RESTRICTED": "devices fall short of an attestation gate: they have its other policy, and get"
    " this when they do not any more",
    "STALE": "the device registry does not answer: groups and devices may be others by now",
    "NO_DEVICES": "no device gets the policy",
    "MANY_EDITIONS": f"what more than {_MANY_MADE:,} organisations or groups get is put together;"
    " the last devices get it a minute later or more",
    "BIG_DOWNLOAD": f"devices install more than {_MANY_APPS} applications and may need several"
    " tries",
    "WIFI_CHANGED": "devices lose this network, or get it with other settings",
    "APPS_UNINSTALLED": "devices uninstall this application",
    "LOCKED_ABOVE": "a policy above locked this field: what the policy says there is ignored",
    "GROUP_CONFLICT": "devices are in several groups whose policies differ here; the group with"
    " the greater priority counts",
}
"""What the codes of warnings mean, the gravest first."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A field, or an item of one, that devices would get otherwise; without secrets."""

    path: str
    name: str
    before: Any = field(repr=False)
    after: Any = field(repr=False)
    secret: bool
    """Whether a secret is another one, or another policy's."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be looked at before; `name` is an item's."""

    code: str
    path: str = ""
    name: str = ""

    @property
    def size(self) -> int:
        """Characters that are not the same in all warnings."""
        return len(self.path) + len(self.name)


@dataclass(slots=True)
class Counted:
    """How many devices it is about, and some of them."""

    devices: int = 0
    sample: tuple[UUID, ...] = ()

    def add(self, devices: int, sample: Iterable[UUID]) -> None:
        """Counts more devices."""
        self.devices += devices
        self.sample = (*self.sample, *sample)[:MOST_SAMPLED]


@dataclass(frozen=True, slots=True)
class Some:
    """Devices, or none where it is only seen what they would get."""

    devices: int = 0
    sample: tuple[UUID, ...] = ()


class Warnings:
    """The warnings of an answer, with their counts: the gravest where there is no room for all."""

    def __init__(self) -> None:
        self._by_code: dict[str, dict[Notice, Counted]] = {code: {} for code in TEXTS}
        self._left_out: set[int] = set()
        self._count = 0
        self._shown = 0

    @property
    def omitted(self) -> int:
        """How many are left out."""
        return len(self._left_out)

    def items(self) -> Iterator[tuple[Notice, Counted]]:
        """The gravest first."""
        for some in self._by_code.values():
            yield from some.items()

    def add(self, notice: Notice, some: Some) -> None:
        """Counts devices."""
        if hash(notice) in self._left_out:
            return
        alike = self._by_code[notice.code]
        if notice not in alike:
            alike[notice] = Counted()
            self._count += 1
            self._shown += notice.size
        alike[notice].add(some.devices, some.sample)
        while self._count > MOST_WARNINGS or self._shown > _MOST_SHOWN:
            least, _ = next(one for one in reversed(self._by_code.values()) if one).popitem()
            self._count -= 1
            self._shown -= least.size
            self._left_out.add(hash(least))


@dataclass(slots=True)
class Tally:
    """What was found so far.

    `policies` are those that would be in force, with their names; not what is withdrawn.
    """

    policies: Mapping[UUID, str]
    devices: int = 0
    affected: int = 0
    pending: int = 0
    made: int = 0
    """For how many organisations, and sets of groups and devices of them, there is work."""
    concerned: set[UUID] = field(default_factory=set)
    """The policies that some device would have."""
    editions: set[int] = field(default_factory=set)
    """Hashes of the layers of those that get something else."""
    changes: dict[tuple[str, str, str, str, bool], tuple[Difference, Counted]] = field(
        default_factory=dict
    )
    warnings: Warnings = field(default_factory=Warnings)
    complete: bool = True
    _left_out: set[int] = field(default_factory=set)
    _shown: int = 0

    @property
    def left_out(self) -> int:
        """How many changes are left out."""
        return len(self._left_out)

    def concern(self, layers: Iterable[Source], devices: int) -> None:
        """Counts devices by the layers that they would have."""
        self.devices += devices
        if devices:
            self.concerned |= {
                policy_id
                for one in layers
                if (policy_id := one.policy_id) in self.policies and policy_id is not None
            }

    def take(self, some: Some, edition: object, found: Compared) -> None:
        """Counts the devices for which something is different, or to be looked at."""
        if found.differences:
            self.affected += some.devices
            if some.devices:
                self.editions.add(hash(edition))
        for one in found.differences:
            self._change(one, some)
        for warning in found.warnings:
            self.warnings.add(warning, some)

    def finish(self) -> None:
        """Adds what is seen when all devices are counted."""
        if self.made > _MANY_MADE:
            self.warnings.add(Notice("MANY_EDITIONS"), Some(self.affected))
        for policy_id, name in self.policies.items():
            if self.complete and policy_id not in self.concerned:
                self.warnings.add(Notice("NO_DEVICES", name=name), Some())

    def _change(self, one: Difference, some: Some) -> None:
        before, after = _text(one.before), _text(one.after)
        key = (one.path, one.name, before, after, one.secret)
        if key not in self.changes:
            size = len(one.name) + len(before) + len(after)
            if len(self.changes) >= MOST_CHANGES or self._shown + size > _MOST_SHOWN:
                self._left_out.add(hash(key))
                return
            self._shown += size
            self.changes[key] = (one, Counted())
        self.changes[key][1].add(some.devices, some.sample)


@dataclass(frozen=True, slots=True)
class Compared:
    """What is different, and what is to be looked at."""

    differences: tuple[Difference, ...] = ()
    warnings: tuple[Notice, ...] = ()


def compared(
    before: Made, after: Made, whose: UUID, policies: Collection[UUID], *, is_held: bool
) -> Compared:
    """Compares what devices have with what they would get.

    Args:
        before: what they are to have now; without values for nothing.
        after: what they would get.
        whose: the tenant of the policies; secrets of all others are not compared.
        policies: those that would be in force.
        is_held: whether `after` is what devices get of layers that do not fit.
    """
    differences = tuple(_differences(before.values, after.values, whose))
    warnings = dict.fromkeys(
        [
            *([Notice("HELD")] if is_held else ()),
            *_lost(before.values, after.values, differences),
            *(_weakened(before.values, after.values) if before.values else ()),
            *_unset(after.values),
            *(() if is_held else _ignored(after.values, policies)),
            *_downloads(before.values, after.values),
        ]
    )
    return Compared(differences, tuple(warnings))


def _differences(before: Values, after: Values, whose: UUID) -> Iterable[Difference]:
    for path, name in dict.fromkeys((*before, *after)):
        old, new = before.get((path, name)), after.get((path, name))
        if _to_compare(old, whose) == _to_compare(new, whose):
            continue
        was, becomes = shown(path, got(old)), shown(path, got(new))
        yield Difference(path, name, was, becomes, was is not None and was == becomes)


def _to_compare(value: Value | None, whose: UUID) -> Any:
    """A value without what must not be told by comparing it: another tenant's secrets."""
    found = got(value)
    if found is None or value is None:
        return None
    source = value.source
    if value.told is not None and (source is None or source.tenant_id == whose):
        return {**found, **value.told}
    if source is None or source.tenant_id == whose:
        return found or None if isinstance(found, list) else found
    return shown(value.path, found, f"{source.policy_id} {source.version}")


def shown(path: str, value: Any, word: str = REDACTED) -> Any:
    """A value of a field, or an item of one, with a word in place of its secrets."""
    if isinstance(value, list):
        # Devices make no difference between an empty list and none.
        return value or None
    section, _, name = path.partition(".")
    if section != "network" or not isinstance(value, Mapping):
        return value
    return hide({section: {name: [value]}}, word)[section][name][0]


def _lost(before: Values, after: Values, differences: Sequence[Difference]) -> Iterable[Notice]:
    """Networks and applications that devices have and would not have any more."""
    had = {name for (path, name), one in before.items() if _is_network(path, one)}
    kept = {name for (path, name), one in after.items() if _is_network(path, one)} & had
    if had and not kept:
        yield Notice("WIFI_LOST", "network.wifi")
    else:
        for one in differences:
            if one.path == "network.wifi" and one.before is not None:
                yield Notice("WIFI_CHANGED", one.path, one.name)
    for one in differences:
        if one.path == "apps.required" and one.before is not None and one.after is None:
            yield Notice("APPS_UNINSTALLED", one.path, one.name)


def _is_network(path: str, value: Value) -> bool:
    return path == "network.wifi" and got(value) is not None


def _weakened(before: Values, after: Values) -> Iterable[Notice]:
    for path, strict in _STRICT_WHEN.items():
        # What nobody sets is off.
        was = bool(got(before.get((path, ""))))
        becomes = bool(got(after.get((path, ""))))
        if was == strict and becomes != strict:
            yield Notice("SECURITY_WEAKENED", path)


def _unset(after: Values) -> Iterable[Notice]:
    for path in _UNSET:
        if got(after.get((path, ""))) is None:
            yield Notice("UNSET_SECURITY", path)


def _ignored(after: Values, policies: Collection[UUID]) -> Iterable[Notice]:
    """What the policies say and devices do not get, and what others say against it."""
    for (path, name), value in after.items():
        for lost in value.lost:
            if lost.why is Why.LOCKED_ABOVE and lost.source.policy_id in policies:
                yield Notice("LOCKED_ABOVE", path, name)
            if (
                lost.why is Why.LOWER_PRIORITY
                and value.source is not None
                and not value.gone
                and lost.source.level is value.source.level is Level.GROUP
                and (lost.source.policy_id in policies or value.source.policy_id in policies)
                and lost.source.policy_id != value.source.policy_id
                and lost.value != value.value
            ):
                yield Notice("GROUP_CONFLICT", path, name)


def _downloads(before: Values, after: Values) -> Iterable[Notice]:
    new = [
        name
        for (path, name), value in after.items()
        if path == "apps.required"
        and got(value) is not None
        and got(before.get((path, name))) is None
    ]
    if len(new) > _MANY_APPS:
        yield Notice("BIG_DOWNLOAD", "apps.required")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
