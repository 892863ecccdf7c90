"""Templates: bundles `{"template": DOCUMENT}` whose texts name variables and secrets of the tenant.

`{{var.NAME}}` and `{{secret.NAME}}` stand for the values that the tenant of the policy has under
these names when it is published, `{{org.code}}` and `{{org.name}}` for its code and name. In other
bundles braces are what they are. `filling` puts values of tenants below in place of some of them.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias
from uuid import UUID

from servicekit.data.postgres import Connection
from services.policy.authoring.document import MAX_DOCUMENT, MAX_SECRET, secret_fields
from services.policy.authoring.sizes import rounding
from services.policy.authoring.violations import MAX_TEXT, Violations, child, item

NAME: Final = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
REFERENCE: Final = re.compile(rf"\{{\{{((?:var|secret)\.{NAME}|org\.(?:code|name))\}}\}}")
_ONLY: Final = re.compile(rf"(?:{REFERENCE.pattern})+")
_BRACES: Final = re.compile(r"\{\{[^{}]{0,80}\}\}|\{\{|\}\}")
"""Looks only so far from each brace: texts come from outside."""
_PASSPHRASES: Final = re.compile(
    r"(?:network\.wifi|configuration\.network\.wifiNetworks)\[\d+\]\.passphrase"
)
_SECRET_SETTINGS: Final = re.compile(
    r"network\.(wifi\[\d+\]\.eap|vpns\[\d+\]\.(data|secrets))[.\[].+", re.DOTALL
)
_SHAPE: Final = (
    "must be {{var.NAME}}, {{secret.NAME}}, {{org.code}} or {{org.name}}: a NAME has small letters,"
    " digits, hyphens and underscores; there are no variables of devices, which share one document"
)
_PLACE: Final = (
    "must not have a secret here: only passphrases, and values of eap, data and secrets, may"
)
_BESIDE_SECRET: Final = (
    "must not have a value that tenants below replace beside a secret that they do not: they could"
    " have devices send it elsewhere"
)
_TOO_LONG: Final = "must have at most {} characters, with the values that it names"

_ITEM: Final = re.compile(r"(?:network\.(?:wifi|vpns)|configuration\.network\.wifiNetworks)\[\d+\]")
_LISTS: Final[tuple[tuple[str, str, str], ...]] = (
    ("wifi", "wifi", "ssid"),
    ("vpns", "vpns", "name"),
)
"""The lists of a document's `network` whose items hold secrets, their kind, and what names the
items."""
_FORM_LISTS: Final[tuple[tuple[str, str, str], ...]] = (("wifiNetworks", "wifi", "ssid"),)
"""Those of the console's form."""
_MOST_UNSEEN: Final = 2 * MAX_DOCUMENT
"""Of secrets that do not count. They are bounded where their tenants set and publish them."""


@dataclass(frozen=True, slots=True)
class Values:
    """The values of a tenant that a template may name."""

    of: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By `var.NAME`, `secret.NAME`, `org.code` and `org.name`."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """Which value of a secret it is, by `secret.NAME`: compared in place of it."""
    open: frozenset[str] = frozenset()
    """Those in whose place tenants below may have values of their own."""


NO_VALUES: Final = Values()
ORG_NAMES: Final = frozenset({"org.code", "org.name"})
ValuesAt: TypeAlias = Callable[[str], Values]
"""The values at a place of a document, such as `network.wifi[0].passphrase`."""
CountsAt: TypeAlias = Callable[[str], bool]
"""Whether secrets at a place of a document count in its size."""
Told: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Of items with a named secret, by the path of their list and their name: the fields with secrets,
with what tells the value of a secret from others of it in place of the value."""
ReadValues: TypeAlias = Callable[[Connection, UUID, Collection[str]], Awaitable[Values]]
"""Reads the values that a tenant has of some references."""


@dataclass(frozen=True, slots=True)
class SecretItem:
    """A network or VPN of a template."""

    path: str
    """Of its list in a document."""
    place: str
    """Its own in the template."""
    name: str
    """As it is written, with references."""
    fields: Mapping[str, Any] = field(repr=False)
    """Those with secrets."""
    names: frozenset[str]
    """The references in all of it."""
    is_inline: bool
    """Whether a secret stands in it that has no name, or that has other text beside it."""

    @property
    def secrets(self) -> frozenset[str]:
        """The secrets that it names."""
        return frozenset(one for one in self.names if one.startswith("secret."))

    def may_leak(self, open_names: Collection[str]) -> bool:
        """Whether who replaces its values could have devices send a secret elsewhere."""
        replaced = self.names & frozenset(open_names)
        if not replaced:
            return False
        if replaced & ORG_NAMES and self.secrets:
            return True
        return self.is_inline or not self.secrets <= replaced


