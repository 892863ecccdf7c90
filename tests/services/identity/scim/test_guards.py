"""What an attacker with a source's token, or an account over there, does not get."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from uuid import uuid4

import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from services.identity.scim.schemas import SEARCH
from services.identity.users import store as users_store
from tests.support.scim import World, world
from tests.support.single_sign_on import fake, row
from tests.support.stack import PATIENCE

__all__ = ["fake", "world"]  # the fixtures


async def _ways_in(world: World, user_id: str) -> tuple[int, int, int]:
    """How many links with providers, authenticator apps and open sessions somebody has."""
    connection = await world.identity.database.superuser()
    try:
        found = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM identity.external_identity e JOIN identity.source s"
            " ON s.id = e.source_id WHERE e.account_id = $1 AND s.kind <> 'scim'),"
            " (SELECT count(*) FROM identity.totp WHERE account_id = $1),"
            " (SELECT count(*) FROM identity.session WHERE account_id = $1 AND ended_at IS NULL)",
            user_id,
        )
    finally:
        await connection.close()
    assert found is not None
    return tuple(found)


async def _with_factor(world: World, user_id: str) -> None:
    connection = await world.identity.database.superuser()
    try:
        await connection.execute(
            "INSERT INTO identity.totp VALUES ($1, $2, '\\x00', now(), now(), 0)",
            uuid4(),
            user_id,
        )
    finally:
        await connection.close()


async def test_who_comes_after_somebody_does_not_share_the_account(world: World) -> None:
    """What opened it ends with a deletion: links, second factors, passkeys, sessions."""
    anna = await world.scim.user("anna", externalId="1")
    group = await world.scim.group("staff", anna)
    world.sso.sso.person("anna")
    said = await world.sso.login("anna")
    await _with_factor(world, said["sub"])
    assert await _ways_in(world, said["sub"]) == (1, 1, 1)
    await world.scim.ok("DELETE", f"/Users/{anna['id']}")
    assert await _ways_in(world, said["sub"]) == (0, 0, 0)
    events = await world.events("account_unlinked", "mfa_reset")
    assert [one["actor"] for one in events] == [f"scim:{world.source.id}"] * 2
    other = await world.scim.user("anna", externalId="2")
    await world.scim.add(group, other)
    # Over there, the address is the new one's by now.
    world.sso.sso.person("anna", email="gone@school.example")
    world.sso.sso.person("anna2", email="anna@school.example")
    await world.sso.refused("anna")
    assert (await world.sso.login("anna2"))["sub"] == said["sub"]


async def test_who_comes_after_somebody_who_is_held_does_not_either(world: World) -> None:
    """The account was never disabled; another external id is another human."""
    people = [await world.scim.user(f"p{number}", externalId=f"{number}") for number in range(6)]
    group = await world.scim.group("staff", *people)
    world.sso.sso.person("p5")
    said = await world.sso.login("p5")
    for one in people:
        await world.scim.ok("DELETE", f"/Users/{one['id']}")
    assert await _ways_in(world, said["sub"]) == (1, 0, 1)
    assert await world.user("p5") == ("Auditor", "active")
    other = await world.scim.user("p5", externalId="another")
    assert await _ways_in(world, said["sub"]) == (0, 0, 0)
    await world.scim.add(group, other)
    assert await world.user("p5") == ("Auditor", "active")


async def test_held_is_held_until_an_owner_says_otherwise(world: World) -> None:
    """A day later, too; and while somebody is held, nobody else loses access."""
    people = [await world.scim.user(f"p{number}") for number in range(8)]
    await world.scim.group("staff", *people)
    for one in people[:7]:
        await world.scim.activate(one, False)
    assert (await world.now()).held == 2
    world.sso.clock.ahead = timedelta(hours=25)
    await world.scim.activate(people[5], False)
    await world.scim.activate(people[7], False)
    world.sso.clock.ahead = timedelta()
    assert (await world.now()).held == 3
    assert await world.user("p5") == ("Auditor", "active")
    assert await world.user("p7") == ("Auditor", "active")


async def test_unmapped_groups_wait_for_nobody(world: World) -> None:
    """Nor does what changes no account: one source does not stall the others."""
    anna = await world.scim.user("anna")
    await world.scim.group("admins", anna)
    staff = await world.scim.group("staff")
    connection = await world.identity.database.superuser()
    try:
        async with connection.transaction(), asyncio.timeout(20):
            await users_store.take_turns(connection)
            others = await world.scim.group("others", anna)
            await world.scim.remove(others, anna)
            await world.scim.add(staff, anna)
    finally:
        await connection.close()
    assert await world.user("anna") == ("Admin", "active")


@pytest.mark.parametrize("given", ["77ab", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"])
async def test_no_name_poses_as_a_mapped_id(world: World, given: str) -> None:
    """A group's name is not another one's external id; what is a UUID is never a name."""
    await world.update(role_mappings=[row(given, Role.ADMIN)])
    anna = await world.scim.user("anna")
    real = await world.scim.group("the real one", externalId=given)
    for body in (
        {"displayName": given},
        {"displayName": "x", "externalId": given},
        {"displayName": "x", "externalId": "the real one"},
    ):
        answer = await world.scim.call("POST", "/Groups", body)
        assert (answer.status_code, answer.json()["scimType"]) == (409, "uniqueness")
    other = await world.scim.group("other", anna)
    for path in ("displayName", "externalId"):
        change = {"op": "replace", "path": path, "value": given}
        answer = await world.scim.call("PATCH", f"/Groups/{other['id']}", {"Operations": [change]})
        assert answer.status_code == 409
    await world.scim.ok("DELETE", f"/Groups/{real['id']}")
    await world.scim.patch(
        f"/Groups/{other['id']}", {"op": "replace", "path": "displayName", "value": given}
    )
    has = (await world.users()).get("anna")
    assert (has is None) == (len(given) == 36)


async def test_foreign_addresses_tell_nothing_and_take_nothing(world: World) -> None:
    """Whether somebody has one elsewhere, or was invited with one, makes no difference."""
    other = await world.identity.org(world.sso.root, "Other school")
    for address, org_id in (("head@other.example", other.id), ("guest@other.example", "")):
        await world.identity.users.CreateUser(
            pb.CreateUserRequest(email=address, role="Admin", org_id=org_id),
            metadata=world.sso.root if org_id else world.owner,
        )
    people = [await world.scim.user(f"{name}@other.example") for name in ("head", "guest", "no")]
    await world.scim.group("staff", *people)
    assert set((await world.problems()).values()) == {"EMAIL_DOMAIN"}
    guest = (await world.users())["guest"]
    assert (guest.status, guest.role, guest.origin) == ("invited", "Admin", "local")


async def test_the_first_login_looks_again_when_it_is_its_turn(world: World) -> None:
    """An address that went to somebody else meanwhile opens nothing of its former owner's."""
    anna = await world.scim.user("anna")
    await world.scim.group("owners", anna)
    world.sso.sso.person("anna")
    browser = world.sso.browser()
    connection = await world.identity.database.superuser()
    try:
        async with connection.transaction():
            await users_store.take_turns(connection)
            arrives = asyncio.create_task(world.sso.arrive(browser, "anna"))
            async with asyncio.timeout(20):
                while not await connection.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                ):
                    await asyncio.sleep(0.05)
            await connection.execute(
                "UPDATE identity.account SET email = 'anna.b@school.example'"
                " WHERE email = 'anna@school.example'"
            )
        answer = await arrives
    finally:
        await connection.close()
    assert answer.status_code >= 400
    assert "session" not in browser.cookies


