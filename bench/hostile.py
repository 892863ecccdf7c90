"""Servers of others that do not work, beside something else: for `make bench DISTURBANCE=…`.

`python -m bench.hostile hang` (or `drip`, `cut`, `flood`) runs a directory, a provider and a mail
server that do so, makes an organisation whose people come from them, and has people log in, until
it is ended. The installation has to be started with the settings of `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import httpx

from cli.sim import Target
from tests.fakes import hostile, ldap
from tests.fakes.hostile import LIES, Servers
from tests.fakes.oidc import CLIENT, SECRET

_LDAPS_PORT: Final = 9541
_SMTP_PORT: Final = 9542
_OF_EACH: Final = 4
"""Directories and providers: each is given up for a while after some failures."""
_RATE: Final = 5.0
"""Log-ins a second: all administrators of a large district, again and again."""
_MAILS: Final = 1.0
"""A second."""
_WAITING: Final = 64
"""Calls that wait at the same time; further people come when one has been answered."""


def main() -> None:
    """Runs until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("how", choices=LIES, help="what the servers do")
    parser.add_argument("--rate", type=float, default=_RATE, help="log-ins a second")
    options = parser.parse_args()
    os.nice(19)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    facts = json.loads(Path(os.environ["BOOTSTRAP"]).read_text())
    with (
        tempfile.TemporaryDirectory(prefix="evergreen-bench-") as directory,
        hostile.running(Path(directory), _LDAPS_PORT, _SMTP_PORT) as servers,
    ):
        asyncio.run(_run(facts, servers, options.how, options.rate))


async def _run(facts: dict[str, Any], servers: Servers, how: hostile.Lie, rate: float) -> None:
    tls = Target.of(facts["url"], facts["ca_file"]).tls
    assert tls is not None
    async with httpx.AsyncClient(base_url=facts["url"], verify=tls, timeout=60) as api:
        login = {"email": facts["email"], "password": facts["password"]}
        token = _ok(await api.post("/auth/login", json=login))["token"]
        owner = {"authorization": f"Bearer {token}"}
        works = await _people(api, owner, servers)
        servers.lie(how)

        async def mail() -> None:
            body = {"address": f"{random.random()}@school.example"}
            await api.post("/api/mail/test", json=body, headers=owner)

        await asyncio.gather(
            *(_repeat(work, rate / len(works)) for work in works), _repeat(mail, _MAILS)
        )


async def _repeat(work: Callable[[], Coroutine[Any, Any, object]], rate: float) -> None:
    """Does it at random moments, a bounded number of times at once."""
    places = asyncio.Semaphore(_WAITING)
    running = set()

    async def once() -> None:
        async with places:
            await work()

    due = time.monotonic()
    while True:
        due += random.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if places.locked():
            continue
        task = asyncio.create_task(once())
        running.add(task)
        task.add_done_callback(running.discard)


async def _people(
    api: httpx.AsyncClient, owner: dict[str, str], servers: Servers
) -> list[Callable[[], Coroutine[Any, Any, object]]]:
    """An organisation with directories and providers; answers how its people log in."""

    async def made(path: str, body: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = _ok(await api.post(path, json=body, headers=owner))
        return found

    code = f"hostile-{time.time_ns()}"
    root = _ok(await api.get("/api/tenants", headers=owner))["tenants"][0]
    org = (await made("/api/tenants", {"name": code, "code": code, "parentId": root["id"]}))["id"]
    works: list[Callable[[], Coroutine[Any, Any, object]]] = []
    for number in range(_OF_EACH):
        source = await made(
            "/api/directories",
            {
                "orgId": org,
                "name": f"Directory {number}",
                "kind": "ad",
                "urls": [servers.ldaps],
                "caPem": servers.ldap_ca_pem,
                "bindDn": ldap.SERVICE,
                "bindPassword": ldap.SERVICE_PASSWORD,
                "baseDn": ldap.BASE,
                "roleMappings": [{"group": ldap.group_dn("Admins"), "role": "Admin"}],
            },
        )
        domain = f"{code}-{number}.example"
        await made("/api/email-domains", {"domain": domain, "orgId": org})
        changed = {"sourceId": source["id"]}
        _ok(await api.patch(f"/api/email-domains/{domain}", json=changed, headers=owner))
        provider = await made(
            "/api/sso-providers",
            {
                "orgId": org,
                "name": f"Provider {number}",
                "issuer": servers.issuer,
                "clientId": CLIENT,
                "clientSecret": SECRET,
                "loginButton": False,
            },
        )
        works += [_by_directory(api, domain), _by_provider(api, provider["id"])]
    return works


def _by_directory(api: httpx.AsyncClient, domain: str) -> Callable[[], Coroutine[Any, Any, object]]:
    async def work() -> object:
        # Each time somebody else, so that nobody is slowed down.
        email = f"p{random.randrange(10**9)}@{domain}"
        return await api.post("/auth/login", json={"email": email, "password": "whatever it is"})

    return work


def _by_provider(
    api: httpx.AsyncClient, provider_id: str
) -> Callable[[], Coroutine[Any, Any, object]]:
    async def work() -> object:
        return await api.get("/auth/sso/start", params={"provider": provider_id})

    return work


def _ok(answer: httpx.Response) -> Any:
    if not answer.is_success:
        raise SystemExit(f"{answer.request.method} {answer.request.url.path}: {answer.text[:500]}")
    return answer.json()


if __name__ == "__main__":
    main()
