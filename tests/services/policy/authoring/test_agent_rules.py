"""The released agent's rules: both sides of each row, and a model of the agent that agrees."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.errors import DomainError
from services.policy.authoring.agent_rules import RULES, UNSET, Effect, check, fails
from services.policy.authoring.document import Document, parse_document
from services.policy.authoring.domain import check_policy, compile_policy
from services.policy.authoring.goencoding import encode_document
from services.policy.authoring.windows import is_window, parse_window
from tests.fakes.agent.apply import (
    KEY_MANAGEMENT,
    USBGUARD,
    ApplyError,
    Machine,
    maintenance_window,
    profile_path,
    read_key_file,
)
from tests.support.paths import ROOT
from tests.support.policies import AWKWARD, documents, lists, objects

SAFE = {"security": {"selinux_enforce": True, "usbguard": False}}


def wifi(**change: Any) -> dict[str, Any]:
    """A document with one sound network, changed."""
    entry = {"ssid": "School", "passphrase": "long enough", "security": "wpa-psk", **change}
    return {"network": {"wifi": [{k: v for k, v in entry.items() if v is not None}]}}


def vpn(**change: Any) -> dict[str, Any]:
    return {"network": {"vpns": [{"name": "Office", **change}]}}


def apps(*ids: str) -> dict[str, Any]:
    return {"apps": {"required": [{"id": name} for name in ids]}}


def two(first: str, second: str) -> dict[str, Any]:
    networks = [{"ssid": name, "security": "none"} for name in (first, second)]
    return {"network": {"wifi": networks}}


ROWS: dict[str, tuple[list[Any], list[tuple[Any, str]]]] = {
    # rule: (what keeps it, (what breaks it, where))
    "window": (
        [{"updates": {"maintenance_windows": ["Mon-Fri 22:00-05:00", "Mon,Tue 01:00-02:00"]}}],
        [
            ({"updates": {"maintenance_windows": [text]}}, "updates.maintenance_windows[0]")
            for text in ("whenever you like", "Mon-Fri", "22:00", "Mo 1:00-2:00")
        ],
    ),
    "window-blank": (
        [{"updates": {"maintenance_windows": ["* 01:00-03:00"]}}],
        [
            ({"updates": {"maintenance_windows": [text]}}, "updates.maintenance_windows[0]")
            for text in ("", " ", "\u00a0")
        ],
    ),
    "channel": (
        [{"updates": {"channel": "fedora:fedora/41/x86_64/silverblue"}}, {"updates": {}}],
        [({"updates": {"channel": text}}, "updates.channel") for text in ("--help", "a b", "a\n")],
    ),
    "app-id": (
        [apps("org.gnome.Calculator")],
        [(apps(text), "apps.required[0].id") for text in ("", "--system", "a\nb")],
    ),
    "app-source": (
        [{"apps": {"required": [{"id": "a.b.c", "source": "flathub"}, {"id": "a.b.d"}]}}],
        [
            ({"apps": {"required": [{"id": "a.b.c", "source": s}]}}, "apps.required[0].source")
            for s in ("--user", "a\tb")
        ],
    ),
    "app-twice": ([apps("a.b.c", "a.b.d")], [(apps("a.b.c", "a.b.c"), "apps.required[1].id")]),
    "ssid": (
        [wifi(ssid="\u00fc" * 16)],
        [
            (wifi(ssid=text), "network.wifi[0].ssid")
            for text in ("", "\u00fc" * 17, ".hidden", "a" * 33)
        ],
    ),
    "vpn-name": (
        [vpn(name="n" * 242)],
        [(vpn(name=text), "network.vpns[0].name") for text in ("", "n" * 243, ".x")],
    ),
    "names-meet": (
        [two("Class A", "Class B"), two("class_a", "Class A")],
        [
            (two("Class A", "Class_A"), "network.wifi[1].ssid"),
            (two("A", "A"), "network.wifi[1].ssid"),
            (two("a/b", "a\\b"), "network.wifi[1].ssid"),
            (
                {
                    "network": {
                        "wifi": [{"ssid": "a:b", "security": "none"}],
                        "vpns": [{"name": "a=b"}],
                    }
                },
                "network.vpns[0].name",
            ),
        ],
    ),
    "wifi-security": (
        [wifi(security=text) for text in ("wpa-psk", "sae", "SAE", "", None)],
        [(wifi(security=text), "network.wifi[0].security") for text in ("wpa2", "wpa3", "wep")],
    ),
    "wifi-passphrase": (
        [wifi(security="none", passphrase=""), wifi(security="wpa-eap", eap={"eap": "tls"})],
        [
            (wifi(security=text, passphrase=""), "network.wifi[0].passphrase")
            for text in ("wpa-psk", "sae", "", None)
        ],
    ),
    "wifi-eap": (
        [wifi(security="wpa-eap", eap={"eap": "peap"})],
        [(wifi(security="wpa-eap", eap=eap), "network.wifi[0].eap") for eap in (None, {})],
    ),
    "eap-keys-meet": (
        [wifi(eap={"identity": "a", "password": "b"})],
        [
            (wifi(eap={"identity": "a", "Identity": "b"}), "network.wifi[0].eap.Identity"),
            (wifi(eap={"a b": "", "A B": ""}), 'network.wifi[0].eap["A B"]'),
        ],
    ),
    "ssid-lines": ([wifi()], [(wifi(ssid="a\nb"), "network.wifi[0].ssid")]),
    "passphrase-lines": (
        [wifi(passphrase="a long \u2028 one")],
        [
            (wifi(passphrase=f"long{text}enough"), "network.wifi[0].passphrase")
            for text in ("\n[x]\n", "\r", "\t", "\x01", "\x7f", "\x85")
        ],
    ),
    "security-lines": ([wifi()], [(wifi(security="wpa-psk\n"), "network.wifi[0].security")]),
    "eap-key": (
        [wifi(eap={"phase2-auth": "mschapv2"})],
        [
            (wifi(eap={key: "x"}), f"network.wifi[0].eap[{json.dumps(key)}]")
            for key in ("", "a=b", "[x]", "#a", "a b")
        ],
    ),
    "eap-lines": (
        [wifi(eap={"password": "p"})],
        [(wifi(eap={"password": "p\npsk=x"}), "network.wifi[0].eap.password")],
    ),
    "vpn-name-lines": ([vpn()], [(vpn(name="a\rb"), "network.vpns[0].name")]),
    "vpn-type-lines": ([vpn()], [(vpn(service_type="a\nb"), "network.vpns[0].service_type")]),
    "vpn-key": (
        [vpn(data={"remote-cert-tls": "server"})],
        [(vpn(data={"a=b": "x"}), 'network.vpns[0].data["a=b"]')],
    ),
    "vpn-lines": ([vpn(data={"ca": "x"})], [(vpn(data={"ca": "a\nb"}), "network.vpns[0].data.ca")]),
    "vpn-type-twice": (
        [vpn(service_type="org.x", data={"remote": "x"})],
        [(vpn(data={"service-type": "x"}), 'network.vpns[0].data["service-type"]')],
    ),
    "vpn-secret-key": (
        [vpn(secrets={"password": "x"})],
        [(vpn(secrets={"": "x"}), 'network.vpns[0].secrets[""]')],
    ),
    "vpn-secret-lines": (
        [vpn(secrets={"key": "a\\nb"})],
        [(vpn(secrets={"key": "a\nb"}), "network.vpns[0].secrets.key")],
    ),
    "dns": (
        [{"network": {"vpn_dns": ["10.0.0.1", "fd00::1"]}}],
        [
            ({"network": {"vpn_dns": [text]}}, "network.vpn_dns[0]")
            for text in ("", "10.0.0.1;10.0.0.2", "10.0.0.1\n")
        ],
    ),
    "usbguard-lines": (
        [{"security": {"usbguard": True, "usbguard_rules": ["allow id 1d6b:*"]}}],
        [({"security": {"usbguard_rules": ["allow\nallow"]}}, "security.usbguard_rules[0]")],
    ),
    "app-no-flatpak": ([apps("org.gnome.Calculator")], [(apps("firefox"), "apps.required[0].id")]),
    "extension": (
        [{"browser": {"extensions": ["cjpalhdlnbpafiamejdnhcphjbkeiagm"]}}],
        [({"browser": {"extensions": [" "]}}, "browser.extensions[0]")],
    ),
    "bookmark": (
        [{"browser": {"managed_bookmarks": [{"name": "a", "url": "b"}]}}],
        [
            ({"browser": {"managed_bookmarks": [mark]}}, "browser.managed_bookmarks[0]")
            for mark in ({}, {"name": "a"}, {"url": "b"})
        ],
    ),
    "psk-size": (
        [wifi(passphrase=text) for text in ("8 bytes.", "x" * 63, "aF" * 32)]
        + [wifi(passphrase="short", security="sae")],
        [(wifi(passphrase=text), "network.wifi[0].passphrase") for text in ("hunter2", "x" * 64)],
    ),
    "passphrase-unused": (
        [wifi(security="none", passphrase="")],
        [(wifi(security="none"), "network.wifi[0].passphrase")],
    ),
    "hidden": ([wifi(hidden=False)], [(wifi(hidden=True), "network.wifi[0].hidden")]),
    "ssid-escape": ([wifi()], [(wifi(ssid="a\\b"), "network.wifi[0].ssid")]),
    "passphrase-escape": (
        [wifi(passphrase=text) for text in ("long\\\\enough", "\\sblank first")],
        [
            (wifi(passphrase=text), "network.wifi[0].passphrase")
            for text in (
                "long\\enough",
                "a\\tab or so",
                " blank first",
                "the end\\",
                "\\\\\\enough",
            )
        ],
    ),
    "eap-escape": (
        [wifi(eap={"password": "\\\\", "private-key": "a\\nb"})],
        [(wifi(eap={"password": "a\\b"}), "network.wifi[0].eap.password")],
    ),
    "vpn-escape": (
        [vpn(data={"ca": "/x"})],
        [(vpn(data={"ca": " /x"}), "network.vpns[0].data.ca")],
    ),
    "vpn-secret-escape": (
        [vpn(secrets={"key": "x"})],
        [(vpn(secrets={"key": "\\x"}), "network.vpns[0].secrets.key")],
    ),
    "dns-address": (
        [{"network": {"vpn_dns": ["10.0.0.1"]}}],
        [({"network": {"vpn_dns": ["dns.example"]}}, "network.vpn_dns[0]")],
    ),
    "usbguard-empty": (
        [{"security": {"usbguard": True, "usbguard_rules": ["allow"]}}, SAFE],
        [({"security": {"usbguard": True}}, "security.usbguard")],
    ),
    "selinux-unset": (
        [SAFE, {"security": {"selinux_enforce": False}}],
        [(bundle, "security.selinux_enforce") for bundle in ({}, {"security": {}})],
    ),
    "usbguard-unset": ([SAFE], [({"security": {"ssh_enabled": True}}, "security.usbguard")]),
}


def broken(bundle: Any) -> set[tuple[str, str]]:
    """The rules that a bundle breaks, and where."""
    return {
        (found.rule.name, found.path.removeprefix("bundle."))
        for found in check_policy(bundle).findings
    }


def test_every_rule_has_its_examples() -> None:
    """No row of the table is without a test, and no name stands for two rows."""
    names = [rule.name for rule in (*RULES, *UNSET)]
    assert sorted(names) == sorted(ROWS)


def test_the_page_for_administrators_knows_every_rule() -> None:
    """Names in warnings are looked up there."""
    page = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
    assert [rule.name for rule in (*RULES, *UNSET) if f"`{rule.name}`" not in page] == []


@pytest.mark.parametrize("name", ROWS)
def test_both_sides_of_a_rule(name: str) -> None:
    """What keeps it is not found; what breaks it is found in its place, and may be refused."""
    (rule,) = (rule for rule in (*RULES, *UNSET) if rule.name == name)
    sound, bad = ROWS[name]
    for bundle in sound:
        assert name not in {found for found, _ in broken(bundle)}, bundle
    for bundle, path in bad:
        assert (name, path) in broken(bundle), bundle
        if not rule.refuses:
            continue
        with pytest.raises(DomainError) as caught:
            compile_policy(bundle)
        assert f"bundle.{path}" in [violation.field for violation in caught.value.violations]


def test_advice_refuses_nothing() -> None:
    """A document that only has odd values is published."""
    for rule in (*RULES, *UNSET):
        if rule.effect is Effect.ADVICE:
            for bundle, _ in ROWS[rule.name][1]:
                others = {n for n, _ in broken(bundle)}
                if all(r.effect is Effect.ADVICE for r in (*RULES, *UNSET) if r.name in others):
                    compile_policy(bundle)


DAYS = ["Mon", "tuesday", "WED", "Thurs", "Sun", "*", "Mo", "", "-", "Sat-Mon", "Mon-Fri", "x-y"]
CLOCKS = [
    "00:00",
    "23:59",
    "24:00",
    "5:7",
    "+1:02",
    "-1:00",
    "1",
    "01:60",
    "a:b",
    "1:2:3",
    "",
    "٣:00",
]
windows = st.one_of(
    st.builds(
        lambda days, sep, start, dash, end: f"{sep.join(days)} {start}{dash}{end}",
        st.lists(st.sampled_from(DAYS), max_size=3),
        st.sampled_from([",", " ", ", ", "\u00a0", "\x1c", ";"]),
        st.sampled_from(CLOCKS),
        st.sampled_from(["-", " - ", "--", "\u2013"]),
        st.sampled_from(CLOCKS),
    ),
    st.text(alphabet="MonTueFriat*,- :0123459\x1f\u3000", max_size=24),
)


@given(windows)
def test_windows_are_read_as_the_agent_reads_them(text: str) -> None:
    """The same texts are taken, and they mean the same minutes of the week."""
    try:
        meant = maintenance_window(text) if text.strip() else None
    except (ApplyError, IndexError):
        meant = None
    assert is_window(text) == (meant is not None)
    if meant is not None:
        assert parse_window(text) == meant


NAMES = ["School", "Class A", "Class_A", "a/b", "", "x" * 40, ".dot", "a\nb", "\u00fc" * 16]
texts = st.one_of(st.sampled_from([*NAMES, "key", "password", "\\"]), st.text(AWKWARD, max_size=4))
maps = st.none() | st.dictionaries(texts, texts, max_size=3)
likely = objects(
    apps=objects(required=lists(objects(id=texts, source=texts))),
    updates=objects(channel=texts, maintenance_windows=lists(windows | st.just("Sat 02:00-04:00"))),
    network=objects(
        wifi=lists(
            objects(
                ssid=texts,
                passphrase=texts | st.just("long enough"),
                security=st.sampled_from(["", "none", "wpa-psk", "sae", "wpa-eap", "WPA2", "a\nb"]),
                hidden=st.booleans(),
                eap=maps,
            )
        ),
        vpns=lists(objects(name=texts, service_type=texts, data=maps, secrets=maps)),
        vpn_dns=lists(texts),
    ),
    security=objects(
        selinux_enforce=st.booleans(), usbguard=st.booleans(), usbguard_rules=lists(texts)
    ),
)


@given(likely | documents)
def test_what_passes_is_applied_as_it_was_meant(authored: dict[str, Any]) -> None:
    """A model of the agent takes it without an error, and its files say what was authored."""
    document = parse_document(authored)
    decoded = json.loads(encode_document(document))
    machine = Machine()
    try:
        machine.apply(decoded)
    except ApplyError:
        assert fails(document), authored
        return
    assert not any(found.rule.name == "window" for found in check(document))
    if any(found.rule.refuses for found in check(document)):
        return
    assert not machine.failures
    _networks_are_meant(machine, decoded["network"])
    rules = decoded["security"]["usbguard_rules"] or []
    if decoded["security"]["usbguard"]:
        assert machine.files[USBGUARD].splitlines()[1:] == [
            line for rule in rules for line in rule.splitlines() or [""]
        ]
    for command in machine.commands:
        assert not any(argument.startswith("-") and argument != "-y" for argument in command)


def _networks_are_meant(machine: Machine, network: dict[str, Any]) -> None:
    profiles = machine.profiles()
    networks, vpns = network["wifi"] or [], network["vpns"] or []
    assert len(profiles) == len(networks) + len(vpns)
    for entry in networks:
        found = profiles[profile_path(entry["ssid"])]
        assert found["wifi"]["ssid"] == entry["ssid"]
        assert found["wifi-security"]["key-mgmt"] in KEY_MANAGEMENT
        assert set(found) <= {"connection", "wifi", "wifi-security", "802-1x", "ipv4", "ipv6"}
        if found["wifi-security"]["key-mgmt"] in ("wpa-psk", "sae"):
            assert found["wifi-security"]["psk"] == entry["passphrase"] != ""
        wanted = {key.lower(): value for key, value in (entry["eap"] or {}).items()}
        assert found.get("802-1x", {}) == wanted
    for entry in vpns:
        found = profiles[profile_path(entry["name"])]
        wanted = {"service-type": entry["service_type"] or found["vpn"]["service-type"]}
        assert found["vpn"] == wanted | (entry["data"] or {})
        assert found.get("vpn-secrets", {}) == (entry["secrets"] or {})


def test_the_model_sees_what_the_rules_are_for() -> None:
    """Without the rules the model does fail: an injected section, and a profile that is gone."""
    evil = parse_document(wifi(passphrase="x\n[proxy]\nmethod=1"))
    machine = Machine()
    machine.apply(json.loads(encode_document(evil)))
    (profile,) = machine.profiles().values()
    assert profile["proxy"] == {"method": "1"}
    machine.apply(json.loads(encode_document(parse_document(two("Class A", "Class_A")))))
    assert len(machine.profiles()) == 1
    with pytest.raises(ValueError, match="no key and value"):
        read_key_file("[a]\n=b")


def test_a_document_that_is_sound_has_no_findings() -> None:
    """The empty document breaks nothing, and a switch that is set is not advised about."""
    assert check(Document()) == []
    sound = parse_document(SAFE)
    assert broken(SAFE) == set()
    assert not fails(replace(sound, security=sound.security))
