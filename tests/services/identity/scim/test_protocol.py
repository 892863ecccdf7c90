"""SCIM over HTTP: lists, filters, pages, versions, errors, and what is offered."""

from __future__ import annotations

from typing import Any, Final

import grpc
import pytest

from evergreen.v1 import identity_pb2 as pb
from services.identity.scim.schemas import ERROR, GROUP, LIST, SEARCH, USER
from tests.support.identity import as_token, claims
from tests.support.scim import TYPE, Client, World, make_token, world
from tests.support.single_sign_on import fake, reason

__all__ = ["fake", "world"]  # the fixtures

FILTERS: Final[dict[str, set[str]]] = {
    'userName eq "ANNA@school.example"': {"anna"},
    'userName eq "nobody@school.example"': set(),
    f'{USER}:userName eq "anna@school.example"': {"anna"},
    'userName sw "a"': {"anna", "adam"},
    'userName co "@SCHOOL" and active eq true': {"anna", "bert"},
    'active eq "False"': {"adam"},
    "active eq true": {"anna", "bert"},
    "not (active eq true)": {"adam"},
    'externalId eq "Ext-1"': {"anna"},
    'externalId eq "ext-1"': set(),
    "externalId pr": {"anna"},
    'name.familyName eq "berg"': {"anna"},
    'displayName co "%"': {"bert"},
    'displayName ew "_"': set(),
    'emails.value eq "anna@home.example"': {"anna"},
    'emails eq "anna@home.example"': {"anna"},
    'emails[type eq "home" and value co "home"]': {"anna"},
    'emails[type eq "work" and value co "home"]': set(),
    "emails pr": {"anna"},
    'userName eq "anna@school.example" or userName eq "bert@school.example"': {"anna", "bert"},
    'id eq "no id"': set(),
    'id ne "no id"': {"anna", "adam", "bert"},
    'meta.created gt "2020-01-01T00:00:00Z"': {"anna", "adam", "bert"},
    'meta.lastModified lt "2020-01-01T00:00:00Z"': set(),
}


async def _names(scim: Client, path: str, **asked: str) -> set[str]:
    found = await scim.ok("GET", path, params=asked)
    assert found["schemas"] == [LIST]
    assert found["itemsPerPage"] == len(found["Resources"])
    return {
        one.get("userName", one.get("displayName")).partition("@")[0] for one in found["Resources"]
    }


async def test_filters_and_pages(world: World) -> None:
    """As the design names them, and the rest of the standard's; each page once."""
    scim = world.scim
    anna = await scim.user(
        "anna",
        externalId="Ext-1",
        name={"familyName": "Berg"},
        emails=[{"value": "anna@home.example", "type": "home"}],
    )
    adam = await scim.user("adam", active=False)
    bert = await scim.user("bert", displayName="100%")
    for text, expected in FILTERS.items():
        assert await _names(scim, "/Users", filter=text) == expected, text
    asked = f'id eq "{anna["id"]}"'
    assert await _names(scim, "/Users", filter=asked) == {"anna"}
    for text in (
        "userName eq bob",
        'colour eq "red"',
        'active eq "maybe"',
        "active gt true",
        'meta.created eq "yesterday"',
        "userName eq 7",
        "(" * 500,
    ):
        answer = await scim.call("GET", "/Users", params={"filter": text})
        assert (answer.status_code, answer.json()["scimType"]) == (400, "invalidFilter"), text

    staff = await scim.group("staff", anna, bert, externalId="G-1")
    other = await scim.group("other", bert)
    for text, expected in {
        'displayName eq "STAFF"': {"staff"},
        'externalId eq "G-1"': {"staff"},
        f'members.value eq "{anna["id"]}"': {"staff"},
        f'members[value eq "{bert["id"]}"] and displayName sw "o"': {"other"},
        f'id eq "{other["id"]}" and members eq "{bert["id"]}"': {"other"},
        "members pr": {"staff", "other"},
    }.items():
        assert await _names(scim, "/Groups", filter=text) == expected, text
    assert await _names(scim, "/Users", filter=f'groups.value eq "{staff["id"]}"') == {
        "anna",
        "bert",
    }

    seen: list[str] = []
    for start in (1, 2, 3, 4):
        page = await scim.ok("GET", "/Users", params={"startIndex": start, "count": 1})
        assert (page["totalResults"], page["startIndex"]) == (3, start)
        seen += [one["id"] for one in page["Resources"]]
    assert sorted(seen) == sorted(one["id"] for one in (anna, adam, bert))
    for asked_for, length in (
        ({"count": "0"}, 0),
        ({"count": "-5"}, 0),
        ({"startIndex": "-1"}, 3),
        ({"count": "100000"}, 3),
        ({"startIndex": "9" * 30}, 0),
    ):
        page = await scim.ok("GET", "/Users", params=asked_for)
        assert (page["totalResults"], len(page["Resources"])) == (3, length)
    answer = await scim.call("GET", "/Users", params={"count": "many"})
    assert (answer.status_code, answer.json()["scimType"]) == (400, "invalidValue")


