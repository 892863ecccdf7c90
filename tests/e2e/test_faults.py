"""Faults while devices and admins work: nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from contract.contexts import CONTEXTS
from deploy.launcher.home import Home
from tests.e2e.load import MAY_PASS, Load, stored_events
from tests.e2e.world import Org, assert_error, make_org, ok
from tests.fakes.agent import CallError
from tests.support import stack as test_stack
from tests.support.stack import PATIENCE, Stack, until

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A product of this module's own: its parts are killed."""
    with test_stack.running(tmp_path_factory.mktemp("faults") / "home") as found:
        yield found


@pytest.fixture(scope="module")
def root(stack: Stack) -> httpx.Client:
    return stack.first_owner()


@pytest.fixture
def org(stack: Stack, root: httpx.Client) -> Org:
    made = make_org(stack, root)
    made.publish()
    return made


def audit_actions(org: Org) -> list[str]:
    return [e["action"] for e in ok(org.owner.get("/api/audit?pageSize=500"))["entries"]]


def works(org: Org) -> bool:
    """Whether an admin can admit a device, which takes four services; refusals say "later"."""
    try:
        answer = org.root.post("/api/enrollment-tokens", json={"orgId": org.id, "name": "New"})
        if answer.status_code != 200:
            assert answer.status_code in {429, 503, 504}, answer.text
            return False
        org.device(pre_shared_key=answer.json()["preSharedKey"])
    except httpx.TransportError:
        return False
    except CallError as error:
        assert error.status in MAY_PASS, error
        return False
    return True


@pytest.mark.parametrize("victim", [*CONTEXTS, "gateway", "nats", "postgres"])
def test_a_killed_process_loses_nothing(stack: Stack, org: Org, victim: str) -> None:
    """kill -9 in mid-load; the launcher starts it again, and the agents' retries arrive."""
    load = Load([org.device() for _ in range(4)])
    with load.running():
        until(lambda: load.calls > 12, PATIENCE, "the load does not run")
        old = stack.pids(victim)
        stack.signal(victim, signal.SIGKILL)
        until(lambda: stack.pids(victim) not in ([], old), PATIENCE, f"{victim} was not restarted")
        until(lambda: works(org), PATIENCE, "the product does not work again")
        stack.until_ready()
        before = load.calls
        until(lambda: load.calls > before + 12, PATIENCE, "the load does not go on")
    load.check(stack)


def test_one_batch_from_many_clients_is_stored_once(stack: Stack, org: Org) -> None:
    """A hundred times the same batch, sixteen at a time."""
    agent = org.device()
    now = time.time_ns()
    events = [
        {"id": str(now + n), "type": "same", "timestamp": "2026-05-05T05:05:05Z", "payload": None}
        for n in range(20)
    ]
    body = {"device_id": agent.device_id, "events": events}

    def send(_: int) -> int:
        with stack.client(agent.device_token) as client:
            while (answer := client.post("/api/v1/devices/events", json=body)).status_code == 429:
                time.sleep(float(answer.headers["retry-after"]) / 4)
            return answer.status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(send, range(100))) == {200}
    assert sorted(stored_events(stack, agent.device_id)) == sorted(e["id"] for e in events)


@contextmanager
def stopped(stack: Stack, name: str) -> Iterator[None]:
    """A process that hangs while the block runs."""
    stack.signal(name, signal.SIGSTOP)
    try:
        yield
    finally:
        stack.signal(name, signal.SIGCONT)


def test_without_nats_devices_and_admins_go_on(stack: Stack, org: Org) -> None:
    """Nothing waits for NATS; the audit entries arrive when it is back."""
    agent = org.device()
    with stopped(stack, "nats"):
        agent.report_state()
        agent.record("while.away")
        assert agent.send_events() == 1
        assert agent.pull() is False
        policy = org.publish()
        until(agent.pull, PATIENCE, "a publish does not reach devices without NATS")
        ok(org.admin.post(f"/api/devices/{agent.device_id}/decommission", json={}))
        until(lambda: refused(agent.pull), PATIENCE, "a decommission does not work without NATS")
        assert stack.ready()
    wanted = {"policy.published", "enrollment.device_decommissioned"}
    until(lambda: wanted <= set(audit_actions(org)), PATIENCE, "the audit entries did not arrive")
    published = ok(org.owner.get("/api/audit", params={"action": "policy.published"}))["entries"]
    assert any(policy["id"] in entry["resource"] for entry in published)


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except CallError as error:
        return error.status == 401
    return False


@contextmanager
def database_away(stack: Stack) -> Iterator[None]:
    """PostgreSQL cannot be reached while the block runs."""
    (socket,) = (Home(stack.home).run_directory() / "postgres").glob(".s.PGSQL.*[0-9]")
    hidden = socket.with_name("hidden")
    socket.rename(hidden)
    for pid in stack.children(stack.pids("postgres")[0], "evergreen_"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    try:
        yield
    finally:
        hidden.rename(socket)


def test_without_postgres_there_is_no_false_success(stack: Stack, org: Org) -> None:
    """503 with a delay; unchanged policies are still answered; everything recovers by itself."""
    agent, fresh = org.device(), org.agent()
    agent.pull()
    owner = org.owner
    with database_away(stack):
        agent.record("while.away")
        for call in (agent.report_state, agent.send_events, fresh.enroll):
            with pytest.raises(CallError) as error:
                call()
            assert error.value.status == 503, error.value
        answer = owner.get("/api/policies")
        assert_error(answer, 503, "UNAVAILABLE")
        assert int(answer.headers["retry-after"]) >= 1
        new = {"name": "x", "orgId": org.id, "bundle": {}}
        assert_error(owner.post("/api/policies", json=new), 503)
        assert agent.pull() is False
        with stack.client() as client:
            until(
                lambda: "telemetry" in client.get("/readyz").text,
                PATIENCE,
                "/readyz does not name what is not ready",
            )
            assert_error(client.get("/readyz"), 503, "UNAVAILABLE")
    stack.until_ready()
    assert agent.send_events() == 1
    agent.report_state()
    fresh.enroll()
    assert len(stored_events(stack, agent.device_id)) == 1
