"""Local logins and polls beside a directory, a provider and a mail server that do not work.

What came of it at length is in docs/measurements/2026-11-30-hostile-servers.md.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from tests.e2e.world import Org, make_org, ok
from tests.fakes import hostile, ldap
from tests.fakes.agent import Agent, CallError
from tests.fakes.hostile import LIES, Lie, Servers
from tests.fakes.oidc import CLIENT, SECRET
from tests.support.identity import PASSWORD
from tests.support.stack import Stack, running

pytestmark = pytest.mark.servers

_OF_EACH = 4
"""Directories and providers."""
_SECONDS = 6.0
_AGENTS = 4
_POLL_EVERY = 0.1
"""Seconds between two polls of a device."""
_LOGIN_EVERY = 0.5
_LEAST_BOUND = 2.0
"""Seconds that the slowest may take on a busy machine, however quick it is without trouble: a
service that waited for one of these servers, which take eight seconds and more, takes longer."""
_FACTOR = 4.0


@dataclass
class Figures:
    """How long calls took, in seconds, and what went wrong."""

    polls: list[float] = field(default_factory=list)
    logins: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[max(0, math.ceil(0.99 * len(seconds)) - 1)]


@dataclass
class World:
    """The product with the three servers, and people and devices that have nothing to do with
    them."""

    stack: Stack
    servers: Servers
    org: Org
    agents: list[Agent]
    local: str
    """An Owner with a password here."""
    root: httpx.Client


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("hostile")
    with (
        hostile.running(place / "ldap") as servers,
        running(
            place / "home",
            EVERGREEN_LDAP_ALLOW=servers.ldap_allowed,
            EVERGREEN_ALLOW_INSECURE_SSO="true",
            EVERGREEN_SMTP_URL=f"smtp://localhost:{servers.smtp_port}",
            EVERGREEN_SMTP_FROM="Evergreen <evergreen@school.example>",
        ) as stack,
        stack.first_owner() as root,
    ):
        org = make_org(stack, root)
        org.publish()
        local = f"local-{org.code}@school.example"
        ok(
            root.post(
                "/api/users",
                json={"email": local, "role": "Owner", "orgId": org.id, "password": PASSWORD},
            )
        )
        yield World(stack, servers, org, [org.device() for _ in range(_AGENTS)], local, root)


@dataclass
class Strangers:
    """An organisation whose people come from servers that do not work."""

    domains: list[str]
    """Each of a directory of its own: after three failures nobody asks one for a while."""
    provider_ids: list[str]


def _strangers(world: World) -> Strangers:
    root, servers = world.root, world.servers
    org = make_org(world.stack, root, "Strangers")
    domains, provider_ids = [], []
    for number in range(_OF_EACH):
        directory = {
            "orgId": org.id,
            "name": f"Directory {number}",
            "kind": "ad",
            "urls": [servers.ldaps],
            "caPem": servers.ldap_ca_pem,
            "bindDn": ldap.SERVICE,
            "bindPassword": ldap.SERVICE_PASSWORD,
            "baseDn": ldap.BASE,
            "roleMappings": [{"group": ldap.group_dn("Admins"), "role": "Admin"}],
        }
        domain = f"{org.code}-{number}.example"
        source = ok(root.post("/api/directories", json=directory))["id"]
        ok(root.post("/api/email-domains", json={"domain": domain, "orgId": org.id}))
        ok(root.patch(f"/api/email-domains/{domain}", json={"sourceId": source}))
        domains.append(domain)
        provider = {
            "orgId": org.id,
            "name": f"Provider {number}",
            "issuer": servers.issuer,
            "clientId": CLIENT,
            "clientSecret": SECRET,
            "loginButton": False,
        }
        provider_ids.append(ok(root.post("/api/sso-providers", json=provider))["id"])
    return Strangers(domains, provider_ids)


def measure(world: World, seconds: float) -> Figures:
    """How long polls and local logins take for a while."""
    found = Figures()
    until = time.monotonic() + seconds

    def repeat(work: Callable[[], None], into: list[float], every: float) -> None:
        due = time.monotonic()
        while (began := time.monotonic()) < until:
            work()
            into.append(time.monotonic() - began)
            due = max(due + every, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    def poll(agent: Agent) -> Callable[[], None]:
        def work() -> None:
            try:
                agent.pull()
            except CallError as error:
                found.errors.append(f"poll: {error}")

        return work

    def log_in() -> None:
        answer = client.post("/auth/login", json={"email": world.local, "password": PASSWORD})
        if answer.status_code != 200:
            found.errors.append(f"login: {answer.status_code} {answer.text}")

    with world.stack.client() as client, ThreadPoolExecutor(len(world.agents) + 1) as pool:
        work = [pool.submit(repeat, poll(one), found.polls, _POLL_EVERY) for one in world.agents]
        work.append(pool.submit(repeat, log_in, found.logins, _LOGIN_EVERY))
        for one in work:
            one.result()
    return found


@contextmanager
def in_trouble(world: World, lie: Lie) -> Iterator[None]:
    """While people try to log in with directories and providers, and mails are tried."""
    strangers = _strangers(world)
    world.servers.lie(lie)
    stop = threading.Event()

    def keep_trying(work: Callable[[int], object]) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            work(number)
            stop.wait(0.05)

    with world.stack.client() as client, ThreadPoolExecutor(16) as pool:

        def with_directory(domain: str) -> Callable[[int], object]:
            # Each time somebody else, so that nobody is slowed down.
            return lambda number: client.post(
                "/auth/login", json={"email": f"p{number}@{domain}", "password": "whatever it is"}
            )

        def with_provider(provider_id: str) -> Callable[[int], object]:
            return lambda _: client.get("/auth/sso/start", params={"provider": provider_id})

        def mail(number: int) -> object:
            return world.root.post("/api/mail/test", json={"address": f"p{number}@school.example"})

        work = [pool.submit(keep_trying, with_directory(one)) for one in strangers.domains * 2]
        work += [pool.submit(keep_trying, with_provider(one)) for one in strangers.provider_ids]
        work.append(pool.submit(keep_trying, mail))
        try:
            yield
        finally:
            stop.set()
            world.servers.lie("")
            for one in work:
                one.result()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lie", LIES)
def test_nothing_of_their_trouble_slows_others(world: World, lie: Lie) -> None:
    """Polls and local logins take as long as without it, and none fails."""
    calm = measure(world, _SECONDS)
    asked = world.servers.asked()
    with in_trouble(world, lie):
        found = measure(world, _SECONDS)
    again = world.servers.asked()
    # It was trouble: each of them was asked meanwhile.
    assert all(again[one] > asked[one] for one in asked), (asked, again)
    assert not calm.errors, calm.errors[:3]
    assert not found.errors, found.errors[:3]
    for what, mine, before in (
        ("polls", found.polls, calm.polls),
        ("logins", found.logins, calm.logins),
    ):
        assert len(mine) >= _SECONDS, what
        slowest, usual = p99(mine), p99(before)
        print(f"{lie}: {what}: p99 {usual * 1000:.0f} ms without, {slowest * 1000:.0f} ms with")
        assert slowest <= max(_LEAST_BOUND, _FACTOR * usual), (what, slowest, usual)
