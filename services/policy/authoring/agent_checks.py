"""The tests behind the table of the released agent's rules."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from services.policy.authoring.document import Apps, Network, Wifi
from services.policy.authoring.violations import child

NO_PASSPHRASE: Final = ("wpa-eap", "none")
WIFI_SECURITY: Final = ("wpa-psk", "sae", *NO_PASSPHRASE)
# A profile's file ends in `.nmconnection`, and its name has `_` for these characters.
MAX_PROFILE_NAME: Final = 255 - len(".nmconnection")
_CLEANED: Final = str.maketrans(dict.fromkeys(" /\\:=", "_"))
_MAX_SSID: Final = 32
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_KEY: Final = re.compile(r"[A-Za-z0-9_.-]+")
_WORD: Final = "[A-Za-z_][A-Za-z0-9_]*"
_FLATPAK_ID: Final = re.compile(rf"{_WORD}(\.{_WORD})+\.[A-Za-z_][A-Za-z0-9_-]*")
_ESCAPE: Final = re.compile(r"\\[nrst\\]")
_LITERAL: Final = re.compile(r"\A\\s|\\\\")
_HEX_KEY: Final = re.compile(r"[0-9A-Fa-f]{64}")


def at(place: str, broken: Callable[[Any], bool]) -> Callable[[Any], Iterable[str]]:
    """A test that answers `place` within the value (empty: the value itself) if it is broken."""
    return lambda value: (place,) if broken(value) else ()


def has_controls(text: str) -> bool:
    """Whether there is a control character, of which a line break is one."""
    return _CONTROL.search(text) is not None


def entry_has_controls(entry: tuple[str, str]) -> bool:
    """The same of a map's entry."""
    return has_controls(entry[0]) or has_controls(entry[1])


def is_no_key(entry: tuple[str, str]) -> bool:
    """Whether the key of a map's entry is none that a key file can hold."""
    return _KEY.fullmatch(entry[0]) is None


def is_no_argument(text: str) -> bool:
    """Whether a command would take the text for an option, or for several lines."""
    return text.startswith("-") or has_controls(text)


def is_flatpak_id(text: str) -> bool:
    """Whether a text has the form of a Flatpak application's id."""
    return len(text) <= 255 and _FLATPAK_ID.fullmatch(text) is not None


def is_no_ssid(ssid: str) -> bool:
    """Whether NetworkManager would not load a network of this name."""
    return not ssid or ssid.startswith(".") or len(ssid.encode(errors="replace")) > _MAX_SSID


def is_no_profile_name(name: str) -> bool:
    """Whether there can be no file of this name, or NetworkManager would not load it."""
    too_long = len(name.encode(errors="replace")) > MAX_PROFILE_NAME
    return not name or name.startswith(".") or too_long


def is_no_dns_server(text: str) -> bool:
    """Whether a text is not one item of a list that `;` parts."""
    return not text or ";" in text or has_controls(text)


def is_no_address(text: str) -> bool:
    """Whether a text is no IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return True
    return False


def is_no_security(text: str) -> bool:
    """Whether NetworkManager knows no such `key-mgmt`; the agent takes an empty one as wpa-psk."""
    return text != "" and text.lower() not in WIFI_SECURITY


def lacks_passphrase(wifi: Wifi) -> bool:
    """Whether a network of a kind that has a passphrase has none."""
    return wifi.security.lower() not in NO_PASSPHRASE and not wifi.passphrase


def lacks_eap(wifi: Wifi) -> bool:
    """Whether a network with 802.1X has no settings for it."""
    return wifi.security.lower() == "wpa-eap" and not wifi.eap


def is_open_with_passphrase(wifi: Wifi) -> bool:
    """Whether there is a passphrase that nothing asks for."""
    return wifi.security.lower() == "none" and wifi.passphrase != ""


def is_no_psk(wifi: Wifi) -> bool:
    """Whether NetworkManager refuses the passphrase of a WPA2 network."""
    if wifi.security.lower() not in ("", "wpa-psk") or not wifi.passphrase:
        return False
    size = len(wifi.passphrase.encode(errors="replace"))
    return not 8 <= size <= 63 and _HEX_KEY.fullmatch(wifi.passphrase) is None


def is_read_otherwise(text: str) -> bool:
    """Whether a key file's reader makes another text of it, or none."""
    return text.startswith(" ") or "\\" in _LITERAL.sub("", text)


def is_not_read(text: str) -> bool:
    """Whether a key file's reader cuts it or cannot read it; escapes may be meant."""
    return text.startswith(" ") or "\\" in _ESCAPE.sub("", text)


def eap_keys_meet(wifi: Wifi) -> Iterator[str]:
    """Keys that differ in capital letters only: the agent writes them in small ones."""
    seen: set[str] = set()
    for key in wifi.eap or {}:
        if key.lower() in seen:
            yield child(".eap", key)
        seen.add(key.lower())


def files_meet(network: Network) -> Iterator[str]:
    """Networks and VPNs whose file has the name of an earlier one's."""
    names = [(f".wifi[{index}].ssid", wifi.ssid) for index, wifi in enumerate(network.wifi or ())]
    names += [(f".vpns[{index}].name", vpn.name) for index, vpn in enumerate(network.vpns or ())]
    seen: set[str] = set()
    for place, name in names:
        file = name.translate(_CLEANED)
        if name and file in seen:
            yield place
        seen.add(file)


def ids_meet(apps: Apps) -> Iterator[str]:
    """Applications that are in the list already."""
    seen: set[str] = set()
    for index, app in enumerate(apps.required or ()):
        if app.id and app.id in seen:
            yield f".required[{index}].id"
        seen.add(app.id)
