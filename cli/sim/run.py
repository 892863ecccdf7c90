"""Runs traffic for a while."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Final

from cli.sim.calls import Traffic
from cli.sim.http import Client
from cli.sim.stats import Point, Stats

_HURRIED: Final = 5.0


async def run(
    traffic: Traffic,
    client: Client,
    seconds: float | None,
    *,
    warm_up: float = 0.0,
    each_second: Callable[[Point], None] | None = None,
    stop: asyncio.Event | None = None,
    drain: float = 35.0,
) -> Stats:
    """Runs traffic, waits for what is in flight, and answers the figures.

    Args:
        traffic: not started yet.
        client: that the traffic uses.
        seconds: how long, the warm-up not included; without an end when `None`.
        warm_up: seconds before, which do not count.
        each_second: shown every point of the series as it ends, but not what comes after the end.
        stop: ends the run early when it is set.
        drain: how long calls in flight may still take at the end; at most 5 s when it was stopped.
    """
    stop = stop or asyncio.Event()
    traffic.start()
    try:
        if warm_up:
            await _pause(warm_up, stop)
            traffic.stats = Stats()
        begun = time.perf_counter()
        for second in itertools.count(1):
            end = second if seconds is None else min(second, seconds)
            await _pause(begun + end - time.perf_counter(), stop)
            spent = time.perf_counter() - begun
            _tick(traffic, client, spent, each_second)
            if stop.is_set() or (seconds is not None and spent >= seconds):
                break
    finally:
        traffic.stop()
    traffic.stats.end()
    if traffic.in_flight:
        await traffic.drained(min(drain, _HURRIED) if stop.is_set() else drain)
        _tick(traffic, client, time.perf_counter() - begun, None)
    return traffic.stats


def _tick(
    traffic: Traffic, client: Client, spent: float, each_second: Callable[[Point], None] | None
) -> None:
    point = traffic.stats.tick(spent, client.connections)
    if each_second is not None:
        each_second(point)


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    if seconds > 0:
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            pass