async def test_nothing_that_a_client_sends_is_an_internal_error(world: World) -> None:
    """Half of a pair of surrogates, and times that no calendar has in UTC."""
    bad = "\ud800"
    headers = world.scim.headers | {"x-request-id": str(uuid4())}
    for path, body in (
        ("/Groups", {"displayName": "x", "members": [{"value": bad}]}),
        ("/Users", {"userName": "x", bad: 1}),
        ("/Users", {"userName": "x", "schemas": [bad]}),
        ("/.search", {"schemas": [SEARCH], bad: [1]}),
    ):
        answer = await world.scim.http.post(
            f"/scim/v2{path}", content=json.dumps(body).encode(), headers=headers
        )
        assert answer.status_code == 400, (path, answer.text)
    for at in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        asked = {"filter": f'meta.created gt "{at}"'}
        answer = await world.scim.call("GET", "/Users", params=asked)
        assert (answer.status_code, answer.json()["scimType"]) == (400, "invalidFilter")
    answer = await world.scim.call("PUT", "/Users")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")


async def test_names_are_found_as_they_are_kept(world: World) -> None:
    """Whatever upper and lower case are in them; by an index."""
    for name in ("Straße", "ΑΣ", "Ǆ"):
        made = await world.scim.user(name, userName=name, externalId=name, displayName=name)
        group = await world.scim.group(name)
        for attribute in ("userName", "externalId", "displayName"):
            exact = attribute == "externalId"
            said = (name,) if exact else (name, name.lower(), name.upper())
            if attribute == "displayName":
                said = (name, name.lower())
            for one in said:
                asked = {"filter": f'{attribute} eq "{one}"'}
                found = await world.scim.ok("GET", "/Users", params=asked)
                assert [u["id"] for u in found["Resources"]] == [made["id"]], (attribute, one)
        asked = {"filter": f'displayName eq "{name.upper()}"'}
        found = await world.scim.ok("GET", "/Groups", params=asked)
        assert [g["id"] for g in found["Resources"]] == [group["id"]]
    asked = {"filter": 'not (externalId eq "x")'}
    await world.scim.user("none", userName="none")
    assert (await world.scim.ok("GET", "/Users", params=asked))["totalResults"] == 4


