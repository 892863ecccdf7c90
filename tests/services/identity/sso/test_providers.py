"""Providers: what is kept, what is shown, and what could never work."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import grpc
import pytest

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from servicekit.errors import DomainError
from servicekit.ids import new_id
from services.identity.sso.asking import Asking
from tests.fakes.oidc import SECRET
from tests.support.identity import as_caller
from tests.support.single_sign_on import (
    DOMAIN,
    PUBLIC_URL,
    World,
    fake,
    reason,
    row,
    wanted,
    world,
)

__all__ = ["fake", "world"]  # the fixtures


async def test_a_secret_is_written_and_never_shown(world: World) -> None:
    """Not by the API, not in events, not in the database; nor sent elsewhere by a change."""
    shown = await world.identity.providers.GetSsoProvider(
        pb.GetSsoProviderRequest(id=world.provider.id), metadata=world.owner
    )
    assert shown.redirect_uri == f"{PUBLIC_URL}/auth/sso/{shown.id}/callback"
    assert shown.backchannel_logout_uri.endswith(f"/auth/sso/{shown.id}/backchannel-logout")
    assert list(shown.scopes) == ["openid", "profile", "email"]
    assert SECRET not in str(shown) + str(await world.identity.events())
    connection = await world.identity.database.superuser()
    rows = await connection.fetch("SELECT p::text AS text FROM identity.sso_provider p")
    await connection.close()
    assert SECRET.encode().hex() not in "".join(one["text"] for one in rows)
    for change in ({"issuer": "https://evil.example"}, {"client_id": "x"}, {"ca_pem": ""}):
        if change == {"ca_pem": ""}:
            await world.update(**change)
            continue
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.update(**change)
        assert "clientSecret" in (error.value.details() or "")
    world.sso.person("anna", "admins")
    await world.login("anna")
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.update(issuer="https://other.example", client_secret="x")
    assert "cannot change while users come" in (error.value.details() or "")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "plain http": ({"issuer": "http://login.school.example"}, "issuer"),
    "no address": ({"issuer": "login.school.example"}, "issuer"),
    "a query": ({"issuer": "https://x.example/?a=b"}, "issuer"),
    "a name and password": ({"issuer": "https://a:b@x.example"}, "issuer"),
    "a blank": ({"issuer": "https://x .example"}, "issuer"),
    "everybody of Microsoft": (
        {"issuer": "https://login.microsoftonline.com/common/v2.0"}, "issuer",
    ),
    "everybody of Google": ({"issuer": "https://accounts.google.com"}, "hostedDomain"),
    "no domain": ({"hosted_domain": "not a domain"}, "hostedDomain"),
    "a scope of two words": ({"scopes": ["a b"]}, "scopes[1]"),
    "no certificates": ({"ca_pem": "x"}, "caPem"),
    "accounts without roles": ({"just_in_time": True, "role_mappings": []}, "justInTime"),
    "everybody an Owner": ({"role_mappings": [row("*", Role.OWNER)]}, "roleMappings[0].role"),
    "a row twice": (
        {"role_mappings": [row("a", Role.ADMIN), row("a", Role.ADMIN)]}, "roleMappings[1]",
    ),
    "a blank group": ({"role_mappings": [row(" ", Role.ADMIN)]}, "roleMappings[0].group"),
}  # fmt: skip


async def test_what_could_never_work_is_refused(world: World) -> None:
    """With the field, and the rule."""
    for case, (given, field) in BAD.items():
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.identity.providers.CreateSsoProvider(
                wanted(**({"issuer": "https://login.school.example"} | given)),
                metadata=world.owner,
            )
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT, case
        assert (error.value.details() or "").startswith(field), case


async def test_rows_lead_nowhere_but_down(world: World) -> None:
    """Not to a neighbour, not to the root."""
    neighbour = await world.identity.org(world.root, "Neighbour")
    for org in (neighbour.id, world.school.parent_id):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.update(role_mappings=[row("admins", Role.ADMIN, org)])
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_everybodys_page_is_the_roots(world: World) -> None:
    """An organisation's Owner writes nothing on it; the root's Owners do, for whomever."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.update(login_button=True)
    assert reason(error) == "BUTTONS_COME_FROM_ROOT"
    shown = await world.identity.providers.UpdateSsoProvider(
        pb.UpdateSsoProviderRequest(id=world.provider.id, login_button=True), metadata=world.root
    )
    assert shown.login_button
    assert "Sign in with School sign-in" in (await world.browser().get("/login")).text
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.update(name="Root sign-in")
    assert reason(error) == "BUTTONS_COME_FROM_ROOT"
    for elsewhere in ({"issuer": "https://evil.example"}, {"client_id": "evil"}):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await world.update(client_secret="x", **elsewhere)
        assert reason(error) == "BUTTONS_COME_FROM_ROOT"
    await world.update(login_button=False, name="Ours <b>")
    page = await world.browser().get("/login", org=world.school.code)
    assert "Ours &lt;b&gt;" in page.text
    made = await world.identity.providers.CreateSsoProvider(
        wanted("https://x.example", org_id=world.school.id), metadata=world.root
    )
    assert made.login_button


