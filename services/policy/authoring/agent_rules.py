"""The rules of the released agent: what a DOCUMENT must keep to, so that devices can apply it.

The agent checks little itself. It writes values as they are into key files of NetworkManager and
into USBGuard's rules, hands ids to `flatpak` and `rpm-ostree`, ends at the first error, and exits
for good when the first policy of a device fails. `RULES` is the one table of what follows from
that: where, what is asked for, and what happens otherwise. Authoring, publishing and enrollment
use it.

A rule whose effect is `FAILS` or `BREAKS` refuses a policy. `ADVICE` is shown and refuses nothing:
it is about what NetworkManager, Flatpak and USBGuard make of a value, or about a switch that
nobody set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import islice
from typing import Any, Final, TypeAlias

from services.policy.authoring import agent_checks as checks
from services.policy.authoring.agent_checks import at
from services.policy.authoring.document import Document
from services.policy.authoring.violations import child, item
from services.policy.authoring.windows import is_blank, is_window

MAX_FINDINGS: Final = 100
_Trail: TypeAlias = tuple[str | int, ...]
"""The names and numbers on the way to a value."""


class Effect(Enum):
    """What becomes of a policy that breaks a rule."""

    FAILS = "fails"
    """Applying ends with an error; as a device's first policy it ends the agent at every start."""
    BREAKS = "breaks"
    """The agent reports success, and the device is worse off."""
    ADVICE = "advice"
    """It works, and is probably not what was meant."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: `broken` answers the places within the value at `path` that break it.

    In `path` a `[]` stands for every item of a list and `{}` for every entry of a map, whose value
    is the pair of key and text. With `draft` a draft of the console's form may break the rule.
    """

    name: str
    path: str
    effect: Effect
    text: str
    broken: Callable[[Any], Iterable[str]]
    draft: bool = False

    @property
    def refuses(self) -> bool:
        """Whether a policy that breaks it is not published."""
        return self.effect is not Effect.ADVICE


@dataclass(frozen=True, slots=True)
class Finding:
    """A place where a document breaks a rule."""

    rule: Rule
    path: str


def check(document: Document, unset: Iterable[str] = ()) -> list[Finding]:
    """What breaks a rule, refusing rules first, at most `MAX_FINDINGS`.

    `unset` are the paths of switches that were not authored, where that is known.
    """
    return list(islice(_findings(document, frozenset(unset)), MAX_FINDINGS))


def refused(document: Document) -> list[Finding]:
    """What breaks a rule so that the document is not published, at most `MAX_FINDINGS`."""
    return list(islice(_broken(document, _REFUSING), MAX_FINDINGS))


def fails(document: Document) -> bool:
    """Whether the agent ends with an error when it applies the document."""
    return next(_broken(document, _FAILING), None) is not None


def _findings(document: Document, unset: frozenset[str]) -> Iterator[Finding]:
    yield from _broken(document, RULES)
    for rule in UNSET:
        if rule.path in unset:
            yield Finding(rule, rule.path)


def _broken(document: Document, rules: Iterable[Rule]) -> Iterator[Finding]:
    known: dict[str, list[tuple[_Trail, Any]]] = {}
    for rule in rules:
        if rule.path not in known:
            known[rule.path] = _select(document, rule.path)
        for trail, value in known[rule.path]:
            for place in rule.broken(value):
                yield Finding(rule, _path(trail) + place)


@cache
def _steps(path: str) -> tuple[tuple[str, str], ...]:
    """The names in a rule's path, each with what follows: `[]`, `{}` or nothing."""
    parts = (re.fullmatch(r"(\w+)(\[\]|\{\}|)", step) for step in path.split("."))
    return tuple((one[1], one[2]) for one in parts if one)


def _select(document: Document, path: str) -> list[tuple[_Trail, Any]]:
    """The values at a rule's path, each with its trail: of a document that is right nobody needs
    that as a text."""
    found: list[tuple[_Trail, Any]] = [((), document)]
    for name, kind in _steps(path):
        inner = [((*trail, name), getattr(value, name)) for trail, value in found]
        if kind == "[]":
            found = [
                ((*trail, index), entry)
                for trail, entries in inner
                for index, entry in enumerate(entries or ())
            ]
        elif kind == "{}":
            found = [
                ((*trail, entry[0]), entry)
                for trail, entries in inner
                for entry in (entries or {}).items()
            ]
        else:
            found = inner
    return found


def _path(trail: _Trail) -> str:
    path = ""
    for step in trail:
        path = item(path, step) if isinstance(step, int) else child(path, step)
    return path


