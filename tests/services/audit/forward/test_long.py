"""What takes minutes: kills for five of them, and a backlog of a million entries."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import grpc
import psutil
import pytest

from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc
from servicekit.rpc.channels import open_channel
from services.audit.settings import AuditSettings
from tests.conftest import MakeKit
from tests.support import callers, forward_kills, syslog_servers
from tests.support.audit import ORG, RESELLER, ROOT, SISTER, STRANGER, TREE
from tests.support.backlog import fill
from tests.support.paths import LONG
from tests.support.paths import ROOT as PROJECT
from tests.support.servers import TestDatabase
from tests.support.stack import free_port
from tests.support.syslog_servers import Receiver

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not LONG, reason="`make test-long` has it"),
    pytest.mark.timeout(1800),
]
ENTRIES = int(os.environ.get("EVERGREEN_TEST_ENTRIES", "1000000"))


async def test_nothing_is_missing_after_five_minutes(
    make_kit: MakeKit, database: TestDatabase, tmp_path: Path
) -> None:
    """As tests/external/test_forwarders.py, for so long that most is confirmed between kills."""
    packages = tmp_path / "packages"
    async with forward_kills.running(make_kit, database, tmp_path, packages) as world:
        await world.create_forwarders()
        await world.disturb(300)
        await world.until_all_arrived(300)
        print(f"{world.recorded} entries, {world.kills} kills, repeats: {world.check()}")


async def test_a_million_entries_drain(
    make_kit: MakeKit, database: TestDatabase, tmp_path: Path
) -> None:
    """By webhook batches: 2,000 a second or more, and less than 100 MB more memory."""
    kit = await make_kit("audit", AuditSettings, tenants=TREE)
    chains = [ORG.id, SISTER.id, STRANGER.id, RESELLER.id]
    connection = await database.superuser()
    for chain in chains:
        await fill(connection, chain, ENTRIES // len(chains))
    await connection.execute("ANALYZE audit.entry")
    port, file = free_port(), tmp_path / "received"
    command = [sys.executable, "-m", "tests.support.webhook_program", str(port), file]
    receiver = Receiver("webhook", command, {"PYTHONPATH": str(PROJECT)}, file, port)
    receiver.start()
    try:
        await asyncio.to_thread(syslog_servers.until_listening, port)
        async with forward_kills.service_process(kit, database, tmp_path, [port]) as service:
            world = forward_kills.World.of(kit, service, [receiver])
            assert service.process is not None
            process = psutil.Process(service.process.pid)
            channel = open_channel(kit.settings.grpc_listen, "test")
            api = audit_pb2_grpc.ForwarderServiceStub(channel)
            await _until_it_answers(api)
            before, begun, most = process.memory_info().rss, time.monotonic(), 0
            await world.create_forwarders(batch=100)
            while (left := await _backlog(api)) > 0:
                most = max(most, process.memory_info().rss)
                assert time.monotonic() < begun + 1500, f"{left} are left"
                await asyncio.sleep(0.5)
            took = time.monotonic() - begun
            await channel.close()
        rate = ENTRIES / took
        grown = (most - before) / 1e6
        print(f"{rate:,.0f} entries a second, {grown:.0f} MB more memory at most")
        assert rate >= 2_000
        assert grown < 100
        assert file.read_bytes().count(b"\n") == ENTRIES
    finally:
        receiver.stop()
        await connection.close()


async def _until_it_answers(api: audit_pb2_grpc.ForwarderServiceAsyncStub) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await api.ListForwarders(pb.ListForwardersRequest(), metadata=callers.user(ROOT.id))
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.2)


async def _backlog(api: audit_pb2_grpc.ForwarderServiceAsyncStub) -> int:
    answer = await api.ListForwarders(pb.ListForwardersRequest(), metadata=callers.user(ROOT.id))
    return answer.forwarders[0].state.backlog
