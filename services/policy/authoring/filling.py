"""Values of their own that tenants have in templates of tenants above.

A template of a tenant above organisations may name values in whose place those below have their
own: variables and secrets that its tenant lets them have, and the code and the name of the
organisation. They are put in when layers are put together, and not when a device asks.

Who replaces a value in a network or VPN could have devices send its secret elsewhere. So beside the
template's own values only those of one tenant count there: the nearest one with all of its secrets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from servicekit.errors import DomainError
from servicekit.security.digests import sha256_hex
from services.policy.authoring.blanks import Blanks, ValuesIn
from services.policy.authoring.domain import compile_policy
from services.policy.authoring.layering import (
    NOTHING_OWN,
    Held,
    InForce,
    MadeWith,
    Open,
    Own,
    own_of,
    with_kept,
    with_locks,
)
from services.policy.authoring.templates import (
    NO_VALUES,
    ORG_NAMES,
    CountsAt,
    Values,
    alone,
    item_of,
)
from services.policy.layers.below import NOBODY, Below, Changes

_MOST_TRIED: Final = 24
"""So many documents are made to see which values fit together: each may have 512 KiB."""


@dataclass(frozen=True, slots=True)
class OwnValues:
    """The values that a tenant has of its own."""

    changes: Changes
    values: Values = NO_VALUES


def filled(layer: InForce, below: Below, values: Mapping[UUID, Values]) -> InForce:
    """A layer with the values of tenants below, by tenant.

    One that devices could not apply so stays as it was published, and says why; while devices are
    held, it has the values that fit.
    """
    left, blanks = layer.own.open, layer.own.blanks
    if left is None or blanks is None or below == NOBODY:
        return layer
    mark = below.mark(left.names)
    chosen = _Chosen(left, blanks, below, values)
    found = layer
    if mark:
        source = replace(layer.source, filled=mark)
        found = replace(layer, source=source, made_with=chosen.made_with)
    if chosen.by is None:
        return found
    try:
        own = _with_values(layer.own, left, blanks, chosen.values_in, chosen.counts)
    except DomainError as unfit:
        fits = _as_it_fits(layer.own, left, blanks, chosen)
        return replace(found, unfit=unfit.message, fits=fits)
    return replace(found, own=own, published=layer.own, filled_by=chosen.by)


def made_with(layers: Iterable[InForce]) -> str:
    """Tells with which values, and which names, of tenants below layers were made; empty for
    none."""
    said = [one.made_with for one in layers if one.made_with != NOTHING_OWN]
    return ".".join(_digest([*kind]) for kind in zip(*said, strict=True)) if said else ""


def differs_in_names(made: str, other: str) -> bool:
    """Whether two texts of `made_with` differ in the names of organisations and nothing else."""
    parts = [(*one.split("."), "")[:2] for one in (made, other)]
    return parts[0][0] == parts[1][0] and parts[0][1] != parts[1][1]


def _digest(said: Sequence[str]) -> str:
    return sha256_hex(json.dumps(said).encode())[:32] if any(said) else ""


def as_published(layers: Iterable[InForce]) -> list[InForce]:
    """Layers without values of tenants below."""
    return [replace(one, own=one.published or one.own, unfit="") for one in layers]


def held(layers: Sequence[InForce], before: bytes | None) -> Held:
    """What devices get of layers that do not fit together, given what they had.

    In what is locked values of tenants below go on to count where they fit: a network of a school
    that lost its own passphrase would take its devices out of reach.

    Raises:
        DomainError: FAILED_PRECONDITION when devices could not apply what is left.
    """
    if before is not None:
        with suppress(DomainError):
            return with_kept([replace(one, own=one.fits or one.own) for one in layers], before)
    return with_locks(as_published(layers), before)


def _with_values(
    published: Own, left: Open, blanks: Blanks, values_in: ValuesIn, counts: CountsAt
) -> Own:
    """What a version sets with other values than those that it was published with.

    Raises:
        DomainError: INVALID_ARGUMENT where devices could not apply it.
    """
    if (sets := blanks.sets(values_in)) is not None:
        return Own(sets, published.baseline, published.merging, blanks.told(values_in))
    bundle = {"template": left.template}

    def at(place: str) -> Values:
        return values_in(item_of(place))

    document = compile_policy(bundle, values=left.values, at=at, counts=counts)
    own = own_of(bundle, document, published.merging, left.values, at)
    return replace(own, baseline=published.baseline)


def _as_it_fits(published: Own, left: Open, blanks: Blanks, chosen: _Chosen) -> Own:
    """A version with as many values of tenants below as fit: network by network, and the rest.

    What is wrong with one of many networks is seen by looking at each alone. What they are together
    may be too large, too: halves of them are tried then, a few times.
    """
    without = set(chosen.items)

    def values_in(item: str) -> Values:
        return left.values if item in without else chosen.values_in(item)

    def counts(place: str) -> bool:
        return chosen.counts(place) and item_of(place) not in without

    found = published
    waiting = [[item for item in chosen.items if not item or _fits_alone(item, left, chosen)]]
    for _ in range(_MOST_TRIED):
        if not waiting:
            break
        some = waiting.pop()
        without.difference_update(some)
        try:
            found = _with_values(published, left, blanks, values_in, counts)
        except DomainError:
            without.update(some)
            half = len(some) // 2
            waiting += [one for one in (some[half:], some[:half]) if half]
    return found


def _fits_alone(item: str, left: Open, chosen: _Chosen) -> bool:
    """Whether devices could apply one network or VPN with the values that stand in it."""
    try:
        compile_policy(
            {"template": alone(left.template, item)},
            values=left.values,
            at=lambda _: chosen.values_in(item),
            counts=lambda _: chosen.counts(item),
        )
    except DomainError:
        return False
    return True


class _Chosen:
    """Which values stand at which place of a template."""

    def __init__(
        self, left: Open, blanks: Blanks, below: Below, values: Mapping[UUID, Values]
    ) -> None:
        self.by: UUID | None = None
        """The lowest tenant that has a say; `None` for none."""
        levels: list[tuple[UUID, Values]] = [
            (tenant_id, _only(values.get(tenant_id, NO_VALUES), left.names))
            for tenant_id, _ in below.changes
        ]
        order = [below.tenant_id, *(tenant_id for tenant_id, _ in levels)]
        self._order = {tenant_id: at for at, tenant_id in reversed([*enumerate(order)])}
        of_org = Values({"org.code": below.code, "org.name": below.name})
        levels.insert(0, (below.tenant_id, _only(of_org, left.names)))
        self._left = left
        self._told: list[list[str]] = []
        self._names: list[list[str]] = []
        elsewhere = [(id_, _only(some, blanks.elsewhere)) for id_, some in levels]
        self._in_items = {"": self._with("", elsewhere)}
        """Those outside of networks and VPNs first."""
        self._counts = set(blanks.counting)
        for one in blanks.items:
            counting = [(id_, _only(some, one.names)) for id_, some in levels]
            by: UUID | None = below.tenant_id
            if one.secrets:
                # The values of one tenant beside secrets of another one would give these away.
                by = next((id_ for id_ in order if one.secrets <= _names_of(counting, id_)), None)
                counting = [(id_, some) for id_, some in counting if id_ == by]
            self._in_items[one.place] = self._with(one.place, counting)
            if by == below.tenant_id and not one.is_inline:
                self._counts.add(one.place)

    def values_in(self, item: str) -> Values:
        """The values in a network or VPN of the template, or outside of these."""
        return self._in_items.get(item, self._left.values)

    def counts(self, place: str) -> bool:
        """Whether secrets at a place are the lowest tenant's own, which count in the size."""
        return item_of(place) in self._counts

    @property
    def items(self) -> list[str]:
        """Where values are that count."""
        return [item for item, values in self._in_items.items() if values is not self._left.values]

    @property
    def made_with(self) -> MadeWith:
        """Tells the values that count, and whose they are, from others."""
        told = (self._told, self._names)
        return MadeWith(*(json.dumps(one) if one else "" for one in told))

    def _with(self, place: str, levels: Sequence[tuple[UUID, Values]]) -> Values:
        """The values at a place, the nearest tenant's of each name."""
        if not any(values.of for _, values in levels):
            return self._left.values
        of, marks = dict(self._left.values.of), dict(self._left.values.marks)
        whose: dict[str, UUID] = {}
        for tenant_id, values in reversed(levels):
            of.update(values.of)
            marks.update(values.marks)
            whose.update(dict.fromkeys(values.of, tenant_id))
        for name, tenant_id in sorted(whose.items()):
            told = self._names if name in ORG_NAMES else self._told
            told.append([place, name, str(tenant_id), marks.get(name) or of[name]])
            if self.by is None or self._order[tenant_id] < self._order[self.by]:
                self.by = tenant_id
        return Values(of, marks)


def _names_of(levels: Iterable[tuple[UUID, Values]], tenant_id: UUID) -> frozenset[str]:
    return frozenset(name for id_, values in levels if id_ == tenant_id for name in values.of)


def _only(values: Values, names: frozenset[str]) -> Values:
    return Values(
        {name: value for name, value in values.of.items() if name in names},
        {name: mark for name, mark in values.marks.items() if name in names},
    )
