"""What policy holds about one person, for an export. What devices get is made of the versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from servicekit.rpc.persons import SECRET, Person, Table, camel, plain_value
from services.policy.authoring.secret_values import hide

_JSON: Final = ("authored", "merging", "targets", "layer")
_TEXTS: Final = ("name", "description", "published_by")


def _tell(person: Person, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a policy or a version says. All that EAP asks for counts as secret in a policy; the
    person's own name in it is none."""
    found: dict[str, Any] = {}
    for name in (*_TEXTS, *_JSON):
        text = row.get(name)
        if not text or not person.may_be_in(text):
            continue
        value = hide(json.loads(text), SECRET, but=person.is_in) if name in _JSON else text
        if parts := person.parts_of(value):
            found[name] = parts if name in _JSON else parts[0]["value"]
    if not found:
        return None
    shown = {
        camel(name): plain_value(value)
        for name, value in row.items()
        if name not in {*_TEXTS, *_JSON}
    }
    return shown | {camel(name): parts for name, parts in found.items()}


TABLES: Final = (
    Table(
        kind="policy",
        source="policy.policies",
        shown=("id", "created_at", "updated_at"),
        searched=("name", "description", "authored", "merging", "targets"),
        tell=_tell,
    ),
    Table(
        kind="policy version",
        source="policy.versions",
        key=(("version", "bigint"),),
        shown=("policy_id", "version", "published_at"),
        searched=("published_by", "authored", "layer", "targets"),
        tell=_tell,
    ),
    Table(
        kind="policy of a set",
        source="policy.set_member",
        key=(("policy_id", "uuid"),),
        shown=("policy_id",),
        searched=("alias", "set_name"),
    ),
)  # fmt: skip
"""What may hold something about a person, in the order of an export."""
