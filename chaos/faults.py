"""What can go wrong, one thing at a time, and the order in which it does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from chaos.product import PROCESSES, Product
from contract.contexts import CONTEXTS

Wait = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    `apply` returns when it is over; a process that was killed may still be coming back then.
    """

    kind: str
    victim: str
    apply: Callable[[Product], Awaitable[None]]

    def __str__(self) -> str:
        return f"{self.kind} {self.victim}"


def kill(victim: str) -> Fault:
    """kill -9."""

    async def apply(product: Product) -> None:
        product.kill(victim)

    return Fault("kill", victim, apply)


def hold(victim: str, seconds: float) -> Fault:
    """A process that is there and does nothing for a while."""

    async def apply(product: Product) -> None:
        product.hold(victim)
        await asyncio.sleep(seconds)
        product.go_on(victim)

    return Fault("hold", victim, apply)


def partition(victim: str, seconds: float) -> Fault:
    """Nothing gets through to it, and nobody is told."""

    async def apply(product: Product) -> None:
        for link in product.links_of(victim):
            link.cut()
        await asyncio.sleep(seconds)
        for link in product.links_of(victim):
            link.mend()

    return Fault("partition", victim, apply)


def slow(victim: str, delay: float, seconds: float) -> Fault:
    """Everything to and from it takes longer."""

    async def apply(product: Product) -> None:
        for link in product.links_of(victim):
            link.slow(delay)
        await asyncio.sleep(seconds)
        for link in product.links_of(victim):
            link.mend()

    return Fault("slow", victim, apply)


def step(victim: str, by: int, seconds: float) -> Fault:
    """A service's clock jumps, and jumps back."""

    async def apply(product: Product) -> None:
        product.step_clock(victim, by)
        await asyncio.sleep(seconds)
        product.step_clock(victim, 0)

    return Fault(f"clock {by:+d} s", victim, apply)


def full_disk(seconds: float) -> Fault:
    """PostgreSQL and NATS have no room."""

    async def apply(product: Product) -> None:
        await asyncio.to_thread(product.fill_disk)
        await asyncio.sleep(seconds)
        product.empty_disk()

    return Fault("full", "disk", apply)


def others(seconds: float, randomness: random.Random) -> list[Fault]:
    """One of each kind but kill -9, for each part that it can happen to.

    Args:
        seconds: how long each lasts.
        randomness: where chance comes from.
    """
    reachable = (*CONTEXTS, "postgres", "nats")
    return [
        *(hold(name, seconds) for name in PROCESSES),
        *(partition(name, seconds) for name in reachable),
        *(slow(name, 0.2, seconds) for name in reachable),
        *(step(name, randomness.choice((-7200, 7200)), seconds) for name in CONTEXTS),
        full_disk(seconds),
    ]


def kills(times: int) -> Iterator[Fault]:
    """kill -9 of every process, so many times each, in turns."""
    for _ in range(times):
        yield from map(kill, PROCESSES)


def shuffled(faults: Iterable[Fault], randomness: random.Random) -> Sequence[Fault]:
    """In an order that nobody would think of."""
    found = list(faults)
    randomness.shuffle(found)
    return found