async def test_searches(world: World) -> None:
    """By a body, of one kind or of both, page by page."""
    anna, bert = await world.scim.user("anna"), await world.scim.user("bert")
    staff = await world.scim.group("staff", anna)
    ids = [anna["id"], bert["id"], staff["id"]]
    for path, more, expected in (
        ("/.search", {}, ids),
        ("/.search", {"count": 1, "startIndex": 2}, ids[1:2]),
        ("/.search", {"count": 2, "startIndex": 2}, ids[1:]),
        ("/.search", {"startIndex": 3}, ids[2:]),
        ("/.search", {"filter": 'displayName eq "staff"'}, ids[2:]),
        ("/.search", {"filter": 'userName sw "a"'}, ids[:1]),
        ("/Users/.search", {"filter": 'userName sw "b"'}, ids[1:2]),
        ("/Groups/.search", {}, ids[2:]),
    ):
        found = await world.scim.ok("POST", path, {"schemas": [SEARCH], **more})
        assert [one["id"] for one in found["Resources"]] == expected, (path, more)
    asked = {"attributes": ["userName"], "excludedAttributes": None}
    found = await world.scim.ok("POST", "/Users/.search", asked)
    assert set(found["Resources"][0]) == {"schemas", "id", "userName"}
    wrong: list[dict[str, Any]] = [
        {"filter": "colour pr"}, {"filter": {}}, {"schemas": [USER]}, {"count": True},
    ]  # fmt: skip
    for body in wrong:
        answer = await world.scim.call("POST", "/.search", body)
        assert answer.status_code == 400, answer.text


async def test_what_is_shown(world: World) -> None:
    """Whole resources with their addresses, or the attributes that were asked for."""
    anna = await world.scim.user("anna", name={"givenName": "Anna", "familyName": "Berg"})
    group = await world.scim.group("staff", anna)
    base = "https://evergreen.example/scim/v2"
    assert anna["meta"]["location"] == f"{base}/Users/{anna['id']}"
    path = f"/Users/{anna['id']}"
    shown = await world.scim.ok("GET", path)
    assert shown["groups"] == [
        {"value": group["id"], "$ref": f"{base}/Groups/{group['id']}", "display": "staff"}
    ]
    assert group["members"] == [
        {
            "value": anna["id"],
            "$ref": f"{base}/Users/{anna['id']}",
            "type": "User",
        }
    ]
    always = {"schemas", "id"}
    for asked, expected in (
        ({"attributes": "userName"}, {"userName"}),
        ({"attributes": f"{USER}:userName,ACTIVE"}, {"userName", "active"}),
        ({"excludedAttributes": "groups,meta,name"}, {"userName", "active"}),
        ({"attributes": "colour"}, set()),
    ):
        assert set(await world.scim.ok("GET", path, params=asked)) == always | expected
    part = await world.scim.ok("GET", path, params={"attributes": "name.givenName"})
    assert part["name"] == {"givenName": "Anna"}
    part = await world.scim.ok("GET", path, params={"excludedAttributes": "name.givenName"})
    assert part["name"] == {"familyName": "Berg"}
    for asked in ({"excludedAttributes": "members"}, {"attributes": "displayName"}):
        found = await world.scim.ok("GET", f"/Groups/{group['id']}", params=asked)
        assert "members" not in found
        (found,) = (await world.scim.ok("GET", "/Groups", params=asked))["Resources"]
        assert "members" not in found


async def test_versions(world: World) -> None:
    """A change of another version than the client has seen is refused; a known one is not sent."""
    anna = await world.scim.user("anna")
    path = f"/Users/{anna['id']}"
    first = anna["meta"]["version"]
    answer = await world.scim.call("GET", path, headers={"if-none-match": first})
    assert (answer.status_code, answer.headers["etag"]) == (304, first)
    body = {"userName": "anna@school.example", "displayName": "A"}
    answer = await world.scim.call("PUT", path, body, headers={"if-match": first})
    assert answer.status_code == 200
    assert answer.headers["etag"] == answer.json()["meta"]["version"] != first
    assert answer.json()["active"] is True
    for verb in ("PUT", "DELETE"):
        answer = await world.scim.call(verb, path, body, headers={"if-match": first})
        assert (answer.status_code, answer.json()["status"]) == (412, "412")
    same = await world.scim.call("PUT", path, body, headers={"if-match": "*"})
    again = await world.scim.call("PUT", path, body)
    assert same.headers["etag"] == again.headers["etag"], "nothing has changed"
    assert len(await world.events("scim_person_updated")) == 1


