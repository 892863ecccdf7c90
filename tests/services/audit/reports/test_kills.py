"""The process that makes reports is killed with -9 at random moments."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest

from auditlog.keys import read_keys
from auditlog.reports import MANIFEST, ReportManifest
from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc as rpc
from servicekit.ids import now
from servicekit.rpc.channels import open_channel
from servicekit.security.digests import sha256_hex
from services.audit.settings import AuditSettings
from tests.conftest import MakeKit, ServeService
from tests.services.audit.reports.conftest import start_the_owner
from tests.support import callers, forward_kills
from tests.support.audit import ORG, ROOT, SISTER, TREE
from tests.support.paths import LONG
from tests.support.servers import TestDatabase

pytestmark = pytest.mark.servers

OWNERS = ("enrollment", "telemetry", "policy", "attestation")
ROUNDS = 25 if LONG else 2
KILLS = 3
"""In a round; a report is given up after five attempts that ended without a word."""
DEVICES = 6_000
OWNER = callers.user(ROOT.id)


async def eventually(call: Callable[[], Awaitable[Any]]) -> Any:
    """What the service answers, as soon as it runs again."""
    for _ in range(600):
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise
        await asyncio.sleep(0.1)
    raise AssertionError("the service does not run")


class World:
    """Reports, and the process that makes them."""

    def __init__(
        self,
        database: TestDatabase,
        service: forward_kills.Service,
        reports: rpc.ReportServiceAsyncStub,
    ) -> None:
        self._database = database
        self.service = service
        self._reports = reports

    async def sql(self, statement: str, *arguments: Any) -> list[Any]:
        connection = await self._database.superuser()
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    async def create(self, kind: str, org_id: UUID) -> str:
        request = pb.CreateReportRequest(kind=kind, org_id=str(org_id))
        made = await eventually(lambda: self._reports.CreateReport(request, metadata=OWNER))
        return str(made.id)

    async def get(self, report_id: str) -> pb.Report:
        request = pb.GetReportRequest(id=report_id)
        found: pb.Report = await eventually(
            lambda: self._reports.GetReport(request, metadata=OWNER)
        )
        return found

    async def ended(self, report_id: str) -> pb.Report:
        """The report, when it has ended."""
        for _ in range(1200):
            if (found := await self.get(report_id)).status != "running":
                return found
            await asyncio.sleep(0.1)
        raise AssertionError(found)

    async def kill(self) -> None:
        """Kills the process, and starts another one. Reports that it held are free at once, not
        after half a minute."""
        await asyncio.to_thread(self.service.kill, signal.SIGKILL)
        half = await self.sql(
            "SELECT r.id FROM audit.report r LEFT JOIN audit.report_file f ON f.report_id = r.id"
            " WHERE (r.status = 'ready') <> (f.report_id IS NOT NULL)"
        )
        assert half == [], "what is not ready has no files, and what is has them"
        await self.sql("UPDATE audit.report SET lease_until = now() WHERE status = 'running'")
        self.service.start()

    async def download(self, report_id: str, name: str) -> bytes:
        async def all_parts() -> bytes:
            parts = self._reports.DownloadReport(
                pb.DownloadReportRequest(id=report_id, name=name), metadata=OWNER
            )
            return b"".join([bytes(part.data) async for part in parts])

        content: bytes = await eventually(all_parts)
        return content

    async def check(self, report_id: str, keys: str) -> None:
        """All files are what was signed, and hold each device once."""
        manifest = ReportManifest.read((await self.download(report_id, MANIFEST)).decode())
        assert manifest.signed_by(read_keys(keys))
        assert manifest.rows == DEVICES
        for file in manifest.files:
            content = await self.download(report_id, file.name)
            assert (len(content), sha256_hex(content)) == (file.bytes, file.sha256)
            if file.name.endswith(".csv"):
                assert len({line.split(b",")[2] for line in content.splitlines()[1:]}) == DEVICES


async def fill(world: World) -> None:
    """Two organisations with devices."""
    for org in (ORG, SISTER):
        await world.sql(
            "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
            " total_ram_bytes, has_tpm, status, token_version, created_at, enrolled_at)"
            " SELECT gen_random_uuid(), $1, 'SN-' || n, 'Framework 12', 'i3', 6, 8589934592, true,"
            " 'active', 1, now() - interval '9 days', now() - interval '9 days'"
            " FROM generate_series(1, $2::integer) AS n",
            org.id,
            DEVICES,
        )
    await world.sql("ANALYZE enrollment.device")


@pytest.mark.timeout(1800 if LONG else 240)
async def test_a_report_is_whole_or_named_failed(
    make_kit: MakeKit, serve: ServeService, database: TestDatabase, tmp_path: Path
) -> None:
    """Whenever it dies: it is made again, and after too many deaths it failed by name."""
    for context in OWNERS:
        await start_the_owner(make_kit, serve, now, context)
    kit = await make_kit("audit", AuditSettings, tenants=TREE)
    moments = random.Random(int(os.environ.get("EVERGREEN_TEST_SEED", "21")))
    async with forward_kills.service_process(kit, database, tmp_path, [], OWNERS) as service:
        channel = open_channel(kit.settings.grpc_listen, "test")
        world = World(database, service, rpc.ReportServiceStub(channel))
        audit = rpc.AuditServiceStub(channel)
        await fill(world)
        request = pb.GetAuditKeysPemRequest()
        answer = await eventually(
            lambda: audit.GetAuditKeysPem(request, metadata=callers.anonymous())
        )
        keys = bytes(answer.data).decode()
        caught = 0
        for _ in range(ROUNDS):
            made = [
                await world.create("devices-not-seen", ORG.id),
                await world.create("asset-register", SISTER.id),
            ]
            for _ in range(KILLS):
                await asyncio.sleep(moments.uniform(0, 1.5))
                (parts,) = await world.sql(
                    "SELECT count(*) AS n FROM audit.report_part p JOIN audit.report r"
                    " ON r.id = p.report_id WHERE r.status = 'running'"
                )
                await world.kill()
                caught += parts["n"] > 0
                await world.get(made[0])
            for report_id in made:
                assert (found := await world.ended(report_id)).status == "ready", found
                await world.check(report_id, keys)
        # The one that kills its process each time.
        lost = await world.create("devices-not-seen", ORG.id)
        await world.sql("UPDATE audit.report SET attempts = 5 WHERE id::text = $1", lost)
        await world.kill()
        failed = await world.ended(lost)
        assert failed.error.startswith("INTERNAL"), failed
        left = "SELECT FROM audit.report_part WHERE report_id::text = $1"
        assert await world.sql(left, lost) == []
        assert caught, "no kill came while a report was written"
        await channel.close()
