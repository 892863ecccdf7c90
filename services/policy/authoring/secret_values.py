"""The secrets of an authored policy: hidden in what people read, kept when they send it back.

Secret are the fields that `document` marks, and the passphrases of the console's form. Readers get
a word in place of each value. An edited policy comes back with that word, which then stands for the
value that is stored for the network or VPN of the same name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from services.policy.authoring.configuration import is_console_form
from services.policy.authoring.document import secret_fields
from services.policy.authoring.templates import is_reference, is_template
from services.policy.authoring.violations import Violations, child, item

MASKED: Final = "[masked]"
"""What those read who may change policies."""
REDACTED: Final = "[redacted]"
"""What everybody else reads, and what the audit log records."""
_MASKS: Final = (MASKED, REDACTED)
_UNKNOWN: Final = (
    "stands for a stored value, and none is stored under this name: give the value itself"
)
_LISTS: Final = (("wifi", "ssid"), ("vpns", "name"))
"""The lists of a DOCUMENT's `network` that hold secrets, and what names their entries."""

_Key = tuple[str, str, int]
"""The list, the name, and which of the entries with this name."""
_Change = Callable[[str, _Key, str, str | None, str], Any]
"""Answers what stands for a secret: of an entry, in a field, under a map's key, at a path."""


def hide(
    authored: Any, word: str, *, but: Callable[[str, str, str], bool] = lambda *_: False
) -> Any:
    """A copy of a stored policy with `word` for every secret that is not empty.

    Args:
        but: says which are left as they are, by the field, the key in it (or an empty text) and
            the value.
    """

    def hidden(value: str, _: _Key, field: str, entry: str | None, __: str) -> str:
        return word if value and not but(field, entry or "", value) else value

    return _mapped(authored, hidden)


def secrets_of(authored: Any, at: Callable[[str], bool] = lambda _: True) -> list[str]:
    """The secrets of a stored policy that are not empty.

    Args:
        at: says whose are meant, by their place.
    """
    found: list[str] = []

    def note(value: str, *where: Any) -> str:
        if value and at(where[-1]):
            found.append(value)
        return value

    _mapped(authored, note)
    return found


def with_names(bundle: Any, name_of: Callable[[str, str, str, str], str]) -> Any:
    """A template of a bundle, with a secret's name in place of each one that has none.

    Args:
        bundle: a stored policy of any form.
        name_of: the name for a secret: of a network or VPN of this name, in a field, under a key of
            it (or an empty text), with this value.
    """

    def named(value: str, key: _Key, field: str, entry: str | None, _: str) -> str:
        if not value:
            return value
        return f"{{{{secret.{name_of(f'{key[0]}-{key[1]}', field, entry or '', value)}}}}}"

    found = _mapped(bundle, named)
    return found if is_template(found) else {"template": found}


def holds_secrets(authored: Any) -> bool:
    """Whether there is anything to hide."""
    return bool(hide(authored, MASKED) != authored)


def restore(bundle: Any, stored: Any, path: str) -> Any:
    """A copy of a bundle, as somebody sent it, with what is stored in place of masks.

    `bundle` is any JSON; `stored` is the policy as it is, or `None`.

    Raises:
        DomainError: INVALID_ARGUMENT with every mask that stands for nothing.
    """
    # Of a template there are references, which are no values of another form.
    known = _by_name(stored) if is_template(bundle) or not is_template(stored) else {}
    violations = Violations()

    def value_of(value: Any, key: _Key, field: str, entry: str | None, place: str) -> Any:
        if value not in _MASKS:
            return value
        found = known.get(key, {}).get(field, "")
        if entry is not None:
            found = found.get(entry, "") if isinstance(found, Mapping) else ""
        if not found:
            violations.add(f"{path}.{place}", _UNKNOWN)
        return found

    restored = _mapped(bundle, value_of)
    violations.raise_if_any()
    return restored