_LINES: Final = (
    "must not contain line breaks or other control characters: devices write it into a "
    "configuration file as it is"
)
_KEYS: Final = "the key must be letters, digits, `-`, `_` and `.`: devices write it into a key file"
_KEY_FILE: Final = (
    "starts with a blank or has a backslash that NetworkManager reads as the start of an escape: "
    "write `\\s` for a first blank and `\\\\` for a backslash"
)

RULES: Final = (
    Rule(
        "window",
        "updates.maintenance_windows[]",
        Effect.FAILS,
        'must be a maintenance window such as "Mon-Fri 22:00-05:00", "Sat,Sun 01:00-02:00" or '
        '"* 01:00-03:00"',
        at("", lambda text: not is_blank(text) and not is_window(text)),
    ),
    Rule(
        "window-blank",
        "updates.maintenance_windows[]",
        Effect.BREAKS,
        "is blank: devices skip it, and with no other window they restart at any time; remove it",
        at("", is_blank),
    ),
    Rule(
        "channel",
        "updates.channel",
        Effect.FAILS,
        "must not start with `-` nor contain blanks or control characters: devices hand it to "
        "rpm-ostree",
        at("", lambda text: checks.is_no_argument(text) or " " in text),
    ),
    Rule(
        "app-id",
        "apps.required[].id",
        Effect.BREAKS,
        'must be the id of an application, such as "org.mozilla.firefox": not empty, not starting '
        "with `-`, without control characters",
        at("", lambda text: not text or checks.is_no_argument(text)),
    ),
    Rule(
        "app-source",
        "apps.required[].source",
        Effect.BREAKS,
        "must be the name of a Flatpak remote: not starting with `-`, without control characters",
        at("", checks.is_no_argument),
    ),
    Rule(
        "app-twice",
        "apps",
        Effect.BREAKS,
        "is in the list already: devices keep the last entry only; remove one",
        checks.ids_meet,
    ),
    Rule(
        "ssid",
        "network.wifi[].ssid",
        Effect.BREAKS,
        "must be 1 to 32 bytes and not start with a dot, or devices do not load the network",
        at("", checks.is_no_ssid),
    ),
    Rule(
        "vpn-name",
        "network.vpns[].name",
        Effect.BREAKS,
        f"must be 1 to {checks.MAX_PROFILE_NAME} bytes and not start with a dot, or devices do not "
        "load the VPN",
        at("", checks.is_no_profile_name),
    ),
    Rule(
        "names-meet",
        "network",
        Effect.BREAKS,
        "gets the same file on the device as an earlier network or VPN, and would overwrite it "
        "(blanks and `/ \\ : =` count as `_`): give it another name",
        checks.files_meet,
    ),
    Rule(
        "wifi-security",
        "network.wifi[].security",
        Effect.BREAKS,
        'must be "wpa-psk" (WPA2), "sae" (WPA3), "wpa-eap" or "none": devices know no other',
        at("", checks.is_no_security),
    ),
    Rule(
        "wifi-passphrase",
        "network.wifi[]",
        Effect.BREAKS,
        "is missing, and devices cannot join the network without it: give it here once (the web "
        "console has no field for it, the API has), or choose a security that has none",
        at(".passphrase", checks.lacks_passphrase),
        draft=True,
    ),
    Rule(
        "wifi-eap",
        "network.wifi[]",
        Effect.BREAKS,
        'must have the settings of 802.1X when the security is "wpa-eap"',
        at(".eap", checks.lacks_eap),
    ),
    Rule(
        "eap-keys-meet",
        "network.wifi[]",
        Effect.BREAKS,
        "the key differs from another one in capital letters only: devices write both as one",
        checks.eap_keys_meet,
    ),
    Rule("ssid-lines", "network.wifi[].ssid", Effect.BREAKS, _LINES, at("", checks.has_controls)),
    Rule(
        "passphrase-lines",
        "network.wifi[].passphrase",
        Effect.BREAKS,
        _LINES,
        at("", checks.has_controls),
    ),
    Rule(
        "security-lines",
        "network.wifi[].security",
        Effect.BREAKS,
        _LINES,
        at("", checks.has_controls),
    ),
    Rule("eap-key", "network.wifi[].eap{}", Effect.BREAKS, _KEYS, at("", checks.is_no_key)),
    Rule(
        "eap-lines",
        "network.wifi[].eap{}",
        Effect.BREAKS,
        _LINES,
        at("", checks.entry_has_controls),
    ),
    Rule(
        "vpn-name-lines", "network.vpns[].name", Effect.BREAKS, _LINES, at("", checks.has_controls)
    ),
    Rule(
        "vpn-type-lines",
        "network.vpns[].service_type",
        Effect.BREAKS,
        _LINES,
        at("", checks.has_controls),
    ),
    Rule("vpn-key", "network.vpns[].data{}", Effect.BREAKS, _KEYS, at("", checks.is_no_key)),
    Rule(
        "vpn-lines",
        "network.vpns[].data{}",
        Effect.BREAKS,
        _LINES,
        at("", checks.entry_has_controls),
    ),
    Rule(
        "vpn-type-twice",
        "network.vpns[].data{}",
        Effect.BREAKS,
        "must not be among the data: devices would take it in place of `service_type`",
        at("", lambda entry: entry[0] == "service-type"),
    ),
    Rule(
        "vpn-secret-key", "network.vpns[].secrets{}", Effect.BREAKS, _KEYS, at("", checks.is_no_key)
    ),
    Rule(
        "vpn-secret-lines",
        "network.vpns[].secrets{}",
        Effect.BREAKS,
        _LINES,
        at("", checks.entry_has_controls),
    ),
    Rule(
        "dns",
        "network.vpn_dns[]",
        Effect.BREAKS,
        "must be the address of one DNS server: devices join them with `;`",
        at("", checks.is_no_dns_server),
    ),
    Rule(
        "usbguard-lines",
        "security.usbguard_rules[]",
        Effect.BREAKS,
        "must be one rule on one line: a line break would add another rule",
        at("", checks.has_controls),
    ),
    Rule(
        "app-no-flatpak",
        "apps.required[].id",
        Effect.ADVICE,
        'is no Flatpak id such as "org.mozilla.firefox": devices would install and uninstall the '
        "application in turn",
        at("", lambda text: not checks.is_flatpak_id(text)),
    ),
    Rule(
        "extension",
        "browser.extensions[]",
        Effect.ADVICE,
        "is empty: the browser ignores it",
        at("", lambda text: not text.strip()),
    ),
    Rule(
        "bookmark",
        "browser.managed_bookmarks[]",
        Effect.ADVICE,
        "has no name or no URL: devices leave the bookmark out",
        at("", lambda mark: not (mark.name and mark.url)),
    ),
    Rule(
        "psk-size",
        "network.wifi[]",
        Effect.ADVICE,
        "must have 8 to 63 bytes, or 64 hexadecimal digits: NetworkManager takes no other for WPA2",
        at(".passphrase", checks.is_no_psk),
    ),
    Rule(
        "passphrase-unused",
        "network.wifi[]",
        Effect.ADVICE,
        'is not used: the security "none" has no passphrase',
        at(".passphrase", checks.is_open_with_passphrase),
    ),
    Rule(
        "hidden",
        "network.wifi[].hidden",
        Effect.ADVICE,
        "devices do not join a hidden network by themselves",
        at("", bool),
    ),
    Rule(
        "ssid-escape",
        "network.wifi[].ssid",
        Effect.ADVICE,
        _KEY_FILE,
        at("", checks.is_read_otherwise),
    ),
    Rule(
        "passphrase-escape",
        "network.wifi[].passphrase",
        Effect.ADVICE,
        _KEY_FILE,
        at("", checks.is_read_otherwise),
    ),
    Rule(
        "eap-escape",
        "network.wifi[].eap{}",
        Effect.ADVICE,
        _KEY_FILE,
        at("", lambda entry: checks.is_not_read(entry[1])),
    ),
    Rule(
        "vpn-escape",
        "network.vpns[].data{}",
        Effect.ADVICE,
        _KEY_FILE,
        at("", lambda entry: checks.is_not_read(entry[1])),
    ),
    Rule(
        "vpn-secret-escape",
        "network.vpns[].secrets{}",
        Effect.ADVICE,
        _KEY_FILE,
        at("", lambda entry: checks.is_not_read(entry[1])),
    ),
    Rule(
        "dns-address",
        "network.vpn_dns[]",
        Effect.ADVICE,
        "is no IP address: NetworkManager ignores it",
        at("", checks.is_no_address),
    ),
    Rule(
        "usbguard-empty",
        "security",
        Effect.ADVICE,
        "is on without rules: USBGuard then blocks every USB device, keyboards too. Add rules, "
        'such as "allow"',
        at(".usbguard", lambda it: it.usbguard and not it.usbguard_rules),
    ),
)

_REFUSING: Final = tuple(one for one in RULES if one.refuses)
_FAILING: Final = tuple(one for one in RULES if one.effect is Effect.FAILS)

UNSET: Final = (
    Rule(
        "selinux-unset",
        "security.selinux_enforce",
        Effect.ADVICE,
        "is not set: devices switch SELinux off, unless another policy of theirs sets it. Set it "
        "to true or false",
        at("", bool),
    ),
    Rule(
        "usbguard-unset",
        "security.usbguard",
        Effect.ADVICE,
        "is not set: devices switch USBGuard off and remove its rules, unless another policy of "
        "theirs sets it. Set it to true or false",
        at("", bool),
    ),
)
"""What was not authored; a document alone does not show it."""
