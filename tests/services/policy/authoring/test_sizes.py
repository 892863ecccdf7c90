"""How large a document may be tells nobody how long a secret of a tenant above is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import pytest

from servicekit.errors import DomainError
from services.policy.authoring.document import MAX_DOCUMENT, MAX_SECRET
from services.policy.authoring.domain import compile_policy
from services.policy.authoring.filling import filled
from services.policy.authoring.layering import InForce, own_of, together
from services.policy.authoring.templates import NO_VALUES, Values
from services.policy.authoring.violations import MAX_TEXT
from services.policy.layers.below import Below
from services.policy.layers.merging import Level, Merging, Source

ROOT, RESELLER, ORG = (UUID(int=one) for one in (1, 2, 3))
LENGTHS: Final = (1, 64, 1_000, MAX_SECRET)
"""Of secrets of a tenant above."""
CHANGES: Final = {"secret.own": 1, "var.own": 1}
_PIECES: Final = MAX_DOCUMENT // MAX_TEXT + 1
"""So many variables fill a document."""


def _layer(
    level: Level, tenant: UUID, bundle: Mapping[str, Any], values: Values = NO_VALUES
) -> InForce:
    document = compile_policy(bundle, values=values)
    return InForce(Source(level, tenant), own_of(bundle, document, Merging(), values))


def _wifi(ssid: str, secret: str) -> dict[str, Any]:
    return {"ssid": ssid, "security": "wpa-eap", "eap": {"password": secret}}


def _texts(size: int) -> list[str]:
    """So many characters, no text twice."""
    starts = range(0, size, MAX_TEXT)
    return [f"{at:06}{'x' * MAX_TEXT}"[: min(MAX_TEXT, size - at)] for at in starts]


def _fits(put_together: Callable[[int], object], size: int) -> bool:
    try:
        put_together(size)
    except DomainError as refused:
        assert str(MAX_DOCUMENT) in refused.message
        return False
    return True


def _most(put_together: Callable[[int], object]) -> int:
    """The most characters that somebody may add."""
    low, high = MAX_DOCUMENT - 2 * MAX_TEXT, MAX_DOCUMENT
    assert _fits(put_together, low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(put_together, middle) else (low, middle)
    return low


def _have_the_same_room(several: Sequence[Callable[[int], object]]) -> None:
    most = _most(several[0])
    for one in several[1:]:
        assert _fits(one, most)
        assert not _fits(one, most + 1)


def test_a_layer_below_has_the_same_room_whatever_the_secrets_above() -> None:
    """With secrets of two tenants; its own count."""

    def with_secrets(*lengths: int, own: int = 10) -> Callable[[int], object]:
        above = [
            # One of them takes six bytes in a document.
            _layer(level, tenant, {"network": {"wifi": [_wifi(level.value, letter * length)]}})
            for level, tenant, letter, length in zip(
                (Level.ROOT, Level.RESELLER), (ROOT, RESELLER), "<s", lengths, strict=True
            )
        ]

        def put_together(size: int) -> None:
            bundle = {
                "network": {"wifi": [_wifi("Own", "o" * own)]},
                "browser": {"extensions": _texts(size)},
            }
            together([*above, _layer(Level.ORG, ORG, bundle)])

        return put_together

    _have_the_same_room([with_secrets(one, MAX_SECRET + 1 - one) for one in LENGTHS])
    assert _most(with_secrets(1, 1, own=1_000)) == _most(with_secrets(1, 1)) - 2 * 384


@pytest.mark.parametrize("inline", [True, False])
def test_values_below_have_the_same_room_whatever_the_secrets_above(*, inline: bool) -> None:
    """A school that fills up the district's template by its own values, with no layer of its own;
    also where the tenant between has a secret of its own in it."""
    pieces = [f"piece{at}" for at in range(_PIECES)]

    def with_secrets(closed: int, between: int) -> Callable[[int], object]:
        secret = "c" * closed
        networks = [
            _wifi("Staff", secret if inline else "{{secret.closed}}"),
            _wifi("Pupils", "{{secret.own}}"),
        ]
        extensions = [f"{{{{var.{one}}}}}" for one in pieces]
        bundle = {
            "template": {
                "network": {"wifi": networks},
                "browser": {"extensions": extensions},
            }
        }
        left = {"secret.own": "o", **{f"var.{one}": one for one in pieces}}
        named = Values({"secret.closed": secret, **left}, {}, frozenset(left))
        layer = _layer(Level.ROOT, ROOT, bundle, named)

        def put_together(size: int) -> None:
            own = {f"var.{name}": text for name, text in zip(pieces, _texts(size), strict=False)}
            values = {RESELLER: Values({"secret.own": "b" * between}), ORG: Values(own)}
            below = Below(ORG, "code", "name", ((ORG, CHANGES), (RESELLER, CHANGES)))
            together([filled(layer, below, values)])

        return put_together

    _have_the_same_room([with_secrets(one, MAX_SECRET + 1 - one) for one in LENGTHS])


@pytest.mark.parametrize("whose", [ORG, RESELLER])
def test_secrets_below_make_no_document_without_bounds(whose: UUID) -> None:
    """One that a template names everywhere, of the organisation or a tenant between: what devices
    get is as it was published."""
    networks = [_wifi(f"N{at}", "{{secret.own}}") for at in range(20)]
    own = Values({"secret.own": "o"}, {}, frozenset({"secret.own"}))
    layer = _layer(Level.ROOT, ROOT, {"template": {"network": {"wifi": networks}}}, own)
    below = Below(ORG, "code", "name", ((whose, CHANGES),))
    found = filled(layer, below, {whose: Values({"secret.own": "s" * MAX_SECRET})})
    assert str(MAX_DOCUMENT) in found.unfit
    assert found.own == layer.own
