"""Devices that work while something happens to the product."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.e2e.tokens import superuser
from tests.fakes.agent import Agent, CallError
from tests.support.stack import Stack

MAY_PASS = frozenset({None, 429, 503, 504})
"""What an agent may see of a fault: no connection, or a refusal that says "later"."""

PAUSE = 0.15
"""Seconds between two rounds of a device."""


def stored_events(stack: Stack, device_id: str) -> list[str]:
    """The ids of a device's events in PostgreSQL."""
    rows = superuser(
        stack, "SELECT event_id FROM telemetry.event WHERE device_id = $1::text::uuid", device_id
    )
    return [row["event_id"] for row in rows]


class Load:
    """Devices that poll and report several times a second, and note what was acknowledged."""

    def __init__(self, agents: list[Agent]) -> None:
        self._agents = agents
        self.acknowledged: dict[str, list[str]] = {a.device_id: [] for a in agents}
        self.failures: list[CallError] = []
        self.calls = 0
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Loads while the block runs; afterwards every queue is sent."""
        with ThreadPoolExecutor(len(self._agents)) as pool:
            done = [pool.submit(self._work, agent) for agent in self._agents]
            try:
                yield
            finally:
                self._stop.set()
                for one in done:
                    one.result()

    def _work(self, agent: Agent) -> None:
        while not self._stop.is_set():
            self._round(agent)
        for _ in range(200):
            if self._send(agent):
                return
            time.sleep(0.1)
        raise AssertionError("the queue could not be sent after the fault")

    def _round(self, agent: Agent) -> None:
        self.calls += 1
        agent.record("load", {"n": self.calls})
        try:
            agent.pull()
            agent.report_state()
        except CallError as error:
            self._failed(error)
        self._send(agent)
        # The processor is for the product, and for the tests beside this one.
        time.sleep(PAUSE)

    def _send(self, agent: Agent) -> bool:
        ids = [e["id"] for e in agent.events.entries()]
        try:
            agent.send_events()
        except CallError as error:
            self._failed(error)
            return False
        self.acknowledged[agent.device_id] += ids
        return True

    def _failed(self, error: CallError) -> None:
        self.failures.append(error)
        assert error.status in MAY_PASS, error

    def check(self, stack: Stack) -> None:
        """What was acknowledged is stored, once, and nothing else is."""
        for device_id, ids in self.acknowledged.items():
            assert ids
            assert sorted(stored_events(stack, device_id)) == sorted(ids)
