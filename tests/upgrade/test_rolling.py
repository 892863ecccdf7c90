"""From the last release to this tree and back, service by service, under load."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from contract.contexts import CONTEXTS
from servicekit.data.migrate import all_migrations
from tests.e2e.load import Load
from tests.e2e.test_audit_cli import evergreen
from tests.e2e.world import Org, make_org, ok
from tests.fakes.agent import Agent
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
    assert {True, False} == set(salted)

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
