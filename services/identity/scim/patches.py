"""Changes of users and groups (RFC 7644, section 3.5.2), as Entra and Okta write them.

Operations are the same in upper and lower case. A value without a path may have paths for names
(Entra). A group's members are not read for a change of some of them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from services.identity.scim import filters, resources
from services.identity.scim.domain import refused
from services.identity.scim.filters import Both, Comparison, Filter
from services.identity.scim.resources import EMAILS, NAMES, READ_ONLY, SIMPLE
from services.identity.scim.schemas import ENTERPRISE, GROUP, IGNORED, IGNORED_NAMES, PATCH, USER

_MOST: Final = 200
"""Operations of one request."""
_LONGEST: Final = 1_000
_VERBS: Final = frozenset({"add", "replace", "remove"})
_PATH: Final = re.compile(
    r"(?P<name>[A-Za-z$][\w$-]*)(?:\[(?P<filter>.*)\])?(?:\.(?P<sub>[A-Za-z$][\w$-]*))?", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class _Path:
    """Where a change goes."""

    name: str
    """In lower case, as `sub`."""
    sub: str = ""
    filter: Filter | None = None
    ignored: bool = False
    said: str = ""


@dataclass(frozen=True, slots=True)
class _Operation:
    verb: str
    path: _Path
    value: Any


def _operations(body: Mapping[str, Any], urn: str) -> Iterator[_Operation]:
    """The changes of a request, each with its path.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    resources.check_schemas(body, PATCH, {PATCH})
    said = {name.lower(): value for name, value in body.items()}
    operations = said.get("operations")
    if not isinstance(operations, list) or not operations:
        raise refused("invalidSyntax", "Operations: must be a list with at least one operation")
    if len(operations) > _MOST:
        raise refused("tooMany", f"Operations: must be at most {_MOST}")
    for number, one in enumerate(operations):
        yield from _operation(f"Operations[{number}]", one, urn)


def _operation(field: str, said: Any, urn: str) -> Iterator[_Operation]:
    if not isinstance(said, Mapping):
        raise refused("invalidSyntax", f"{field}: must be an object")
    given = {name.lower(): value for name, value in said.items()}
    verb = str(given.get("op", "")).lower()
    if verb not in _VERBS:
        raise refused("invalidSyntax", f"{field}.op: must be add, replace or remove")
    if verb != "remove" and "value" not in given:
        raise refused("invalidValue", f"{field}.value: is required")
    path, value = given.get("path"), given.get("value")
    if path not in (None, ""):
        yield _Operation(verb, _path(path, urn), value)
        return
    if verb == "remove":
        raise refused("noTarget", f"{field}.path: is required to remove")
    if not isinstance(value, Mapping):
        raise refused("invalidValue", f"{field}.value: must be an object without a path")
    for name, part in value.items():
        if name.lower() in READ_ONLY:
            # Okta repeats the id.
            continue
        if name.lower() == urn.lower() and isinstance(part, Mapping):
            for inner, deeper in part.items():
                yield _Operation(verb, _path(inner, urn), deeper)
        else:
            yield _Operation(verb, _path(name, urn), part)


def _path(said: Any, urn: str) -> _Path:
    if not isinstance(said, str) or len(said) > _LONGEST:
        raise refused("invalidPath", "path: must be a text")
    path = said.strip()
    if path.lower().startswith(ENTERPRISE.lower()) and urn == USER:
        return _Path("", ignored=True, said=said)
    if path.lower().startswith(f"{urn.lower()}:"):
        path = path[len(urn) + 1 :]
    found = _PATH.fullmatch(path)
    if found is None:
        raise refused("invalidPath", f"path: {said[:80]!r} is not understood")
    inside = found["filter"]
    return _Path(
        found["name"].lower(),
        (found["sub"] or "").lower(),
        filters.parse(inside) if inside is not None else None,
        said=said,
    )


def _no_path(path: _Path) -> Exception:
    return refused("invalidPath", f"path: {path.said[:80]!r} is no attribute that can be changed")


# Users


