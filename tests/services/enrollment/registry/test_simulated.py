"""`evergreen devices end-simulated`: the end of devices that a test left."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from services.enrollment.simulated import ACTOR
from tests.support.enrollment import Enrollment, service

__all__ = ["service"]


async def end(service: Enrollment, directory: Path, prefix: str) -> tuple[int, str]:
    """Runs the real command on the server's machine."""
    dsn, password = service.database.of_migrator()
    secret = directory / "migrator"
    secret.write_text(password)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EVERGREEN_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "cli.main", "devices", "end-simulated", prefix),
        env=kept
        | {
            "EVERGREEN_MIGRATE_DATABASE_URL": dsn,
            "EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE": str(secret),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_a_tests_devices_are_decommissioned_and_deleted(
    service: Enrollment, tmp_path: Path
) -> None:
    """All of one beginning, and no others; the audit log says who. Then nothing is left."""
    key = (await service.token()).pre_shared_key
    serials = ("SIM-HELMTEST-1a2b3c-0000000", "SIM-HELMTEST-4d5e6f-0000000", "SIM-HELMTESTS-1")
    ids = [(await service.enrolled(key, serial=serial))["device_id"] for serial in serials]
    code, said = await end(service, tmp_path, "SIM-HELMTEST-")
    assert code == 0
    assert said.splitlines() == [
        f"{serial} is decommissioned and deleted." for serial in sorted(serials[:2], key=said.find)
    ]
    statuses = await service.sql(
        "SELECT id::text, status::text, deleted_at IS NULL AS is_there FROM enrollment.device"
    )
    found = {row["id"]: (row["status"], row["is_there"]) for row in statuses}
    assert [found[i] for i in ids] == [
        ("decommissioned", False),
        ("decommissioned", False),
        ("active", True),
    ]
    for what in ("device_decommissioned", "device_deleted"):
        events = await service.events(what)
        assert {event["actor"] for event in events} == {ACTOR}
        assert len(events) == 2
    code, said = await end(service, tmp_path, "SIM-HELMTEST-")
    assert (code, said) == (0, "No device's serial number begins with SIM-HELMTEST-.\n")


@pytest.mark.parametrize("prefix", ["", "SIM-", "PF-", "SIM"])
async def test_real_devices_are_never_ended_so(
    service: Enrollment, tmp_path: Path, prefix: str
) -> None:
    """Nor all simulated ones at once."""
    code, said = await end(service, tmp_path, prefix)
    assert code != 0
    assert "SIM-" in said
