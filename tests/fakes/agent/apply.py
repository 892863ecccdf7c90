"""What the released agent does with a policy: which files it writes, and where it ends.

Written anew from the facts of its behaviour, apart from the service's own rules: the order of the
managers, the grammar of maintenance windows, the key files of networks, SSH and USBGuard. `apply`
works on a DOCUMENT and on the files and applications of an imagined device; `read_key_file` reads a
file as NetworkManager does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CONNECTIONS = "/etc/NetworkManager/system-connections/"
USBGUARD = "/etc/usbguard/rules.conf"
KEY_MANAGEMENT = {"none", "wpa-psk", "sae", "wpa-eap"}
WEEK = 7 * 24 * 60
_WEEKDAYS = {
    "sun": 0, "sunday": 0, "mon": 1, "monday": 1, "tue": 2, "tues": 2, "tuesday": 2, "wed": 3,
    "weds": 3, "wednesday": 3, "thu": 4, "thur": 4, "thurs": 4, "thursday": 4, "fri": 5,
    "friday": 5, "sat": 6, "saturday": 6,
}  # fmt: skip
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


class ApplyError(Exception):
    """Applying ended here; what comes after it is not done, and the version is not taken."""


@dataclass
class Machine:
    """A device's files, applications and switches, before and after."""

    files: dict[str, str] = field(default_factory=dict)
    apps: set[str] = field(default_factory=set)
    selinux: bool = True
    services: dict[str, bool] = field(default_factory=lambda: {"sshd": False, "usbguard": False})
    root_login: bool = False
    commands: list[list[str]] = field(default_factory=list)
    windows: list[tuple[int, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What the agent reports as an event and goes on."""

    def apply(self, document: dict[str, Any]) -> None:
        """Applies a DOCUMENT in the agent's order. Raises `ApplyError`."""
        self._apply_apps(document["apps"])
        self._apply_updates(document["updates"])
        self._apply_network(document["network"])
        self._apply_security(document["security"])

    def profiles(self) -> dict[str, dict[str, dict[str, str]]]:
        """The networks and VPNs that NetworkManager loads: file to sections."""
        return {
            path: read_key_file(text)
            for path, text in self.files.items()
            if path.startswith(CONNECTIONS) and not path.removeprefix(CONNECTIONS).startswith(".")
        }

    def _apply_apps(self, apps: dict[str, Any]) -> None:
        wanted = {app["id"]: app for app in apps["required"] or ()}
        for name, app in wanted.items():
            if name in self.apps:
                continue
            if name == "":
                self.failures.append("app id missing")
                continue
            self.commands.append(
                ["flatpak", "install", "-y", *([app["source"]] if app["source"] else []), name]
            )
            self.apps.add(name)
        self.apps &= wanted.keys()

    def _apply_updates(self, updates: dict[str, Any]) -> None:
        windows: list[tuple[int, int]] = []
        for entry in updates["maintenance_windows"] or ():
            if entry.strip(_SPACES):
                windows += maintenance_window(entry.strip(_SPACES))
        self.windows = windows
        if updates["channel"]:
            if updates["channel"].startswith("-"):
                raise ApplyError("rpm-ostree: unknown option")
            self.commands.append(["rpm-ostree", "rebase", updates["channel"]])

    def _apply_network(self, network: dict[str, Any]) -> None:
        seen: set[str] = set()
        for wifi in network["wifi"] or ():
            self._write(profile_path(wifi["ssid"]), wifi_file(wifi), seen)
        for vpn in network["vpns"] or ():
            self._write(profile_path(vpn["name"]), vpn_file(vpn, network["vpn_dns"] or []), seen)
        for path in [p for p in self.files if p.startswith(CONNECTIONS) and p not in seen]:
            del self.files[path]

    def _write(self, path: str, text: str, seen: set[str]) -> None:
        if len(path.removeprefix(CONNECTIONS).encode()) > 255:
            self.failures.append("file name too long")
            return
        self.files[path] = text
        seen.add(path)

    def _apply_security(self, security: dict[str, Any]) -> None:
        self.selinux = security["selinux_enforce"]
        self.root_login = security["allow_root_login"]
        self.services["sshd"] = security["ssh_enabled"]
        self.services["usbguard"] = security["usbguard"]
        self.files.pop(USBGUARD, None)
        if security["usbguard"]:
            rules = security["usbguard_rules"] or []
            self.files[USBGUARD] = "# Managed\n" + "".join(rule + "\n" for rule in rules)


def maintenance_window(entry: str) -> list[tuple[int, int]]:
    """The agent's reading of one window: minutes of the week. Raises `ApplyError`."""
    parts = _fields(entry)
    start, end = _time_range(parts[-1])
    segments: list[tuple[int, int]] = []
    for day in _days(" ".join(parts[:-1])) or range(7):
        base = day * 1440
        if start == end:
            segments.append((base, base + 1440))
        elif end > start:
            segments.append((base + start, base + end))
        else:
            segments.append((base + start, base + 1440))
            segments.append(((base + 1440) % WEEK, (base + 1440) % WEEK + end))
    return segments


def _fields(text: str) -> list[str]:
    words, word = [], ""
    for character in text + " ":
        if character not in _SPACES:
            word += character
        elif word:
            words.append(word)
            word = ""
    return words


def _time_range(text: str) -> tuple[int, int]:
    pieces = text.split("-")
    if len(pieces) != 2:
        raise ApplyError(f"invalid time range {text!r}")
    return _clock(pieces[0]), _clock(pieces[1])


def _clock(text: str) -> int:
    pieces = text.split(":")
    if len(pieces) != 2:
        raise ApplyError(f"invalid time value {text!r}")
    return _atoi(pieces[0], 23) * 60 + _atoi(pieces[1], 59)


def _atoi(text: str, largest: int) -> int:
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not digits or any(digit not in "0123456789" for digit in digits):
        raise ApplyError(f"invalid number {text!r}")
    number = -int(digits) if text[0] == "-" else int(digits)
    if not 0 <= number <= largest:
        raise ApplyError(f"invalid number {text!r}")
    return number


def _days(text: str) -> list[int]:
    if text.strip(_SPACES) in ("", "*"):
        return []
    days: list[int] = []
    for token in text.replace(" ", ",").split(","):
        if not token:
            continue
        bounds = token.split("-", 1)
        first, last = _weekday(bounds[0]), _weekday(bounds[-1])
        for step in range(7):
            day = (first + step) % 7
            if day not in days:
                days.append(day)
            if day == last:
                break
    return days


def _weekday(text: str) -> int:
    if text.lower() not in _WEEKDAYS:
        raise ApplyError(f"invalid weekday {text!r}")
    return _WEEKDAYS[text.lower()]


def profile_path(name: str) -> str:
    """The file of a network or VPN."""
    for character in " /\\:=":
        name = name.replace(character, "_")
    return f"{CONNECTIONS}{name}.nmconnection"


def wifi_file(wifi: dict[str, Any]) -> str:
    """A network's key file, its values written as they are."""
    security = wifi["security"].lower() or "wpa-psk"
    eap = dict(wifi["eap"] or {})
    lines = ["[connection]", f"id={wifi['ssid']}", "type=wifi", "interface-name=", "permissions="]
    lines += ["metered=2"] * wifi["metered"] + ["autoconnect=false"] * wifi["hidden"]
    hidden = "true" if wifi["hidden"] else "false"
    lines += ["", "[wifi]", f"ssid={wifi['ssid']}", "mode=infrastructure", f"hidden={hidden}", ""]
    lines += ["[wifi-security]", f"key-mgmt={security}"]
    if "eap" in security:
        lines += ["auth-alg=open"]
        lines += [
            f"{key.lower()}={value}"
            for key, value in eap.items()
            if not key.lower().startswith("password")
        ]
    elif wifi["passphrase"]:
        lines += [f"psk={wifi['passphrase']}"]
    if eap:
        lines += ["", "[802-1x]", *(f"{key.lower()}={value}" for key, value in eap.items())]
    return "\n".join([*lines, "", "[ipv4]", "method=auto", "", "[ipv6]", "method=auto", ""])


def vpn_file(vpn: dict[str, Any], dns: list[str]) -> str:
    """A VPN's key file."""
    service = vpn["service_type"] or "org.freedesktop.NetworkManager.openvpn"
    lines = ["[connection]", f"id={vpn['name']}", "type=vpn", "interface-name=", "permissions="]
    lines += ["autoconnect=true"] * vpn["auto_connect"]
    lines += ["", "[vpn]", f"service-type={service}"]
    lines += [f"{key}={value}" for key, value in sorted((vpn["data"] or {}).items())]
    if vpn["secrets"]:
        lines += ["", "[vpn-secrets]"]
        lines += [f"{key}={value}" for key, value in sorted(vpn["secrets"].items())]
    servers = [f"dns={';'.join(dns)}", "ignore-auto-dns=true"] if dns else []
    return "\n".join(
        [*lines, "", "[ipv4]", "method=auto", *servers, "", "[ipv6]", "method=auto", *servers, ""]
    )


def read_key_file(text: str) -> dict[str, dict[str, str]]:
    """Sections and raw values, as GLib's key file reader has them. Raises `ValueError`."""
    found: dict[str, dict[str, str]] = {}
    section: dict[str, str] | None = None
    for whole in text.split("\n"):
        line = whole.rstrip("\r").lstrip(" \t\f\v\r")
        if line == "" or line.startswith("#"):
            continue
        if line.startswith("["):
            if not line.rstrip(" \t").endswith("]") or len(line) < 3:
                raise ValueError(f"no section: {line!r}")
            section = found.setdefault(line.rstrip(" \t")[1:-1], {})
            continue
        key, equals, value = line.partition("=")
        if section is None or not equals or not key:
            raise ValueError(f"no key and value: {line!r}")
        key = key.rstrip(" \t")
        if key in section:
            raise ValueError(f"the key {key!r} is there twice")
        section[key] = value
    return found
