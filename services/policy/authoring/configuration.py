"""The web console's form of a policy: its `configuration`, checked and compiled to a DOCUMENT.

The console keeps more than a device understands. What has no counterpart in the DOCUMENT
(`allowPopups`, `diskEncryption`, `lockAfterMinutes`) is checked and kept as authored, and compiles
to nothing. So does an app whose target is a group, until device groups exist: to install it on
every device would be wrong. What the editor puts around the form (`id`, `version`, `signature`, …)
is kept too and means nothing: `Policy.signed` says what is signed.

The form has no switch for most of what a DOCUMENT says, and devices take what is absent as false.
So that nobody weakens devices by using it, the rest comes from a baseline: SELinux on, SSH and the
login of root off, no developer tools, no forced reboots. USBGuard is left as the organisation's
policy in force has it, for devices know only on (with the rules given) and off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from services.policy.authoring.agent_checks import is_flatpak_id
from services.policy.authoring.agent_rules import Effect, Finding, Rule
from services.policy.authoring.document import (
    App,
    Apps,
    Browser,
    Document,
    Network,
    Security,
    Updates,
    Wifi,
    parse_document,
)
from services.policy.authoring.violations import (
    MAX_ITEMS,
    MAX_KEY,
    MAX_TEXT,
    Violations,
    check_text,
    child,
    item,
    kind_of,
)

APP_BRANCH = "stable"
APP_SOURCE = "flathub"
CATALOGUE: Final[Mapping[str, str]] = {
    "chrome": "com.google.Chrome",
    "slack": "com.slack.Slack",
    "vscode": "com.visualstudio.code",
    "zoom": "us.zoom.Zoom",
}
"""The console's own ids of applications, and what they are called in Flathub."""
TARGETS = ("all", "group")
CHANNELS = ("stable", "beta", "dev")
WIFI_SECURITY: Final[Mapping[str, str]] = {"wpa2": "wpa-psk", "wpa3": "sae"}
"""The console's words, and NetworkManager's."""
BASELINE: Final = Security(
    selinux_enforce=True, ssh_enabled=False, usbguard=False, allow_root_login=False
)
MAX_LOCK_MINUTES = 525_600

Check = Callable[[object, str, Violations], None]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What devices get of a bundle.

    `places` maps paths of the document to those of the form that was authored, `notes` tell what of
    it has no effect, and `unset` names the switches that the author of a document left out.
    """

    document: Document
    places: Mapping[str, str]
    notes: tuple[Finding, ...] = ()
    unset: tuple[str, ...] = ()


def is_console_form(bundle: object) -> bool:
    """Whether a bundle is the console's form: an object that has a `configuration`."""
    return isinstance(bundle, Mapping) and "configuration" in bundle


def compile_bundle(bundle: object, path: str = "", standing: Security | None = None) -> Compiled:
    """Checks the shape of an authored bundle of either form and compiles it to the DOCUMENT.

    `path` is put before the path of every violation. `standing` is what the organisation's policy
    in force says of security. Raises `DomainError`.
    """
    if is_console_form(bundle):
        return _compile_form(bundle, path, standing)
    document = parse_document(bundle, path)
    assert isinstance(bundle, Mapping)
    switches = bundle.get("security") or {}
    unset = (f"security.{rule}" for rule in ("selinux_enforce", "usbguard") if rule not in switches)
    return Compiled(document, {}, unset=tuple(unset))


def _compile_form(bundle: object, path: str, standing: Security | None) -> Compiled:
    violations = Violations()
    _BUNDLE(bundle, path, violations)
    violations.raise_if_any()
    assert isinstance(bundle, Mapping)
    configuration = bundle["configuration"]
    document, places = _compile(configuration)
    if standing is not None:
        security = replace(
            BASELINE, usbguard=standing.usbguard, usbguard_rules=standing.usbguard_rules
        )
        document = replace(document, security=security)
    return Compiled(document, places, tuple(_without_effect(configuration)))


def keeps_baseline(security: Security) -> bool:
    """Whether a document's switches are not weaker than the form's baseline."""
    return security.selinux_enforce and not security.ssh_enabled and not security.allow_root_login


