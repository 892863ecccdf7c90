"""How Entra, Okta and others write changes, as a table: what comes of each."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import pytest

from servicekit.errors import DomainError
from services.identity.scim import filters, resources
from services.identity.scim.filters import matches, parse
from services.identity.scim.patches import GroupChange, group_change, patched_user
from services.identity.scim.schemas import ENTERPRISE, GROUP, PATCH, USER

WORK: Final = {"value": "anna@school.example", "type": "work", "primary": True}
HOME: Final = {"value": "anna@home.example", "type": "home"}
ANNA: Final = {
    "userName": "anna@school.example",
    "externalId": "1",
    "active": True,
    "name": {"givenName": "Anna", "familyName": "Berg"},
    "displayName": "Anna Berg",
    "emails": [WORK, HOME],
}
A, B, C = (UUID(int=number) for number in (1, 2, 3))


def op(verb: str, path: Any = None, value: Any = None, *, valued: bool = True) -> dict[str, Any]:
    said = {"op": verb}
    if path is not None:
        said["path"] = path
    if valued and not (verb.lower() == "remove" and value is None):
        said["value"] = value
    return said


USERS: Final[dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]] = {
    "Entra: active as a text": ([op("Replace", "active", "False")], {"active": False}),
    "Entra: active as a text in lower case": (
        [op("replace", "active", "false")],
        {"active": False},
    ),
    "Entra: capitalised verbs": ([op("Add", "displayName", "A")], {"displayName": "A"}),
    "Entra: an address by its type": (
        [op("Replace", 'emails[type eq "work"].value', "a@b.example")],
        {"emails": [WORK | {"value": "a@b.example"}, HOME]},
    ),
    "Entra: an address of a type that is not there": (
        [op("Add", 'emails[type eq "other"].value', "a@b.example")],
        {"emails": [WORK, HOME, {"type": "other", "value": "a@b.example"}]},
    ),
    "Entra: replaced although not there": (
        [op("Replace", 'emails[type eq "other"].value', "a@b.example")],
        {"emails": [WORK, HOME, {"type": "other", "value": "a@b.example"}]},
    ),
    "Entra: paths for names": (
        [op("Add", None, {"name.givenName": "A", "displayName": "A B"})],
        {"displayName": "A B", "name": {"givenName": "A", "familyName": "Berg"}},
    ),
    "Entra: paths with filters for names": (
        [op("Replace", None, {'emails[type eq "home"].value': "a@b.example"})],
        {"emails": [WORK, {"value": "a@b.example", "type": "home"}]},
    ),
    "Entra: what is not kept": (
        [
            op("Replace", "title", "Dr"),
            op("Add", 'addresses[type eq "work"].country', "DE"),
            op("Add", 'phoneNumbers[type eq "work"].value', "1"),
            op("Add", f"{ENTERPRISE}:department", "Maths"),
            op("Add", f"{ENTERPRISE}:manager", {"value": "7"}),
            op("Replace", None, {f"{ENTERPRISE}:employeeNumber": "7", "preferredLanguage": "de"}),
            op("Replace", "name.middleName", "X"),
        ],
        {},
    ),
    "Okta: an object without a path": (
        [op("replace", None, {"active": False})],
        {"active": False},
    ),
    "Okta: a whole resource without a path": (
        [op("replace", None, {"id": "7", "schemas": [USER], "displayName": "A", "password": "x"})],
        {"displayName": "A"},
    ),
    "names with the schema": (
        [
            op("replace", f"{USER}:userName", "b"),
            op("replace", f"{USER}:name.familyName", "B"),
            op("replace", None, {USER: {"displayName": "B"}}),
        ],
        {"userName": "b", "displayName": "B", "name": {"givenName": "Anna", "familyName": "B"}},
    ),
    "names in another case": (
        [op("REPLACE", "USERNAME", "b"), op("replace", "Name.FAMILYname", "B")],
        {"userName": "b", "name": {"givenName": "Anna", "familyName": "B"}},
    ),
    "the same address twice": (
        [op("Add", "emails", [WORK]), op("add", "emails", WORK)],
        {
            "emails": [HOME, WORK],
        },
    ),
    "another primary address": (
        [op("add", "emails", [{"value": "x@b.example", "primary": "True"}])],
        {
            "emails": [
                WORK | {"primary": False},
                HOME,
                {"value": "x@b.example", "primary": True},
            ]
        },
    ),
    "addresses instead": (
        [op("replace", "emails", [{"value": "x@b.example"}])],
        {"emails": [{"value": "x@b.example"}]},
    ),
    "an address goes": ([op("remove", 'emails[type eq "home"]')], {"emails": [WORK]}),
    "an address goes by its value": (
        [op("remove", "emails", [{"value": "anna@home.example"}])],
        {"emails": [WORK]},
    ),
    "a part of an address goes": (
        [op("remove", 'emails[value ew "home.example" and not (primary eq true)].type')],
        {"emails": [WORK, {"value": "anna@home.example"}]},
    ),
    "all addresses go": ([op("remove", "emails")], {"emails": None}),
    "a name goes": ([op("remove", "name.givenName")], {"name": {"familyName": "Berg"}}),
    "the external id goes": ([op("remove", "externalId")], {"externalId": None}),
    "the last one counts": (
        [op("replace", "active", False), op("replace", "active", True)],
        {"active": True},
    ),
    "null is nothing": ([op("replace", "displayName", None)], {"displayName": None}),
}
"""Changes of a user, and what is another one then; `None` for what is there no more."""


@pytest.mark.parametrize("case", USERS)
def test_changes_of_users(case: str) -> None:
    """What is not named stays."""
    operations, changed = USERS[case]
    after = patched_user(ANNA, {"schemas": [PATCH], "Operations": operations})
    expected = {k: v for k, v in {**ANNA, **changed}.items() if v is not None}
    assert _plain(after) == _plain(expected)
    assert ANNA["emails"] == [WORK, HOME], "the one before is as it was"


def _plain(user: dict[str, Any]) -> dict[str, Any]:
    emails = sorted(user.get("emails", []), key=lambda one: str(one["value"]))
    return {**user, "emails": [{k: v for k, v in one.items() if v} for one in emails]}


def members(*ids: UUID) -> list[dict[str, str]]:
    return [{"value": str(one)} for one in ids]


GROUPS: Final[dict[str, tuple[list[dict[str, Any]], GroupChange]]] = {
    "added": ([op("Add", "members", members(A, B))], GroupChange(added={A, B})),
    "added twice": (
        [op("add", "members", members(A)), op("add", "members", members(A))],
        GroupChange(added={A}),
    ),
    "added without a path": (
        [op("add", None, {"members": members(A)})],
        GroupChange(added={A}),
    ),
    "added with type and address": (
        [op("add", "members", [{"value": str(A), "$ref": "/Users/1", "type": "User"}])],
        GroupChange(added={A}),
    ),
    "Okta: one object": ([op("add", "members", {"value": str(A)})], GroupChange(added={A})),
    "removed by a filter": (
        [op("Remove", f'members[value eq "{A}"]')],
        GroupChange(removed={A}),
    ),
    "removed by several": (
        [op("remove", f'members[value eq "{A}" or value eq "{B}"]')],
        GroupChange(removed={A, B}),
    ),
    "older Entra: removed by a value": (
        [op("Remove", "members", members(A))],
        GroupChange(removed={A}),
    ),
    "everybody removed": ([op("remove", "members")], GroupChange(instead=set())),
    "replaced": ([op("replace", "members", members(A, B))], GroupChange(instead={A, B})),
    "replaced, then others": (
        [
            op("replace", "members", members(A, B)),
            op("add", "members", members(C)),
            op("remove", "members", members(A)),
        ],
        GroupChange(instead={B}, added={C}, removed={A}),
    ),
    "in and out": (
        [op("add", "members", members(A)), op("remove", "members", members(A))],
        GroupChange(removed={A}),
    ),
    "with the schema": (
        [op("add", f"{GROUP}:members", members(A))],
        GroupChange(added={A}),
    ),
    "Okta: another name": (
        [op("replace", None, {"id": str(A), "displayName": "B"})],
        GroupChange(display_name="B"),
    ),
    "another name by a path": (
        [op("Replace", "displayName", "B")],
        GroupChange(display_name="B"),
    ),
    "another external id": ([op("add", "externalId", "B")], GroupChange(external_id="B")),
    "no external id": ([op("remove", "externalId")], GroupChange(external_id="")),
}
"""Changes of a group, and what they come to."""


@pytest.mark.parametrize("case", GROUPS)
def test_changes_of_groups(case: str) -> None:
    """Members that nobody names stay."""
    operations, expected = GROUPS[case]
    assert group_change({"schemas": [PATCH], "Operations": operations}) == expected


WRONG: Final[dict[str, tuple[str, Any, str]]] = {
    "no operations": ("User", {"Operations": []}, "invalidSyntax"),
    "operations that are none": ("User", {"Operations": {"op": "add"}}, "invalidSyntax"),
    "another verb": ("User", {"Operations": [op("move", "active", True)]}, "invalidSyntax"),
    "another schema": (
        "User",
        {"schemas": [USER], "Operations": [op("add", "active", 1)]},
        "invalidSyntax",
    ),
    "no value": ("User", {"Operations": [op("add", "active", valued=False)]}, "invalidValue"),
    "no path to remove": ("User", {"Operations": [op("remove")]}, "noTarget"),
    "no object without a path": ("User", {"Operations": [op("add", None, 7)]}, "invalidValue"),
    "a name that nothing has": ("User", {"Operations": [op("add", "colour", 1)]}, "invalidPath"),
    "a schema that is not offered": (
        "User",
        {"Operations": [op("add", "urn:acme:User:colour", 1)]},
        "invalidPath",
    ),
    "a path that is none": ("User", {"Operations": [op("add", "emails[", 1)]}, "invalidPath"),
    "a filter that is none": (
        "User",
        {"Operations": [op("add", "emails[type eq work].value", "x")]},
        "invalidFilter",
    ),
    "a filter of a simple one": (
        "User",
        {"Operations": [op("add", 'active[value eq "x"]', True)]},
        "invalidPath",
    ),
    "a path that is a number": ("User", {"Operations": [op("add", 7, True)]}, "invalidPath"),
    "the id": ("User", {"Operations": [op("replace", "id", "7")]}, "mutability"),
    "groups of a user": ("User", {"Operations": [op("add", "groups", [])]}, "mutability"),
    "no user name": ("User", {"Operations": [op("remove", "userName")]}, "mutability"),
    "neither active nor not": ("User", {"Operations": [op("remove", "active")]}, "mutability"),
    "active like nothing": ("User", {"Operations": [op("add", "active", "yes")]}, "invalidValue"),
    "a number as a name": ("User", {"Operations": [op("add", "displayName", 7)]}, "invalidValue"),
    "a name of two lines": (
        "User",
        {"Operations": [op("add", "displayName", "a\nb")]},
        "invalidValue",
    ),
    "a name with a null": (
        "User",
        {"Operations": [op("add", "displayName", "a\0b")]},
        "invalidValue",
    ),
    "half a character": (
        "User",
        {"Operations": [op("add", "displayName", "\ud800")]},
        "invalidValue",
    ),
    "a long name": ("User", {"Operations": [op("add", "displayName", "x" * 300)]}, "invalidValue"),
    "two primary addresses": (
        "User",
        {
            "Operations": [
                op("replace", "emails", [WORK, {"value": "b@b.example", "primary": True}])
            ]
        },
        "invalidValue",
    ),
    "an address that nothing has": (
        "User",
        {"Operations": [op("replace", 'emails[value co "zz" or type eq "zz"].type', "work")]},
        "noTarget",
    ),
    "many operations": (
        "User",
        {"Operations": [op("add", "active", True)] * 201},
        "tooMany",
    ),
    "no name of a group": ("Group", {"Operations": [op("remove", "displayName")]}, "mutability"),
    "a blank name": ("Group", {"Operations": [op("add", "displayName", " ")]}, "invalidValue"),
    "a member that is no id": (
        "Group",
        {"Operations": [op("add", "members", [{"value": "x"}])]},
        "invalidValue",
    ),
    "a member that is a text": (
        "Group",
        {"Operations": [op("add", "members", ["x"])]},
        "invalidValue",
    ),
    "a group as a member": (
        "Group",
        {"Operations": [op("add", "members", [{"value": str(A), "type": "Group"}])]},
        "invalidValue",
    ),
    "members by another one": (
        "Group",
        {"Operations": [op("remove", 'members[display eq "x"]')]},
        "invalidFilter",
    ),
    "a part of members": (
        "Group",
        {"Operations": [op("replace", "members.value", "x")]},
        "invalidPath",
    ),
    "a changed member": (
        "Group",
        {"Operations": [op("replace", f'members[value eq "{A}"]', {"value": str(B)})]},
        "mutability",
    ),
}
"""Changes that are refused, and how."""


@pytest.mark.parametrize("case", WRONG)
def test_wrong_changes(case: str) -> None:
    """Each is refused by its kind, and names what is wrong."""
    kind, body, scim_type = WRONG[case]
    with pytest.raises(DomainError) as error:
        patched_user(ANNA, body) if kind == "User" else group_change(body)
    assert error.value.metadata["scimType"] == scim_type
    assert error.value.message


BODIES: Final[dict[str, tuple[dict[str, Any], dict[str, Any] | str]]] = {
    "Okta's": (
        {
            "schemas": [USER],
            "userName": "a@b.example",
            "name": {"givenName": "A", "familyName": "B", "middleName": "C"},
            "emails": [{"primary": True, "value": "a@b.example", "type": "work"}],
            "displayName": "A B",
            "locale": "en-US",
            "externalId": "00u",
            "groups": [],
            "password": "1mz050nq",
            "active": True,
        },
        {
            "userName": "a@b.example",
            "name": {"givenName": "A", "familyName": "B"},
            "emails": [{"primary": True, "value": "a@b.example", "type": "work"}],
            "displayName": "A B",
            "externalId": "00u",
            "active": True,
        },
    ),
    "Entra's": (
        {
            "schemas": [USER, ENTERPRISE],
            "externalId": "0a21f0f2",
            "userName": "a@b.example",
            "active": "True",
            "emails": [{"primary": "true", "type": "work", "value": "a@b.example"}],
            "meta": {"resourceType": "User"},
            "name": {"formatted": "A B"},
            "roles": [],
            ENTERPRISE: {"department": "Maths"},
        },
        {
            "externalId": "0a21f0f2",
            "userName": "a@b.example",
            "active": True,
            "emails": [{"primary": True, "type": "work", "value": "a@b.example"}],
            "name": {"formatted": "A B"},
        },
    ),
    "names in another case": (
        {"USERNAME": "a", "DisplayName": "A"},
        {"userName": "a", "displayName": "A"},
    ),
    "nothing": ({}, "invalidValue"),
    "a blank user name": ({"userName": "  "}, "invalidValue"),
    "a name that nothing has": ({"userName": "a", "colour": "red"}, "invalidSyntax"),
    "a schema that is not offered": ({"userName": "a", "urn:acme:User": {}}, "invalidSyntax"),
    "a group's schema": ({"schemas": [GROUP], "userName": "a"}, "invalidSyntax"),
    "schemas that are none": ({"schemas": "x", "userName": "a"}, "invalidSyntax"),
    "a name that is a text": ({"userName": "a", "name": "A"}, "invalidValue"),
    "an address that is a text": ({"userName": "a", "emails": ["a@b.example"]}, "invalidValue"),
    "many addresses": (
        {"userName": "a", "emails": [{"value": f"{n}@b.example"} for n in range(21)]},
        "invalidValue",
    ),
}
"""Whole users, and what is kept of them, or how they are refused."""


@pytest.mark.parametrize("case", BODIES)
def test_whole_users(case: str) -> None:
    """What the standard has and nobody keeps is dropped; what it has not is refused."""
    body, expected = BODIES[case]
    if isinstance(expected, dict):
        assert resources.user_body(body) == expected
        return
    with pytest.raises(DomainError) as error:
        resources.user_body(body)
    assert error.value.metadata["scimType"] == expected


FILTERS: Final[dict[str, bool]] = {
    'type eq "WORK"': True,
    'type ne "work"': False,
    'value co "SCHOOL"': True,
    'value sw "anna" and value ew ".example"': True,
    'not (type eq "home")': True,
    'type eq "x" or primary eq true': True,
    'type eq "x" or type eq "y" and type eq "work"': False,
    '(type eq "x" or type eq "work") and primary pr': True,
    'primary eq "True"': True,
    "primary eq false": False,
    "display pr": False,
    "display eq null": True,
    'TYPE EQ "work" AND PRIMARY EQ TRUE': True,
    'value gt "a" and value le "b"': True,
    'value eq "anna@school.example\\u0020"': False,
}


@pytest.mark.parametrize("text", FILTERS)
def test_filters_of_values(text: str) -> None:
    """`and` before `or`, `not`, brackets; upper and lower case are the same."""
    assert matches(parse(text), WORK) is FILTERS[text]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "userName", "userName eq", "userName eq Bob", "userName xx \"a\"", 'eq "a"',
        'userName eq "a" and', 'userName eq "a" userName pr', '(userName eq "a"', 'a eq "a")',
        "not userName pr", 'a eq "a', "a[b eq 1", 'a eq "\\x"', "a eq 1.2.3", "a eq 'b'",
        'a eq "\\u0000"', 'a eq "\\ud800"', "true eq true", "a eq {}", "; drop table",
        "(" * 2_000, "(" * 30 + "a pr" + ")" * 30, " or ".join(["a pr"] * 101), "a" * 2_001,
    ],
)  # fmt: skip
def test_filters_that_are_none(text: str) -> None:
    """They are refused, however deep or long."""
    with pytest.raises(DomainError) as error:
        parse(text)
    assert error.value.metadata["scimType"] == "invalidFilter"


def test_a_filter_is_never_sql() -> None:
    """What it compares with is a parameter, and names are those of a table."""
    from services.identity.scim.people_store import PERSON_FIELDS  # noqa: PLC0415

    nasty = "x' OR 1=1; --"
    parameters: list[Any] = []
    found = parse(f'userName eq "{nasty}" and emails[value co "{nasty}"]')
    sql = filters.to_sql(found, PERSON_FIELDS, parameters, USER)
    assert parameters == [nasty.casefold(), nasty]
    assert "1=1" not in sql
    for text in (f'{"x" * 50} eq "a"', 'password eq "a"', 'emails.colour eq "a"', 'name eq "a"'):
        with pytest.raises(DomainError):
            filters.to_sql(parse(text), PERSON_FIELDS, [], USER)
