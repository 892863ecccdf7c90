"""Driving the load, and counting what it costs on the side that serves it."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from bench.cpu import Machine, Process, Usage, usage
from bench.figures import Outcome, Round
from bench.traffic import Call
from cli.sim import Answer, Client, Target


class Side(Protocol):
    """What serves the load: the product, or a floor."""

    @property
    def name(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def ca_file(self) -> str: ...

    @property
    def rest_cpus(self) -> float:
        """How many processors it keeps busy when nobody calls."""
        ...

    async def settled(self) -> None:
        """Waits until what is done behind the answers is done; that is a part of the cost."""
        ...

    def processes(self) -> list[Process]:
        """What is counted."""
        ...

    def is_success(self, call: Call, status: int) -> bool:
        """Whether this side answers such a call so."""
        ...


@asynccontextmanager
async def connected(sides: Sequence[Side], connections: int) -> AsyncIterator[dict[str, Client]]:
    """A client for each side, by its name; all alike."""
    async with AsyncExitStack() as open_clients:
        yield {
            side.name: await open_clients.enter_async_context(
                Client(
                    Target.of(f"https://localhost:{side.port}", side.ca_file),
                    connections=connections,
                )
            )
            for side in sides
        }


class Sender:
    """Sends calls to one side and notes what comes of them."""

    def __init__(self, side: Side, client: Client) -> None:
        self._side = side
        self._client = client
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.outcome = Outcome()

    def send(self, call: Call, since: float, then: Callable[[], None] | None = None) -> None:
        """Sends a call; its latency counts from `since`."""
        self._in_flight += 1
        self._idle.clear()

        def done(answer: Answer) -> None:
            if self._side.is_success(call, answer.status):
                self.outcome.note(call.kind, time.perf_counter() - since)
            else:
                self.outcome.fail(f"{call.kind}: {answer.status or answer.fault}")
            self._in_flight -= 1
            if then is not None:
                then()
            if not self._in_flight:
                self._idle.set()

        client = self._client
        client.send(client.request(call.path, call.body, call.token), done)

    async def idle(self) -> None:
        """Waits until all calls are answered."""
        await self._idle.wait()


Load = Callable[[Sender], Awaitable[None]]


async def measure(side: Side, client: Client, load: Load, beside: Sequence[Side] = ()) -> Round:
    """One round: the load, and the CPU time of the side's processes until it has settled.

    Args:
        side: what serves.
        client: sends to it.
        load: what is sent.
        beside: what else runs for the measurement, and is no noise.
    """
    known = [side, *(other for other in beside if other is not side)]
    sender = Sender(side, client)
    machine, own, before = Machine.now(), _own(), [_cpu(one) for one in known]
    began = time.perf_counter()
    await load(sender)
    await sender.idle()
    sender.outcome.seconds = time.perf_counter() - began
    own = _own() - own
    busy = Machine.now().busy - machine.busy
    ours = sum(_cpu(one).since(was).total for one, was in zip(known, before, strict=True))
    await side.settled()
    spent = _cpu(side).since(before[0])
    return Round(
        side.name,
        sender.outcome,
        dict(spent.seconds),
        others=max(0.0, busy - own - ours),
        client=own,
        rest=side.rest_cpus * (time.perf_counter() - began),
    )


def _cpu(side: Side) -> Usage:
    return usage(side.processes())


def _own() -> float:
    times = os.times()
    return times.user + times.system


def saturating(calls: Iterator[Call], connections: int, seconds: float) -> Load:
    """As much as is served: every connection sends its next call when the last is answered.

    A finite stream ends when all of it was sent.
    """

    async def load(sender: Sender) -> None:
        end = time.perf_counter() + seconds

        def following() -> None:
            now = time.perf_counter()
            if now < end and (call := next(calls, None)) is not None:
                sender.send(call, now, following)

        for _ in range(connections):
            following()
        await sender.idle()

    return load


def paced(calls: Iterator[Call], per_second: float, seconds: float, seed: int = 11) -> Load:
    """A stream that does not wait for answers, at random moments as from many devices.

    The latency of a call counts from the moment at which it was due, also when the client or the
    server was late.
    """

    async def load(sender: Sender) -> None:
        chance = random.Random(seed)
        due = began = time.perf_counter()
        while due - began < seconds:
            while due <= time.perf_counter() and due - began < seconds:
                sender.send(next(calls), due)
                due += chance.expovariate(per_second)
            await asyncio.sleep(max(0.0, min(due - time.perf_counter(), 0.1)))

    return load


async def interleaved(
    sides: Sequence[Side],
    clients: Mapping[str, Client],
    load: Callable[[Side], Load],
    rounds: int,
    tell: Callable[[Round], None],
) -> list[Round]:
    """Rounds in turn (A B C A B C …), so that what drifts meanwhile drifts for all alike."""
    found = []
    for _ in range(rounds):
        for side in sides:
            one = await measure(side, clients[side.name], load(side), sides)
            tell(one)
            found.append(one)
    return found