async def test_a_name_of_somebody_deleted_is_free_again(world: World) -> None:
    """For another one who is renamed; the deleted one is not found by it any more."""
    first = await world.scim.user("first", userName="first")
    await world.scim.ok("DELETE", f"/Users/{first['id']}")
    other = await world.scim.user("other", userName="other")
    change = {"op": "replace", "path": "userName", "value": "First"}
    await world.scim.patch(f"/Users/{other['id']}", change)
    assert (await world.scim.call("POST", "/Users", {"userName": "first"})).status_code == 409


async def test_a_group_keeps_members_of_whom_a_put_says_nothing(world: World) -> None:
    """An empty list empties it."""
    anna = await world.scim.user("anna")
    group = await world.scim.group("staff", anna)
    await world.scim.ok("PUT", f"/Groups/{group['id']}", {"displayName": "staff"})
    assert await world.user("anna") == ("Auditor", "active")
    body = {"displayName": "staff", "members": []}
    await world.scim.ok("PUT", f"/Groups/{group['id']}", body)
    assert await world.user("anna") == ("Auditor", "disabled")


async def test_nobody_is_stuck_when_others_have_solved_the_problem(world: World) -> None:
    """A domain that is assigned later, an address that is free again, a user who may come back."""
    people = [await world.scim.user(f"{name}@later.example") for name in ("anna", "bert")]
    carl = await world.scim.user("carl")
    await world.scim.group("staff", *people, carl)
    assert await world.problems() == {"anna": "EMAIL_DOMAIN", "bert": "EMAIL_DOMAIN", "carl": ""}
    user = (await world.users())["carl"]
    await world.identity.users.DeactivateUser(
        pb.DeactivateUserRequest(id=user.id), metadata=world.owner
    )
    await world.scim.activate(carl, True)
    assert (await world.problems())["carl"] == "DISABLED"
    await world.identity.users.ReactivateUser(
        pb.ReactivateUserRequest(id=user.id), metadata=world.owner
    )
    await world.identity.domains.CreateEmailDomain(
        pb.CreateEmailDomainRequest(domain="later.example", org_id=world.school.id),
        metadata=world.sso.root,
    )
    async with asyncio.timeout(PATIENCE):
        while set((await world.problems()).values()) != {""}:
            await asyncio.sleep(0.5)
    assert {await world.user(name) for name in ("anna", "bert", "carl")} == {("Auditor", "active")}
