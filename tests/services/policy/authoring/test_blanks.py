"""Values of tenants below are put into a template as if it were compiled with them."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import pytest

from services.policy.authoring import filling
from services.policy.authoring.blanks import Blanks
from services.policy.authoring.document import MAX_DOCUMENT, MAX_SECRET
from services.policy.authoring.domain import compile_policy
from services.policy.authoring.filling import filled
from services.policy.authoring.layering import InForce, own_of
from services.policy.authoring.templates import ORG_NAMES, Values
from services.policy.layers.below import Below
from services.policy.layers.merging import Level, Merging, Source

DISTRICT, SCHOOL = UUID(int=1), UUID(int=2)
PUBLISHED = {
    "var.a": "one",
    "var.b": "two",
    "secret.s": "a secret of the district",
    "secret.t": "another secret",
    "org.name": "The district",
    "org.code": "district",
}
MARKS = {"secret.s": "s/1", "secret.t": "t/1"}
BOOKMARKS = [{"name": "{{org.name}}", "url": f"https://{{{{var.a}}}}/{at}"} for at in range(3)]
DOCUMENT: dict[str, Any] = {
    "apps": {"required": [{"id": "org.a.{{var.a}}", "branch": "stable"}, {"id": "org.a.two"}]},
    "updates": {"channel": "{{var.b}}", "maintenance_windows": ["* 01:00-02:00"]},
    "browser": {
        "homepage": "https://{{var.a}}/<{{org.code}}>",
        "extensions": ["x", "{{var.b}}"],
        "managed_bookmarks": BOOKMARKS,
    },
    "network": {
        "wifi": [
            {"ssid": "Staff", "security": "wpa-psk", "passphrase": "inline secret"},
            {"ssid": "{{var.a}}", "security": "wpa-psk", "passphrase": "{{secret.s}}"},
            {
                "ssid": "E",
                "security": "wpa-eap",
                "eap": {"z": "{{secret.t}}", "identity": "{{secret.s}}"},
            },
        ],
        "vpns": [{"name": "V", "data": {"gateway": "{{var.b}}"}, "secrets": {"p": "{{secret.t}}"}}],
        "vpn_dns": ["{{var.b}}.example"],
    },
    "security": {"usbguard": True, "usbguard_rules": ["allow {{var.a}}"]},
}
FORM: dict[str, Any] = {
    "configuration": {
        "updateChannel": "stable",
        "browser": {"homepageUrl": "https://{{var.a}}"},
        "network": {
            "wifiNetworks": [
                {"ssid": "x", "security": "wpa3", "passphrase": "{{secret.s}}"},
                {"ssid": "{{var.b}}", "passphrase": "{{secret.t}}"},
            ]
        },
    }
}
LABELLED = {**FORM, "name": "{{var.a}}"}
OWN = ("var.a", "var.b", "secret.s", "secret.t")
TEXTS = (
    "plain",
    "ünï",
    "<&>\u2028\U0001f600",
    "two",
    "V",
    ".x",
    "-x",
    "a\nb",
    "x" * 33,
    "y" * 9000,
)


def _layer(template: dict[str, Any], names: frozenset[str]) -> InForce:
    values = Values(PUBLISHED, MARKS, names)
    bundle = {"template": template}
    own = own_of(bundle, compile_policy(bundle, values=values), Merging(), values)
    return InForce(Source(Level.RESELLER, DISTRICT, UUID(int=9), "P", 1), own)


def _own(values: dict[str, str]) -> tuple[Below, dict[UUID, Values]]:
    marks = {name: f"{name}/7" for name in values if name.startswith("secret.")}
    below = Below(SCHOOL, "code", "Näme", ((SCHOOL, dict.fromkeys(values, 1)),))
    return below, {SCHOOL: Values(values, marks)}


@pytest.mark.parametrize("template", [DOCUMENT, FORM, LABELLED], ids=["document", "form", "labels"])
def test_it_is_what_the_whole_template_makes(
    template: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it does not fit, what is said of that and what is left then."""
    names = frozenset(PUBLISHED) - (ORG_NAMES if template is not DOCUMENT else frozenset())
    layer = _layer(template, names)
    cases = [{name: text} for name in OWN for text in TEXTS]
    cases += [dict.fromkeys(OWN, text) for text in TEXTS]
    found = [filled(layer, *_own(one)) for one in cases]
    assert sum(not one.unfit for one in found) > len(TEXTS)
    assert sum(bool(one.unfit) for one in found) > 5
    monkeypatch.setattr(Blanks, "sets", lambda *_: None)
    for case, one in zip(cases, found, strict=True):
        assert one == filled(layer, *_own(case)), case


def test_a_template_is_compiled_once_for_many_schools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what differs is put together for each of them."""
    layer = _layer(DOCUMENT, frozenset(PUBLISHED))
    compiled: list[Any] = []
    monkeypatch.setattr(filling, "compile_policy", lambda *_, **__: compiled.append(1) or b"{}")
    for number in range(10):
        one = filled(layer, *_own({"var.a": f"school{number}.example"}))
        assert not one.unfit
        assert one.own.sets["browser.homepage"] == f"https://school{number}.example/<code>"
    assert not compiled


def test_what_values_make_is_measured_before_it_is_made() -> None:
    """A short text that names a long value many times, and a document that would be too long."""
    vpns = [
        {"name": f"V{at}", "data": {"x": "{{var.a}}" * 4000}, "secrets": {"p": "{{secret.s}}"}}
        for at in range(9)
    ]
    layer = _layer({"network": {"vpns": vpns}}, frozenset({"var.a", "secret.s"}))
    began = time.process_time()
    found = filled(layer, *_own({"var.a": "x" * 8000, "secret.s": "y" * MAX_SECRET}))
    assert time.process_time() - began < 2
    assert "characters" in found.unfit
    many = [{"name": f"V{at}", "secrets": {"p": "{{secret.s}}"}} for at in range(40)]
    layer = _layer({"network": {"vpns": many}}, frozenset({"secret.s"}))
    found = filled(layer, *_own({"secret.s": "y" * MAX_SECRET}))
    assert f"{MAX_DOCUMENT} bytes" in found.unfit
