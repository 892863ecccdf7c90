"""Identity with a provider beside it, a school whose people sign in with it, and browsers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import grpc
import httpx
import pytest
import pytest_asyncio

from contract.access import Role
from evergreen.v1 import identity_pb2 as pb
from tests.conftest import MakeKit, ServeService
from tests.fakes import oidc
from tests.fakes.oidc import CLIENT, SECRET, FakeProvider
from tests.support import callers, identity
from tests.support.directories import Clock
from tests.support.identity import PASSWORD, Identity, claims
from tests.support.servers import TestDatabase

PUBLIC_URL = "https://evergreen.example"
DOMAIN = "school.example"
LOCAL = "local@school.example"


@dataclass
class Browser:
    """A browser without JavaScript: cookies, and links that are followed by hand."""

    http: httpx.AsyncClient
    cookies: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str, *, site: str = "", **query: str) -> httpx.Response:
        """Opens an address; `site` is from where, as browsers say it."""
        headers = {"sec-fetch-site": site} if site else {}
        url = f"{path}?{urlencode(query)}" if query else path
        return await self._send("GET", url, headers=headers)

    async def post(self, path: str, **fields: str) -> httpx.Response:
        headers = {"origin": PUBLIC_URL, "sec-fetch-site": "same-origin"}
        return await self._send("POST", path, data=fields, headers=headers)

    async def submit(self, page: str, form: str, **fields: str) -> httpx.Response:
        """Sends a form of a page with its token."""
        text = (await self.get(page)).text
        found = re.search(r'name="form" value="([^"]+)"', text)
        assert found, text
        return await self.post(f"/auth/forms/{form}", form=found[1], **fields)

    async def _send(self, method: str, url: str, **more: Any) -> httpx.Response:
        headers = dict(more.pop("headers", {}))
        if self.cookies:
            headers["cookie"] = "; ".join(f"{n}={v}" for n, v in self.cookies.items())
        headers["x-envoy-external-address"] = "192.0.2.9"
        answer = await self.http.request(method, url, headers=headers, **more)
        for line in answer.headers.get_list("set-cookie"):
            pair, *attributes = line.split(";")
            name, _, value = pair.partition("=")
            gone = any(one.strip().lower() == "max-age=0" for one in attributes)
            if gone:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        self.http.cookies.clear()
        return answer


@dataclass
class World:
    """The service, a school, and its provider."""

    identity: Identity
    sso: FakeProvider
    clock: Clock
    http: httpx.AsyncClient
    root: callers.Metadata
    school: pb.Tenant
    owner: callers.Metadata
    """The school's own Owner, who has a password here."""
    provider: pb.SsoProvider

    @property
    def callback(self) -> str:
        """Where people come back to from the school's provider."""
        return self.callback_of(self.provider.id)

    @staticmethod
    def callback_of(provider_id: str) -> str:
        return f"/auth/sso/{provider_id}/callback"

    def browser(self) -> Browser:
        return Browser(self.http)

    async def begin(self, browser: Browser, provider_id: str = "", **query: str) -> str:
        """Where a browser is led to."""
        answer = await browser.get(
            "/auth/sso/start", provider=provider_id or self.provider.id, **query
        )
        assert answer.status_code == 303, answer.text
        return str(answer.headers["location"])

    async def arrive(
        self, browser: Browser, name: str, provider_id: str = "", **query: str
    ) -> httpx.Response:
        """Logs somebody in with the provider, and comes back."""
        url = await self.begin(browser, provider_id, **query)
        path = self.callback_of(provider_id or self.provider.id)
        return await browser.get(path, **self.sso.authorize(url, name))

    async def login(self, name: str, browser: Browser | None = None) -> dict[str, Any]:
        """The claims of somebody's session."""
        browser = browser or self.browser()
        answer = await self.arrive(browser, name)
        assert answer.status_code == 200, problem(answer)
        return claims(browser.cookies["session"])

    async def refused(self, name: str) -> str:
        """What somebody is told who is not let in."""
        browser = self.browser()
        answer = await self.arrive(browser, name)
        assert answer.status_code >= 400
        assert not {"session", "session_refresh"} & set(browser.cookies)
        return problem(answer)

    async def update(self, **more: Any) -> pb.SsoProvider:
        return await self.identity.providers.UpdateSsoProvider(
            pb.UpdateSsoProviderRequest(id=self.provider.id, **more), metadata=self.owner
        )

    async def invite(self, name: str, role: Role, org_id: str = "") -> pb.User:
        return await self.identity.users.CreateUser(
            pb.CreateUserRequest(
                email=name if "@" in name else f"{name}@{DOMAIN}",
                role=role.value,
                org_id=org_id or self.school.id,
            ),
            metadata=self.root,
        )

    async def users(self) -> dict[str, pb.User]:
        """The users below the root, by the name in their address."""
        found = await self.identity.users.ListUsers(pb.ListUsersRequest(), metadata=self.root)
        return {user.email.partition("@")[0]: user for user in found.users}

    async def events(self, *names: str) -> list[dict[str, Any]]:
        """The events with these names, oldest first."""
        return [
            event["data"]
            for event in await self.identity.events()
            if event["data"]["action"] in {f"identity.{name}" for name in names}
        ]

    async def logout(self, **claims: Any) -> httpx.Response:
        """What the provider says when sessions are over there."""
        return await self.say_logout(self.sso.logout_token(**claims))

    async def say_logout(self, token: str, provider_id: str = "") -> httpx.Response:
        path = f"/auth/sso/{provider_id or self.provider.id}/backchannel-logout"
        return await self.http.post(path, data={"logout_token": token})

    async def archive(self, tenant_id: str, at: str) -> None:
        """Archives a tenant, or (NULL) restores it; no other service is here to be asked."""
        connection = await self.identity.database.superuser()
        await connection.execute(
            f"UPDATE identity.tenant SET archived_at = {at},"
            " changed_xid = pg_current_xact_id() WHERE id = $1::text::uuid",
            tenant_id,
        )
        await connection.close()
        # The service hears of it by its feed.
        await self.identity.org(self.root, "Another")

    async def ended(self) -> set[str]:
        """The sessions that have ended."""
        feed = await self.identity.internal.ListAccessChanges(pb.ListAccessChangesRequest())
        return {one.session_id for one in feed.ended_sessions}


