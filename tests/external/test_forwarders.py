"""Forwarders with Debian's rsyslog and syslog-ng over TLS, and a receiver of webhooks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeKit
from tests.support import forward_kills
from tests.support.servers import TestDatabase


@pytest.mark.timeout(480)
async def test_nothing_is_missing_whoever_is_killed(
    make_kit: MakeKit, database: TestDatabase, tmp_path: Path
) -> None:
    """Receivers and the service, with -9 and TERM: order per tenant, repeats with the same id."""
    packages = tmp_path / "packages"
    async with forward_kills.running(make_kit, database, tmp_path, packages) as world:
        await world.create_forwarders()
        await world.disturb(60)
        assert world.kills > 15
        await world.until_all_arrived(180)
        world.check()
