"""What devices get of layers, and what they have, field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeAlias
from uuid import UUID

from servicekit.errors import DomainError
from servicekit.security.digests import sha256
from services.policy.authoring import filling
from services.policy.authoring.layering import InForce, folded, together
from services.policy.layers.fields import FIELDS
from services.policy.layers.merging import Folded, Level, Source, Value

Values: TypeAlias = Mapping[tuple[str, str], Value]
"""By path and item."""
_NOBODY: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Made:
    """What devices get, or have."""

    values: Values = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    """The document; `None` where devices could not apply it."""

    @property
    def fits(self) -> bool:
        """Whether devices can apply it."""
        return self.body is not None


NOTHING: Final = Made({})
"""What a device has that never got a policy."""


@dataclass(frozen=True)
class Ran:
    """A document of which nobody knows any more what it was made of."""

    body: bytes = field(repr=False)
    alone: bool = False
    """Whether it is a version of the organisation, with nothing of layers above."""

    def made(self, org_id: UUID) -> Made:
        """Its values; whose they are is only known of a version alone."""
        whose = self._nobody if not self.alone else Source(Level.ORG, org_id)
        document = json.loads(self.body)
        values = {
            (one.path, name): Value(one.path, name, value, whose)
            for one in FIELDS
            for name, value in one.named(document)
            # A document has all fields, with these where nobody sets one.
            if not (value is None or value == "")
        }
        return Made(values, self.body)

    @cached_property
    def _nobody(self) -> Source:
        # Its secrets are those of no other source: they are compared by the source.
        number = int.from_bytes(sha256(self.body)[:8], "big")
        return Source(Level.BASELINE, _NOBODY, version=number)


def fold(layers: Sequence[InForce]) -> Made:
    """What layers make, the root's first."""
    found = folded(layers)
    try:
        return Made(_values(found), together(layers, found))
    except DomainError:
        return Made(_values(found))


def held(layers: Sequence[InForce], had: Made | None) -> Made | None:
    """What devices get of layers that do not fit; `None` for nothing new.

    Args:
        had: what the devices are to have, if anything.
    """
    try:
        found = filling.held(layers, None if had is None else had.body)
    except DomainError:
        return had
    values = _values(folded(found.layers))
    if found.locked is not None and had is not None:
        kept = {key: value for key, value in had.values.items() if key[0] not in found.locked}
        values = {**kept, **{key: one for key, one in values.items() if key[0] in found.locked}}
    return Made(values, found.body)


def got(value: Value | None) -> Any:
    """What a device gets of a field or an item; `None` for nothing."""
    return None if value is None or value.gone else value.value


def _values(found: Folded) -> dict[tuple[str, str], Value]:
    return {(one.path, one.name): one for one in found.values}
