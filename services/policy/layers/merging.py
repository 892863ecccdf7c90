"""How the layers of a device become one document, and which layer each value is from.

A layer sets a field when its author wrote it; what nobody sets is off. Layers come in order, the
root's first, and each one has the word over those before it, except where one of those locked a
field. Lists of items are united by the items' names, and an item is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final
from uuid import UUID

from services.policy.layers.fields import FIELDS, Field

SECTIONS: Final = tuple(dict.fromkeys(one.path.partition(".")[0] for one in FIELDS))
PATHS: Final = tuple(one.path for one in FIELDS)
ITEM_PATHS: Final = tuple(one.path for one in FIELDS if one.items)
_PROFILES: Final = ("network.wifi", "network.vpns")
"""Their items lie in files of one folder on the device."""
_FILE: Final = str.maketrans(dict.fromkeys(" /\\:=", "_"))
"""How the agent makes the name of a file of an item's name."""


class Level(Enum):
    """Where a layer stands, the weakest first."""

    BASELINE = "BASELINE"
    """What the console's form does not say, and no policy above."""
    ROOT = "ROOT"
    RESELLER = "RESELLER"
    ORG = "ORG"
    GROUP = "GROUP"
    DEVICE = "DEVICE"
    GATE = "GATE"
    """In place of all of the organisation, for devices that fall short of an attestation gate."""


class Why(Enum):
    """Why a value of a layer is not what the device gets."""

    LOWER_PRIORITY = "LOWER_PRIORITY"
    """A layer below says otherwise."""
    LOCKED_ABOVE = "LOCKED_ABOVE"
    """A layer above locked the field."""
    REPLACED = "REPLACED"
    """A layer below replaces the list, or inherits nothing."""
    REMOVED = "REMOVED"
    """A layer below removes the item."""


@dataclass(frozen=True, slots=True)
class Merging:
    """What a policy does with the layers around it."""

    locked: tuple[str, ...] = ()
    """Fields or sections that no layer below changes."""
    replaced: tuple[str, ...] = ()
    """Lists of items that begin anew with this layer."""
    removed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Items of layers above that go, by the path of their list."""
    inherit: bool = True
    """Whether what layers above set counts, where they did not lock it."""

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Merging:
        """Reads what `stored` wrote."""
        return cls(
            tuple(stored.get("locked", ())),
            tuple(stored.get("replaced", ())),
            {path: tuple(names) for path, names in stored.get("removed", {}).items()},
            stored.get("inherit", True),
        )

    def stored(self) -> dict[str, Any]:
        """As JSON; empty for a policy that does nothing of it."""
        found: dict[str, Any] = {
            "locked": list(self.locked),
            "replaced": list(self.replaced),
            "removed": {path: list(names) for path, names in self.removed.items()},
        }
        found = {name: value for name, value in found.items() if value}
        return found if self.inherit else {**found, "inherit": False}

    def locks(self, path: str) -> bool:
        """Whether no layer below changes a field."""
        return path in self.locked or path.partition(".")[0] in self.locked


@dataclass(frozen=True, slots=True)
class Source:
    """Which policy a value is from."""

    level: Level
    tenant_id: UUID
    policy_id: UUID | None = None
    policy_name: str = ""
    version: int = 0
    target_id: UUID | None = None
    """The group or the device; or the gate."""
    target_name: str = ""
    """The group's alias."""
    filled: str = ""
    """Tells which values of tenants below are in it; empty for none."""

    @property
    def whose(self) -> UUID:
        """The tenant, or the group, device or gate of it, for which the policy is in force."""
        return self.target_id or self.tenant_id


@dataclass(frozen=True, slots=True)
class Layer:
    """What one published policy sets, by path, and what it does with the others."""

    source: Source
    sets: Mapping[str, Any] = field(repr=False)
    merging: Merging = Merging()
    told: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict, repr=False)
    """What is compared in place of secrets, by path and item."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A value of a layer that the device does not get."""

    source: Source
    value: Any = field(repr=False)
    why: Why


@dataclass(slots=True)
class Value:
    """What the device gets of a field or of an item of one; `source` is `None` for nobody's."""

    path: str
    name: str
    value: Any = field(repr=False)
    source: Source | None
    locked: bool = False
    lost: list[Lost] = field(default_factory=list)
    gone: bool = False
    """Whether no layer that counts has it any more."""
    told: Mapping[str, Any] | None = field(default=None, repr=False)
    """What is compared in place of fields of `value` with secrets."""