def complete(bundle: Any, *sources: Any) -> Any:
    """A copy of a bundle whose console networks have a passphrase, if one is known.

    The editor has no field for a passphrase and drops it. A network that comes without one takes
    that of the first source, a stored policy of either form, that has one for its name.
    """
    if not is_console_form(bundle):
        return bundle
    known = [_by_name(source) for source in sources if not is_template(source)]

    def with_passphrase(network: Any) -> Any:
        if not isinstance(network, Mapping) or "passphrase" in network:
            return network
        key = ("wifi", str(network.get("ssid")), 0)
        found = next((p for k in known if (p := k.get(key, {}).get("passphrase"))), None)
        return network if found is None else {**network, "passphrase": found}

    return console_networks(bundle, lambda networks: [with_passphrase(n) for n in networks])


def _by_name(stored: Any) -> dict[_Key, Mapping[str, Any]]:
    """The entries that hold secrets, by list, name, and number among those of one name."""
    found: dict[_Key, Mapping[str, Any]] = {}
    for kind, name, entries in _lists(stored):
        seen: Counter[str] = Counter()
        for entry in entries:
            if isinstance(entry, Mapping):
                text = str(entry.get(name))
                found[kind, text, seen[text]] = entry
                seen[text] += 1
    return found


def _lists(bundle: Any) -> list[tuple[str, str, list[Any]]]:
    if not isinstance(bundle, Mapping):
        return []
    if is_template(bundle):
        return _lists_of(bundle["template"])
    return _lists_of(bundle)


def _lists_of(bundle: Any) -> list[tuple[str, str, list[Any]]]:
    if not isinstance(bundle, Mapping):
        return []
    if is_console_form(bundle):
        network = _member(_member(bundle, "configuration"), "network")
        found = [("wifi", "ssid", _member(network, "wifiNetworks"))]
    else:
        network = _member(bundle, "network")
        found = [(kind, name, _member(network, kind)) for kind, name in _LISTS]
    return [(kind, name, entries) for kind, name, entries in found if isinstance(entries, list)]


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _mapped(bundle: Any, change: _Change) -> Any:
    """A copy of any JSON with `change(value, key, field, entry, path)` for every secret text.

    References of a template are none: they say no value.
    """
    if isinstance(bundle, Mapping) and is_template(bundle):

        def of_value(value: str, key: _Key, field: str, entry: str | None, path: str) -> Any:
            if is_reference(value):
                return value
            return change(value, key, field, entry, f"template.{path}")

        return {**bundle, "template": _form_mapped(bundle["template"], of_value)}
    return _form_mapped(bundle, change)


def _form_mapped(bundle: Any, change: _Change) -> Any:
    """The same of a document, or of the console's form."""
    if is_console_form(bundle):
        return console_networks(
            bundle,
            lambda networks: _entries(
                "wifi", "ssid", networks, "configuration.network.wifiNetworks", change
            ),
        )
    network = _member(bundle, "network")
    if not isinstance(network, Mapping):
        return bundle
    changed = dict(network)
    for kind, name in _LISTS:
        if isinstance(network.get(kind), list):
            changed[kind] = _entries(kind, name, network[kind], f"network.{kind}", change)
    return {**bundle, "network": changed}


def console_networks(bundle: Any, change: Callable[[list[Any]], list[Any]]) -> Any:
    """A copy of a console's form, of any shape, with its list of networks changed."""
    configuration = bundle["configuration"]
    network = _member(configuration, "network")
    networks = _member(network, "wifiNetworks")
    if not isinstance(networks, list):
        return bundle
    changed = {**network, "wifiNetworks": change(networks)}
    return {**bundle, "configuration": {**configuration, "network": changed}}


def _entries(kind: str, name: str, entries: list[Any], path: str, change: _Change) -> list[Any]:
    seen: Counter[str] = Counter()
    found: list[Any] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            found.append(entry)
            continue
        called = str(entry.get(name))
        key = (kind, called, seen[called])
        seen[called] += 1
        changed = dict(entry)
        for field in secret_fields(kind) & changed.keys():
            place = child(item(path, index), field)
            changed[field] = _secret(changed[field], key, field, place, change)
        found.append(changed)
    return found


def _secret(value: Any, key: _Key, field: str, place: str, change: _Change) -> Any:
    if isinstance(value, str):
        return change(value, key, field, None, place)
    if not isinstance(value, Mapping):
        return value
    return {
        entry: change(text, key, field, entry, child(place, entry))
        if isinstance(text, str)
        else text
        for entry, text in value.items()
    }
