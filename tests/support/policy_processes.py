"""Processes of the policy service on one database, which are killed and started again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Final

import uvloop

from evergreen.v1 import identity_pb2_grpc
from servicekit.app import Kit, start
from servicekit.data.postgres import Database
from servicekit.feeds import changes, feed
from servicekit.ids import now
from servicekit.messaging.jetstream import Messaging
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.rpc.channels import open_channel
from services.policy.__main__ import build
from services.policy.gate import enforcement
from services.policy.rollouts import worker
from services.policy.settings import PolicySettings

_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])
_LAG: Final = 0.1


@dataclass
class PolicyProcess:
    """One process, with sockets of its own."""

    kit: Kit
    """Its settings count."""
    tenants: list[TenantNode]
    log: Path
    kills: int = 0
    _process: ForkServerProcess | None = field(default=None)

    async def start(self) -> None:
        """Starts it; it serves a moment later."""
        self._process = _FORKS.Process(
            target=_serve, args=(self.kit.settings, self.tenants, self.log), daemon=True
        )
        await asyncio.to_thread(self._process.start)

    async def kill(self) -> None:
        """SIGKILL, at whatever it does."""
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.join)
            self.kills += 1
            self._process = None


def _serve(settings: PolicySettings, tenants: list[TenantNode], log: Path) -> None:
    """What a process does; all that it looks at by itself it looks at often."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    quick: Mapping[tuple[ModuleType, str], float] = {
        (changes, "POLL_SECONDS"): _LAG,
        (feed, "POLL_SECONDS"): _LAG,
        (enforcement, "_PAUSE_SECONDS"): _LAG,
        (enforcement, "_AGAIN_SECONDS"): _LAG,
        (enforcement, "_LOOK_SECONDS"): 2.0,
        (worker, "LOOK_SECONDS"): 0.25,
    }
    for (module, name), seconds in quick.items():
        assert hasattr(module, name)
        setattr(module, name, seconds)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(settings, tenants))


async def _run(settings: PolicySettings, tenants: list[TenantNode]) -> None:
    database = await Database.open(settings)
    identity = open_channel(settings.target("identity"), "policy")
    directory = TenantDirectory(identity_pb2_grpc.IdentityInternalServiceStub(identity), now)
    directory.learn(tenants)
    directory.follower.synced = True
    outbox = Outbox(database, "policy")
    await start(Kit("policy", settings, database, Messaging(settings), outbox, directory), build)
    # It ends with what started it.
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(1)
