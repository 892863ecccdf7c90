"""What devices would get otherwise, and what of it an administrator is warned of.

Layers are folded as for a publish. No answer tells of a secret of another tenant: where one stands
in a value, the version that says it is compared in its place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from services.policy.authoring.layering import InForce, folded
from services.policy.authoring.secret_values import REDACTED, hide
from services.policy.layers.merging import Folded, Level, Value, Why

MOST_CHANGES: Final = 500
"""Of one answer; how many are left out is said."""
_MOST_SHOWN: Final = 1_000_000
"""Characters of values in one answer, so that it stays a message that gRPC takes."""
MOST_SAMPLED: Final = 5
_MANY_APPS: Final = 10
_MANY_EDITIONS: Final = 64
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
    "WIFI_CHANGED": "devices lose this network, or get it with other settings",
    "APPS_UNINSTALLED": "devices uninstall this application",
    "SECURITY_WEAKENED": "devices are less protected than before",
    "UNSET_SECURITY": "nobody sets this switch, and devices switch it off",
    "LOCKED_ABOVE": "a policy above locked this field: what the policy says there is ignored",
    "GROUP_CONFLICT": "devices are in several groups whose policies differ here; the group with"
    " the greater priority counts",
    "BIG_DOWNLOAD": f"devices install more than {_MANY_APPS} applications and may need several"
    " tries",
    "HELD": "the policies do not fit together: devices keep what they have, but for locked fields",
    "MANY_EDITIONS": f"more than {_MANY_EDITIONS} documents are made; the last devices get theirs"
    " minutes later",
    "NO_DEVICES": "no device gets the policy",
}
"""What the codes of warnings mean."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Devices that have the same layers, now and then."""

    now: Sequence[InForce] = field(repr=False)
    then: Sequence[InForce] = field(repr=False)
    devices: int
    sample: tuple[UUID, ...]


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


@dataclass(slots=True)
class Counted:
    """How many devices it is about, and some of them."""

    devices: int = 0
    sample: tuple[UUID, ...] = ()

    def add(self, devices: int, sample: Iterable[UUID]) -> None:
        """Counts more devices."""
        self.devices += devices
        self.sample = (*self.sample, *sample)[:MOST_SAMPLED]


@dataclass(slots=True)
class Tally:
    """What was found so far.

    `policies` are those that would be in force, with their names; not what is withdrawn.
    """

    policies: Mapping[UUID, str]
    devices: int = 0
    affected: int = 0
    pending: int = 0
    concerned: set[UUID] = field(default_factory=set)
    """The policies that some device would have."""
    editions: set[object] = field(default_factory=set)
    changes: dict[tuple[str, str, str, str, bool], tuple[Difference, Counted]] = field(
        default_factory=dict
    )
    left_out: int = 0
    warnings: dict[Notice, Counted] = field(default_factory=dict)
    complete: bool = True
    shown: int = 0

    def take(self, profile: Profile, found: Compared) -> None:
        """Counts the devices of a profile."""
        if profile.devices:
            self.concerned |= {
                policy_id
                for one in profile.then
                if (policy_id := one.source.policy_id) in self.policies and policy_id is not None
            }
        if found.differences or found.held:
            self.affected += profile.devices
            self.editions.add(found.edition)
        for one in found.differences:
            self._change(one, profile)
        for warning in found.warnings:
            self.warnings.setdefault(warning, Counted()).add(profile.devices, profile.sample)

    def finish(self) -> None:
        """Adds what is seen when all devices are counted."""
        if len(self.editions) > _MANY_EDITIONS:
            self.warnings[Notice("MANY_EDITIONS")] = Counted(self.affected)
        for policy_id, name in self.policies.items():
            if self.complete and policy_id not in self.concerned:
                self.warnings[Notice("NO_DEVICES", name=name)] = Counted()

    def _change(self, one: Difference, profile: Profile) -> None:
        before, after = _text(one.before), _text(one.after)
        key = (one.path, one.name, before, after, one.secret)
        if key not in self.changes:
            self.shown += len(before) + len(after)
            if len(self.changes) >= MOST_CHANGES or self.shown > _MOST_SHOWN:
                self.left_out += 1
                return
            self.changes[key] = (one, Counted())
        self.changes[key][1].add(profile.devices, profile.sample)


