"""Values of tenants below in templates above: what stands beside whose secret, in any case."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations, product
from typing import Any, Final, TypeAlias
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.errors import DomainError
from services.policy.authoring.domain import compile_policy
from services.policy.authoring.filling import filled
from services.policy.authoring.layering import InForce, own_of
from services.policy.authoring.templates import Values
from services.policy.layers.below import Below
from services.policy.layers.merging import Level, Merging, Source

Names: TypeAlias = frozenset[str]
Vpn: TypeAlias = tuple[Names, bool]
"""What a VPN names, and whether a secret without a name stands in it, too."""

VALUES: Final = ("var.a", "var.b", "secret.x", "secret.y")
NAMES: Final = (*VALUES, "org.name")
ABOVE: Final = UUID(int=9)
"""Whose the template is."""
BELOW: Final = (UUID(int=1), UUID(int=2), UUID(int=3))
"""The tenants below, the nearest one first, which is the organisation."""

some_names = st.lists(st.sampled_from(NAMES), unique=True).map(frozenset)
some_values = st.lists(st.sampled_from(VALUES), unique=True).map(frozenset)
vpns = st.lists(st.tuples(some_names, st.booleans()), min_size=1, max_size=3)


@given(vpns, some_names, st.tuples(some_values, some_values, some_values))
def test_beside_a_secret_stand_values_of_its_tenant_alone(
    several: list[Vpn], left: Names, have: tuple[Names, ...]
) -> None:
    """Whatever is open, and whoever has a value of it."""
    _check(several, left, have)


def test_all_ways_to_have_a_gateway_and_a_secret() -> None:
    """Of three tenants below one another."""
    both = ("var.a", "secret.x")
    some = [frozenset(one) for one in chain.from_iterable(combinations(both, n) for n in range(3))]
    for have in product(some, repeat=3):
        _check([(frozenset(both), False)], frozenset(both), have)


@pytest.mark.parametrize("is_form", [False, True])
def test_values_that_fit_are_found_among_many_that_do_not(*, is_form: bool) -> None:
    """In as many networks as may be, and in the console's form: nobody waits for it."""
    count = 600
    names = [f"secret.n{at}" for at in range(count)]
    networks = [{"ssid": f"N{at}", "passphrase": f"{{{{{one}}}}}"} for at, one in enumerate(names)]
    template: dict[str, Any] = {"network": {"wifi": networks}}
    if is_form:
        template = {"configuration": {"network": {"wifiNetworks": networks}}}
    own = Values(dict.fromkeys(names, "the district's"), {}, frozenset(names))
    bundle = {"template": template}
    published = own_of(bundle, compile_policy(bundle, values=own), Merging(), own)
    wrong = dict.fromkeys(names[::2], "a\nb")
    values = {BELOW[0]: Values({**dict.fromkeys(names, "the school's"), **wrong})}
    below = Below(BELOW[0], "code", "name", ((BELOW[0], {"var.a": 1}),))
    began = time.process_time()
    found = filled(InForce(Source(Level.RESELLER, ABOVE), published), below, values)
    assert time.process_time() - began < 5
    assert found.unfit
    assert found.fits is not None
    got = [one["passphrase"] for one in found.fits.sets["network.wifi"]]
    assert got == ["the district's", "the school's"] * (count // 2)


def test_values_that_do_not_fit_together_count_as_far_as_they_do() -> None:
    """Two networks that would get one name: the first one counts."""
    of = {"var.a": "A", "var.b": "B", "var.c": "C"}
    own = Values(of, {}, frozenset(of))
    networks = [{"ssid": f"{{{{{one}}}}}", "security": "none"} for one in sorted(own.open)]
    bundle = {"template": {"network": {"wifi": networks}}}
    published = own_of(bundle, compile_policy(bundle, values=own), Merging(), own)
    values = {BELOW[0]: Values({"var.a": "X", "var.b": "X", "var.c": "Y"})}
    below = Below(BELOW[0], "code", "name", ((BELOW[0], {"var.a": 1}),))
    found = filled(InForce(Source(Level.RESELLER, ABOVE), published), below, values)
    assert found.fits is not None
    assert [one["ssid"] for one in found.fits.sets["network.wifi"]] == ["X", "B", "Y"]


def _check(several: Sequence[Vpn], left: Names, have: tuple[Names, ...]) -> None:
    """A VPN has all secrets of the nearest tenant that has all of them, with its values, and those
    of the template where it has none; never one of a tenant between."""
    bundle = _template(several)
    own = _values(ABOVE, frozenset(NAMES), left)
    leaks = any(
        (names & left and (inline or not _secrets(names) <= left))
        # Names of organisations are nobody's secrets.
        or (_secrets(names) and "org.name" in names & left)
        for names, inline in several
    )
    try:
        document = compile_policy(bundle, values=own)
    except DomainError:
        assert leaks
        return
    assert not leaks
    layer = InForce(Source(Level.ROOT, ABOVE), own_of(bundle, document, Merging(), own))
    changes = dict.fromkeys(VALUES, 1)
    name = f"{BELOW[0].int} org.name"
    below = Below(BELOW[0], "code", name, tuple((one, changes) for one in BELOW))
    values = {one: _values(one, names) for one, names in zip(BELOW, have, strict=True)}
    found = filled(layer, below, values)
    assert not found.unfit
    # Whose a value is by its name, for all names that are open.
    its = {one.int: names & left for one, names in zip(BELOW, have, strict=True)}
    its[BELOW[0].int] |= {"org.name"} & left
    nearest = {
        name: next((whose for whose, names in its.items() if name in names), ABOVE.int)
        for name in NAMES
    }
    for (names, _), vpn in zip(several, found.own.sets["network.vpns"], strict=True):
        got = dict(_told(vpn))
        assert got.keys() == names
        if not _secrets(names):
            assert got == {name: nearest[name] for name in names}
            continue
        whose = next((one for one, some in its.items() if _secrets(names) <= some), ABOVE.int)
        assert {got[name] for name in _secrets(names)} == {whose}
        assert set(got.values()) <= {whose, ABOVE.int}
        assert {name for name, one in got.items() if one == whose} >= names & its.get(whose, left)
    homepage = found.own.sets["browser.homepage"]
    assert homepage == f"{nearest['var.a']} var.a, {nearest['org.name']} org.name"


def _template(several: Sequence[Vpn]) -> dict[str, Any]:
    def vpn(at: int, names: Names, *, inline: bool) -> dict[str, Any]:
        named = {one.replace(".", "-"): f"{{{{{one}}}}}" for one in sorted(names)}
        secrets = {key: one for key, one in named.items() if key.startswith("secret")}
        return {
            "name": f"V{at}",
            "service_type": named.pop("var-a", ""),
            "data": {key: one for key, one in named.items() if key not in secrets},
            "secrets": {**secrets, "inline": "inline"} if inline else secrets,
        }

    return {
        "template": {
            "network": {
                "vpns": [vpn(at, names, inline=one) for at, (names, one) in enumerate(several)]
            },
            "browser": {"homepage": "{{var.a}}, {{org.name}}"},
        }
    }


def _secrets(names: Names) -> Names:
    return frozenset(one for one in names if one.startswith("secret."))


def _values(tenant: UUID, names: Names, left: Names = frozenset()) -> Values:
    """Each tells whose it is, and of which name."""
    return Values({one: f"{tenant.int} {one}" for one in names}, {}, left)


def _told(vpn: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for text in (vpn["service_type"], *vpn["data"].values(), *vpn["secrets"].values()):
        whose, _, name = text.partition(" ")
        if name:
            yield name, int(whose)
