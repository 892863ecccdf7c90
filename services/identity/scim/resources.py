"""Users and groups of SCIM in JSON: read, and written.

Names of attributes are the same in upper and lower case. What the standard has and nobody keeps
here is taken and dropped; what it has not is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from servicekit.texts import text_fault
from services.identity.scim.domain import ScimGroupRow, ScimUser, is_text, refused
from services.identity.scim.schemas import ENTERPRISE, GROUP, IGNORED, IGNORED_NAMES, USER

_LONGEST: Final = 256
_MOST_EMAILS: Final = 20
SIMPLE: Final = {
    "username": "userName",
    "displayname": "displayName",
    "externalid": "externalId",
    "active": "active",
}
"""Attributes of users with one simple value."""
NAMES: Final = {"formatted": "formatted", "familyname": "familyName", "givenname": "givenName"}
EMAILS: Final = {"value": "value", "display": "display", "type": "type", "primary": "primary"}
READ_ONLY: Final = frozenset({"id", "meta", "groups", "schemas"})
"""What a whole resource may say, and what is not looked at."""


@dataclass(frozen=True, slots=True)
class GroupOf:
    """A group that somebody is in."""

    id: UUID
    display: str


# Reading


def text(field: str, value: Any, longest: int = _LONGEST) -> str:
    """A text; empty for null."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise refused("invalidValue", f"{field}: must be a string")
    if len(value) > longest:
        raise refused("invalidValue", f"{field}: must have at most {longest} characters")
    if not is_text(value) or "\n" in value:
        raise refused("invalidValue", f"{field}: must be one line of text")
    if (fault := text_fault(value)) is not None:
        raise refused("invalidValue", f"{field}: {fault}")
    return value


def flag(field: str, value: Any) -> bool:
    """A boolean; Entra writes it as a text."""
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower(), value)
    if not isinstance(value, bool):
        raise refused("invalidValue", f"{field}: must be true or false")
    return value


def simple(name: str, value: Any) -> Any:
    """The value of one of `SIMPLE`; `None` where there is none."""
    if name == "active":
        return None if value is None else flag(name, value)
    return text(name, value) or None


def name_of(value: Any) -> dict[str, str]:
    """A person's name."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise refused("invalidValue", "name: must be an object")
    found = {}
    for given, part in value.items():
        if given.lower() in IGNORED_NAMES:
            continue
        known = NAMES.get(given.lower())
        if known is None:
            raise unknown(f"name.{given}")
        if said := text(f"name.{known}", part):
            found[known] = said
    return found


def email_of(value: Any, field: str = "emails") -> dict[str, Any]:
    """One address."""
    if not isinstance(value, Mapping):
        raise refused("invalidValue", f"{field}: must be objects with value, type and primary")
    found: dict[str, Any] = {}
    for given, part in value.items():
        known = EMAILS.get(given.lower())
        if known is None:
            if given.lower() == "$ref":
                continue
            raise unknown(f"{field}.{given}")
        if known == "primary":
            if part is not None:
                found[known] = flag(f"{field}.{known}", part)
        elif said := text(f"{field}.{known}", part):
            found[known] = said
    return found


def emails_of(value: Any) -> list[dict[str, Any]]:
    """Addresses, each once."""
    if value is None:
        return []
    found = [email_of(one) for one in (value if isinstance(value, list) else [value])]
    return checked_emails([one for one in found if "value" in one])


def checked_emails(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Addresses, each once, at most one of them the primary one."""
    once: list[dict[str, Any]] = []
    for one in found:
        if one not in once:
            once.append(one)
    if len(once) > _MOST_EMAILS:
        raise refused("invalidValue", f"emails: must be at most {_MOST_EMAILS}")
    if sum(bool(one.get("primary")) for one in once) > 1:
        raise refused("invalidValue", "emails: only one can be the primary one")
    return once


def unknown(name: str) -> Exception:
    """Refuses a name that nothing has."""
    return refused("invalidSyntax", f"{name[:80]}: there is no such attribute")


def user_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """A user as a request says it: canonical names, and what is kept.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    check_schemas(body, USER, {USER, ENTERPRISE})
    found: dict[str, Any] = {}
    for given, value in body.items():
        name = given.lower()
        if name in READ_ONLY or name in IGNORED or name == ENTERPRISE.lower():
            continue
        if name in SIMPLE:
            found[SIMPLE[name]] = simple(SIMPLE[name], value)
        elif name == "name":
            found[name] = name_of(value)
        elif name == "emails":
            found[name] = emails_of(value)
        else:
            raise unknown(given)
    return checked_user(found)


def checked_user(found: Mapping[str, Any]) -> dict[str, Any]:
    """A user without what is empty.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    kept = {name: value for name, value in found.items() if value not in (None, "", {}, [])}
    if not str(kept.get("userName", "")).strip():
        raise refused("invalidValue", "userName: is required")
    return kept


@dataclass(frozen=True, slots=True)
class GroupBody:
    """A group as a request says it."""

    display_name: str
    external_id: str
    members: frozenset[UUID] | None
    """`None` where it says nothing of them."""


