"""The rules by which layers meet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.policy.authoring.document import parse_document
from services.policy.authoring.goencoding import encode_document
from services.policy.layers.fields import FIELDS
from services.policy.layers.merging import (
    ITEM_PATHS,
    PATHS,
    SECTIONS,
    Folded,
    Layer,
    Level,
    Merging,
    Source,
    Why,
)

LEVELS = (Level.ROOT, Level.RESELLER, Level.ORG, Level.GROUP, Level.DEVICE)
texts = st.sampled_from(["a", "b", "c"])
CLASSROOM = {"ssid": "Class A", "security": "none"}


def layer(level: Level, sets: Mapping[str, Any], **merging: Any) -> Layer:
    return Layer(Source(level, UUID(int=LEVELS.index(level) + 1)), sets, Merging(**merging))


def encoded(document: Mapping[str, Any]) -> bytes:
    return encode_document(parse_document(document))


def _items(path: str) -> st.SearchStrategy[list[Any]]:
    (one,) = (one for one in FIELDS if one.path == path)
    if not one.key:
        return st.lists(texts, max_size=3, unique=True)
    return st.lists(
        st.fixed_dictionaries({one.key: texts}), max_size=3, unique_by=lambda item: item[one.key]
    )


VALUES: dict[str, st.SearchStrategy[Any]] = {
    path: _items(path) if path in ITEM_PATHS else st.booleans() for path in PATHS
}
for _path in ("updates.channel", "browser.homepage"):
    VALUES[_path] = texts
for _path in ("updates.maintenance_windows", "network.vpn_dns", "security.usbguard_rules"):
    VALUES[_path] = st.lists(texts, max_size=2)

sets = st.fixed_dictionaries({}, optional=VALUES)
mergings = st.builds(
    Merging,
    locked=st.lists(st.sampled_from([*SECTIONS, *PATHS]), max_size=2).map(tuple),
    replaced=st.lists(st.sampled_from(ITEM_PATHS), max_size=2).map(tuple),
    removed=st.dictionaries(
        st.sampled_from(ITEM_PATHS), st.lists(texts, max_size=2).map(tuple), max_size=2
    ),
    inherit=st.booleans(),
)
plain = st.lists(sets, min_size=1, max_size=3).map(
    lambda several: [layer(LEVELS[i], one) for i, one in enumerate(several)]
)
stacks = st.lists(st.tuples(sets, mergings), min_size=1, max_size=len(LEVELS)).map(
    lambda several: [
        Layer(Source(LEVELS[i], UUID(int=i + 1)), one, merging)
        for i, (one, merging) in enumerate(several)
    ]
)


@given(sets)
def test_one_layer_is_what_it_sets(one: dict[str, Any]) -> None:
    """To the byte: but for networks of one file, of which a policy cannot have two."""
    authored: dict[str, Any] = {}
    for path, value in one.items():
        section, _, name = path.partition(".")
        authored.setdefault(section, {})[name] = value
    names = [n["ssid"] for n in one.get("network.wifi", ())]
    names += [n["name"] for n in one.get("network.vpns", ())]
    if len(set(names)) == len(names):
        assert encoded(Folded([layer(Level.ORG, one)]).document()) == encoded(authored)


@given(stacks)
def test_what_explains_a_document_makes_it(layers: list[Layer]) -> None:
    """The values that are not gone give the document; each is from one layer that says so."""
    folded = Folded(layers)
    again: dict[str, Any] = {}
    for value in folded.values:
        if value.gone or value.source is None:
            continue
        (mine,) = (one for one in layers if one.source == value.source)
        said = mine.sets[value.path]
        assert value.value in said if value.path in ITEM_PATHS else value.value == said
        again.setdefault(value.path, []).append(value.value)
    document = json.loads(encoded(folded.document()))
    for one in FIELDS:
        shown = [value for _, value in one.named(document)]
        if one.items:
            assert sorted(map(json.dumps, shown)) == sorted(
                json.dumps(item)
                for _, item in one.named(json.loads(encoded(_only(one.path, again))))
            )
        elif one.path in again:
            assert again[one.path] == [shown[0]] or not shown[0]


def _only(path: str, values: Mapping[str, list[Any]]) -> dict[str, Any]:
    section, _, name = path.partition(".")
    return {section: {name: values.get(path, [])}}


@given(stacks, st.sampled_from(PATHS), sets)
def test_a_locked_field_is_changed_by_no_layer_below(
    layers: list[Layer], path: str, below: dict[str, Any]
) -> None:
    """Whatever they set, replace, remove or do not inherit."""
    section, _, name = path.partition(".")
    first = Layer(
        layers[0].source,
        layers[0].sets,
        Merging(locked=(path, *(("network",) if section == "network" else ()))),
    )
    alone = Folded([first]).document().get(section, {}).get(name)
    last = Layer(Source(Level.ORG, UUID(int=9)), below, Merging(inherit=False))
    folded = Folded([first, *layers[1:], last])
    assert folded.document().get(section, {}).get(name) == alone
    for value in folded.values:
        if value.path == path and path in below and not value.gone:
            assert value.source in {first.source, None}


@given(plain, plain)
def test_folding_is_associative_without_merging(upper: list[Layer], lower: list[Layer]) -> None:
    """Layers that were folded before count as one."""
    together = Folded([*upper, *lower]).document()
    document = Folded(upper).document()
    one = {
        path: document[path.partition(".")[0]][path.partition(".")[2]]
        for path in PATHS
        if path.partition(".")[2] in document.get(path.partition(".")[0], {})
    }
    assert encoded(Folded([layer(Level.ROOT, one), *lower]).document()) == encoded(together)


@given(stacks, st.integers(0, 3))
def test_a_layer_that_says_nothing_changes_nothing(layers: list[Layer], at: int) -> None:
    """Wherever it stands."""
    empty = layer(Level.RESELLER, {})
    more = [*layers[:at], empty, *layers[at:]]
    assert encoded(Folded(more).document()) == encoded(Folded(layers).document())


@given(stacks)
def test_what_is_stored_of_merging_comes_back(layers: list[Layer]) -> None:
    """And nothing is stored of a policy that does nothing of it."""
    for one in layers:
        assert Merging.of(json.loads(json.dumps(one.merging.stored()))) == Merging(
            one.merging.locked,
            one.merging.replaced,
            dict(one.merging.removed),
            one.merging.inherit,
        )
    assert Merging().stored() == {}


def test_items_are_united_and_replaced_whole() -> None:
    """A network of a school takes the place of the district's of the same name, or same file."""
    district = layer(
        Level.RESELLER,
        {"network.wifi": [{**CLASSROOM, "passphrase": "x"}, {"ssid": "Staff", "security": "none"}]},
    )
    school = layer(Level.ORG, {"network.wifi": [CLASSROOM, {"ssid": "Gym", "security": "none"}]})
    folded = Folded([district, school])
    wifi = folded.document()["network"]["wifi"]
    assert wifi == [CLASSROOM, {"ssid": "Staff", "security": "none"}, wifi[2]]
    held = next(value for value in folded.values if value.name == "Class A")
    assert (held.source, held.lost[0].why) == (school.source, Why.LOWER_PRIORITY)
    meeting = layer(Level.ORG, {"network.vpns": [{"name": "Class_A"}]})
    network = Folded([district, meeting]).document()["network"]
    assert [item["ssid"] for item in network["wifi"]] == ["Staff"]
    assert [item["name"] for item in network["vpns"]] == ["Class_A"]
    locked = Layer(district.source, district.sets, Merging(locked=("network.wifi",)))
    network = Folded([locked, meeting]).document()["network"]
    assert [item["ssid"] for item in network["wifi"]] == ["Class A", "Staff"]
    assert network["vpns"] == []


def test_lists_begin_anew_and_items_go() -> None:
    """`replaced`, `removed` and `inherit: false`, each with its reason."""
    above = layer(Level.ROOT, {"browser.extensions": ["a", "b"], "updates.channel": "beta"})
    for merging, kept, channel, why in (
        ({"replaced": ("browser.extensions",)}, ["c"], "beta", Why.REPLACED),
        ({"removed": {"browser.extensions": ("a",)}}, ["b", "c"], "beta", Why.REMOVED),
        ({"inherit": False}, ["c"], None, Why.REPLACED),
    ):
        folded = Folded([above, layer(Level.ORG, {"browser.extensions": ["c"]}, **merging)])
        document = folded.document()
        assert document["browser"]["extensions"] == kept
        assert document.get("updates", {}).get("channel") == channel
        (gone,) = (v for v in folded.values if v.name == "a")
        assert (gone.gone, gone.lost[0].why) == (True, why)