async def test_only_owners_write(world: World) -> None:
    """Others read; strangers see nothing (tests/e2e/test_isolation.py has every call)."""
    providers = world.identity.providers
    for role in (Role.ADMIN, Role.AUDITOR):
        _, caller = await world.identity.user(world.owner, role)
        listed = await providers.ListSsoProviders(pb.ListSsoProvidersRequest(), metadata=caller)
        assert [one.id for one in listed.providers] == [world.provider.id]
        for call in (
            providers.CreateSsoProvider(wanted("https://x.example"), metadata=caller),
            providers.UpdateSsoProvider(
                pb.UpdateSsoProviderRequest(id=world.provider.id, name="x"), metadata=caller
            ),
            providers.DeleteSsoProvider(
                pb.DeleteSsoProviderRequest(id=world.provider.id), metadata=caller
            ),
            providers.TestSsoProvider(
                pb.TestSsoProviderRequest(id=world.provider.id), metadata=caller
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert reason(error) == "ROLE_MAY_NOT"


async def test_a_try_says_what_works(world: World) -> None:
    """Step by step, with the difference of the clocks."""
    tried = await world.identity.providers.TestSsoProvider(
        pb.TestSsoProviderRequest(id=world.provider.id), metadata=world.owner
    )
    assert tried.ok
    assert [step.step for step in tried.steps] == [
        "address", "document", "keys", "clock", "mappings",
    ]  # fmt: skip
    assert (await world.events("sso_provider_tested"))[-1]["after"]["ok"]


async def test_a_tenant_and_all_below_it_take_no_more_than_their_part() -> None:
    """Many organisations of one reseller leave room for the others."""
    asking = Asking(Mock(), insecure=True)
    top, another = new_id(), new_id()

    def provider() -> Any:
        return SimpleNamespace(id=new_id(), source=SimpleNamespace(tenant_id=new_id()))

    async with AsyncExitStack() as stack:
        for _ in range(32):
            await stack.enter_async_context(asking.place(provider(), top))
        with pytest.raises(DomainError) as error:
            await stack.enter_async_context(asking.place(provider(), top))
        assert error.value.reason == "PROVIDER_BUSY"
        for _ in range(32):
            await stack.enter_async_context(asking.place(provider(), another))
        with pytest.raises(DomainError):
            await stack.enter_async_context(asking.place(provider(), new_id()))
    async with asking.place(provider(), top):
        pass


async def test_a_try_takes_a_place_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners who try their provider again and again hold no more of them than logins."""
    asked = pb.TestSsoProviderRequest(id=world.provider.id)
    monkeypatch.setattr("services.identity.sso.asking._OF_TOP", 0)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await world.identity.providers.TestSsoProvider(asked, metadata=world.owner)
    assert reason(error) == "PROVIDER_BUSY"
    monkeypatch.undo()
    assert (await world.identity.providers.TestSsoProvider(asked, metadata=world.owner)).ok


async def test_a_provider_that_is_not_in_use_ends_tokens_of_its_people(world: World) -> None:
    """Sessions and API tokens of those who come from it; a local Owner's go on."""
    world.sso.person("anna", "admins")
    browser = world.browser()
    await world.login("anna", browser)
    anna = as_caller(browser.cookies["session"])
    for by in (anna, world.owner):
        await world.identity.tokens.CreateApiToken(
            pb.CreateApiTokenRequest(name="mine", scopes=["users:read"]), metadata=by
        )
    await world.update(enabled=False)
    revoked = await world.events("api_token_revoked")
    assert [one["after"]["heldBy"] for one in revoked] == [f"anna@{DOMAIN}"]