def everywhere(_: str) -> bool:
    """Secrets count at all places: they are the tenant's own."""
    return True


def is_template(bundle: object) -> bool:
    """Whether a bundle is a template."""
    return isinstance(bundle, Mapping) and "template" in bundle and "configuration" not in bundle


def is_reference(text: str) -> bool:
    """Whether a text has references and nothing else, so that it tells nothing."""
    return _ONLY.fullmatch(text) is not None


def references(bundle: object) -> frozenset[str]:
    """What a template names: `var.NAME`, `secret.NAME`, `org.code` and `org.name`; nothing of other
    bundles."""
    if not isinstance(bundle, Mapping) or not is_template(bundle):
        return frozenset()
    return _names_in(bundle["template"])


def told(bundle: object, at: ValuesAt) -> dict[str, dict[str, dict[str, Any]]]:
    """What is compared of the secrets that a template names; nothing of other bundles.

    A guess that stands in a policy is equal to none of it, even if it is right.
    """
    return told_of(secret_items(bundle), at)


def told_of(items: Iterable[SecretItem], at: ValuesAt) -> dict[str, dict[str, dict[str, Any]]]:
    """The same of the networks and VPNs of a template."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for one in items:
        if one.secrets:
            values = at(one.place)
            fields = _mapped(one.fields, "", partial(_with_marks, values))
            found.setdefault(one.path, {})[_with_marks(values, one.name)] = fields
    return found


def _with_marks(values: Values, text: str, _place: str = "") -> str:
    """A text with values of variables, and in place of those of secrets what tells them apart."""

    def instead(found: re.Match[str]) -> str:
        if found[1].startswith("secret."):
            return f"{found[0]} {values.marks.get(found[1], '')}"
        return values.of[found[1]]

    return REFERENCE.sub(instead, text)


def secret_items(bundle: object) -> Iterator[SecretItem]:
    """The networks and VPNs of a template; nothing of other bundles."""
    template = bundle["template"] if isinstance(bundle, Mapping) and is_template(bundle) else None
    lists, prefix = _LISTS, "network"
    if isinstance(template, Mapping) and "configuration" in template:
        lists, prefix = _FORM_LISTS, "configuration.network"
        template = template["configuration"]
    network = template.get("network") if isinstance(template, Mapping) else None
    if not isinstance(network, Mapping):
        return
    for called, kind, name in lists:
        entries = network.get(called)
        for number, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, Mapping):
                place = item(f"{prefix}.{called}", number)
                fields = {one: entry[one] for one in secret_fields(kind) if entry.get(one)}
                names = _names_in(entry)
                is_inline = any(text and not is_reference(text) for text in _texts(fields))
                yield SecretItem(
                    f"network.{kind}", place, str(entry.get(name)), fields, names, is_inline
                )


def alone(template: Mapping[str, Any], place: str) -> Any:
    """A template with one of its networks or VPNs, and nothing else.

    Args:
        template: a document or the console's form.
        place: of the network or VPN in it, as `SecretItem` has it.
    """
    *path, last = place.split(".")
    called, _, number = last.removesuffix("]").partition("[")
    found: Any = template
    for step in (*path, called):
        found = found[step]
    made: Any = {called: [found[int(number)]]}
    for step in reversed(path):
        made = {step: made}
    return made


def places_of(template: Any, reference: str) -> frozenset[str]:
    """The places of a template whose text is a reference and nothing else."""
    alone = f"{{{{{reference}}}}}"
    return frozenset(place for place, text in _texts_at(template) if text == alone)


def names_elsewhere(template: Any) -> frozenset[str]:
    """What a template's document names outside of networks and VPNs."""
    found: set[str] = set()
    for place, text in _texts_at(template):
        if not item_of(place):
            found.update(one[1] for one in REFERENCE.finditer(text))
    return frozenset(found)


