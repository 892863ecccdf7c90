"""What SCIM sends becomes accounts: never more than the mappings say, and nobody else's."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.support.identity import PASSWORD
from tests.support.scim import World, make_token, world
from tests.support.single_sign_on import LOCAL, fake, reason, row
from tests.support.stack import PATIENCE

__all__ = ["fake", "world"]  # the fixtures


async def test_groups_decide(world: World) -> None:
    """Nobody without a mapped group has an account; the highest role counts, and it goes again."""
    anna = await world.scim.user("anna", name={"givenName": "Anna"})
    assert "anna" not in await world.users()
    assert await world.problems() == {"anna": "NO_ROLE"}
    staff = await world.scim.group("staff", anna)
    assert await world.user("anna") == ("Auditor", "active")
    admins = await world.scim.group("admins", externalId="77ab")
    await world.scim.group("people who are nobody's business here", anna)
    assert await world.user("anna") == ("Auditor", "active")
    await world.scim.add(admins, anna)
    assert await world.user("anna") == ("Admin", "active")
    await world.scim.remove(admins, anna)
    assert await world.user("anna") == ("Auditor", "active")
    await world.scim.ok("DELETE", f"/Groups/{staff['id']}")
    assert await world.user("anna") == ("Auditor", "disabled")
    user = (await world.users())["anna"]
    assert (user.origin, user.source_id) == ("scim", world.source.id)
    assert (await world.now()).users == 1

    (created,) = [e for e in await world.events("user_created") if e["after"]["origin"] == "scim"]
    assert created["actor"] == f"scim:{world.source.id}"
    assert created["after"]["groups"] == ["staff"]
    (sent,) = await world.events("scim_person_created")
    assert sent["actor"].startswith("token:")
    assert sent["actor"].endswith("(SCIM source Entra)")
    assert len(await world.events("scim_group_created", "scim_group_deleted")) == 4


async def test_a_group_is_known_by_its_external_id_too(world: World) -> None:
    """So that a rename over there changes nothing here."""
    await world.update(role_mappings=[row("77ab", Role.ADMIN)])
    anna = await world.scim.user("anna")
    group = await world.scim.group("admins", anna, externalId="77ab")
    assert await world.user("anna") == ("Admin", "active")
    rename = {"op": "replace", "value": {"id": group["id"], "displayName": "other"}}
    await world.scim.patch(f"/Groups/{group['id']}", rename)
    assert await world.user("anna") == ("Admin", "active")
    away = {"op": "remove", "path": "externalId"}
    await world.scim.patch(f"/Groups/{group['id']}", away)
    assert await world.user("anna") == ("Admin", "disabled")


async def test_who_is_deactivated_is_out_at_once(world: World) -> None:
    """Sessions and tokens end; who is reactivated is back with the same account."""
    anna = await world.scim.user("anna")
    await world.scim.group("admins", anna)
    world.sso.sso.person("anna")
    said = await world.sso.login("anna")
    session = said["sid"]
    account = await world.identity.accounts.CreateServiceAccount(
        pb.CreateServiceAccountRequest(name="job", role="Auditor"), metadata=world.owner
    )
    assert account.id
    await world.scim.activate(anna, False)
    assert session in await world.sso.ended()
    assert await world.user("anna") == ("Admin", "disabled")
    assert (await world.scim.ok("GET", f"/Users/{anna['id']}"))["active"] is False
    await world.scim.activate(anna, True)
    assert await world.user("anna") == ("Admin", "active")
    assert (await world.users())["anna"].id == said["sub"]


async def test_they_sign_in_with_the_provider(world: World) -> None:
    """Which recognises them, and decides nothing: SCIM's groups count, not its own."""
    anna = await world.scim.user("anna")
    staff = await world.scim.group("staff", anna)
    world.sso.sso.person("anna", "owners", "admins")
    said = await world.sso.login("anna")
    assert (said["role"], said["tid"]) == ("Auditor", world.school.id)
    assert (await world.sso.login("anna"))["sub"] == said["sub"]
    (linked,) = await world.events("account_linked")
    assert linked["actor"] == f"sso:{world.sso.provider.id}"
    user = (await world.users())["anna"]
    assert (user.origin, user.source_id) == ("scim", world.source.id)
    # Another person over there with the same address is not let in.
    world.sso.sso.person("anna2", email="anna@school.example")
    assert "no account" in await world.sso.refused("anna2")
    await world.scim.remove(staff, anna)
    assert "disabled" in await world.sso.refused("anna")


