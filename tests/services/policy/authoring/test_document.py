"""Authored policies: what is refused, by which name, and what the console's form means."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.errors import Code, DomainError
from services.policy.authoring.configuration import (
    BASELINE,
    compile_bundle,
    is_console_form,
    keeps_baseline,
)
from services.policy.authoring.document import App, Apps, Document, Security, Wifi, parse_document
from services.policy.authoring.goencoding import encode_document
from services.policy.authoring.violations import MAX_ITEMS, MAX_TEXT, MAX_VIOLATIONS
from tests.support.policies import documents

CONSOLE: dict[str, Any] = {
    "id": "0197b1c2-0000-7000-8000-000000000001",
    "name": "Lab",
    "version": "3",
    "orgId": "0197b1c2-0000-7000-8000-000000000002",
    "configuration": {
        "apps": [
            {"id": "org.gnome.Calculator", "target": "all"},
            {"id": "org.gimp.GIMP", "target": "group", "groupIds": ["art"]},
        ],
        "updateChannel": "beta",
        "browser": {"homepageUrl": "https://school.example/?a&b", "allowPopups": False},
        "network": {"wifiNetworks": [{"ssid": "Students", "security": "wpa3"}]},
        "security": {"diskEncryption": True, "lockAfterMinutes": 5.0},
    },
}


def faults(bundle: object) -> dict[str, str]:
    """The violations of a bundle: rule by field."""
    with pytest.raises(DomainError) as caught:
        compile_bundle(bundle)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return {violation.field: violation.rule for violation in caught.value.violations}


@pytest.mark.parametrize(
    ("bundle", "field", "rule"),
    [
        (None, "", "must be an object, not null"),
        ([], "", "must be an object, not a list"),
        ("x", "", "must be an object, not a string"),
        (True, "", "must be an object, not a boolean"),
        ({"apps": []}, "apps", "must be an object, not a list"),
        ({"apps": {"required": {}}}, "apps.required", "must be a list, not an object"),
        ({"apps": {"required": ["a"]}}, "apps.required[0]", "must be an object, not a string"),
        ({"apps": {"required": [None]}}, "apps.required[0]", "must be an object, not null"),
        (
            {"apps": {"required": [{}, {}, {"id": 5}]}},
            "apps.required[2].id",
            "must be a string, not a number",
        ),
        (
            {"apps": {"required": [{"version": "1"}]}},
            "apps.required[0].version",
            "is not a field that devices know",
        ),
        ({"Apps": {}}, "Apps", "is not a field that devices know"),
        ({"odd key": 1}, '["odd key"]', "is not a field that devices know"),
        ({"updates": {"channel": None}}, "updates.channel", "must be a string, not null"),
        (
            {"updates": {"reboot_required": 1}},
            "updates.reboot_required",
            "must be true or false, not a number",
        ),
        (
            {"updates": {"reboot_required": "true"}},
            "updates.reboot_required",
            "must be true or false, not a string",
        ),
        (
            {"updates": {"maintenance_windows": [None]}},
            "updates.maintenance_windows[0]",
            "must be a string, not null",
        ),
        (
            {"browser": {"homepage": "a\0b"}},
            "browser.homepage",
            "must not contain the character U+0000",
        ),
        (
            {"browser": {"homepage": "\ud83d"}},
            "browser.homepage",
            "must be valid Unicode text, without lone surrogates",
        ),
        (
            {"browser": {"homepage": "a" * (MAX_TEXT + 1)}},
            "browser.homepage",
            f"must have at most {MAX_TEXT} characters, not {MAX_TEXT + 1}",
        ),
        (
            {"network": {"vpn_dns": [""] * (MAX_ITEMS + 1)}},
            "network.vpn_dns",
            f"must have at most {MAX_ITEMS} items, not {MAX_ITEMS + 1}",
        ),
        (
            {"network": {"wifi": [{"eap": {"identity": 1}}]}},
            "network.wifi[0].eap.identity",
            "must be a string, not a number",
        ),
        (
            {"network": {"wifi": [{"eap": {"a\0": ""}}]}},
            'network.wifi[0].eap["a\\u0000"]',
            "key must not contain the character U+0000",
        ),
        (
            {"network": {"vpns": [{"data": []}]}},
            "network.vpns[0].data",
            "must be an object of strings, not a list",
        ),
    ],
)
def test_a_fault_names_its_field(bundle: object, field: str, rule: str) -> None:
    """Each wrong type, unknown field and broken limit is told with the field's path."""
    assert faults(bundle) == {field: rule}


def test_all_faults_are_told_at_once_up_to_a_bound() -> None:
    """A person sees everything to mend; a hostile body does not blow up the answer."""
    bundle = {"apps": 1, "updates": {"channel": 2, "reboot_required": 3}, "what": 4}
    assert list(faults(bundle)) == [
        "apps",
        "updates.channel",
        "updates.reboot_required",
        "what",
    ]
    assert len(faults({f"field{n}": n for n in range(100)})) == MAX_VIOLATIONS


def test_null_and_absent_are_the_same_and_empty_is_not() -> None:
    """Devices see null for a list or map that was null or absent, and keep an empty one empty."""
    absent = parse_document({"apps": {}, "network": {"wifi": [{}]}})
    null = parse_document({"apps": {"required": None}, "network": {"wifi": [{"eap": None}]}})
    empty = parse_document({"apps": {"required": []}, "network": {"wifi": [{"eap": {}}]}})
    assert absent == null == Document(apps=Apps(None), network=null.network)
    assert empty.apps.required == ()
    assert empty.network.wifi == (Wifi(eap={}),)
    assert parse_document({"apps": None}) == parse_document({}) == Document()