@dataclass(frozen=True, slots=True)
class Compared:
    """What is different for the devices of a profile."""

    edition: object
    differences: tuple[Difference, ...]
    warnings: tuple[Notice, ...]
    held: bool


_Values = Mapping[tuple[str, str], Value]


def compared(
    profile: Profile,
    whose: UUID,
    policies: Collection[UUID],
    edition: object,
    fits: Callable[[Folded], bool],
) -> Compared:
    """Compares what devices are to have now with what they would have then.

    Args:
        profile: the devices.
        whose: the tenant of the policies; secrets of all others are not compared.
        policies: those that would be in force.
        edition: names what would be made of the layers.
        fits: whether devices could apply what layers make.
    """
    then = folded(profile.then)
    if profile.then and not fits(then):
        return Compared(edition, (), (Notice("HELD"),), held=True)
    before, after = _values(folded(profile.now)), _values(then)
    differences = tuple(_differences(before, after, whose))
    warnings = dict.fromkeys(
        [
            *(_lost(before, after, differences) if profile.now else ()),
            *(_weakened(before, after) if profile.now and profile.then else ()),
            *(_unset(after) if profile.then else ()),
            *_ignored(after, policies),
            *_downloads(before, after),
        ]
    )
    return Compared(edition, differences, tuple(warnings), held=False)


def _values(found: Folded) -> _Values:
    return {(one.path, one.name): one for one in found.values}


def _got(value: Value | None) -> Any:
    return None if value is None or value.gone else value.value


def _differences(before: _Values, after: _Values, whose: UUID) -> Iterable[Difference]:
    for path, name in dict.fromkeys((*before, *after)):
        old, new = before.get((path, name)), after.get((path, name))
        if _to_compare(old, whose) == _to_compare(new, whose):
            continue
        was, becomes = shown(path, _got(old)), shown(path, _got(new))
        yield Difference(path, name, was, becomes, was is not None and was == becomes)


def _to_compare(value: Value | None, whose: UUID) -> Any:
    """A value without what must not be told by comparing it: another tenant's secrets."""
    got = _got(value)
    if got is None or value is None:
        return None
    source = value.source
    if source is None or source.tenant_id == whose:
        return got or None if isinstance(got, list) else got
    return shown(value.path, got, f"{source.policy_id} {source.version}")


def shown(path: str, value: Any, word: str = REDACTED) -> Any:
    """A value of a field, or an item of one, with a word in place of its secrets."""
    if isinstance(value, list):
        # Devices make no difference between an empty list and none.
        return value or None
    section, _, name = path.partition(".")
    if section != "network" or not isinstance(value, Mapping):
        return value
    return hide({section: {name: [value]}}, word)[section][name][0]


def _lost(before: _Values, after: _Values, differences: Sequence[Difference]) -> Iterable[Notice]:
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
    return path == "network.wifi" and _got(value) is not None


def _weakened(before: _Values, after: _Values) -> Iterable[Notice]:
    for path, strict in _STRICT_WHEN.items():
        # What nobody sets is off.
        was = bool(_got(before.get((path, ""))))
        becomes = bool(_got(after.get((path, ""))))
        if was == strict and becomes != strict:
            yield Notice("SECURITY_WEAKENED", path)


def _unset(after: _Values) -> Iterable[Notice]:
    for path in _UNSET:
        if _got(after.get((path, ""))) is None:
            yield Notice("UNSET_SECURITY", path)


def _ignored(after: _Values, policies: Collection[UUID]) -> Iterable[Notice]:
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


def _downloads(before: _Values, after: _Values) -> Iterable[Notice]:
    new = [
        name
        for (path, name), value in after.items()
        if path == "apps.required"
        and _got(value) is not None
        and _got(before.get((path, name))) is None
    ]
    if len(new) > _MANY_APPS:
        yield Notice("BIG_DOWNLOAD", "apps.required")


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