async def test_only_a_verified_address_opens_an_account_of_scims(world: World) -> None:
    """Unless the address's domain names the provider."""
    anna = await world.scim.user("anna")
    await world.scim.group("staff", anna)
    await world.identity.domains.UpdateEmailDomain(
        pb.UpdateEmailDomainRequest(domain="school.example"), metadata=world.owner
    )
    world.sso.sso.person("anna", email_verified=None)
    assert "no account" in await world.sso.refused("anna")
    world.sso.sso.person("anna", email_verified=True)
    assert (await world.sso.login("anna"))["role"] == "Auditor"


async def test_local_owners_and_strangers_are_not_touched(world: World) -> None:
    """Their addresses are taken; of other domains it is not told whether anybody has one."""
    other = await world.identity.org(world.sso.root, "Other school")
    await world.identity.users.CreateUser(
        pb.CreateUserRequest(
            email="head@other.example", role="Owner", org_id=other.id, password=PASSWORD
        ),
        metadata=world.sso.root,
    )
    answers = []
    await world.scim.user("head@other.example")
    for address in (LOCAL, LOCAL.upper()):
        answer = await world.scim.call("POST", "/Users", {"userName": address, "active": False})
        answers.append((answer.status_code, answer.json()))
    await world.scim.user("anna")
    again = await world.scim.call("POST", "/Users", {"userName": "Anna@school.example"})
    answers.append((again.status_code, again.json()))
    assert all(one == answers[0] for one in answers)
    status, body = answers[0]
    assert (status, body["scimType"], body["status"]) == (409, "uniqueness", "409")
    assert body["detail"] == "userName: already in use"
    # By an e-mail address, too, and by a change.
    anna = (await world.scim.ok("GET", "/Users"))["Resources"][-1]
    change = [{"op": "Replace", "path": "userName", "value": LOCAL}]
    answer = await world.scim.call("PATCH", f"/Users/{anna['id']}", {"Operations": change})
    assert answer.status_code == 409
    user = (await world.users())["local"]
    assert (user.role, user.status, user.origin) == ("Owner", "active", "local")


async def test_sources_see_nothing_of_each_other(world: World) -> None:
    """Of the same school, and of another one: neither by id nor by a filter nor as a member."""
    anna = await world.scim.user("anna")
    group = await world.scim.group("staff", anna)
    other = await world.identity.org(world.sso.root, "Other school")
    for by, more in ((world.owner, {}), (world.sso.root, {"org_id": other.id})):
        _, stranger = await world.second(by, **more)
        active = {"op": "replace", "path": "active", "value": False}
        for path, whole, part in (
            (f"/Users/{anna['id']}", {"userName": "x@school.example"}, active),
            (f"/Groups/{group['id']}", {"displayName": "x"}, {"op": "remove", "path": "members"}),
        ):
            for verb, body in (
                ("GET", None),
                ("PUT", whole),
                ("PATCH", {"Operations": [part]}),
                ("DELETE", None),
            ):
                answer = await stranger.call(verb, path, body)
                assert answer.status_code == 404, (verb, path, answer.text)
        for path in ("/Users", "/Groups"):
            assert (await stranger.ok("GET", path))["totalResults"] == 0
            for name in ("userName", "displayName"):
                if (name == "userName") == (path == "/Users"):
                    asked = {"filter": f"{name} pr"}
                    assert not (await stranger.ok("GET", path, params=asked))["totalResults"]
        mine = await stranger.group("admins")
        add = [{"op": "add", "path": "members", "value": [{"value": anna["id"]}]}]
        answer = await stranger.call("PATCH", f"/Groups/{mine['id']}", {"Operations": add})
        assert (answer.status_code, answer.json()["scimType"]) == (400, "invalidValue")
        # The names are free here, whatever others have; the address is not.
        assert (await stranger.call("POST", "/Groups", {"displayName": "staff"})).is_success
    assert await world.user("anna") == ("Auditor", "active")
    assert (await world.scim.ok("GET", f"/Groups/{group['id']}"))["members"]


