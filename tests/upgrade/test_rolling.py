"""From the last release to this tree and back, service by service, under load."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import pytest

from contract.contexts import CONTEXTS
from servicekit.data.migrate import all_migrations
from tests.e2e.load import Load
from tests.e2e.test_audit_cli import evergreen
from tests.e2e.tokens import superuser
from tests.e2e.world import Org, make_org, ok
from tests.fakes.agent import Agent
from tests.fakes.agent.gojson import marshal
from tests.fakes.agent.structs import DOCUMENT
from tests.support.paths import in_memory
from tests.support.stack import PATIENCE, Stack, until
from tests.upgrade.released import ROOT, name_of, released, unpack
from tests.upgrade.rolling import Product, product

pytestmark = pytest.mark.servers


def _school(stack: Stack) -> tuple[Org, list[Agent]]:
    org = make_org(stack, stack.first_owner())
    org.publish()
    return org, [org.device() for _ in range(4)]


def _an_admins_change(org: Org) -> None:
    """What several services have a part in."""
    policy = org.publish()
    org.publish()
    ok(org.root.delete(f"/api/policies/{policy['id']}"))
    ok(org.root.get("/api/devices", params={"orgId": org.id}))
    ok(org.root.post("/api/enrollment-tokens", json={"orgId": org.id, "name": "Meanwhile"}))


async def _migrate(running: Product, load: Load, org: Org) -> None:
    """The last release serves meanwhile, and goes on with what it knew of the schema."""
    before = load.calls
    applied, _ = await asyncio.gather(
        running.migrate(ROOT), asyncio.to_thread(_an_admins_change, org)
    )
    assert applied == {name_of(m) for m in all_migrations()} - set(released().migrations)
    await asyncio.to_thread(_an_admins_change, org)
    await asyncio.to_thread(
        until, lambda: load.calls > before + 20, PATIENCE, "the load does not go on"
    )


async def _roll(running: Product, tree: Path, load: Load, org: Org) -> None:
    for context in CONTEXTS:
        await running.replace(context, tree)
        # The others are of the other release now: they have to understand each other.
        before = load.calls
        await asyncio.to_thread(_an_admins_change, org)
        await asyncio.to_thread(
            until, lambda b=before: load.calls > b + 8, PATIENCE, "the load does not go on"
        )


def _verify_log(stack: Stack, directory: Path) -> None:
    """Both releases have written the chains, each in its format, and the tree has it all."""
    home, tree, export = ("--home", stack.home), directory / "tree", directory / "export"
    assert evergreen("audit", "export", "-o", export, *home).returncode == 0
    salted = ['"salt":' in line for line in export.read_text().splitlines() if '"entry"' in line]
    # What 0.2.0 has written has none.
    assert True in salted

    def is_grown() -> bool:
        done = evergreen("audit", "checkpoint", "--tree", "-o", tree, *home)
        assert done.returncode == 0, done
        return int(tree.read_text().splitlines()[1]) >= len(salted)

    until(is_grown, PATIENCE, "the tree does not take up what the last release recorded")
    done = evergreen("audit", "verify", "--checkpoint", tree, *home)
    assert done.returncode == 0, done


@pytest.mark.timeout(600)
async def test_the_schema_and_every_service_are_replaced_without_a_failed_call(
    tmp_path: Path,
) -> None:
    """No call of a device or an administrator fails, and nothing acknowledged is lost.

    The schema goes forward only; the services there and back.
    """
    last = unpack(tmp_path / "last")
    # Two sets of services have sockets, in directories that the launcher does not know.
    with tempfile.TemporaryDirectory(prefix="eg-", dir=in_memory()) as short:
        await _upgrade(Path(short), last)


async def _upgrade(directory: Path, last: Path) -> None:
    async with product(directory / "home") as running:
        assert await running.migrate(last) == set(released().migrations)
        await running.start(last)
        org, agents = await asyncio.to_thread(_school, running.stack)
        load = Load(agents)
        work = load.running()
        await asyncio.to_thread(work.__enter__)
        try:
            await _migrate(running, load, org)
            await _roll(running, ROOT, load, org)
            await _roll(running, last, load, org)
        finally:
            await asyncio.to_thread(work.__exit__, None, None, None)
        await asyncio.to_thread(load.check, running.stack)
        await running.replace("audit", ROOT)
        await asyncio.to_thread(_verify_log, running.stack, directory)
    assert load.failures == []


SECRET = "what opens the school's network"


def _secretly(org: Org, passphrase: str) -> None:
    wifi = {"ssid": "Pupils", "security": "wpa-psk", "passphrase": passphrase}
    org.publish({"network": {"wifi": [wifi]}})


def _stored(stack: Stack) -> str:
    """What the policy service stores of policies, as text; what is binary as Latin-1."""
    found = []
    for table in ("policies", "versions", "documents"):
        for row in superuser(stack, f"SELECT * FROM policy.{table}"):
            found += [v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in row.values()]
    return "\n".join(found)


def _has(agent: Agent) -> str:
    """The passphrase that a device applied last."""
    document = json.loads(marshal(DOCUMENT, agent.applied[-1].document))
    return str(document["network"]["wifi"][0]["passphrase"])


@pytest.mark.timeout(600)
async def test_stored_policies_are_sealed_while_devices_poll(tmp_path: Path) -> None:
    """The last release is gone, the service is started to seal, and the command seals what lay
    open. No call fails, devices get what they got, and nothing stored shows a secret."""
    last = unpack(tmp_path / "last")
    with tempfile.TemporaryDirectory(prefix="eg-", dir=in_memory()) as short:
        await _seal(Path(short), last)


async def _seal(directory: Path, last: Path) -> None:
    async with product(directory / "home") as running:
        await running.migrate(last)
        await running.start(last)
        org, agents = await asyncio.to_thread(_school, running.stack)
        await asyncio.to_thread(_secretly, org, f"{SECRET} 1")
        load = Load(agents)
        work = load.running()
        await asyncio.to_thread(work.__enter__)
        try:
            await running.migrate(ROOT)
            for context in CONTEXTS:
                await running.replace(context, ROOT)
            assert f"{SECRET} 1" in await asyncio.to_thread(_stored, running.stack)
            await running.replace("policy", ROOT, EVERGREEN_POLICY_SECRETS="sealed")
            await asyncio.to_thread(_secretly, org, f"{SECRET} 2")
            home = ("--home", running.stack.home)
            left = await asyncio.to_thread(evergreen, "policies", "seal", "--check", *home)
            assert left.returncode == 1, left
            before = load.calls
            done = await asyncio.to_thread(evergreen, "policies", "seal", *home)
            assert done.returncode == 0, done
            left = await asyncio.to_thread(evergreen, "policies", "seal", "--check", *home)
            assert left.returncode == 0, left
            assert SECRET not in await asyncio.to_thread(_stored, running.stack)
            # A process that knows nothing but what is sealed.
            await running.replace("policy", ROOT, EVERGREEN_POLICY_SECRETS="sealed")
            new = await asyncio.to_thread(org.device)
            await asyncio.to_thread(new.pull)
            await asyncio.to_thread(
                until, lambda: load.calls > before + 20, PATIENCE, "the load does not go on"
            )
        finally:
            await asyncio.to_thread(work.__exit__, None, None, None)
        assert {_has(agent) for agent in (*agents, new)} == {f"{SECRET} 2"}
        await asyncio.to_thread(load.check, running.stack)
    assert load.failures == []