@given(documents)
def test_an_encoded_document_is_itself_a_valid_document(authored: dict[str, Any]) -> None:
    """Parsing what was encoded gives the same document: nothing is lost or invented."""
    document = parse_document(authored)
    assert parse_document(json.loads(encode_document(document))) == document


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["apps", "required", "id", "configuration", "network", "wifi", "eap"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_any_json_is_accepted_or_refused_with_reasons(bundle: object) -> None:
    """Nothing that can be sent makes the check itself fail."""
    try:
        encode_document(compile_bundle(bundle).document)
    except DomainError as error:
        assert error.violations
        json.dumps([violation.field for violation in error.violations]).encode()


def test_the_console_form_is_compiled() -> None:
    """Apps for all, the channel, the homepage and the networks reach the device's document."""
    assert is_console_form(CONSOLE)
    assert not is_console_form({"apps": {}})
    document = compile_bundle(CONSOLE).document
    assert document.apps.required == (App("org.gnome.Calculator", "stable", "flathub"),)
    assert document.updates.channel == "beta"
    assert document.browser.homepage == "https://school.example/?a&b"
    assert document.network.wifi == (Wifi(ssid="Students", security="sae"),)
    assert document.security == BASELINE


def test_a_sparse_console_form_is_compiled() -> None:
    """A section that the editor has not touched yet compiles to the baseline."""
    bare = Document(security=BASELINE)
    assert compile_bundle({"configuration": {}}).document == bare
    assert compile_bundle({"configuration": {"browser": None, "apps": None}}).document == bare
    empty = compile_bundle({"configuration": {"apps": []}}).document
    assert empty == replace(bare, apps=Apps(()))


def test_the_consoles_words_are_translated() -> None:
    """Its own app ids are Flathub's, once each, and its Wi-Fi words are NetworkManager's."""
    apps = ["chrome", "slack", "vscode", "zoom", "com.google.Chrome", "org.gimp.GIMP"]
    networks = [{"ssid": "a", "security": "wpa2"}, {"ssid": "b", "security": "wpa3"}, {"ssid": "c"}]
    document = compile_bundle(
        {
            "configuration": {
                "apps": [{"id": app, "target": "all"} for app in apps],
                "network": {"wifiNetworks": networks},
            }
        }
    ).document
    assert [app.id for app in document.apps.required or ()] == [
        "com.google.Chrome",
        "com.slack.Slack",
        "com.visualstudio.code",
        "us.zoom.Zoom",
        "org.gimp.GIMP",
    ]
    assert [wifi.security for wifi in document.network.wifi or ()] == ["wpa-psk", "sae", "wpa-psk"]


def test_the_form_leaves_usbguard_as_it_is() -> None:
    """Everything else of `security` is the baseline's, however weak it is what is in force."""
    standing = Security(
        selinux_enforce=False,
        ssh_enabled=True,
        usbguard=True,
        usbguard_rules=("allow",),
        allow_root_login=True,
    )
    security = compile_bundle(CONSOLE, standing=standing).document.security
    assert security == replace(BASELINE, usbguard=True, usbguard_rules=("allow",))
    assert keeps_baseline(security)
    assert not keeps_baseline(standing)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"configuration": None}, "configuration"),
        ({"configuration": {"updateChannel": "nightly"}}, "configuration.updateChannel"),
        ({"configuration": {"apps": [{"target": "all"}]}}, "configuration.apps[0].id"),
        ({"configuration": {"apps": [{"id": ""}]}}, "configuration.apps[0].id"),
        ({"configuration": {"apps": [{"id": "firefox"}]}}, "configuration.apps[0].id"),
        ({"signature": "signed"}, "signature"),
        (
            {"configuration": {"apps": [{"id": "zoom", "target": "some"}]}},
            "configuration.apps[0].target",
        ),
        (
            {"configuration": {"apps": [{"id": "zoom", "target": "group", "groupIds": [1]}]}},
            "configuration.apps[0].groupIds[0]",
        ),
        (
            {"configuration": {"browser": {"homepageUrl": 1}}},
            "configuration.browser.homepageUrl",
        ),
        (
            {"configuration": {"browser": {"allowPopups": "no"}}},
            "configuration.browser.allowPopups",
        ),
        (
            {"configuration": {"network": {"wifiNetworks": [{"ssid": "a", "security": "wep"}]}}},
            "configuration.network.wifiNetworks[0].security",
        ),
        (
            {"configuration": {"security": {"lockAfterMinutes": True}}},
            "configuration.security.lockAfterMinutes",
        ),
        (
            {"configuration": {"security": {"lockAfterMinutes": float("nan")}}},
            "configuration.security.lockAfterMinutes",
        ),
        (
            {"configuration": {"security": {"lockAfterMinutes": -1}}},
            "configuration.security.lockAfterMinutes",
        ),
        ({"configuration": {"firewall": {}}}, "configuration.firewall"),
        ({"orgId": 5}, "orgId"),
        ({"apps": {}}, "apps"),
    ],
)
def test_a_fault_in_the_console_form_names_its_field(change: dict[str, Any], field: str) -> None:
    """The paths are those of the form that was authored, not of the document it compiles to."""
    assert list(faults({**CONSOLE, **change})) == [field]