async def test_only_own_domains_make_accounts(world: World) -> None:
    """Whoever has another address is known, and has no account."""
    anna = await world.scim.user("anna@elsewhere.example")
    number = await world.scim.user("4711", userName="4711", emails=[{"value": "no address"}])
    bert = await world.scim.user(
        "4712",
        userName="4712",
        emails=[
            {"value": "bert@elsewhere.example", "type": "home"},
            {"value": "Bert@School.Example", "type": "work", "primary": True},
        ],
    )
    await world.scim.group("staff", anna, number, bert)
    assert await world.problems() == {"anna": "EMAIL_DOMAIN", "4711": "EMAIL", "4712": ""}
    assert await world.user("bert") == ("Auditor", "active")


async def test_who_was_invited_comes_by_scim_from_then_on(world: World) -> None:
    """With the role of the mapping; an invited Owner is left alone."""
    await world.sso.invite("anna", Role.ADMIN)
    await world.sso.invite("olga", Role.OWNER)
    anna = await world.scim.user("anna")
    await world.scim.group("staff", anna)
    assert await world.user("anna") == ("Auditor", "active")
    answer = await world.scim.call("POST", "/Users", {"userName": "olga@school.example"})
    assert answer.status_code == 409
    assert await world.user("olga") == ("Owner", "invited")


async def _until(world: World, problem: str, status: str) -> None:
    """Waits until the service has looked after Anna by itself."""
    async with asyncio.timeout(PATIENCE):
        while (await world.problems(), (await world.user("anna"))[1]) != (
            {"anna": problem},
            status,
        ):
            await asyncio.sleep(0.2)