def group_body(body: Mapping[str, Any]) -> GroupBody:
    """A group as a request says it.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    check_schemas(body, GROUP, {GROUP})
    display_name, external_id, members = "", "", None
    for given, value in body.items():
        name = given.lower()
        if name == "displayname":
            display_name = text("displayName", value)
        elif name == "externalid":
            external_id = text("externalId", value)
        elif name == "members":
            members = frozenset(member_ids(value))
        elif name not in READ_ONLY:
            raise unknown(given)
    return GroupBody(checked_name(display_name), external_id, members)


def checked_name(display_name: str) -> str:
    """The name of a group.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    if not display_name.strip():
        raise refused("invalidValue", "displayName: is required")
    return display_name


def member_ids(value: Any) -> list[UUID]:
    """The people whom members name.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    if value is None:
        return []
    found = []
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, Mapping):
            raise refused("invalidValue", "members: must be objects with a value")
        said = {str(name).lower(): part for name, part in one.items()}
        if str(said.get("type") or "User").lower() != "user":
            raise refused("invalidValue", "members: only people are members, no groups")
        found.append(member_id(said.get("value")))
    return found


def member_id(value: Any) -> UUID:
    """The person that a member names.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    try:
        return UUID(value if isinstance(value, str) else "")
    except ValueError:
        raise no_member(value) from None


def no_member(value: Any) -> Exception:
    """Refuses a member that is none of the source's people."""
    return refused("invalidValue", f"members: there is no user {str(value)[:60]!r}")


def check_schemas(body: Mapping[str, Any], own: str, allowed: Iterable[str]) -> None:
    """Refuses a body that says it is something else.

    Raises:
        DomainError: INVALID_ARGUMENT.
    """
    said = next((value for name, value in body.items() if name.lower() == "schemas"), None)
    if said is None:
        return
    if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
        raise refused("invalidSyntax", "schemas: must be a list of texts")
    known = {one.lower() for one in allowed}
    for one in said:
        if one.lower() not in known:
            raise refused("invalidSyntax", f"schemas: {one[:80]} is not offered here")
    if said and own.lower() not in {one.lower() for one in said}:
        raise refused("invalidSyntax", f"schemas: must name {own}")


# Writing


def user_json(user: ScimUser, groups: Sequence[GroupOf], base: str) -> dict[str, Any]:
    """A user's resource."""
    said: dict[str, Any] = {"schemas": [USER], "id": str(user.id)}
    if user.external_id:
        said["externalId"] = user.external_id
    said |= {"userName": user.user_name, **user.attributes, "active": user.active}
    if groups:
        said["groups"] = [
            {"value": str(one.id), "$ref": f"{base}/Groups/{one.id}", "display": one.display}
            for one in groups
        ]
    return said | _meta("User", user, base)


def group_json(group: ScimGroupRow, members: Sequence[UUID], base: str) -> dict[str, Any]:
    """A group's resource."""
    said: dict[str, Any] = {"schemas": [GROUP], "id": str(group.id)}
    if group.external_id:
        said["externalId"] = group.external_id
    said["displayName"] = group.display_name
    if members:
        said["members"] = [
            {"value": str(one), "$ref": f"{base}/Users/{one}", "type": "User"} for one in members
        ]
    return said | _meta("Group", group, base)


def _meta(kind: str, row: ScimUser | ScimGroupRow, base: str) -> dict[str, Any]:
    return {
        "meta": {
            "resourceType": kind,
            "created": row.created_at.isoformat().replace("+00:00", "Z"),
            "lastModified": row.updated_at.isoformat().replace("+00:00", "Z"),
            "location": f"{base}/{kind}s/{row.id}",
            "version": row.version,
        }
    }


def selection(only: str, without: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What is shown of resources (RFC 7644, section 3.9).

    Args:
        only: names of attributes with commas between, `attributes`.
        without: the same, `excludedAttributes`.

    Raises:
        DomainError: INVALID_ARGUMENT when both are given.
    """
    wanted, unwanted = _named(only), _named(without)
    if wanted and unwanted:
        raise refused("invalidValue", "attributes, excludedAttributes: give one of them")

    def select(resource: dict[str, Any]) -> dict[str, Any]:
        shown = {}
        for name, value in resource.items():
            key = name.lower()
            if key in {"id", "schemas"}:
                shown[name] = value
            elif wanted:
                subs = wanted.get(key)
                if subs is not None:
                    shown[name] = _part(value, subs) if subs else value
            elif key in unwanted:
                if subs := unwanted[key]:
                    shown[name] = _part(value, subs, wanted=False)
            else:
                shown[name] = value
        return shown

    return select


def names(selected: str) -> frozenset[str]:
    """The attributes that a list names, in lower case."""
    return frozenset(_named(selected))


def selected_whole(selected: str) -> frozenset[str]:
    """The attributes that a list names as a whole, in lower case."""
    return frozenset(name for name, subs in _named(selected).items() if not subs)


def _named(text_: str) -> dict[str, set[str]]:
    """Attributes with the sub-attributes that are named of them, none for all."""
    found: dict[str, set[str]] = {}
    for one in text_.split(","):
        name = one.strip().lower()
        for urn in (USER, GROUP):
            name = name.removeprefix(f"{urn.lower()}:")
        if not name:
            continue
        head, _, sub = name.partition(".")
        if not sub:
            found[head] = set()
        elif head not in found or found[head]:
            found.setdefault(head, set()).add(sub)
    return found


def _part(value: Any, subs: set[str], *, wanted: bool = True) -> Any:
    if isinstance(value, list):
        return [_part(one, subs, wanted=wanted) for one in value]
    if isinstance(value, dict):
        return {name: part for name, part in value.items() if (name.lower() in subs) is wanted}
    return value
