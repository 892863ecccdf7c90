"""A report with very many rows, at memory that does not grow with them."""

from __future__ import annotations

import gc
import time

import psutil
import pytest

from tests.services.audit.reports.conftest import AS_OF, StartWorld, World
from tests.support.audit import ORG
from tests.support.paths import LONG


async def devices(world: World, count: int) -> None:
    await world.sql(
        "INSERT INTO enrollment.device (id, tenant_id, serial, model, cpu_model, cpu_count,"
        " total_ram_bytes, has_tpm, status, token_version, created_at)"
        " SELECT gen_random_uuid(), $1, 'SN-' || n, 'Framework 12', 'i3', 6, 8589934592, true,"
        " 'active', 1, $2 FROM generate_series(1, $3::integer) AS n",
        ORG.id,
        AS_OF,
        count,
    )
    await world.sql("ANALYZE enrollment.device")


@pytest.mark.long
async def test_many_rows_take_no_more_memory(start_world: StartWorld) -> None:
    """What is held grows by less than 40 MiB; 500,000 rows in `make test-long`, 10,000 else."""
    world = await start_world(report_mib=1024)
    count = 500_000 if LONG else 10_000
    await devices(world, count)
    await world.until((await world.create("policy-history")).id)
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    began = time.monotonic()
    made = await world.until((await world.create("devices-not-seen")).id, seconds=1_500)
    grown = process.memory_info().rss - before
    size = sum(file.bytes for file in made.files) >> 20
    print(f"{count:,} rows, {size} MiB in {time.monotonic() - began:.0f} s; {grown >> 20} MiB more")
    assert made.rows == count
    # All six services are in this process, and both ends of each answer.
    assert grown < 40 << 20, f"{grown >> 20} MiB"
    page = next(file for file in made.files if file.name.endswith(".html"))
    assert page.bytes < 8 << 20
