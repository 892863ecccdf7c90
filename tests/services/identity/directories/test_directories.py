"""Directories and e-mail domains: what may be said of them, by whom, and what is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from servicekit.outgoing.addresses import Rules, read_allowed
from servicekit.outgoing.guard import Guard
from services.identity.directories.asking import AwayError
from services.identity.directories.domain import PORTS
from services.identity.directories.threads import DirectoryThreads
from services.identity.settings import IdentitySettings
from tests.conftest import MakeKit
from tests.fakes.ldap import SERVICE_PASSWORD, FakeDirectory, group_dn
from tests.services.identity.directories.test_threads import settings
from tests.support.directories import DOMAIN, LOCAL, World, fake, reason, row, wanted, world
from tests.support.identity import refused
from tests.support.refusals import refusal

__all__ = ["fake", "world"]  # the fixtures


async def test_a_directory_is_shown_without_its_password(world: World) -> None:
    """Neither answers nor events nor the database have it; what the kind says is filled in."""
    shown = await world.identity.directories.GetDirectory(
        pb.GetDirectoryRequest(id=world.directory.id), metadata=world.owner
    )
    assert shown == world.directory
    assert (shown.kind, shown.tls, shown.group_mode, shown.id_attribute) == (
        "ad",
        "ldaps",
        "in-chain",
        "objectGUID",
    )
    assert (shown.sync_minutes, shown.grace_hours, shown.enabled) == (15, 24, True)
    assert [(one.role, one.org_id) for one in shown.role_mappings] == [
        ("Owner", world.school.id),
        ("Admin", world.school.id),
        ("Auditor", world.school.id),
    ]
    listed = await world.identity.directories.ListDirectories(
        pb.ListDirectoriesRequest(), metadata=world.owner
    )
    assert list(listed.directories) == [shown]
    connection = await world.identity.database.superuser()
    stored = await connection.fetchval("SELECT d::text FROM identity.directory d")
    await connection.close()
    everything = stored + json.dumps(await world.identity.events()) + str(listed)
    assert SERVICE_PASSWORD not in everything
    assert SERVICE_PASSWORD.encode().hex() not in everything


_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"urls": []}, "urls"),
    ({"urls": ["http://dc1.school.example"]}, "urls[0]"),
    ({"urls": ["ldaps://dc1.school.example", "ldap://dc2.school.example"]}, "urls[0]"),
    ({"urls": ["ldaps://user@dc1.school.example"]}, "urls[0]"),
    ({"urls": ["ldaps://dc1.school.example/OU=x"]}, "urls[0]"),
    ({"urls": ["ldaps://dc1.school.example:0"]}, "urls[0]"),
    ({"urls": ["ldaps://dc1.school.example:99999"]}, "urls[0]"),
    ({"urls": ["ldaps://"]}, "urls[0]"),
    ({"tls": "starttls"}, "urls[0]"),
    ({"tls": "none"}, "tls"),
    ({"ca_pem": "no certificate"}, "caPem"),
    ({"ca_pem": "kein Schlüssel"}, "caPem"),
    ({"role_mappings": [pb.RoleMapping(group="  ", role="Admin")]}, "roleMappings[0].group"),
    ({"user_filter": "(mail=*)"}, "userFilter"),
    ({"user_filter": "(mail={login}"}, "userFilter"),
    ({"user_filter": "(mail={login})(x"}, "userFilter"),
    ({"user_filter": "(mail=x{login})"}, "userFilter"),
    ({"user_filter": "({login}=x)"}, "userFilter"),
    ({"user_filter": "(mail={user})"}, "userFilter"),
    ({"id_attribute": "object GUID"}, "idAttribute"),
    ({"sync_minutes": 4}, "syncMinutes"),
    ({"sync_minutes": 1440, "grace_hours": 24}, "graceHours"),
    ({"bind_password": ""}, "bindPassword"),
    ({"group_mode": "none"}, "roleMappings[0].group"),
    ({"role_mappings": [row("A", Role.ADMIN)] * 2}, "roleMappings[1]"),
    ({"role_mappings": [row("A", Role.ADMIN, str(uuid4()))]}, "roleMappings[0].orgId"),
    ({"role_mappings": [pb.RoleMapping(group="x", role="Root")]}, "roleMappings[0].role"),
]


async def test_what_could_never_work_is_refused(world: World) -> None:
    """The error names the field, and nothing is made."""
    for more, field in _WRONG:
        request = wanted(world.ldap, **({"role_mappings": [row("Admins", Role.ADMIN)]} | more))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.identity.directories.CreateDirectory(request, metadata=world.owner)
        body = refused(error)
        violations = [v["field"] for d in body["details"] for v in d.get("fieldViolations", [])]
        assert (body["status"], violations[:1]) == ("INVALID_ARGUMENT", [field]), more
    listed = await world.identity.directories.ListDirectories(
        pb.ListDirectoriesRequest(), metadata=world.root
    )
    assert len(listed.directories) == 1


async def test_rows_lead_nowhere_but_down(world: World) -> None:
    """A school's directory gives nobody a role in another school, or above."""
    other = await world.identity.org(world.root, "Other")
    for org_id in (other.id, world.school.parent_id):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.update(role_mappings=[row("Admins", Role.ADMIN, org_id)])
        assert refused(error)["status"] == "INVALID_ARGUMENT"


