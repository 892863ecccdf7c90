"""The web console's form of a policy: its `configuration`, checked and compiled to a DOCUMENT.

The console keeps more than a device understands. What has no counterpart in the DOCUMENT
(`allowPopups`, `diskEncryption`, `lockAfterMinutes`) is checked and kept as authored, and compiles
to nothing. So does an app whose target is a group, until device groups exist: to install it on
every device would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from services.policy.document import App, Apps, Browser, Document, Network, Updates, Wifi
from services.policy.document import parse_document as _parse_document
from services.policy.violations import (
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
TARGETS = ("all", "group")
CHANNELS = ("stable", "beta", "dev")
WIFI_SECURITY = ("wpa2", "wpa3")
MAX_LOCK_MINUTES = 525_600

Check = Callable[[object, str, Violations], None]


def is_console_form(bundle: object) -> bool:
    """Whether a bundle is the console's form: an object that has a `configuration`."""
    return isinstance(bundle, Mapping) and "configuration" in bundle


def compile_bundle(bundle: object, path: str = "") -> Document:
    """Checks an authored bundle of either form and returns the DOCUMENT that devices get.

    Raises `DomainError`; `path` is put before the path of every violation.
    """
    if is_console_form(bundle):
        return compile_configuration(bundle, path)
    return _parse_document(bundle, path)


def compile_configuration(bundle: object, path: str = "") -> Document:
    """Checks the console's `{id, name, version, orgId, configuration}` and compiles it."""
    violations = Violations()
    _BUNDLE(bundle, path, violations)
    violations.raise_if_any()
    assert isinstance(bundle, Mapping)
    return _compile(bundle["configuration"])


def _compile(configuration: Mapping[str, Any]) -> Document:
    def section(name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = configuration.get(name) or {}
        return found

    apps = configuration.get("apps")
    networks = section("network").get("wifiNetworks")
    return Document(
        apps=Apps(
            required=None
            if apps is None
            else tuple(
                App(id=app["id"], branch=APP_BRANCH, source=APP_SOURCE)
                for app in apps
                if app.get("target", "all") == "all"
            )
        ),
        updates=Updates(channel=configuration.get("updateChannel", "")),
        browser=Browser(homepage=section("browser").get("homepageUrl", "")),
        network=Network(
            wifi=None
            if networks is None
            else tuple(Wifi(ssid=n["ssid"], security=n.get("security", "")) for n in networks)
        ),
    )


def _text(limit: int = MAX_TEXT, *, required: bool = False) -> Check:
    def check(value: object, path: str, violations: Violations) -> None:
        if check_text(value, path, violations, limit) == "" and required and value == "":
            violations.add(path, "must not be empty")

    return check


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
                    "id": _text(required=True),
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
                    _object({"ssid": _text(), "security": _one_of(*WIFI_SECURITY)}, "ssid")
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
        "configuration": _CONFIGURATION,
    }
)
