"""A home of an older release becomes one of this tree, and goes back, by docs/upgrade.md.

Devices work all the while, and who is logged in stays so; what was acknowledged is stored, once.
The older release's backup is restored with this tree, too.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.load import Load
from tests.e2e.test_backup import changed, patiently
from tests.e2e.world import Org, make_org, ok
from tests.fakes.agent import Agent
from tests.support.documented import Commands, script
from tests.support.paths import LONG, in_memory
from tests.support.stack import PATIENCE, Stack, until
from tests.upgrade.checkout import Checkout
from tests.upgrade.released import all_releases
from tools.release import places
from tools.release.record import Release

pytestmark = pytest.mark.servers

PAGE = "docs/upgrade.md"
RELEASES = all_releases() if LONG else all_releases()[-1:]
"""The last one; `make test-long` has all of them."""
OLDEST = "0ee95b9176733183ce73ee0058783b31354ad357"
"""What the page's example goes back to."""


def _commands(heading: str) -> str:
    return script(Commands(PAGE, "make-run").take(heading), Path())


def _until_calls_pass(load: Load, calls: int = 12) -> None:
    """Waits until devices have been served again."""

    def served() -> int:
        return sum(len(ids) for ids in load.acknowledged.values())

    before = served()
    until(lambda: served() >= before + calls, PATIENCE, "no device is served")


def _publish(root: httpx.Client, policy: dict[str, Any]) -> dict[str, Any]:
    """A new version of a policy."""
    body = {"bundle": changed(policy)}
    ok(root.patch(f"/api/policies/{policy['id']}", json=body))
    published: dict[str, Any] = ok(root.post(f"/api/policies/{policy['id']}/publish", json={}))
    return published


class _Somebody:
    """Who logged in with the older release, and stays so."""

    def __init__(self, stack: Stack) -> None:
        self._session = stack.login()

    def is_logged_in(self, stack: Stack) -> None:
        """By the token and by the refresh token of before; the next release takes the new ones."""
        with stack.client(self._session["token"]) as client:
            assert ok(client.get("/auth/session"))["email"] == stack.email
            refresh = {"refreshToken": self._session["refreshToken"]}
            self._session = ok(client.post("/auth/refresh", json=refresh))


def _is_well(stack: Stack, policy: dict[str, Any], watcher: Agent) -> dict[str, Any]:
    """A publish reaches a device, whose version only rises; who is retired stays out."""
    with stack.client(stack.login()["token"]) as root:
        published = _publish(root, policy)
    assert int(published["version"]) > int(policy["version"])
    until(lambda: patiently(watcher.pull), PATIENCE, "the new policy does not come", 0.2)
    assert watcher.version == str(published["version"])
    return published


@pytest.mark.timeout(900)
@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
def test_there_and_back(release: Release) -> None:
    """`make run` of the release, of this tree, and of the release again, in one home."""
    with tempfile.TemporaryDirectory(prefix="eg-", dir=in_memory()) as short:
        checkout = Checkout(Path(short) / "g", release.commit)
        assert checkout.version == release.version
        archive, passphrase = Path(short) / "monday.backup", Path(short) / "passphrase"
        passphrase.write_text("correct horse battery\n")
        key = ("--passphrase-file", passphrase)

        # It ends with its queues sent, while there is somebody to send them to.
        with ExitStack() as work:
            with checkout.running("make run") as stack:
                org, load, watcher, policy = _school(stack)
                somebody = _Somebody(stack)
                work.enter_context(load.running())
                _until_calls_pass(load)
                checkout.evergreen("backup", "create", "-o", archive, *key)
                policy = _is_well(stack, policy, watcher)
            with checkout.running(_commands("make run")) as stack:
                assert checkout.version == places.current()
                _until_calls_pass(load)
                policy = _is_well(stack, policy, watcher)
                somebody.is_logged_in(stack)
                checkout.evergreen("audit", "verify")
            back = _commands("Go back").replace(OLDEST, release.commit)
            with checkout.running(back) as stack:
                assert checkout.version == release.version
                _until_calls_pass(load)
                policy = _is_well(stack, policy, watcher)
                somebody.is_logged_in(stack)
                work.close()
                load.check(stack)
        _restored(checkout, archive, key, org, watcher)


def _school(stack: Stack) -> tuple[Org, Load, Agent, dict[str, Any]]:
    root = stack.client(stack.login()["token"])
    org = make_org(stack, root)
    policy = org.publish()
    return org, Load([org.device() for _ in range(3)]), org.device(), policy


def _restored(
    checkout: Checkout, archive: Path, key: tuple[str, Path], org: Org, watcher: Agent
) -> None:
    """The older release's backup, in a new home of this tree, at the old address."""
    checkout.git("checkout", "--quiet", "installed")
    checkout.evergreen("backup", "verify", archive, *key)
    said = checkout.evergreen(
        "backup", "restore", archive, *key, "--home", checkout.root / ".second"
    )
    assert "Restored as of" in said
    with checkout.running("make run", ".second") as stack:
        had = int(watcher.version)
        patiently(watcher.report_state)
        with stack.client(stack.login()["token"]) as root:
            found = ok(root.get("/api/policies", params={"orgId": org.id}))["policies"]
            published = _publish(root, found[0])
        assert int(published["version"]) > had
        until(lambda: patiently(watcher.pull), PATIENCE, "the new policy does not come", 0.2)
        assert watcher.version == str(published["version"])
