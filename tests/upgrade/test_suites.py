"""From the standard algorithms to the approved ones and back, service by service, under load."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from cli.backup.catalog import PASSING, SEALED, SECRETS
from contract.contexts import CONTEXTS
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from servicekit.security import mode
from tests.e2e.load import Load
from tests.e2e.pages import Pages
from tests.e2e.test_audit_cli import evergreen
from tests.e2e.test_console import person
from tests.e2e.test_second_factor import set_up
from tests.e2e.tokens import superuser
from tests.e2e.world import PASSWORD, Org, make_org, ok
from tests.fakes.agent import Agent
from tests.fakes.agent.gojson import marshal
from tests.fakes.agent.structs import DOCUMENT
from tests.support.authenticator import App
from tests.support.paths import in_memory
from tests.support.receivers import Posted, Receiver, receiving
from tests.support.stack import PATIENCE, Stack, until
from tests.upgrade.released import ROOT
from tests.upgrade.rolling import Product, product

pytestmark = pytest.mark.servers

WIFI = "what opens the school's network"
APPROVED = {mode.SUITES: mode.APPROVED}


@dataclass
class School:
    """What must go on working: people, programs, devices, receivers."""

    org: Org
    agents: list[Agent]
    email: str
    """Of a user with an app."""
    app: App
    codes: list[str]
    token: str
    """An API token,"""
    scim: str
    """and one of a SCIM source."""
    webhook: str
    """The secret of a forwarder."""
    sessions: list[httpx.Client] = field(default_factory=list)
    """Logged in at some time, and refreshed ever since."""

    @property
    def stack(self) -> Stack:
        return self.org.stack

    def log_in(self) -> str:
        """Logs in with the app; answers the algorithm of the token."""
        body = {"email": self.email, "password": PASSWORD}

        def answer() -> Any:
            with self.stack.client() as client:
                said = client.post("/auth/login", json={**body, "otp": self.app.code()})
            # The code before was of the same half minute.
            return said.json() if said.status_code == 200 else None

        session = until(answer, 120, "the app's code is not taken", 5.0)
        client = self.stack.client(session["token"])
        client.headers["x-refresh"] = session["refreshToken"]
        self.sessions.append(client)
        return str(jwt.get_unverified_header(session["token"])["alg"])

    def all_works(self) -> None:
        """Each way in, and each secret that the product uses for others."""
        for client in self.sessions:
            refresh(client)
            ok(client.get("/api/devices"))
        with self.stack.client(self.token) as program:
            ok(program.get("/api/devices"))
        with self.stack.client(self.scim) as program:
            assert program.get("/scim/v2/Users").status_code == 200
        new = self.org.device()
        new.pull()
        self.agents.append(new)
        assert {_wifi(agent) for agent in self.agents if agent.applied} == {WIFI}


def refresh(client: httpx.Client) -> None:
    """A session goes on with a new token."""
    said = ok(client.post("/auth/refresh", json={"refreshToken": client.headers["x-refresh"]}))
    client.headers["authorization"] = f"Bearer {said['token']}"
    client.headers["x-refresh"] = said["refreshToken"]


def _wifi(agent: Agent) -> str:
    document = json.loads(marshal(DOCUMENT, agent.applied[-1].document))
    return str(document["network"]["wifi"][0]["passphrase"])


def _school(stack: Stack, receiver: Receiver) -> School:
    org = make_org(stack, stack.first_owner())
    named = {"orgId": org.id, "name": "wifi", "secret": True, "value": WIFI}
    ok(org.owner.post("/api/policy-variables", json=named))
    wifi = {"ssid": "Pupils", "security": "wpa-psk", "passphrase": "{{secret.wifi}}"}
    template = {"network": {"wifi": [wifi]}}
    policy = {"name": "Base", "orgId": org.id, "signed": True, "bundle": {"template": template}}
    ok(org.owner.post("/api/policies", json=policy))
    made = ok(
        org.owner.post(
            "/api/forwarders",
            json={"name": "SIEM", "kind": "webhook", "webhook": {"url": receiver.url}},
        )
    )
    token = ok(org.owner.post("/api/tokens", json={"name": "Program", "scopes": ["devices:read"]}))
    rows = [{"group": "staff", "role": "Auditor"}]
    source = ok(org.owner.post("/api/scim-sources", json={"name": "Entra", "roleMappings": rows}))
    scim = ok(org.owner.post("/api/tokens", json={"name": "Entra", "scimSourceId": source["id"]}))
    email = person(org, "Admin")
    with Pages(stack) as pages:
        pages.login(email, PASSWORD)
        app, codes = set_up(pages)
    agents = [org.device() for _ in range(4)]
    for agent in agents:
        agent.pull()
    return School(org, agents, email, app, codes, token["token"], scim["token"], made["secret"])


class People:
    """Users who log in and call, programs that call, all the time; nothing of it may fail."""

    def __init__(self, school: School) -> None:
        self._school = school
        self._email = person(school.org, "Auditor")
        self._stop = threading.Event()
        self.calls = 0
        self.failures: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        work = [self._log_in, self._call]
        threads = [threading.Thread(target=self._repeat, args=(one,)) for one in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                work()
            except (AssertionError, httpx.HTTPError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            self.calls += 1
            time.sleep(0.3)

    def _log_in(self) -> None:
        session = self._school.stack.login(self._email, PASSWORD)
        with self._school.stack.client(session["token"]) as client:
            ok(client.get("/api/devices"))

    def _call(self) -> None:
        with self._school.stack.client(self._school.token) as program:
            ok(program.get("/api/devices"))


def _suites(stack: Stack) -> set[str]:
    """How the values of all tables are sealed that have any."""
    found = set()
    for column, tables in (("sealed_seed", SEALED), ("sealed_secrets", {**SECRETS, **PASSING})):
        for table in tables:
            rows = superuser(
                stack,
                f"SELECT DISTINCT split_part(encode(substring({column} FOR 22), 'escape'), '$', 2)"
                f" AS suite FROM {table} WHERE {column} IS NOT NULL",
            )
            found |= {row["suite"] for row in rows}
    return found


def _is_signed(secret: str, posted: Posted) -> bool:
    signed = f"{posted.headers['webhook-id']}.{posted.headers['webhook-timestamp']}.".encode()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    wanted = base64.b64encode(hmac.digest(key, signed + posted.body, hashlib.sha256)).decode()
    return f"v1,{wanted}" in posted.headers["webhook-signature"].split(" ")


async def _replace_all(running: Product, receiver: Receiver, **settings: str) -> None:
    usual = {
        "audit": {"EVERGREEN_FORWARD_ALLOW": receiver.allowed},
        "policy": {"EVERGREEN_POLICY_SECRETS": "sealed"},
    }
    for context in CONTEXTS:
        await running.replace(context, ROOT, **usual.get(context, {}), **settings)


@pytest.mark.timeout(600)
async def test_nothing_is_lost_on_the_way_to_approved_algorithms_and_back(tmp_path: Path) -> None:
    """Devices poll, people log in and programs call all the time, and no call fails: while each
    service is replaced, while all is sealed anew, and while new keys begin to sign. Sessions, API
    tokens, SCIM tokens, apps, secrets of webhooks and policies, and backups go on."""
    with tempfile.TemporaryDirectory(prefix="eg-", dir=in_memory()) as short:
        async with receiving() as receiver, product(Path(short) / "home") as running:
            await running.migrate(ROOT)
            await running.start(ROOT)
            await _replace_all(running, receiver)
            school = await asyncio.to_thread(_school, running.stack, receiver)
            load, people = Load(list(school.agents)), People(school)
            for one in (work := [load.running(), people.running()]):
                await asyncio.to_thread(one.__enter__)
            try:
                await _there_and_back(running, school, receiver, tmp_path)
            finally:
                for one in work:
                    await asyncio.to_thread(one.__exit__, None, None, None)
            await asyncio.to_thread(load.check, running.stack)
    assert load.failures == []
    assert people.failures == []
    assert people.calls > 50


async def _there_and_back(
    running: Product, school: School, receiver: Receiver, directory: Path
) -> None:
    stack = running.stack
    home = ("--home", stack.home)
    passphrase = directory / "passphrase"
    passphrase.write_text("correct horse battery\n")
    archives = {name: directory / name for name in ("before", "approved", "after")}

    # No launcher holds the home: a command that is told of it would start its database once more.
    given = {
        "EVERGREEN_MIGRATE_DATABASE_URL": running.servers.postgres.dsn(roles.MIGRATOR),
        "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(running.home.secrets / MIGRATOR_SECRET),
        "EVERGREEN_MASTER_KEY_FILE": str(running.home.secrets / "master_key"),
    }

    async def run(*words: str | Path, code: int = 0, **more: str) -> str:
        there = () if words[0] in {"backup", "fips"} else home
        done = await asyncio.to_thread(evergreen, *words, *there, **given, **more)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    async def back_up(name: str, **more: str) -> None:
        key = ("--passphrase-file", passphrase)
        files = ("--secrets", running.home.secrets, "--tls", running.home.tls)
        await run("backup", "create", "-o", archives[name], *key, *files, **more)
        for made in archives.values():
            if made.exists():
                await run("backup", "verify", made, *key, **more)

    assert await asyncio.to_thread(school.log_in) == "EdDSA"
    await asyncio.to_thread(school.all_works)
    assert await asyncio.to_thread(_suites, stack) == {"xchacha20poly1305"}
    await back_up("before")

    await _replace_all(running, receiver, **APPROVED)
    await asyncio.to_thread(school.log_in)
    await asyncio.to_thread(school.all_works)
    # Two at once, as when nobody knows of the other.
    await asyncio.gather(*(run("fips", "migrate", **APPROVED) for _ in range(2)))
    assert await asyncio.to_thread(_suites, stack) == {"aes256gcm"}
    for purpose in ("users", "devices", "tokens"):
        await run("keys", "rotate", purpose)

    def signs_anew() -> bool:
        return school.log_in() == "ES256"

    # A key is known to the gateway for a minute before it signs.
    await asyncio.to_thread(until, signs_anew, 2 * PATIENCE, "the new key does not sign", 5.0)
    await asyncio.to_thread(school.all_works)
    plan = {
        item["what"]: item
        for item in map(
            json.loads, (await run("fips", "plan", "--json", code=1, **APPROVED)).splitlines()
        )
    }
    blocking = {what for what, item in plan.items() if item["blocks"] and item["old"]}
    # Of those who have not logged in meanwhile.
    assert blocking == {"passwords of users: active"}
    await back_up("approved", **APPROVED)

    await _replace_all(running, receiver)
    await asyncio.to_thread(school.log_in)
    await asyncio.to_thread(school.all_works)
    await back_up("after")
    for code in school.codes[:2]:
        with stack.client() as client:
            body = {"email": school.email, "password": PASSWORD, "otp": code}
            ok(await asyncio.to_thread(client.post, "/auth/login", json=body))
    seen = len(receiver.posted)
    await asyncio.to_thread(school.org.publish)
    await receiver.until(lambda: len(receiver.posted) > seen)
    assert all(_is_signed(school.webhook, posted) for posted in receiver.posted)
