"""What is different between two documents, field by field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.policy.authoring.secret_values import hide
from services.policy.authoring.templates import Told
from services.policy.layers.fields import FIELDS


@dataclass(frozen=True, slots=True)
class Change:
    """A field, or an item of one, that is not the same; `None` where there is none."""

    path: str
    name: str
    """The item's name; empty for a field that is one value."""
    before: Any = field(repr=False)
    after: Any = field(repr=False)
    secret: bool
    """Whether a secret is another one, which the values do not show."""


_NOTHING: Final[Told] = {}


def changes(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    mask: str,
    told_before: Told = _NOTHING,
    told_after: Told = _NOTHING,
) -> list[Change]:
    """What `after` says otherwise than `before`, with `mask` in place of secrets.

    The order of items does not count.

    Args:
        before: a document as JSON.
        after: another one.
        mask: stands for each secret.
        told_before: what is compared in place of secrets of `before` that have names.
        told_after: the same of `after`.
    """
    found: list[Change] = []
    shown_before, shown_after = hide(before, mask), hide(after, mask)
    for one in FIELDS:
        old = compared(one.named(before), told_before.get(one.path, {}))
        new = compared(one.named(after), told_after.get(one.path, {}))
        old_shown, new_shown = dict(one.named(shown_before)), dict(one.named(shown_after))
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) == new.get(name):
                continue
            was, becomes = old_shown.get(name), new_shown.get(name)
            found.append(
                Change(
                    one.path,
                    name,
                    was,
                    becomes,
                    secret=name in old
                    and name in new
                    and _secrets_differ(old[name], new[name], was, becomes),
                )
            )
    return found


def compared(
    named: Iterable[tuple[str, Any]], told: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Items with what is compared in place of secrets that have names."""
    return {name: {**item, **told[name]} if name in told else item for name, item in named}


def _secrets_differ(old: Any, new: Any, was: Any, becomes: Any) -> bool:
    """Whether two items differ where a mask stands in both."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return False
    return any(
        old.get(key) != new.get(key) and was.get(key) == becomes.get(key) for key in {**old, **new}
    )