class Folded:
    """The layers as one; `document` is what devices get, `values` say where it is from."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._values: dict[tuple[str, str], Value] = {}
        self._touched: set[str] = set()
        self._files: dict[str, tuple[str, str]] = {}
        """Which network or VPN has a file."""
        self._locked: set[str] = set()
        for layer in layers:
            self._add(layer)

    @property
    def values(self) -> list[Value]:
        """All fields and items, in the order of the document, with those that are gone."""
        found: list[Value] = []
        by_path = self._by_path()
        for one in FIELDS:
            found += by_path.get(one.path) or [Value(one.path, "", None, None)]
        return found

    def _by_path(self) -> dict[str, list[Value]]:
        found: dict[str, list[Value]] = {}
        for (path, _), value in self._values.items():
            found.setdefault(path, []).append(value)
        return found

    def document(self) -> dict[str, Any]:
        """The document as JSON, with the fields that some layer sets."""
        found: dict[str, Any] = {}
        by_path = self._by_path()
        for one in FIELDS:
            section, _, name = one.path.partition(".")
            here = [value for value in by_path.get(one.path, ()) if not value.gone]
            if one.items:
                if one.path in self._touched:
                    found.setdefault(section, {})[name] = [value.value for value in here]
            elif here:
                found.setdefault(section, {})[name] = here[0].value
        return found

    def fill(self, path: str, value: Any, source: Source) -> None:
        """Takes a value of a field that is one value, which counts where no layer sets it."""
        held = self._values.setdefault((path, ""), Value(path, "", None, None, gone=True))
        if not held.gone:
            held.lost.insert(0, Lost(source, value, Why.LOWER_PRIORITY))
            return
        held.value, held.source, held.gone = value, source, False
        held.locked = path in self._locked

    def _add(self, layer: Layer) -> None:
        merging = layer.merging
        for one in FIELDS:
            path = one.path
            if path in self._locked:
                self._ignore(one, layer)
                continue
            if not merging.inherit or (one.items and path in merging.replaced):
                self._end(self._of(path), Why.REPLACED)
                if one.items and path in merging.replaced:
                    self._touched.add(path)
            if removed := frozenset(merging.removed.get(path, ())):
                self._end((v for v in self._of(path) if v.name in removed), Why.REMOVED)
            if path in layer.sets:
                self._touched.add(path)
            for name, value in _named(one, layer.sets):
                self._set(one, name, value, layer)
        for path in PATHS:
            if merging.locks(path):
                self._locked.add(path)
                for value in self._of(path):
                    value.locked = True

    def _of(self, path: str) -> Iterator[Value]:
        return (v for (at, _), v in tuple(self._values.items()) if at == path and not v.gone)

    def _end(self, values: Iterable[Value], why: Why) -> None:
        for value in values:
            assert value.source is not None
            value.lost.append(Lost(value.source, value.value, why))
            value.gone = True

    def _ignore(self, one: Field, layer: Layer) -> None:
        """Notes what a layer says of a field that is locked."""
        for name, value in _named(one, layer.sets):
            held = self._values.get((one.path, name))
            if held is None:
                held = Value(one.path, name, None, None, locked=True, gone=True)
                self._values[one.path, name] = held
            held.lost.append(Lost(layer.source, value, Why.LOCKED_ABOVE))

    def _set(self, one: Field, name: str, value: Any, layer: Layer) -> None:
        source, told = layer.source, layer.told.get(one.path, {}).get(name)
        if one.path in _PROFILES and self._meets(one.path, name, value, source):
            return
        held = self._values.get((one.path, name))
        if held is None:
            self._values[one.path, name] = Value(one.path, name, value, source, told=told)
            return
        if not held.gone:
            assert held.source is not None
            held.lost.append(Lost(held.source, held.value, Why.LOWER_PRIORITY))
        held.value, held.source, held.gone, held.told = value, source, False, told

    def _meets(self, path: str, name: str, value: Any, source: Source) -> bool:
        """Makes room for a network whose file another one has; answers whether that is locked."""
        file = name.translate(_FILE)
        other = self._values.get(self._files.get(file, (path, name)))
        if other is None or other.gone or (other.path, other.name) == (path, name):
            self._files[file] = (path, name)
            return False
        if other.locked:
            held = self._values.setdefault((path, name), Value(path, name, None, None, gone=True))
            held.lost.append(Lost(source, value, Why.LOCKED_ABOVE))
            return True
        self._end([other], Why.LOWER_PRIORITY)
        self._files[file] = (path, name)
        return False


def fold(layers: Sequence[Layer]) -> Folded:
    """Merges layers, the root's first."""
    return Folded(layers)


def _named(one: Field, sets: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a layer sets of a field: its items by name, or its value; nothing where it is silent."""
    if one.path not in sets:
        return
    value = sets[one.path]
    if not one.items:
        yield "", value
        return
    for item in value:
        yield (str(item[one.key]) if one.key else item), item