def problem(answer: httpx.Response) -> str:
    """What a page says is wrong."""
    found = re.search(r'<div class="problems".*?<ul>(.*?)</ul>', answer.text, re.DOTALL)
    assert found, answer.text
    return unescape(re.sub(r"<[^>]+>", "", found[1])).strip()


def leads_to(answer: httpx.Response) -> str:
    """Where a page leads on by itself."""
    return str(answer.headers["refresh"]).removeprefix("0;url=")


def path_of(url: str) -> str:
    return urlsplit(url).path


def row(group: str, role: Role, org_id: str = "") -> pb.RoleMapping:
    return pb.RoleMapping(group=group, role=role.value, org_id=org_id)


def wanted(issuer: str, *rows: pb.RoleMapping, **more: Any) -> pb.CreateSsoProviderRequest:
    """A provider as the fake one wants it."""
    given: dict[str, Any] = {
        "name": "School sign-in",
        "issuer": issuer,
        "client_id": CLIENT,
        "client_secret": SECRET,
        "just_in_time": bool(rows),
        "role_mappings": rows,
    }
    return pb.CreateSsoProviderRequest(**(given | more))


def reason(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> str:
    return str(identity.refused(error)["details"][0]["reason"])


@asynccontextmanager
async def running(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    directory: Path,
    fake: FakeProvider,
    **more: object,
) -> AsyncIterator[World]:
    clock = Clock()
    more = {"allow_insecure_sso": True, "public_url": PUBLIC_URL} | more
    async with identity.running(make_kit, serve, database, directory, clock, **more) as found:
        root = await found.as_user()
        school = await found.org(root, "School")
        await found.users.CreateUser(
            pb.CreateUserRequest(email=LOCAL, role="Owner", org_id=school.id, password=PASSWORD),
            metadata=root,
        )
        owner = await found.as_user(LOCAL)
        rows = (
            row("owners", Role.OWNER),
            row("admins", Role.ADMIN),
            row("auditors", Role.AUDITOR),
        )
        made = await found.providers.CreateSsoProvider(wanted(fake.issuer, *rows), metadata=owner)
        await found.domains.CreateEmailDomain(
            pb.CreateEmailDomainRequest(domain=DOMAIN, org_id=school.id), metadata=root
        )
        await found.domains.UpdateEmailDomain(
            pb.UpdateEmailDomainRequest(domain=DOMAIN, source_id=made.id), metadata=owner
        )
        transport = httpx.AsyncHTTPTransport(uds=found.http_socket, verify=False)
        async with httpx.AsyncClient(
            transport=transport, base_url=PUBLIC_URL.replace("https", "http"), timeout=60
        ) as http:
            yield World(found, fake, clock, http, root, school, owner, made)


@pytest.fixture
def fake() -> Any:
    with oidc.running() as found:
        yield found


@pytest_asyncio.fixture
async def world(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    tmp_path: Path,
    fake: FakeProvider,
) -> AsyncIterator[World]:
    async with running(make_kit, serve, database, tmp_path, fake) as found:
        yield found