def patched_user(user: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """A user after a change.

    Args:
        user: what is kept of the user, with canonical names.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    after = copy.deepcopy(dict(user))
    for operation in _operations(body, USER):
        _change_user(after, operation)
    return resources.checked_user(after)


def _change_user(user: dict[str, Any], operation: _Operation) -> None:
    path, value = operation.path, operation.value
    if path.ignored or path.name in IGNORED:
        return
    if path.name in READ_ONLY:
        raise refused("mutability", f"{path.name}: cannot be changed")
    if path.name == "emails":
        _change_emails(user, operation)
    elif path.filter is not None:
        raise _no_path(path)
    elif path.name in SIMPLE and not path.sub:
        _set(user, SIMPLE[path.name], operation)
    elif path.name == "name" and path.sub in IGNORED_NAMES:
        return
    elif path.name == "name" and path.sub in NAMES:
        part = dict(user.get("name", {}))
        known = NAMES[path.sub]
        part.pop(known, None)
        if operation.verb != "remove":
            part |= resources.name_of({known: value})
        user["name"] = part
    elif path.name == "name" and not path.sub:
        before = user.get("name", {})
        user["name"] = {} if operation.verb == "remove" else before | resources.name_of(value)
    else:
        raise _no_path(path)


def _set(user: dict[str, Any], name: str, operation: _Operation) -> None:
    value = None if operation.verb == "remove" else resources.simple(name, operation.value)
    if value is None and name in {"userName", "active"}:
        raise refused("mutability", f"{name}: is required")
    user[name] = value


def _change_emails(user: dict[str, Any], operation: _Operation) -> None:
    path, value = operation.path, operation.value
    before: list[dict[str, Any]] = user.get("emails", [])
    if path.sub and path.sub not in EMAILS:
        raise _no_path(path)
    if path.filter is None and not path.sub:
        user["emails"] = _whole_emails(before, operation)
        return
    matching = [one for one in before if path.filter is None or filters.matches(path.filter, one)]
    others = [one for one in before if one not in matching]
    if operation.verb == "remove":
        kept = [{k: v for k, v in one.items() if k != path.sub} for one in matching]
        found = [one for one in kept if "value" in one] if path.sub else []
        user["emails"] = resources.checked_emails([*others, *found])
        return
    new = resources.email_of({path.sub: value} if path.sub else value)
    if not matching:
        # Entra replaces what is not there yet.
        wanted = filters.equalities(path.filter) if path.filter is not None else {}
        if wanted is None:
            raise refused("noTarget", f"path: nothing is {path.said[:80]!r}")
        matching = [resources.email_of(wanted)]
    changed = [one | new for one in matching]
    if new.get("primary"):
        others = [one | {"primary": False} if one.get("primary") else one for one in others]
    if any("value" not in one for one in changed):
        raise refused("noTarget", f"path: nothing is {path.said[:80]!r}, and no value is given")
    # In the order in which they were.
    order = {id(one): number for number, one in enumerate(before)}
    both = [*zip(matching, changed, strict=True), *zip(others, others, strict=True)]
    both.sort(key=lambda pair: order.get(id(pair[0]), len(before)))
    user["emails"] = resources.checked_emails([after for _, after in both])


def _whole_emails(before: list[dict[str, Any]], operation: _Operation) -> list[dict[str, Any]]:
    value = operation.value
    if operation.verb == "remove":
        if value is None:
            return []
        gone = [one["value"] for one in resources.emails_of(value)]
        return [one for one in before if one.get("value") not in gone]
    new = resources.emails_of(value)
    if operation.verb == "replace":
        return new
    if any(one.get("primary") for one in new):
        before = [one | {"primary": False} if one.get("primary") else one for one in before]
    values = {(one["value"], one.get("type")) for one in new}
    kept = [one for one in before if (one["value"], one.get("type")) not in values]
    return resources.checked_emails([*kept, *new])


# Groups


@dataclass(slots=True)
class GroupChange:
    """A change of a group: what is `None` stays."""

    display_name: str | None = None
    external_id: str | None = None
    instead: set[UUID] | None = None
    """Who is in it, whoever was before."""
    added: set[UUID] = field(default_factory=set)
    removed: set[UUID] = field(default_factory=set)

    def add(self, ids: Sequence[UUID]) -> None:
        """Some come in."""
        self.added.update(ids)
        self.removed.difference_update(ids)

    def remove(self, ids: Sequence[UUID]) -> None:
        """Some leave."""
        self.removed.update(ids)
        self.added.difference_update(ids)
        if self.instead is not None:
            self.instead.difference_update(ids)

    def replace(self, ids: Sequence[UUID]) -> None:
        """Only these are in it."""
        self.instead, self.added, self.removed = set(ids), set(), set()


def group_change(body: Mapping[str, Any]) -> GroupChange:
    """A change of a group.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    change = GroupChange()
    for operation in _operations(body, GROUP):
        path, value, verb = operation.path, operation.value, operation.verb
        if path.name == "members":
            _change_members(change, operation)
        elif path.name in READ_ONLY:
            raise refused("mutability", f"{path.name}: cannot be changed")
        elif path.filter is not None or path.sub or path.name not in {"displayname", "externalid"}:
            raise _no_path(path)
        elif path.name == "externalid":
            change.external_id = "" if verb == "remove" else resources.text("externalId", value)
        elif verb == "remove":
            raise refused("mutability", "displayName: is required")
        else:
            change.display_name = resources.checked_name(resources.text("displayName", value))
    return change


def _change_members(change: GroupChange, operation: _Operation) -> None:
    path, value, verb = operation.path, operation.value, operation.verb
    if path.sub:
        raise _no_path(path)
    if path.filter is not None:
        ids = _named_ids(path.filter)
        if verb != "remove":
            raise refused("mutability", "members: cannot be changed, only added and removed")
        change.remove(ids)
    elif verb == "add":
        change.add(resources.member_ids(value))
    elif verb == "replace":
        change.replace(resources.member_ids(value))
    elif value is None:
        change.replace([])
    else:
        # Older Entra: those who leave stand in the value.
        change.remove(resources.member_ids(value))


def _named_ids(found: Filter) -> list[UUID]:
    """The people whom a filter of members names."""
    if isinstance(found, Both) and found.word == "or":
        return [one for part in found.of for one in _named_ids(part)]
    if isinstance(found, Comparison) and (found.path, found.operator) == ("value", "eq"):
        return [resources.member_id(found.value)]
    raise refused("invalidFilter", 'path: members are chosen by their value, as [value eq "…"]')
