"""The texts of a template that differ between the tenants below its own.

All else of it is the same for each of them, and is checked and compiled once. For a tenant only
these texts are put together, and checked with what they stand in. Where that finds a fault, or what
may be too long, the template is to be compiled as a whole, which says what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from servicekit.errors import DomainError
from services.policy.authoring.agent_rules import refused
from services.policy.authoring.configuration import is_console_form
from services.policy.authoring.document import MAX_DOCUMENT, parse_document
from services.policy.authoring.secret_values import secrets_of
from services.policy.authoring.sizes import STEP
from services.policy.authoring.templates import (
    REFERENCE,
    Values,
    item_of,
    longest_at,
    names_elsewhere,
    secret_items,
    told_of,
)
from services.policy.authoring.violations import child, item
from services.policy.layers.fields import FIELDS

_Steps: TypeAlias = tuple[str | int, ...]
ValuesIn: TypeAlias = Callable[[str], Values]
"""The values in a network or VPN of a template, by its place there, or outside of these."""
_PATHS: Final = {one.path: one for one in FIELDS}
_FORM_NETWORKS: Final = ("configuration", "network", "wifiNetworks")
_MEETING: Final = (("apps.required",), ("network.wifi", "network.vpns"))
"""Lists in which no two entries may have the same name."""
_NAMES: Final = ("id", "ssid", "name")
_BYTES: Final = 6
"""A character of a document takes at most so many."""
_MEMBERS: Final = 1_000
"""So many bytes the names of members take that are in each document."""


@dataclass(frozen=True, slots=True)
class _Blank:
    item: str
    """The network or VPN of the template that it is in; empty for none."""
    path: str
    """Of the field in the document."""
    steps: _Steps
    """From the field's value to the text."""
    parts: tuple[str, ...]
    """Texts and names of values in turn."""
    limit: int
    """So many characters the text may have."""

    def size(self, values: Mapping[str, str]) -> int:
        """How many characters the text has."""
        return sum(len(values[part]) if at % 2 else len(part) for at, part in enumerate(self.parts))

    def text(self, values: Mapping[str, str]) -> str:
        """The text."""
        return "".join(values[part] if at % 2 else part for at, part in enumerate(self.parts))


class Blanks:
    """What differs of one published template.

    Args:
        sets: what it sets with the values that it was published with.
        template: the document, or the form, that it is one of.
        values: those, and which of them it leaves to tenants below.
    """

    def __init__(
        self, sets: Mapping[str, Any], template: Mapping[str, Any], values: Values
    ) -> None:
        names = values.open
        items = tuple(secret_items({"template": template}))
        self.items = tuple(one for one in items if not names.isdisjoint(one.names))
        """The networks and VPNs that name something of tenants below."""
        others = [one for one in items if names.isdisjoint(one.names)]
        self.counting = frozenset(one.place for one in others if not (one.secrets or one.is_inline))
        """Others in which nothing is a secret of the template's tenant."""
        self._told = told_of(others, lambda _: values)
        self.elsewhere = names_elsewhere(template) & names
        """What is left to tenants below outside of these."""
        self._sets = sets
        self._blanks = _blanks(template, names)
        self._room = MAX_DOCUMENT - _largest(sets, template)
        self._whole = frozenset(
            path
            for paths in _MEETING
            if any(one.path in paths and one.steps[-1] in _NAMES for one in self._blanks or ())
            for path in paths
        )
        """The lists whose entries have names that differ: these may meet those of others."""

    def sets(self, values_in: ValuesIn) -> dict[str, Any] | None:
        """What the template sets with some values; `None` where it has to be compiled for that."""
        texts = self._texts(values_in)
        if texts is None:
            return None
        changed = _Changed(self._sets)
        for one, text in texts:
            changed.put(one.path, one.steps, text)
        return changed.sets if self._is_right(changed) else None

    def told(self, values_in: ValuesIn) -> dict[str, dict[str, dict[str, Any]]]:
        """What is compared of secrets that the template names, with some values."""
        found = told_of(self.items, values_in)
        paths = {*self._told, *found}
        return {path: {**self._told.get(path, {}), **found.get(path, {})} for path in paths}

    def _texts(self, values_in: ValuesIn) -> list[tuple[_Blank, str]] | None:
        """The texts, measured before they are made."""
        if self._blanks is None:
            return None
        room = self._room
        found: list[tuple[_Blank, Mapping[str, str]]] = []
        with suppress(KeyError):
            for one in self._blanks:
                values = values_in(one.item).of
                size = one.size(values)
                room -= _BYTES * size
                if size > one.limit or room < 0:
                    return None
                found.append((one, values))
            return [(one, one.text(values)) for one, values in found]
        return None

    def _is_right(self, changed: _Changed) -> bool:
        """Whether devices can apply what is changed."""
        parts: dict[str, dict[str, Any]] = {}
        for path in changed.touched.keys() | (self._whole & changed.sets.keys()):
            section, _, name = path.partition(".")
            value = changed.sets[path]
            if path not in self._whole and (touched := changed.touched[path]):
                value = [value[number] for number in sorted(touched)]
            parts.setdefault(section, {})[name] = value
        try:
            return not refused(parse_document(parts))
        except DomainError:
            return False