def _compile(configuration: Mapping[str, Any]) -> tuple[Document, dict[str, str]]:
    def section(name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = configuration.get(name) or {}
        return found

    places = {
        "apps.required": "configuration.apps",
        "updates.channel": "configuration.updateChannel",
        "browser.homepage": "configuration.browser.homepageUrl",
        "network.wifi": "configuration.network.wifiNetworks",
    }
    apps = configuration.get("apps")
    required: dict[str, App] = {}
    for index, app in enumerate(apps or ()):
        flatpak = CATALOGUE.get(app["id"], app["id"])
        if app.get("target", "all") == "all" and flatpak not in required:
            places[f"apps.required[{len(required)}]"] = f"configuration.apps[{index}]"
            required[flatpak] = App(id=flatpak, branch=APP_BRANCH, source=APP_SOURCE)
    networks = section("network").get("wifiNetworks")
    document = Document(
        apps=Apps(required=None if apps is None else tuple(required.values())),
        updates=Updates(channel=configuration.get("updateChannel", "")),
        browser=Browser(homepage=section("browser").get("homepageUrl", "")),
        network=Network(
            wifi=None if networks is None else tuple(_network(entry) for entry in networks)
        ),
        security=BASELINE,
    )
    return document, places


def _network(entry: Mapping[str, Any]) -> Wifi:
    return Wifi(
        ssid=entry["ssid"],
        passphrase=entry.get("passphrase", ""),
        security=WIFI_SECURITY[entry.get("security", "wpa2")],
    )


def _without_effect(configuration: Mapping[str, Any]) -> Iterator[Finding]:
    for section, name in (
        ("browser", "allowPopups"),
        ("security", "diskEncryption"),
        ("security", "lockAfterMinutes"),
    ):
        if (configuration.get(section) or {}).get(name):
            yield Finding(_NO_SETTING, f"configuration.{section}.{name}")
    for index, app in enumerate(configuration.get("apps") or ()):
        if app.get("target", "all") != "all":
            yield Finding(_NO_GROUPS, f"configuration.apps[{index}].target")


def _never(_: Any) -> Iterable[str]:
    return ()


_NO_SETTING: Final = Rule(
    "no-setting",
    "configuration",
    Effect.ADVICE,
    "is kept and has no effect: devices have no such setting",
    _never,
)
_NO_GROUPS: Final = Rule(
    "no-groups",
    "configuration.apps[].target",
    Effect.ADVICE,
    "no device gets the application: there are no groups of devices yet",
    _never,
)


def _text(limit: int = MAX_TEXT) -> Check:
    def check(value: object, path: str, violations: Violations) -> None:
        check_text(value, path, violations, limit)

    return check


def _app_id(value: object, path: str, violations: Violations) -> None:
    text = check_text(value, path, violations, MAX_TEXT)
    if isinstance(value, str) and text not in CATALOGUE and not is_flatpak_id(text):
        known = ", ".join(f'"{word}"' for word in CATALOGUE)
        violations.add(path, f'must be {known}, or a Flatpak id such as "org.mozilla.firefox"')


def _one_of(*allowed: str) -> Check:
    def check(value: object, path: str, violations: Violations) -> None:
        if value not in allowed:
            violations.add(path, "must be one of " + ", ".join(f'"{word}"' for word in allowed))

    return check


def _boolean(value: object, path: str, violations: Violations) -> None:
    if not isinstance(value, bool):
        violations.add(path, f"must be true or false, not {kind_of(value)}")


def _minutes(value: object, path: str, violations: Violations) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        violations.add(path, f"must be a number, not {kind_of(value)}")
    elif not math.isfinite(value) or not 0 <= value <= MAX_LOCK_MINUTES:
        violations.add(path, f"must be between 0 and {MAX_LOCK_MINUTES}")


def _list_of(check_item: Check) -> Check:
    def check(value: object, path: str, violations: Violations) -> None:
        if value is None:
            return
        if not isinstance(value, list | tuple):
            violations.add(path, f"must be a list, not {kind_of(value)}")
        elif len(value) > MAX_ITEMS:
            violations.add(path, f"must have at most {MAX_ITEMS} items, not {len(value)}")
        else:
            for index, entry in enumerate(value):
                check_item(entry, item(path, index), violations)

    return check


def _object(members: Mapping[str, Check], *required: str, nullable: bool = False) -> Check:
    def check(value: object, path: str, violations: Violations) -> None:
        if value is None and nullable:
            return
        if not isinstance(value, Mapping):
            violations.add(path, f"must be an object, not {kind_of(value)}")
            return
        for name in required:
            if name not in value:
                violations.add(child(path, name), "is missing")
        for key, entry in value.items():
            where = child(path, key)
            if key in members:
                members[key](entry, where, violations)
            else:
                violations.add(where, "is not a field of the console's policy form")

    return check


def _nullable(inner: Check) -> Check:
    def check(value: object, path: str, violations: Violations) -> None:
        if value is not None:
            inner(value, path, violations)

    return check


_CONFIGURATION = _object(
    {
        "apps": _list_of(
            _object(
                {
                    "id": _app_id,
                    "target": _one_of(*TARGETS),
                    "groupIds": _list_of(_text(MAX_KEY)),
                },
                "id",
            )
        ),
        "updateChannel": _one_of(*CHANNELS),
        "browser": _object({"homepageUrl": _text(), "allowPopups": _boolean}, nullable=True),
        "network": _object(
            {
                "wifiNetworks": _list_of(
                    _object(
                        {
                            "ssid": _text(),
                            "security": _one_of(*WIFI_SECURITY),
                            "passphrase": _text(),
                        },
                        "ssid",
                    )
                )
            },
            nullable=True,
        ),
        "security": _object(
            {"diskEncryption": _boolean, "lockAfterMinutes": _minutes}, nullable=True
        ),
    }
)

_LABEL = _nullable(_text())

_BUNDLE = _object(
    {
        "id": _LABEL,
        "name": _LABEL,
        "version": _LABEL,
        "orgId": _LABEL,
        "signature": _object({"status": _LABEL, "signer": _LABEL}, nullable=True),
        "configuration": _CONFIGURATION,
    }
)