async def test_the_password_goes_nowhere_else(world: World) -> None:
    """Another server, CA or account needs the password anew: it would be sent there."""
    for more in (
        {"urls": [world.ldap.starttls], "tls": "starttls"},
        {"ca_pem": ""},
        {"bind_dn": "CN=other"},
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.update(**more)
        body = refused(error)
        assert body["details"][1]["fieldViolations"][0]["field"] == "bindPassword"
    changed = await world.update(
        urls=[world.ldap.starttls], tls="starttls", bind_password=SERVICE_PASSWORD
    )
    assert (changed.tls, list(changed.urls)) == ("starttls", [world.ldap.starttls])
    assert changed.etag != world.directory.etag
    same = await world.update(name=changed.name)
    assert same.etag == changed.etag
    assert len(await world.events("directory_updated")) == 1


async def test_a_try_says_what_works_and_what_does_not(world: World) -> None:
    """Step by step, with the certificate, the groups and the role; it lets nobody in."""
    directories = world.identity.directories
    world.ldap.person("anna", "Admins")

    async def steps(email: str = "", password: str = "") -> dict[str, tuple[bool, str]]:
        answer = await directories.TestDirectory(
            pb.TestDirectoryRequest(id=world.directory.id, email=email, password=password),
            metadata=world.owner,
        )
        assert answer.ok == all(step.ok for step in answer.steps)
        return {step.step: (step.ok, step.detail) for step in answer.steps}

    found = await steps(f"anna@{DOMAIN}", "the password of anna")
    assert list(found) == [
        "resolve", "connect", "tls", "bind", "search", "groups", "password", "role", "domain",
        "account",
    ]  # fmt: skip
    assert all(ok for ok, _ in found.values())
    assert "localhost" in found["tls"][1]
    assert group_dn("Admins") in found["groups"][1]
    assert found["role"] == (True, "Admin of School")
    assert found["account"] == (True, "is made with the first login")
    world.ldap.person("berta", "Admins", mail="berta@elsewhere.example")
    assert (await steps("berta@elsewhere.example"))["domain"][0] is False
    world.ldap.person("local", "Admins")
    assert (await steps(LOCAL))["account"][0] is False

    assert (await steps(f"anna@{DOMAIN}", "wrong"))["password"][0] is False
    assert (await steps(f"nobody@{DOMAIN}"))["search"] == (False, "no person has this address")
    world.ldap.person("guest")
    assert (await steps(f"guest@{DOMAIN}"))["role"][0] is False
    assert (await steps())["groups"] == (True, "3 mapped groups are there")
    del world.ldap.groups[group_dn("Owners")]
    assert (await steps())["groups"][0] is False
    await world.update(bind_password="another")
    assert (await steps())["bind"][0] is False
    world.ldap.lie = "cut"
    assert (await steps())["bind"] == (False, "the directory: session terminated by server")

    assert "anna" not in await world.users()
    told = json.dumps(await world.identity.events())
    assert "the password of anna" not in told
    assert len(await world.events("directory_tested")) == 10


@pytest.mark.parametrize("lie", ["strip", "inject"])
async def test_starttls_that_is_taken_away_sends_nothing(world: World, lie: str) -> None:
    """A server, or somebody before it, that refuses or fakes it gets no password."""
    await world.update(urls=[world.ldap.starttls], tls="starttls", bind_password=SERVICE_PASSWORD)
    world.ldap.person("anna", "Admins")
    assert (await world.login("anna")).role == "Admin"
    binds = len(world.ldap.binds)
    world.ldap.lie = lie
    assert await world.refused("anna") == "DIRECTORY_AWAY"
    assert len(world.ldap.binds) == binds
    assert b"password" not in b"".join(world.ldap.in_the_clear)
    assert SERVICE_PASSWORD.encode() not in b"".join(world.ldap.in_the_clear)


async def test_servers_are_verified(world: World) -> None:
    """Another CA, or a name that is not the certificate's, ends it before a bind."""

    async def tls(**more: Any) -> tuple[bool, str]:
        await world.update(bind_password=SERVICE_PASSWORD, **more)
        answer = await world.identity.directories.TestDirectory(
            pb.TestDirectoryRequest(id=world.directory.id), metadata=world.owner
        )
        return {step.step: (step.ok, step.detail) for step in answer.steps}["tls"]

    port = world.ldap.ldaps.rpartition(":")[2]
    assert (await tls(urls=[f"ldaps://localhost:{port}"]))[0]
    ok, detail = await tls(urls=[f"ldaps://127.0.0.2:{port}"])
    binds = len(world.ldap.binds)
    assert (ok, "not valid for '127.0.0.2'" in detail) == (False, True) or "mismatch" in detail
    ok, detail = await tls(urls=[world.ldap.ldaps], ca_pem="")
    assert not ok
    assert "not trusted" in detail
    assert len(world.ldap.binds) == binds
    # The next server is tried where one does not answer.
    assert (await tls(urls=["ldaps://127.0.0.1:1", world.ldap.ldaps], ca_pem=world.ldap.ca_pem))[0]


async def test_a_domain_is_assigned_from_above(world: World) -> None:
    """An Owner claims no domain for the own organisation; each has one owner in the whole system;
    only the organisation's own directories answer for it."""
    domains = world.identity.domains

    async def told(call: Any) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        return refused(error)["status"], reason(error)

    mine = pb.CreateEmailDomainRequest(domain="mine.example", org_id=world.school.id)
    assert await told(domains.CreateEmailDomain(mine, metadata=world.owner)) == (
        "PERMISSION_DENIED",
        "DOMAINS_COME_FROM_ABOVE",
    )
    other = await world.identity.org(world.root, "Other")
    taken = pb.CreateEmailDomainRequest(domain=DOMAIN, org_id=other.id)
    assert await told(domains.CreateEmailDomain(taken, metadata=world.root)) == (
        "ALREADY_EXISTS",
        "DOMAIN_TAKEN",
    )
    theirs = pb.CreateEmailDomainRequest(domain="other.example", org_id=other.id)
    await domains.CreateEmailDomain(theirs, metadata=world.root)
    foreign = pb.UpdateEmailDomainRequest(domain="other.example", source_id=world.directory.id)
    assert (await told(domains.UpdateEmailDomain(foreign, metadata=world.root)))[0] == (
        "INVALID_ARGUMENT"
    )
    assert (await told(domains.UpdateEmailDomain(foreign, metadata=world.owner)))[0] == (
        "NOT_FOUND"
    )
    delete = pb.DeleteEmailDomainRequest(domain=DOMAIN)
    assert (await told(domains.DeleteEmailDomain(delete, metadata=world.owner)))[0] == (
        "PERMISSION_DENIED"
    )
    seen = await domains.ListEmailDomains(pb.ListEmailDomainsRequest(), metadata=world.owner)
    assert [one.domain for one in seen.domains] == [DOMAIN]
    await world.identity.user(world.root, Role.AUDITOR, other.id, "a@used.example")
    used = pb.CreateEmailDomainRequest(domain="used.example", org_id=world.school.id)
    assert await told(domains.CreateEmailDomain(used, metadata=world.root)) == (
        "FAILED_PRECONDITION",
        "DOMAIN_IN_USE",
    )
    above = pb.CreateEmailDomainRequest(domain="used.example", org_id=world.school.parent_id)
    await domains.CreateEmailDomain(above, metadata=world.root)
    own = pb.CreateEmailDomainRequest(domain="root.example", org_id=world.school.parent_id)
    await domains.CreateEmailDomain(own, metadata=world.root)
    for bad in ("School.example", "@school.example", "school..example", "-a.example", "a b"):
        wrong = pb.CreateEmailDomainRequest(domain=bad, org_id=world.school.id)
        assert (await told(domains.CreateEmailDomain(wrong, metadata=world.root)))[0] == (
            "INVALID_ARGUMENT"
        )
    await domains.DeleteEmailDomain(delete, metadata=world.root)
    assert await world.refused("anna") == "WRONG_CREDENTIALS"


async def test_a_tenant_has_so_many_directories(world: World) -> None:
    """Ten; another tenant's do not count."""
    for number in range(9):
        request = wanted(world.ldap, name=f"Directory {number}")
        await world.identity.directories.CreateDirectory(request, metadata=world.owner)
    request = wanted(world.ldap, name="One more")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.identity.directories.CreateDirectory(request, metadata=world.owner)
    assert reason(error) == "TOO_MANY_DIRECTORIES"
    await world.identity.directories.CreateDirectory(request, metadata=world.root)


async def test_a_name_is_one_sources(world: World) -> None:
    """Of a tenant and a kind: commands go by names. What has the same name from before works, and
    keeps it."""
    identity, same = world.identity, world.directory.name
    taken = (grpc.StatusCode.ALREADY_EXISTS, "NAME_TAKEN")
    provider = pb.CreateSsoProviderRequest(
        name=same, issuer="https://login.example", client_id="evergreen", client_secret="a secret"
    )
    source = pb.CreateScimSourceRequest(name=same)
    creations: list[tuple[Any, Any]] = [
        (identity.directories.CreateDirectory, wanted(world.ldap, name=same)),
        (identity.providers.CreateSsoProvider, provider),
        (identity.scim.CreateScimSource, source),
    ]
    await identity.providers.CreateSsoProvider(provider, metadata=world.owner)
    await identity.scim.CreateScimSource(source, metadata=world.owner)
    others: list[Any] = []
    for create, request in creations:
        told = await refusal(create(request, metadata=world.owner))
        assert (told.code, told.reason) == taken
        await create(request, metadata=world.root)
        request.name = "Another"
        others.append(await create(request, metadata=world.owner))
    directory, sso, scim = others
    for change in (
        identity.directories.UpdateDirectory(
            pb.UpdateDirectoryRequest(id=directory.id, name=same), metadata=world.owner
        ),
        identity.providers.UpdateSsoProvider(
            pb.UpdateSsoProviderRequest(id=sso.id, name=same), metadata=world.owner
        ),
        identity.scim.UpdateScimSource(
            pb.UpdateScimSourceRequest(id=scim.id, name=same), metadata=world.owner
        ),
    ):
        told = await refusal(change)
        assert (told.code, told.reason) == taken
    connection = await identity.database.superuser()
    await connection.execute("UPDATE identity.source SET name = $1", same)
    await connection.close()
    changed = await identity.directories.UpdateDirectory(
        pb.UpdateDirectoryRequest(id=directory.id, name=same, sync_minutes=30),
        metadata=world.owner,
    )
    assert (changed.name, changed.sync_minutes) == (same, 30)


async def test_all_rows_can_be_taken_away(world: World) -> None:
    """By a word of its own, for no rows stand for those that there are. Snapshots in the log have
    all that decides who gets in."""
    world.ldap.person("anna", "Admins")
    session = await world.login("anna")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.update(role_mappings=[row("Admins", Role.ADMIN)], clear_role_mappings=True)
    assert refused(error)["status"] == "INVALID_ARGUMENT"
    assert len((await world.update(name="Other")).role_mappings) == 3
    assert not (await world.update(clear_role_mappings=True)).role_mappings
    assert not await world.is_open(session)
    (*_, told) = await world.events("directory_updated")
    assert (told["before"]["idAttribute"], told["after"]["roleMappings"]) == ("objectGUID", [])
    assert len(told["after"]["caSha256"]) == 64


async def test_addresses_are_those_of_the_rules(fake: FakeDirectory) -> None:
    """Nobody reaches this machine or its links by a directory's address, and into private networks
    the root tenant alone, or whom the operator allows."""
    threads = DirectoryThreads(1, 5)

    async def said_of(url: str, rules: Rules, *, root: bool) -> str:
        where = replace(settings(fake), urls=(url,), guard=Guard(rules), root=root)
        with pytest.raises(AwayError) as error:
            await threads.run(uuid4(), where, lambda ldap: ldap.count())
        return str(error.value)

    everybodys = Rules("all", ports=PORTS)
    for address in ("127.0.0.1", "[::1]", "localhost", "169.254.169.254", "0.0.0.0", "224.0.0.1"):
        said = await said_of(f"ldaps://{address}", everybodys, root=True)
        assert "this machine's, a link's or reserved" in said
    for rules, root in ((Rules("root", ports=PORTS), False), (Rules("none", ports=PORTS), True)):
        for address in ("10.0.0.1", "192.168.1.1", "[fd00::1]"):
            said = await said_of(f"ldaps://{address}", rules, root=root)
            assert said.endswith("its address is private")
    assert "is not one of 389, 636" in await said_of("ldaps://9.9.9.9:25", everybodys, root=True)
    # Allowed by name, it is not there.
    named = Rules("none", read_allowed("127.0.0.1/32:1"), ports=PORTS)
    assert "must not" not in await said_of("ldaps://127.0.0.1:1", named, root=False)
    threads.close()


async def test_settings_say_where_directories_may_be(make_kit: MakeKit) -> None:
    """What is none of the three, or no list, is refused at the start."""
    for name, value in (("ldap_private", "some"), ("ldap_allow", "10.0.0.0/8")):
        with pytest.raises(ValueError, match=r"ldap_private|HOST:PORT"):
            await make_kit("identity", IdentitySettings, **{name: value})
