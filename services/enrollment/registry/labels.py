"""Labels: what administrators say of devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from servicekit.errors import FieldViolation, invalid
from servicekit.texts import name_fault, tidy
from services.enrollment.groups.filters import LABEL_KEY

MOST_LABELS: Final = 32
"""Of a device, and of an enrollment token."""
_LONGEST: Final = 128
_KEY_RULE: Final = (
    "keys have small letters, digits, _ and -, begin with a letter,"
    " and are at most 63 characters long"
)


@dataclass(frozen=True, slots=True)
class Details:
    """What is to be said of a device; `None` for what stays.

    The `model` counts for a device that is expected; others say theirs.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    remove_labels: tuple[str, ...] = ()
    asset_tag: str | None = None
    note: str | None = None
    model: str | None = None


def clean_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels as they are kept: values trimmed and composed, sorted by key.

    Raises:
        DomainError: INVALID_ARGUMENT with the label and the rule that it breaks.
    """
    cleaned, wrong = {}, []
    for key, text in sorted(labels.items()):
        value = tidy(text)
        where = f"labels.{key[:100]}"
        if LABEL_KEY.fullmatch(key) is None:
            wrong.append(FieldViolation(where, _KEY_RULE))
        elif not value:
            wrong.append(FieldViolation(where, "must not be blank; remove it with removeLabels"))
        elif len(value) > _LONGEST:
            wrong.append(FieldViolation(where, f"must have at most {_LONGEST} characters"))
        elif (fault := name_fault(value)) is not None:
            wrong.append(FieldViolation(where, fault))
        cleaned[key] = value
    if len(labels) > MOST_LABELS:
        wrong.append(FieldViolation("labels", f"must have at most {MOST_LABELS} entries"))
    if wrong:
        raise invalid(*wrong)
    return cleaned


def clean_details(details: Details) -> Details:
    """The same, checked.

    Raises:
        DomainError: INVALID_ARGUMENT with the field.
    """
    labels = clean_labels(details.labels)
    for index, key in enumerate(details.remove_labels):
        if LABEL_KEY.fullmatch(key) is None:
            raise invalid(FieldViolation(f"removeLabels[{index}]", _KEY_RULE))
        if key in labels:
            raise invalid(FieldViolation(f"removeLabels[{index}]", f"{key} is set, too"))
    return replace(details, labels=labels)


def merged(
    labels: Mapping[str, str], more: Mapping[str, str], without: Iterable[str] = ()
) -> dict[str, str]:
    """Labels with others set, and some removed.

    Raises:
        DomainError: INVALID_ARGUMENT when they are too many.
    """
    gone = set(without)
    found = {key: value for key, value in (dict(labels) | dict(more)).items() if key not in gone}
    if len(found) > MOST_LABELS:
        raise invalid(
            FieldViolation("labels", f"a device has at most {MOST_LABELS}; remove some first")
        )
    return dict(sorted(found.items()))