async def test_what_is_offered(world: World) -> None:
    """The configuration, types and schemas that the standard wants; and what is not."""
    config = await world.scim.ok("GET", "/ServiceProviderConfig")
    offered = {name: config[name]["supported"] for name in ("patch", "bulk", "filter", "sort")}
    assert offered == {"patch": True, "bulk": False, "filter": True, "sort": False}
    types = (await world.scim.ok("GET", "/ResourceTypes"))["Resources"]
    assert [one["endpoint"] for one in types] == ["/Users", "/Groups"]
    schemas = (await world.scim.ok("GET", "/Schemas"))["Resources"]
    assert [one["id"] for one in schemas] == [USER, GROUP]
    for one in (*types, *schemas):
        path = one["meta"]["location"].partition("/scim/v2")[2]
        assert await world.scim.ok("GET", path) == one
    for verb, path, status in (
        ("POST", "/Bulk", 501),
        ("GET", "/Me", 501),
        ("GET", "/Users/.search", 405),
        ("GET", "/.search", 405),
        ("POST", "/Schemas", 405),
        ("PUT", "/Users", 405),
        ("POST", "/Users/x", 405),
        ("GET", "/Schemas/urn:x", 404),
        ("GET", "/Users/x", 404),
        ("GET", "/Users/x/y", 404),
        ("GET", "/", 404),
        ("GET", "/Nothing", 404),
    ):
        answer = await world.scim.call(verb, path, {} if verb != "GET" else None)
        body = answer.json()
        assert (answer.status_code, body["status"]) == (status, str(status)), (verb, path)
        assert body["schemas"] == [ERROR]
        assert answer.headers["content-type"] == TYPE
    answer = await world.scim.call("GET", "/Schemas", params={"filter": 'id eq "x"'})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b'{"userName": NaN}', b'{"userName": 7}'],
)
async def test_bodies_that_are_none(world: World, content: bytes) -> None:
    """They are the client's mistake."""
    answer = await world.scim.http.post(
        "/scim/v2/Users", content=content, headers=world.scim.headers
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["scimType"] in {"invalidSyntax", "invalidValue"}
    if content:
        return
    large = b'{"userName": "' + b"x" * (300 << 10) + b'"}'
    answer = await world.scim.http.post("/scim/v2/Users", content=large, headers=world.scim.headers)
    assert answer.status_code == 413
    headers = world.scim.headers | {"content-type": "text/plain"}
    answer = await world.scim.http.post("/scim/v2/Users", content=b"{}", headers=headers)
    assert answer.status_code == 415


async def test_a_token_opens_its_source_alone(world: World) -> None:
    """And no call of users; no user's token opens SCIM. Rotated, revoked and expired ones end."""
    said = claims(world.token.token.removeprefix("evt_"))
    assert (said["knd"], said["own"], said.get("role")) == ("scim", world.source.id, None)
    metadata = as_token(world.token.token)
    for call in (
        world.identity.users.ListUsers(pb.ListUsersRequest(), metadata=metadata),
        world.identity.auth.GetSession(pb.GetSessionRequest(), metadata=metadata),
        world.identity.scim.ListScimSources(pb.ListScimSourcesRequest(), metadata=metadata),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert reason(error) == "NO_USER_TOKEN"
    usual = await world.identity.tokens.CreateApiToken(
        pb.CreateApiTokenRequest(name="usual", scopes=["users:write"]), metadata=world.owner
    )
    headers = {**dict(as_token(usual.token)), "content-type": TYPE}
    for given in (headers, dict(world.owner), {}):
        answer = await world.sso.http.get("/scim/v2/Users", headers=given)
        assert answer.status_code == 401, answer.text
        assert answer.json()["schemas"] == [ERROR]

    listed = await world.identity.tokens.ListApiTokens(
        pb.ListApiTokensRequest(scim_source_id=world.source.id), metadata=world.owner
    )
    assert [(one.id, one.scim_source_id) for one in listed.tokens] == [
        (world.token.id, world.source.id)
    ]
    second = await world.identity.tokens.RotateApiToken(
        pb.RotateApiTokenRequest(id=world.token.id, overlap_hours=1), metadata=world.owner
    )
    assert (await world.scim.call("GET", "/Users")).status_code == 200
    newer = Client(world.sso.http, {**dict(as_token(second.token)), "content-type": TYPE})
    await newer.user("anna")
    for wrong in ({"scopes": ["users:read"]}, {"role": "Auditor"}, {"org_id": world.school.id}):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await make_token(world.identity, world.owner, world.source, **wrong)
        assert reason(error) == "INVALID_FIELD"
    await world.identity.tokens.RevokeApiToken(
        pb.RevokeApiTokenRequest(id=second.id), metadata=world.owner
    )
    assert (await newer.call("GET", "/Users")).status_code == 401