async def test_an_administrator_keeps_somebody_out(world: World) -> None:
    """Whatever SCIM says, until the administrator lets the person in again."""
    anna = await world.scim.user("anna")
    group = await world.scim.group("staff", anna)
    user = (await world.users())["anna"]
    await world.identity.users.DeactivateUser(
        pb.DeactivateUserRequest(id=user.id), metadata=world.owner
    )
    for active in (False, True):
        await world.scim.activate(anna, active)
    await world.scim.remove(group, anna)
    await world.scim.add(group, anna)
    assert await world.user("anna") == ("Auditor", "disabled")
    assert await world.problems() == {"anna": "DISABLED"}
    await world.identity.users.ReactivateUser(
        pb.ReactivateUserRequest(id=user.id), metadata=world.owner
    )
    await world.scim.activate(anna, True)
    assert await world.user("anna") == ("Auditor", "active")
    # Also when SCIM says nothing in between.
    await world.identity.users.DeactivateUser(
        pb.DeactivateUserRequest(id=user.id), metadata=world.owner
    )
    await _until(world, "DISABLED", "disabled")
    await world.identity.users.ReactivateUser(
        pb.ReactivateUserRequest(id=user.id), metadata=world.owner
    )
    await _until(world, "", "active")
    for change in (
        world.identity.users.UpdateUser(
            pb.UpdateUserRequest(id=user.id, role="Owner"), metadata=world.owner
        ),
        world.identity.users.InviteUser(pb.InviteUserRequest(id=user.id), metadata=world.owner),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await change
        assert reason(error) == "SOURCE_DECIDES"


async def test_who_is_deleted_is_found_again(world: World) -> None:
    """404 for SCIM, disabled here; the same account when the source has the person again, by the
    user name or by the address."""
    anna = await world.scim.user("anna", externalId="1")
    group = await world.scim.group("staff", anna)
    user = (await world.users())["anna"]
    await world.scim.ok("DELETE", f"/Users/{anna['id']}")
    assert (await world.scim.call("GET", f"/Users/{anna['id']}")).status_code == 404
    assert (await world.scim.call("DELETE", f"/Users/{anna['id']}")).status_code == 404
    assert "members" not in await world.scim.ok("GET", f"/Groups/{group['id']}")
    assert await world.user("anna") == ("Auditor", "disabled")
    again = await world.scim.user("anna", externalId="2")
    assert again["id"] == anna["id"]
    assert await world.user("anna") == ("Auditor", "disabled")
    await world.scim.add(group, again)
    assert (await world.users())["anna"].id == user.id
    assert await world.user("anna") == ("Auditor", "active")
    await world.scim.ok("DELETE", f"/Users/{anna['id']}")
    other = await world.scim.user("an", userName="an", emails=[{"value": "anna@school.example"}])
    await world.scim.add(group, other)
    assert (await world.users())["anna"].id == user.id


async def test_another_address_is_taken_over(world: World) -> None:
    """If it is of an own domain; else the old one stays."""
    anna = await world.scim.user("anna")
    await world.scim.group("staff", anna)
    for name, known in (("anna.b", "anna.b"), ("x@elsewhere.example", "anna.b")):
        value = name if "@" in name else f"{name}@school.example"
        change = {"op": "Replace", "path": "userName", "value": value}
        await world.scim.patch(f"/Users/{anna['id']}", change)
        assert known in await world.users()


async def test_other_mappings_count_at_once(world: World) -> None:
    """Also for people who had none, and for groups that no mapping named before."""
    anna, bert = await world.scim.user("anna"), await world.scim.user("bert")
    await world.scim.group("staff", anna)
    await world.scim.group("teachers", bert)
    below = await world.identity.org(world.sso.root, "Other school")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.update(role_mappings=[row("teachers", Role.ADMIN, below.id)])
    assert reason(error) == "INVALID_FIELD"
    await world.update(role_mappings=[row("teachers", Role.ADMIN)])
    assert await world.user("anna") == ("Auditor", "disabled")
    assert await world.user("bert") == ("Admin", "active")
    await world.update(role_mappings=[row("*", Role.AUDITOR)])
    assert await world.user("anna") == ("Auditor", "active")
    assert await world.user("bert") == ("Auditor", "active")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.update(role_mappings=[row("*", Role.OWNER)])
    assert reason(error) == "INVALID_FIELD"


async def _school_of(world: World, count: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    people = [await world.scim.user(f"p{number:02}") for number in range(count)]
    return await world.scim.group("staff", *people), people


async def _active(world: World) -> int:
    users = await world.users()
    return sum(one.status == "active" and one.origin == "scim" for one in users.values())


async def test_a_mass_deactivation_is_held(world: World) -> None:
    """From the sixth of a day on, in small steps and in one; an Owner confirms the number."""
    group, people = await _school_of(world, 12)
    for one in people[:6]:
        await world.scim.activate(one, False)
    assert await _active(world) == 7
    assert (await world.now()).held == 1
    assert (await world.problems())["p05"] == "HELD"
    await world.scim.patch(f"/Groups/{group['id']}", {"op": "remove", "path": "members"})
    assert await _active(world) == 7
    assert (await world.now()).held == 7
    held = await world.events("scim_source_held")
    assert [e["after"]["users"] for e in held] == [1]
    # Somebody comes back over there: one fewer.
    await world.scim.activate(people[5], True)
    await world.scim.add(group, people[5])
    assert (await world.now()).held == 6
    confirm = pb.ConfirmScimSourceRequest(id=world.source.id, users=5)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.identity.scim.ConfirmScimSource(confirm, metadata=world.owner)
    assert reason(error) == "MORE_HELD"
    confirm.users = 6
    after = await world.identity.scim.ConfirmScimSource(confirm, metadata=world.owner)
    assert (after.held, await _active(world)) == (0, 1)
    assert await world.user("p05") == ("Auditor", "active")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.identity.scim.ConfirmScimSource(confirm, metadata=world.owner)
    assert reason(error) == "NOTHING_HELD"
    (confirmed,) = await world.events("scim_source_confirmed")
    assert confirmed["actor"] == LOCAL


async def test_a_change_of_mappings_confirms_nobody(world: World) -> None:
    """What the source would take stays held."""
    _, people = await _school_of(world, 8)
    for one in people:
        await world.scim.activate(one, False)
    assert await _active(world) == 3
    await world.update(role_mappings=[row("staff", Role.AUDITOR), row("admins", Role.ADMIN)])
    assert ((await world.now()).held, await _active(world)) == (3, 3)
    await world.update(role_mappings=[row("admins", Role.ADMIN)])
    assert await _active(world) == 0


async def test_many_accounts_are_made_one_after_the_other(world: World) -> None:
    """A request makes a hundred at most; the service goes on by itself."""
    people = [await world.scim.user(f"p{number:03}") for number in range(103)]
    await world.scim.group("staff", *people)
    assert (await world.now()).users >= 100
    async with asyncio.timeout(PATIENCE):
        while (await world.now()).users < 103:
            await asyncio.sleep(0.5)
    assert set((await world.problems()).values()) == {""}


async def test_a_source_that_is_not_enabled_sends_nothing(world: World) -> None:
    """Its users stay what they are."""
    anna = await world.scim.user("anna")
    await world.scim.group("staff", anna)
    await world.update(enabled=False)
    for verb, path in (("GET", "/Users"), ("DELETE", f"/Users/{anna['id']}")):
        answer = await world.scim.call(verb, path)
        assert (answer.status_code, answer.json()["status"]) == (403, "403")
    assert await world.user("anna") == ("Auditor", "active")


async def test_a_deleted_source_leaves_disabled_users(world: World) -> None:
    """And no token that works; whoever is invited comes back with a password."""
    anna = await world.scim.user("anna")
    await world.scim.group("admins", anna)
    world.sso.sso.person("anna")
    await world.sso.login("anna")
    deleted = await world.identity.scim.DeleteScimSource(
        pb.DeleteScimSourceRequest(id=world.source.id), metadata=world.owner
    )
    assert deleted.id == world.source.id
    user = (await world.users())["anna"]
    assert (user.status, user.origin) == ("disabled", "local")
    assert "disabled" in await world.sso.refused("anna")
    assert (await world.scim.call("GET", "/Users")).status_code == 401
    tokens = await world.identity.tokens.ListApiTokens(
        pb.ListApiTokensRequest(show_ended=True), metadata=world.owner
    )
    assert [one.status for one in tokens.tokens] == ["ended"]


async def test_accounts_are_in_the_tenants_that_the_mappings_say(world: World) -> None:
    """Of a source above; a source below sees nothing of it."""
    below = world.school.id
    source, above = await world.second(world.sso.root, row("north", Role.ADMIN, below))
    anna = await above.user("anna")
    group = await above.group("north", anna)
    user = (await world.users())["anna"]
    assert (user.tenant_id, user.role) == (below, "Admin")
    answer = await world.scim.call("POST", "/Users", {"userName": "anna@school.example"})
    assert answer.status_code == 409
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.identity.scim.GetScimSource(
            pb.GetScimSourceRequest(id=source.id), metadata=world.owner
        )
    assert reason(error) == "NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await make_token(world.identity, world.owner, source)
    assert reason(error) == "NOT_FOUND"
    await above.remove(group, anna)
    assert await world.user("anna") == ("Admin", "disabled")


async def test_only_owners_have_to_do_with_sources(world: World) -> None:
    """Admins see them, and can end their tokens."""
    _, admin = await world.identity.user(world.owner, Role.ADMIN, email="adm@school.example")
    assert (
        await world.identity.scim.ListScimSources(pb.ListScimSourcesRequest(), metadata=admin)
    ).sources
    for call in (
        world.identity.scim.CreateScimSource(pb.CreateScimSourceRequest(name="x"), metadata=admin),
        make_token(world.identity, admin, world.source),
        world.identity.tokens.RotateApiToken(
            pb.RotateApiTokenRequest(id=world.token.id), metadata=admin
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert reason(error) == "ROLE_MAY_NOT"
    ended = await world.identity.tokens.RevokeApiToken(
        pb.RevokeApiTokenRequest(id=world.token.id), metadata=admin
    )
    assert ended.status == "revoked"
    assert (await world.scim.call("GET", "/Users")).status_code == 401
