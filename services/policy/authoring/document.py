"""The device DOCUMENT: what a released agent understands of a policy, and how it is checked.

The dataclasses are the schema. Their fields stand in the order in which the agent encodes them, a
list or map that is ``None`` is one that was absent, and `parse_document` turns authored JSON into
them, collecting every violation with the path of its field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, partial
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints

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

# Certificates and VPN secrets are PEM blocks, far longer than any other text of a policy.
MAX_SECRET = 65_536
MAX_ENTRIES = 256
# A whole document, encoded. Every device of an org fetches it, and every process keeps it.
MAX_DOCUMENT = 512 * 1024


@dataclass(frozen=True, slots=True)
class App:
    """A Flatpak application that has to be installed."""

    id: str = ""
    branch: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Apps:
    """The applications of a device."""

    required: tuple[App, ...] | None = None


@dataclass(frozen=True, slots=True)
class Updates:
    """How the operating system keeps itself up to date."""

    channel: str = ""
    reboot_required: bool = False
    maintenance_windows: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Bookmark:
    """One bookmark that the browser shows and its user cannot remove."""

    name: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Browser:
    """The browser's settings."""

    homepage: str = ""
    extensions: tuple[str, ...] | None = None
    allow_dev_tools: bool = False
    managed_bookmarks: tuple[Bookmark, ...] | None = None


@dataclass(frozen=True, slots=True)
class Wifi:
    """One wireless network; `eap` holds 802.1X settings by their NetworkManager names."""

    ssid: str = ""
    passphrase: str = field(default="", repr=False, metadata={"secret": True})
    security: str = ""
    hidden: bool = False
    metered: bool = False
    eap: Mapping[str, str] | None = field(default=None, repr=False, metadata={"secret": True})


@dataclass(frozen=True, slots=True)
class Vpn:
    """One VPN connection; `data` and `secrets` go to the VPN plugin as they are."""

    name: str = ""
    service_type: str = ""
    data: Mapping[str, str] | None = field(default=None, repr=False, metadata={"secret": True})
    secrets: Mapping[str, str] | None = field(default=None, repr=False, metadata={"secret": True})
    auto_connect: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """Networks a device joins by itself."""

    wifi: tuple[Wifi, ...] | None = None
    vpns: tuple[Vpn, ...] | None = None
    vpn_dns: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Security:
    """Hardening of the device."""

    selinux_enforce: bool = False
    ssh_enabled: bool = False
    usbguard: bool = False
    usbguard_rules: tuple[str, ...] | None = None
    allow_root_login: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """The whole DOCUMENT, in the field order of the agent."""

    apps: Apps = Apps()
    updates: Updates = Updates()
    browser: Browser = Browser()
    network: Network = Network()
    security: Security = Security()


def parse_document(authored: object, path: str = "") -> Document:
    """Checks an authored DOCUMENT strictly and returns it.

    Numbers are never right in a DOCUMENT, so it does not matter whether they came as 5 or 5.0.
    `path` is put before the path of every violation. Raises `DomainError` with all
    violations, up to `MAX_VIOLATIONS`.
    """
    violations = Violations()
    document: Document = _struct(Document, authored, path, violations)
    violations.raise_if_any()
    return document


@cache
def secret_fields(name: str) -> frozenset[str]:
    """The secret fields of an entry of `network.wifi` or `network.vpns`."""
    schema: Any = {"wifi": Wifi, "vpns": Vpn}[name]
    return frozenset(entry.name for entry in fields(schema) if entry.metadata.get("secret"))


_Reader: TypeAlias = Callable[[object, str, Violations], Any]
"""Reads a value at a path, and notes what is wrong with it."""


@cache
def _readers(schema: Any) -> Mapping[str, _Reader]:
    """What reads the fields of a dataclass. Documents are read by the thousand."""
    return {name: _reader(_without_none(hint)) for name, hint in get_type_hints(schema).items()}


def _without_none(hint: Any) -> Any:
    arms = [arm for arm in get_args(hint) if arm is not type(None)]
    return arms[0] if type(None) in get_args(hint) else hint


def _reader(hint: Any) -> _Reader:
    if hint is str:
        return partial(check_text, limit=MAX_TEXT)
    if hint is bool:
        return _bool
    origin = get_origin(hint)
    if origin is tuple:
        inner = get_args(hint)[0]
        return partial(_list, _reader(inner), inner is str)
    if origin is Mapping:
        return _map
    return partial(_section, hint)


def _section(schema: Any, value: object, path: str, violations: Violations) -> Any:
    # The agent takes a null section as one that is left out.
    return schema() if value is None else _struct(schema, value, path, violations)


def _struct(schema: Any, value: object, path: str, violations: Violations) -> Any:
    if type(value) is not dict and not isinstance(value, Mapping):
        violations.add(path, f"must be an object, not {kind_of(value)}")
        return schema()
    readers = _readers(schema)
    known: dict[str, Any] = {}
    for key, entry in value.items():
        read = readers.get(key)
        if read is None:
            violations.add(child(path, key), "is not a field that devices know")
            continue
        known[key] = read(entry, f"{path}.{key}" if path else key, violations)
    return schema(**known)


def _bool(value: object, path: str, violations: Violations) -> object:
    if not isinstance(value, bool):
        violations.add(path, f"must be true or false, not {kind_of(value)}")
    return value


def _list(
    read: _Reader, of_texts: bool, value: object, path: str, violations: Violations
) -> tuple[Any, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        violations.add(path, f"must be a list, not {kind_of(value)}")
        return None
    if len(value) > MAX_ITEMS:
        violations.add(path, f"must have at most {MAX_ITEMS} items, not {len(value)}")
        return None
    out = []
    for index, entry in enumerate(value):
        where = item(path, index)
        if entry is None and not of_texts:
            violations.add(where, "must be an object, not null")
            continue
        out.append(read(entry, where, violations))
    return tuple(out)


def _map(value: object, path: str, violations: Violations) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        violations.add(path, f"must be an object of strings, not {kind_of(value)}")
        return None
    if len(value) > MAX_ENTRIES:
        violations.add(path, f"must have at most {MAX_ENTRIES} entries, not {len(value)}")
        return None
    out = {}
    for key, entry in value.items():
        where = child(path, key)
        check_text(key, where, violations, MAX_KEY, what="key")
        out[key] = check_text(entry, where, violations, MAX_SECRET)
    return out
