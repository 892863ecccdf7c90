"""What policy holds about one person, for an export. What devices get is made of the versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from servicekit.rpc.persons import SECRET, Person, Table, camel, plain_value
from servicekit.security.sealing import SealingError
from services.policy.authoring.secret_values import hide
from services.policy.authoring.stored_form import joined
from services.policy.vault import SEALED, Vault, of_policy, of_version

_JSON: Final = ("authored", "merging", "targets")
_TEXTS: Final = ("name", "description", "published_by")
_USERS: Final = {
    "eap": frozenset({"identity", "anonymous-identity"}),
    "data": frozenset({"username", "user", "user-name", "Xauth username"}),
}
"""What says who logs in somewhere, by the secret field: it opens nothing."""


_BESIDE: Final = ("form_extra", "tenant_id", SEALED)
"""Columns that are read for others."""


def _tell(
    vault: Vault, place: Callable[[Any, Any], str], person: Person, row: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """What a policy or a version says. Secrets are hidden before anything is looked for in them:
    what is found would say what is in one. Only the person's own name as a user is none."""

    def is_user(field: str, key: str, value: str) -> bool:
        return key in _USERS.get(field, ()) and person.is_in(value)

    found: dict[str, Any] = {}
    number = row["version"] if "version" in row else row["id"]
    try:
        opened = vault.opened(place(row["tenant_id"], number), row, "authored", "form_extra")
    except SealingError as broken:
        raise ValueError(str(broken)) from broken
    row = {**row, "authored": joined(opened["authored"], opened["form_extra"])}
    for name in (*_TEXTS, *_JSON):
        text = row.get(name)
        if not text or not person.may_be_in(text):
            continue
        value = hide(json.loads(text), SECRET, but=is_user) if name in _JSON else text
        if parts := person.parts_of(value):
            found[name] = parts if name in _JSON else parts[0]["value"]
    if not found:
        return None
    shown = {
        camel(name): plain_value(value)
        for name, value in row.items()
        if name not in {*_TEXTS, *_JSON, *_BESIDE}
    }
    return shown | {camel(name): parts for name, parts in found.items()}


def tables(vault: Vault) -> tuple[Table, ...]:
    """What may hold something about a person, in the order of an export."""
    return (
        Table(
            kind="policy",
            source="policy.policies",
            shown=("id", "created_at", "updated_at"),
            searched=("name", "description", "authored", "merging", "targets", *_BESIDE),
            tell=partial(_tell, vault, of_policy),
        ),
        Table(
            kind="policy version",
            source="policy.versions",
            key=(("version", "bigint"),),
            shown=("policy_id", "version", "published_at"),
            # `layer` says what `authored` does, in another shape.
            searched=("published_by", "authored", "targets", *_BESIDE),
            tell=partial(_tell, vault, of_version),
        ),
        Table(
            kind="rollout",
            source="policy.rollout",
            shown=("id", "policy_id", "version", "state", "created_at", "starts_at", "ended_at"),
            searched=("note", "detail", "created_by_name", "approved_by_name", "plan"),
            json=frozenset({"plan"}),
        ),
        Table(
            kind="days on which nothing is published, and the default plan",
            source="policy.setting",
            key=(("tenant_id", "uuid"),),
            shown=("updated_at",),
            searched=("freezes", "default_plan"),
            json=frozenset({"freezes", "default_plan"}),
        ),
        Table(
            kind="variable of policies",
            source="policy.variable",
            shown=("id", "name", "updated_at"),
            searched=("value", "updated_by", "set_name"),
        ),
        Table(
            kind="policy of a set",
            source="policy.set_member",
            key=(("policy_id", "uuid"),),
            shown=("policy_id",),
            searched=("alias", "set_name"),
        ),
    )
