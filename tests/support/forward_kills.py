"""Receivers and the audit service, which are killed while entries are forwarded."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from contract.contexts import CONTEXTS
from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc, identity_pb2, identity_pb2_grpc
from servicekit.app import Kit
from servicekit.rpc.channels import open_channel
from services.audit.log.recorder import Recorder
from services.audit.settings import AuditSettings
from tests.conftest import MakeKit
from tests.support import callers, syslog_servers
from tests.support.audit import ORG, RESELLER, ROOT, SISTER, TREE, event, message
from tests.support.neighbours import served
from tests.support.paths import ROOT as PROJECT
from tests.support.receivers import Authority
from tests.support.servers import TestDatabase
from tests.support.stack import free_port
from tests.support.syslog_servers import Receiver

TENANTS = (ORG.id, SISTER.id, RESELLER.id)
_AT_ONCE = 10


class FakeIdentity(identity_pb2_grpc.IdentityInternalServiceServicer):
    """Tells of the tenants, once."""

    async def ListAccessChanges(  # noqa: N802
        self, request: identity_pb2.ListAccessChangesRequest, context: Any
    ) -> identity_pb2.ListAccessChangesResponse:
        if request.cursor:
            await asyncio.sleep(1)
            return identity_pb2.ListAccessChangesResponse(next_cursor=request.cursor)
        tenants = []
        for node in TREE:
            tenant = identity_pb2.Tenant(
                id=str(node.id), kind=node.kind, name=node.name, code=node.code, status="active"
            )
            if node.parent_id is not None:
                tenant.parent_id = str(node.parent_id)
            tenants.append(tenant)
        return identity_pb2.ListAccessChangesResponse(tenants=tenants, next_cursor="1")


@dataclass
class Service:
    """The audit service as a process of its own."""

    kit: Kit
    log: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self.log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.audit"],
            env=self.environment,
            cwd=PROJECT,
            stdout=log,
            stderr=log,
        )

    def kill(self, signum: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(signum)
        self.process.wait(30)
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.kill(signal.SIGKILL)


@dataclass
class World:
    """What is killed, and what was recorded."""

    kit: Kit
    service: Service
    receivers: list[Receiver]
    ca: Authority
    recorder: Recorder
    recorded: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(21))
    kills: int = 0

    @classmethod
    def of(cls, kit: Kit, service: Service, receivers: list[Receiver]) -> World:
        return cls(kit, service, receivers, Authority(), Recorder(kit.database, kit.clock))

    async def create_forwarders(self, *, batch: int = 20) -> None:
        """One to each receiver."""
        channel = open_channel(self.kit.settings.grpc_listen, "test")
        api = audit_pb2_grpc.ForwarderServiceStub(channel)
        try:
            for receiver in self.receivers:
                request = pb.CreateForwarderRequest(
                    name=receiver.name, kind="syslog", start_at="beginning"
                )
                if receiver.name == "webhook":
                    request.kind = "webhook"
                    request.webhook.url = f"http://127.0.0.1:{receiver.port}/"
                    request.webhook.batch = batch
                else:
                    request.syslog.host = "127.0.0.1"
                    request.syslog.port = receiver.port
                    request.syslog.ca_pem = self.ca.pem
                end = time.monotonic() + 60
                while True:
                    try:
                        await api.CreateForwarder(request, metadata=callers.user(ROOT.id))
                        break
                    except grpc.aio.AioRpcError as error:
                        assert time.monotonic() < end, error
                        await asyncio.sleep(0.2)
        finally:
            await channel.close()

    async def record(self) -> None:
        """Records some entries of all tenants."""
        batch = []
        for _ in range(_AT_ONCE):
            for tenant_id in TENANTS:
                self.recorded += 1
                batch.append(message(event(self.recorded, tenant_id, after={"text": "x" * 400})))
        await self.recorder.handle(batch)

    async def disturb(self, seconds: float) -> None:
        """Records, and kills something every other second, at whatever moment."""
        end = time.monotonic() + seconds
        next_kill = time.monotonic() + 2
        down: list[tuple[float, Any]] = []
        while time.monotonic() < end:
            await self.record()
            now = time.monotonic()
            for item in list(down):
                if item[0] <= now:
                    down.remove(item)
                    item[1].start()
            if now >= next_kill:
                next_kill = now + self.random.uniform(1, 3)
                up = [one for one in (*self.receivers, self.service) if one.process is not None]
                if up:
                    victim = self.random.choice(up)
                    signum = self.random.choice((signal.SIGKILL, signal.SIGTERM))
                    await asyncio.to_thread(victim.kill, signum)
                    self.kills += 1
                    down.append((now + self.random.uniform(0.1, 1.5), victim))
            await asyncio.sleep(0.05)
        for _, victim in down:
            victim.start()

    async def until_all_arrived(self, seconds: float) -> None:
        """Waits until each receiver has seen each entry, and tries at once what waits."""
        wanted = {(str(t), n) for t in TENANTS for n in range(1, self.recorded // 3 + 1)}
        end = time.monotonic() + seconds
        while True:
            missing = {
                receiver.name: len(wanted - {(tenant, n) for tenant, n, _ in receiver.seen()})
                for receiver in self.receivers
            }
            if not any(missing.values()):
                return
            assert time.monotonic() < end, f"missing of {len(wanted)}: {missing}"
            async with self.kit.database.system_transaction("a test waits for no delay") as c:
                await c.execute(
                    "UPDATE audit.forwarder_state SET next_attempt_at = now()"
                    " WHERE next_attempt_at > now()"
                )
            await asyncio.sleep(0.5)

    def check(self) -> dict[str, int]:
        """Order per tenant, and repeats with the same id alone; answers how many repeats."""
        repeats = {}
        for receiver in self.receivers:
            ids: dict[tuple[str, int], str] = {}
            last: dict[str, int] = {}
            seen = receiver.seen()
            for tenant, sequence, entry in seen:
                first = (tenant, sequence) not in ids
                assert ids.setdefault((tenant, sequence), entry) == entry, receiver.name
                if first:
                    assert sequence == last.get(tenant, 0) + 1, (receiver.name, tenant, sequence)
                    last[tenant] = sequence
            repeats[receiver.name] = len(seen) - len(ids)
        return repeats


@asynccontextmanager
async def service_process(
    kit: Kit,
    database: TestDatabase,
    directory: Path,
    ports: list[int],
    owners: Collection[str] = (),
) -> AsyncIterator[Service]:
    """The audit service, started, which may connect to ports of this machine.

    Args:
        owners: the services that are there, beside identity.
    """
    settings = kit.settings
    names = (
        "grpc_listen", "internal_listen", "http_listen", "database_url", "database_password_file",
        "nats_user", "nats_password_file", "master_key_file", "identity_target",
    )  # fmt: skip
    environment = os.environ | {f"EVERGREEN_{n.upper()}": str(getattr(settings, n)) for n in names}
    others = (context for context in CONTEXTS if context not in ("audit", "identity"))
    # Those that are not there are not needed for what is forwarded.
    environment |= {
        f"EVERGREEN_{name.upper()}_TARGET": settings.target(name)
        if name in owners
        else "127.0.0.1:1"
        for name in others
    }
    environment |= {
        # Entries come from the test: the stream is another one's.
        "EVERGREEN_NATS_URL": "nats://127.0.0.1:1",
        "EVERGREEN_DRAIN_SECONDS": "0",
        "EVERGREEN_FORWARD_ALLOW": ",".join(f"127.0.0.1/32:{port}" for port in ports),
        "EVERGREEN_LOG_LEVEL": "info",
        "PYTHONPATH": f"{PROJECT}:{PROJECT / 'libs'}",
    }
    service = Service(kit, directory / "service.log", environment)
    connection = await database.superuser()
    await connection.execute(
        "INSERT INTO audit.stream_position (incarnation, sequence) VALUES ('test', 0)"
    )
    await connection.close()
    async with served(
        settings.identity_target,
        identity_pb2_grpc.add_IdentityInternalServiceServicer_to_server,
        FakeIdentity(),
    ):
        service.start()
        try:
            yield service
        finally:
            service.stop()


@asynccontextmanager
async def running(
    make_kit: MakeKit, database: TestDatabase, tmp_path: Path, packages: Path
) -> AsyncIterator[World]:
    """Everything, started."""
    root = syslog_servers.unpacked(packages)
    ca = Authority()
    certificate, key = ca.issue("127.0.0.1", "localhost").files(tmp_path, "server")
    ca_file = tmp_path / "ca.crt"
    ca_file.write_text(ca.pem)
    file, port = tmp_path / "webhook.received", free_port()
    command = [sys.executable, "-m", "tests.support.webhook_program", str(port), file]
    receivers = [
        syslog_servers.rsyslog(root, tmp_path / "rsyslog", certificate, key, ca_file),
        syslog_servers.syslog_ng(root, tmp_path / "syslog-ng", certificate, key),
        Receiver("webhook", command, os.environ | {"PYTHONPATH": str(PROJECT)}, file, port),
    ]
    kit = await make_kit("audit", AuditSettings, tenants=TREE)
    async with AsyncExitStack() as cleanup:
        for receiver in receivers:
            cleanup.callback(receiver.stop)
            receiver.start()
        for receiver in receivers:
            await asyncio.to_thread(syslog_servers.until_listening, receiver.port)
        ports = [receiver.port for receiver in receivers]
        service = await cleanup.enter_async_context(service_process(kit, database, tmp_path, ports))
        yield World(kit, service, receivers, ca, Recorder(kit.database, kit.clock))
