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
from services.policy.authoring.document import MAX_DOCUMENT, MAX_SECRET
from services.policy.authoring.violations import MAX_TEXT, Violations, child, item

NAME: Final = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_REFERENCE: Final = re.compile(rf"\{{\{{(var|secret)\.({NAME})\}}\}}")
_ONLY: Final = re.compile(rf"(?:{_REFERENCE.pattern})+")
_BRACES: Final = re.compile(r"\{\{[^{}]{0,80}\}\}|\{\{|\}\}")
"""Looks only so far from each brace: texts come from outside."""
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
_TOO_LONG: Final = "must have at most {} characters, with the values that it names"

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
    expansion = _Expansion(values, f"{path}.template", violations)
    document = _mapped(bundle["template"], "", expansion.of)
    violations.raise_if_any()
    return document


class _Expansion:
    """Puts values into the texts of a document. What comes of it is measured before it is made."""

    def __init__(self, values: Values, path: str, violations: Violations) -> None:
        self._values = values
        self._path = path
        self._violations = violations
        self._room = MAX_DOCUMENT

    def of(self, text: str, place: str) -> str:
        """A text with values in place of references, or with a fault noted as it is."""
        may_be_secret = _SECRET_PLACES.fullmatch(place) is not None
        limit = MAX_SECRET if may_be_secret else MAX_TEXT
        size = len(text)
        fault = _TOO_LONG.format(limit) if size > limit else ""
        # Nothing is looked for in a text that is longer than any may be.
        for braces in () if fault else _BRACES.finditer(text):
            found = _REFERENCE.fullmatch(braces[0])
            fault = self._fault(found, may_be_secret=may_be_secret)
            if fault or found is None:
                break
            size += len(self._values[f"{found[1]}.{found[2]}"]) - len(braces[0])
        if not fault and size > limit:
            # Not by how much: that would be the length of a secret.
            fault = _TOO_LONG.format(limit)
        if fault:
            self._violations.add(f"{self._path}.{place}", fault)
            return text
        self._room -= size
        if self._room < 0:
            self._violations.add(self._path, f"must be at most {MAX_DOCUMENT} bytes as a document")
            self._violations.raise_if_any()
        return _REFERENCE.sub(lambda found: self._values[f"{found[1]}.{found[2]}"], text)

    def _fault(self, found: re.Match[str] | None, *, may_be_secret: bool) -> str:
        """What is wrong with braces; empty for nothing."""
        if found is None:
            return _SHAPE
        kind, name = found.groups()
        if kind == "secret" and not may_be_secret:
            return _PLACE
        if f"{kind}.{name}" not in self._values:
            what = "variable" if kind == "var" else "secret"
            return f"names no {what} of the policy's tenant: set {name} first"
        return ""


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
