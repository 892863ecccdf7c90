"""What devices are to have of all layers, and why, as people are shown it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from services.policy.authoring.layering import InForce, folded
from services.policy.authoring.secret_values import REDACTED, hide
from services.policy.gate.domain import Restriction
from services.policy.layers.merging import Layer, Source, Value, Why


@dataclass(frozen=True, slots=True)
class Overridden:
    """A value that devices do not get."""

    source: Source
    value: Any = field(repr=False)
    why: Why


@dataclass(frozen=True, slots=True)
class Shown:
    """A field or an item, without secrets; `how` is the API's word."""

    path: str
    name: str
    value: Any = field(repr=False)
    how: str
    source: Source | None
    overridden: tuple[Overridden, ...]


@dataclass(frozen=True, slots=True)
class Effective:
    """What devices are to have, without secrets."""

    org_id: UUID
    layers: tuple[Layer, ...]
    document: Any = field(repr=False)
    fields: tuple[Shown, ...]
    tenant_names: dict[UUID, str]
    state: str = ""
    reason: str = ""
    device_id: UUID | None = None
    applied: int = 0
    wanted: int = 0
    restriction: Restriction | None = None
    """Why it has the other policy of an attestation gate."""


def explained(org_id: UUID, layers: Sequence[InForce], tenant_names: dict[UUID, str]) -> Effective:
    """What layers make, the root's first. Secrets are hidden whosever they are."""
    found = folded(layers)
    return Effective(
        org_id,
        tuple(one.layer for one in layers),
        hide(found.document(), REDACTED),
        tuple(map(_shown, found.values)),
        tenant_names,
    )


def _shown(value: Value) -> Shown:
    return Shown(
        value.path,
        value.name,
        None if value.gone else without_secrets(value.path, value.value),
        _how(value),
        None if value.gone else value.source,
        tuple(
            Overridden(lost.source, without_secrets(value.path, lost.value), lost.why)
            for lost in value.lost
        ),
    )


def _how(value: Value) -> str:
    if value.gone or value.source is None:
        return "NONE" if value.name else "DEFAULT"
    if value.locked:
        return "LOCKED"
    return "MERGED" if value.lost else "SET"


def without_secrets(path: str, value: Any) -> Any:
    """A value of a field, or an item of one, with its secrets hidden."""
    section, _, name = path.partition(".")
    if section != "network" or not isinstance(value, dict):
        return value
    return hide({section: {name: [value]}}, REDACTED)[section][name][0]