def item_of(place: str) -> str:
    """The network or VPN that a place of a template is in; empty for none."""
    found = _ITEM.match(place)
    return found[0] if found else ""


def longest_at(place: str) -> int:
    """How many characters a text at a place of a template may have."""
    return MAX_TEXT if _SECRET_SETTINGS.fullmatch(place) is None else MAX_SECRET


def expanded(
    bundle: Mapping[str, Any],
    values: Values,
    path: str,
    at: ValuesAt | None = None,
    counts: CountsAt = everywhere,
) -> Any:
    """The document of a template, with values in place of references.

    Args:
        bundle: the template.
        values: of the policy's tenant.
        path: of the template, for errors.
        at: the values at a place of the document, where they are not the same everywhere.
        counts: whether secrets at a place count in the document's size.

    Raises:
        DomainError: INVALID_ARGUMENT with every text whose braces are no reference, that has a
            secret where none may be, or that names what there is not; and with every network or
            VPN in which tenants below would replace something beside a secret.
    """
    violations = Violations()
    for key in bundle:
        if key != "template":
            violations.add(child(path, key), "is not a member of a template")
    for one in secret_items(bundle):
        if one.may_leak(values.open):
            violations.add(f"{path}.template.{one.place}", _BESIDE_SECRET)
    expansion = _Expansion(at or (lambda _: values), counts, f"{path}.template", violations)
    document = _mapped(bundle["template"], "", expansion.of)
    violations.raise_if_any()
    return document


class _Expansion:
    """Puts values into the texts of a document. What comes of it is measured before it is made."""

    def __init__(self, at: ValuesAt, counts: CountsAt, path: str, violations: Violations) -> None:
        self._at = at
        self._counts = counts
        self._path = path
        self._violations = violations
        self._room = MAX_DOCUMENT
        self._room_unseen = _MOST_UNSEEN

    def of(self, text: str, place: str) -> str:
        """A text with values in place of references, or with a fault noted as it is."""
        limit = longest_at(place)
        may_be_secret = limit == MAX_SECRET or _PASSPHRASES.fullmatch(place) is not None
        size = len(text)
        fault = _TOO_LONG.format(limit) if size > limit else ""
        values = self._at(place).of
        # Nothing is looked for in a text that is longer than any may be.
        more = 0
        for braces in () if fault else _BRACES.finditer(text):
            found = REFERENCE.fullmatch(braces[0])
            fault = _fault(found, values, may_be_secret=may_be_secret)
            if fault or found is None:
                break
            value = len(values[found[1]])
            size += value - len(braces[0])
            if found[1].startswith("secret."):
                more += rounding(value)
        is_one = REFERENCE.fullmatch(text) is not None
        if not fault and size + (0 if is_one else more) > limit:
            # Not by how much: that would be the length of a secret.
            fault = _TOO_LONG.format(limit)
        if fault:
            self._violations.add(f"{self._path}.{place}", fault)
            return text
        if may_be_secret and not self._counts(place):
            self._room_unseen -= size
        else:
            self._room -= size + more
        if min(self._room, self._room_unseen) < 0:
            self._violations.add(self._path, f"must be at most {MAX_DOCUMENT} bytes as a document")
            self._violations.raise_if_any()
        return REFERENCE.sub(lambda found: values[found[1]], text)


def _fault(found: re.Match[str] | None, values: Mapping[str, str], *, may_be_secret: bool) -> str:
    """What is wrong with braces; empty for nothing."""
    if found is None:
        return _SHAPE
    kind, _, name = found[1].partition(".")
    if kind == "secret" and not may_be_secret:
        return _PLACE
    if found[1] not in values:
        what = "variable" if kind == "var" else "secret"
        return f"names no {what} of the policy's tenant: set {name} first"
    return ""


def _names_in(value: Any) -> frozenset[str]:
    return frozenset(found[1] for text in _texts(value) for found in REFERENCE.finditer(text))


def _mapped(value: Any, path: str, change: Callable[[str, str], str]) -> Any:
    if isinstance(value, str):
        return change(value, path)
    if isinstance(value, Mapping):
        return {key: _mapped(one, child(path, key), change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(one, item(path, number), change) for number, one in enumerate(value)]
    return value


def _texts(value: Any) -> Iterator[str]:
    return (text for _, text in _texts_at(value))


def _texts_at(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _texts_at(one, child(path, key))
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _texts_at(one, item(path, number))
