"""Secrets of authored policies: which there are, hidden in both forms, and put back by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.errors import DomainError
from services.policy.authoring.document import Document, secret_fields
from services.policy.authoring.secret_values import (
    MASKED,
    REDACTED,
    complete,
    hide,
    holds_secrets,
    restore,
)
from services.policy.authoring.stored_form import as_text, joined, parted
from tests.support.policies import documents

CONSOLE = {
    "configuration": {
        "network": {
            "wifiNetworks": [{"ssid": "a", "passphrase": "hunter2"}, {"ssid": "b"}],
        },
        "apps": None,
    }
}
STORED = {
    "network": {
        "wifi": [
            {"ssid": "a", "passphrase": "hunter2", "eap": {"password": "hunter3"}},
            {"ssid": "b", "passphrase": "", "eap": None},
        ],
        "vpns": [{"name": "v", "data": {"psk": "hunter4"}, "secrets": {"p": "hunter5"}}],
    },
    "browser": {"homepage": "hunter2"},
    "apps": None,
}


def classes(hint: Any) -> Iterator[Any]:
    """The dataclasses that a type is made of."""
    if is_dataclass(hint):
        yield hint
    for inner in get_args(hint):
        yield from classes(inner)


def marked(schema: Any, path: str = "") -> Iterator[str]:
    """The paths of all fields that the schema calls secret."""
    for entry in fields(schema):
        where = f"{path}.{entry.name}".removeprefix(".")
        if entry.metadata.get("secret"):
            yield where
        for inner in classes(get_type_hints(schema)[entry.name]):
            yield from marked(inner, where)


def test_every_secret_field_is_known_to_the_masks() -> None:
    """A field that is marked as secret elsewhere would not be hidden: it has to be added here."""
    known = {f"network.{kind}.{name}" for kind in ("wifi", "vpns") for name in secret_fields(kind)}
    assert set(marked(Document)) == known


def test_secrets_are_hidden_and_nothing_else() -> None:
    """Empty ones stay, so that it shows whether one is set; the stored policy is not touched."""
    before = copy.deepcopy(STORED)
    assert hide(STORED, REDACTED) == {
        **STORED,
        "network": {
            "wifi": [
                {"ssid": "a", "passphrase": REDACTED, "eap": {"password": REDACTED}},
                {"ssid": "b", "passphrase": "", "eap": None},
            ],
            "vpns": [{"name": "v", "data": {"psk": REDACTED}, "secrets": {"p": REDACTED}}],
        },
    }
    assert before == STORED
    networks = hide(CONSOLE, MASKED)["configuration"]["network"]["wifiNetworks"]
    assert networks == [{"ssid": "a", "passphrase": MASKED}, {"ssid": "b"}]
    assert holds_secrets(STORED)
    assert holds_secrets(CONSOLE)
    assert not holds_secrets({"browser": {"homepage": MASKED}})


@given(documents)
def test_what_was_hidden_is_put_back(authored: dict[str, Any]) -> None:
    """Whatever the policy, also one with several networks of one name, nothing is lost."""
    for word in (MASKED, REDACTED):
        assert restore(hide(authored, word), authored, "bundle") == authored


def test_a_mask_may_change_its_place_and_its_form() -> None:
    """A network is known by its name, in the document and in the console's form."""
    form = {"configuration": {"network": {"wifiNetworks": [{"ssid": "a", "passphrase": MASKED}]}}}
    restored = restore(form, STORED, "bundle")
    assert restored["configuration"]["network"]["wifiNetworks"][0]["passphrase"] == "hunter2"
    document = {"network": {"wifi": [{"ssid": "x"}, {"ssid": "a", "passphrase": REDACTED}]}}
    restored = restore(document, CONSOLE, "bundle")
    assert restored["network"]["wifi"][1]["passphrase"] == "hunter2"


def test_a_mask_without_a_value_is_refused() -> None:
    """Each one is named, and nothing of another network or key is taken for it."""
    bundle = {
        "network": {
            "wifi": [{"ssid": "b", "passphrase": MASKED}, {"ssid": "c", "eap": {"x": REDACTED}}],
            "vpns": [{"name": "a", "secrets": {"p": MASKED}}],
        }
    }
    for stored in (STORED, None):
        with pytest.raises(DomainError) as caught:
            restore(bundle, stored, "bundle")
        assert [violation.field for violation in caught.value.violations] == [
            "bundle.network.wifi[0].passphrase",
            "bundle.network.wifi[1].eap.x",
            "bundle.network.vpns[0].secrets.p",
        ]


def test_a_form_takes_the_passphrases_that_are_known() -> None:
    """From the first source that has one; an empty one is an answer, too; documents stay."""
    names = ["a", "b", "c"]
    networks: list[dict[str, Any]] = [{"ssid": name} for name in names]
    form = {
        "configuration": {"network": {"wifiNetworks": [*networks, {"ssid": "a", "passphrase": ""}]}}
    }
    other = {"network": {"wifi": [{"ssid": n, "passphrase": f"other {n}"} for n in names]}}
    filled = complete(form, STORED, other)["configuration"]["network"]["wifiNetworks"]
    assert [network.get("passphrase") for network in filled] == [
        "hunter2",
        "other b",
        "other c",
        "",
    ]
    assert complete(form) == form
    document = {"network": {"wifi": [{"ssid": "a"}]}}
    assert complete(document, STORED) == document


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(MASKED),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["network", "wifi", "vpns", "ssid", "eap", "configuration", "wifiNetworks", "data"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(ANY, ANY)
def test_any_json_is_borne(bundle: Any, stored: Any) -> None:
    """The shape is checked elsewhere; masks in a wrong place are refused there."""
    hide(bundle, MASKED)
    complete(bundle, stored)
    try:
        restore(bundle, stored, "bundle")
    except DomainError as refused:
        assert refused.violations


def test_a_form_is_stored_as_the_last_release_reads_it() -> None:
    """Its signature and passphrases lie beside it, and come back, whatever that release changed."""
    networks: list[dict[str, Any]] = [
        {"passphrase": "hunter2", "ssid": "a"},
        {"ssid": "b", "passphrase": ""},
        {"ssid": "c"},
    ]
    form: dict[str, Any] = {
        "signature": {"status": "unsigned"},
        "configuration": {"network": {"wifiNetworks": networks}},
    }
    text = as_text(form)
    assert json.loads(text) == form
    plain, extra = parted(text)
    bare = [{"ssid": "a"}, {"ssid": "b"}, {"ssid": "c"}]
    assert json.loads(plain) == {"configuration": {"network": {"wifiNetworks": bare}}}
    assert joined(plain, extra) == text == as_text(json.loads(text))
    edited = json.dumps({"configuration": {"network": {"wifiNetworks": [{"ssid": "a"}]}}})
    found = json.loads(joined(edited, extra))["configuration"]["network"]["wifiNetworks"]
    assert found == [{"ssid": "a", "passphrase": "hunter2"}]
    for other in ({"apps": {}}, {"configuration": {}}, {"configuration": None}, []):
        assert parted(as_text(other)) == (as_text(other), None)
        joined(json.dumps(other), extra)
