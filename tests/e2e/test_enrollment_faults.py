"""A school boots while parts of the product are killed."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.tokens import superuser
from tests.e2e.world import make_org, ok
from tests.support import stack as test_stack
from tests.support.stack import PATIENCE, Stack, until

pytestmark = pytest.mark.servers

LAPTOPS = 120


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A product of this module's own: its parts are killed."""
    with test_stack.running(tmp_path_factory.mktemp("faults") / "home") as found:
        yield found


def boot(stack: Stack, key: str, number: int) -> str:
    """An agent that asks until it is let in; answers its device id."""
    body = {"serial": f"BOOT-{number}", "model": "Book", "pre_shared_key": key}
    end = time.monotonic() + 60
    with stack.client() as client:
        while time.monotonic() < end:
            try:
                answer = client.post("/api/v1/devices/enroll", json=body)
            except httpx.HTTPError:
                time.sleep(0.1)  # the connection broke, and whatever was answered is lost
                continue
            if answer.status_code == 200:
                found: str = answer.json()["device_id"]
                return found
            assert answer.status_code in {429, 503, 504}, answer.text
            time.sleep(0.2)
    raise AssertionError("a device was not let in within a minute")


@pytest.mark.parametrize("victim", ["enrollment", "policy", "identity", "postgres", "gateway"])
def test_every_device_gets_in_exactly_once(stack: Stack, victim: str) -> None:
    """One device, one use and one event per laptop, whatever was killed in between."""
    with stack.first_owner() as root:
        org = make_org(stack, root)
        token = org.enrollment_token(maxUses=LAPTOPS)
        with ThreadPoolExecutor(12) as pool:
            booting = [
                pool.submit(boot, stack, token["preSharedKey"], number) for number in range(LAPTOPS)
            ]
            until(lambda: sum(b.done() for b in booting) > 10, PATIENCE, "nothing gets in")
            stack.signal(victim, signal.SIGKILL)
            devices = [b.result() for b in booting]
        stack.until_ready()
        assert len(set(devices)) == LAPTOPS
        rows = superuser(
            stack,
            "SELECT d.id::text AS id, t.uses FROM enrollment.device d"
            " JOIN enrollment.token t ON t.id = d.enrollment_token_id WHERE d.tenant_id = $1::uuid",
            org.id,
        )
        assert sorted(row["id"] for row in rows) == sorted(devices)
        assert {row["uses"] for row in rows} == {LAPTOPS}

        def told() -> Counter[str]:
            entries = ok(org.owner.get("/api/audit", params={"pageSize": 500}))["entries"]
            return Counter(
                e["resource"] for e in entries if e["action"] == "enrollment.device_enrolled"
            )

        until(lambda: len(told()) == LAPTOPS, PATIENCE, "not all are in the audit log")
        assert told() == Counter(f"devices/{device}" for device in devices)
