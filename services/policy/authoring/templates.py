"""Templates: bundles `{"template": DOCUMENT}` whose texts name variables and secrets of the tenant.

`{{var.NAME}}` and `{{secret.NAME}}` stand for the values that the policy's tenant has under these
names when the policy is published. In other bundles braces are what they are.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any, Final, TypeAlias
from uuid import UUID

from servicekit.data.postgres import Connection
from services.policy.authoring.violations import Violations, child, item

NAME: Final = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_REFERENCE: Final = re.compile(rf"\{{\{{(var|secret)\.({NAME})\}}\}}")
_ONLY: Final = re.compile(rf"(?:{_REFERENCE.pattern})+")
_BRACES: Final = re.compile(r"\{\{.*?\}\}|\{\{|\}\}", re.DOTALL)
_SECRET_PLACES: Final = re.compile(
    r"network\.(wifi\[\d+\]\.(passphrase|eap[.\[].+)|vpns\[\d+\]\.(data|secrets)[.\[].+)", re.DOTALL
)
_SHAPE: Final = (
    "must be {{var.NAME}} or {{secret.NAME}}: a NAME has small letters, digits, hyphens and"
    " underscores; there are no variables of devices, which share one document"
)
_PLACE: Final = (
    "must not have a secret here: only passphrases, and values of eap, data and secrets, may"
)

Values: TypeAlias = Mapping[str, str]
"""The values of a tenant, by `var.NAME` and `secret.NAME`."""
NO_VALUES: Final[Values] = {}
ReadValues: TypeAlias = Callable[[Connection, UUID, Collection[str]], Awaitable[Values]]
"""Reads the values that a tenant has of some references."""


def is_template(bundle: object) -> bool:
    """Whether a bundle is a template."""
    return isinstance(bundle, Mapping) and "template" in bundle and "configuration" not in bundle


def is_reference(text: str) -> bool:
    """Whether a text has references and nothing else, so that it tells nothing."""
    return _ONLY.fullmatch(text) is not None


def references(bundle: object) -> frozenset[str]:
    """What a template names: `var.NAME` and `secret.NAME`; nothing of other bundles."""
    if not isinstance(bundle, Mapping) or not is_template(bundle):
        return frozenset()
    return frozenset(
        f"{found[1]}.{found[2]}"
        for text in _texts(bundle["template"])
        for found in _REFERENCE.finditer(text)
    )


def expanded(bundle: Mapping[str, Any], values: Values, path: str) -> Any:
    """The document of a template, with values in place of references.

    Raises:
        DomainError: INVALID_ARGUMENT with every text whose braces are no reference, that has a
            secret where none may be, or that names what there is not.
    """
    violations = Violations()
    for key in bundle:
        if key != "template":
            violations.add(child(path, key), "is not a member of a template")

    def expand(text: str, place: str) -> str:
        return _expanded(text, place, values, f"{path}.template", violations)

    document = _mapped(bundle["template"], "", expand)
    violations.raise_if_any()
    return document


def _expanded(text: str, place: str, values: Values, path: str, violations: Violations) -> str:
    where = f"{path}.{place}"
    for braces in _BRACES.findall(text):
        found = _REFERENCE.fullmatch(braces)
        if found is None:
            violations.add(where, _SHAPE)
            return text
        kind, name = found.groups()
        if kind == "secret" and _SECRET_PLACES.fullmatch(place) is None:
            violations.add(where, _PLACE)
            return text
        if f"{kind}.{name}" not in values:
            what = "variable" if kind == "var" else "secret"
            violations.add(where, f"names no {what} of the policy's tenant: set {name} first")
            return text
    return _REFERENCE.sub(lambda found: values[f"{found[1]}.{found[2]}"], text)


def _mapped(value: Any, path: str, change: Callable[[str, str], str]) -> Any:
    if isinstance(value, str):
        return change(value, path)
    if isinstance(value, Mapping):
        return {key: _mapped(one, child(path, key), change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(one, item(path, number), change) for number, one in enumerate(value)]
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
