"""Random histories of organisations against two processes of the service, which lag behind.

Whatever is published, rolled out, steered, withdrawn, rolled back, moved and restored, by this
release and the one before, for all devices and for those of a group that devices join and leave,
with values that change, a key that is rotated and a gate that devices fall short of: no device gets
a number that is not above its own, no number stands for two contents, every device ends with what
it is to have, and is left alone then.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from datetime import timedelta
from random import Random
from typing import Final
from uuid import UUID, uuid4

import grpc
import httpx
import pytest

from evergreen.v1 import policy_pb2, policy_pb2_grpc
from servicekit.feeds import changes, feed
from services.policy.__main__ import build
from services.policy.delivery import service as delivery_service
from services.policy.delivery import tokens as delivery_tokens
from services.policy.gate import enforcement
from services.policy.rollouts import worker
from services.policy.settings import PolicySettings
from services.policy.stamps import service as stamps_service
from tests.conftest import MakeKit, ServeService, tenant
from tests.services.policy.stamps.history import LAG, History, Laptop
from tests.support.paths import LONG
from tests.support.patient import patient_channel
from tests.support.policy import RESELLER, TOKEN_LIFE, TREE, Device, neighbours
from tests.support.servers import TestDatabase
from tests.support.stack import PATIENCE

_ASKED: Final = os.environ.get("EVERGREEN_TEST_HISTORIES", "0-999" if LONG else "0-24")
"""The first and the last one, by the numbers that a failure tells."""
_STEPS: Final = 40
_DEVICES: Final = 3
_AT_ONCE: Final = 5
_HAPPENED: Final = (
    # To numbers.
    "draw",
    "layers",
    "move",
    "published_before",
    "restore",
    "rolled_back",
    "withdraw",
    # In what devices got.
    "answered lie",
    "named value",
    "restricted",
    "staged",
    # By admins.
    "change_default_plan",
    "changed_value",
    "enforce",
    "rolled_out",
    "steered",
)


@pytest.mark.long
@pytest.mark.timeout(14_400 if LONG else 300)
async def test_numbers_stand_for_one_content_in_any_history(
    make_kit: MakeKit,
    serve: ServeService,
    database: TestDatabase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In as many organisations at the same time, each with devices that call both processes."""
    # Histories are quicker than life.
    monkeypatch.setattr(stamps_service, "_DRAWS", 1_000_000)
    monkeypatch.setattr(delivery_service, "DRAWS_AN_HOUR", 1_000_000)
    monkeypatch.setattr(delivery_tokens, "TOKENS_AN_HOUR", 1_000_000)
    monkeypatch.setattr(changes, "POLL_SECONDS", LAG)
    monkeypatch.setattr(feed, "POLL_SECONDS", LAG)
    monkeypatch.setattr(enforcement, "_PAUSE_SECONDS", LAG)
    monkeypatch.setattr(worker, "LOOK_SECONDS", 1.0)
    first, _, last = _ASKED.partition("-")
    numbers = range(int(first), int(last or first) + 1)
    orgs = [tenant(1_000 + number, RESELLER) for number in numbers]
    kits = [await make_kit("policy", PolicySettings, tenants=[*TREE, *orgs])]
    async with neighbours(kits[0]) as around:
        await serve(kits[0], build)
        settings = {
            name: f"{getattr(kits[0].settings, name)}2"
            for name in ("grpc_listen", "internal_listen", "http_listen")
        }
        kits.append(await make_kit("policy", PolicySettings, tenants=[*TREE, *orgs], **settings))
        await serve(kits[1], build)
        channels = tuple(patient_channel(kit.settings.grpc_listen) for kit in kits)
        async with asyncio.timeout(PATIENCE):
            for kit, channel in zip(kits, channels, strict=True):
                probe = Device(kit, channel, uuid4(), orgs[0].id)
                while (await probe.pull()).status_code != httpx.codes.NOT_MODIFIED:
                    await asyncio.sleep(LAG)
        pem = await policy_pb2_grpc.PolicyKeyServiceStub(channels[0]).GetPolicyKeysPem(
            policy_pb2.GetPolicyKeysPemRequest()
        )
        counts: Counter[str] = Counter()
        free = asyncio.Semaphore(_AT_ONCE)

        async def live(number: int, org: UUID) -> None:
            async with free:
                connection = await database.superuser()
                await connection.execute("SET evergreen.scope = '*'")
                laptops = []
                for _ in range(_DEVICES):
                    device = uuid4()
                    both = [
                        tuple(
                            Device(kit, channel, device, org, age=age)
                            for kit, channel in zip(kits, channels, strict=True)
                        )
                        for age in (timedelta(0), TOKEN_LIFE * 0.7)
                    ]
                    laptops.append(Laptop(*both))
                history = History(
                    org=org,
                    connection=connection,
                    channels=channels,
                    random=Random(number),
                    laptops=laptops,
                    registry=around.registry,
                    attestation=around.attestation,
                    group=around.registry.group(org, "group", 1),
                    keys=[("", pem.data.decode())],
                )
                try:
                    await history.begin()
                    for _ in range(_STEPS):
                        await history.step()
                    await history.end()
                except (AssertionError, TimeoutError, grpc.aio.AioRpcError) as failed:
                    raise AssertionError(f"history {number}: {history.steps}: {failed}") from failed
                finally:
                    await connection.close()
                counts.update(history.counts)

        async with asyncio.TaskGroup() as group:
            for number, org in zip(numbers, orgs, strict=True):
                group.create_task(live(number, org.id))
        for channel in channels:
            await channel.close()
    # Each of them happened, or nothing was shown.
    rare = [name for name in _HAPPENED if counts[name] <= len(numbers) / 8]
    assert not rare, f"{rare} in {dict(counts)}"