class _Changed:
    """What a template sets, with some texts changed; the rest is shared with what it was."""

    def __init__(self, sets: Mapping[str, Any]) -> None:
        self.sets = dict(sets)
        self.touched: dict[str, set[int]] = {}
        """The fields in which something is changed, with the places in their lists."""
        self._copied: set[_Steps] = set()

    def put(self, path: str, steps: _Steps, text: str) -> None:
        touched = self.touched.setdefault(path, set())
        if not steps:
            self.sets[path] = text
            return
        assert isinstance(steps[0], int)
        touched.add(steps[0])
        within: Any = self.sets
        way: _Steps = (path, *steps)
        for at, step in enumerate(way[:-1]):
            if way[: at + 1] not in self._copied:
                self._copied.add(way[: at + 1])
                within[step] = within[step].copy()
            within = within[step]
        within[way[-1]] = text


def _blanks(template: Mapping[str, Any], names: frozenset[str]) -> tuple[_Blank, ...] | None:
    """The texts with values of tenants below; `None` where not each has one place in a document."""
    found: list[_Blank] = []
    is_form = is_console_form(template)
    for place, steps, text in _texts_of(template):
        parts = REFERENCE.split(text)
        if names.isdisjoint(parts[1::2]):
            continue
        where = _in_form(steps) if is_form else _in_document(steps)
        if where is None:
            return None
        limit = longest_at(place)
        if len(parts) > 3 or parts[0] or parts[2]:
            limit -= STEP * sum(one.startswith("secret.") for one in parts[1::2])
        found.append(_Blank(item_of(place), *where, tuple(parts), limit))
    return tuple(found)


def _in_document(steps: _Steps) -> tuple[str, _Steps] | None:
    path = f"{steps[0]}.{steps[1]}" if len(steps) > 1 else ""
    return (path, steps[2:]) if path in _PATHS else None


def _in_form(steps: _Steps) -> tuple[str, _Steps] | None:
    if steps == ("configuration", "browser", "homepageUrl"):
        return "browser.homepage", ()
    if steps[:3] == _FORM_NETWORKS and steps[-1] in {"ssid", "passphrase"}:
        return "network.wifi", steps[3:]
    return None


def _texts_of(value: Any, place: str = "", steps: _Steps = ()) -> Iterator[tuple[str, _Steps, str]]:
    if isinstance(value, str):
        yield place, steps, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _texts_of(one, child(place, key), (*steps, key))
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _texts_of(one, item(place, number), (*steps, number))


def _largest(sets: Mapping[str, Any], template: Mapping[str, Any]) -> int:
    """At most so many bytes count for what is the same for all tenants below."""
    text = json.dumps(sets)
    longer = (_BYTES - 1) * sum(map(text.count, "<>&"))
    networks = {name: sets.get(f"network.{name}") for name in ("wifi", "vpns")}
    secrets = len(secrets_of({"network": networks}))
    named: int = sum(
        one[1].startswith("secret.")
        for _, _, said in _texts_of(template)
        for one in REFERENCE.finditer(said)
    )
    return len(text) + longer + _MEMBERS + STEP * (secrets + named)
