"""What each kind of report says, in each format, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.audit.reports.kinds import PRODUCERS
from tests.services.audit.reports.conftest import World

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("kind", PRODUCERS)
async def test_a_report_is_as_recorded(world: World, kind: str) -> None:
    """`EVERGREEN_RECORD=1` records what is then to be read, and committed. A second report over the
    same data has the same bytes, whatever was made between them."""
    first = await world.made(kind)
    files = await world.files(first)
    del files["manifest.txt"]
    GOLDEN.mkdir(exist_ok=True)
    for name, content in files.items():
        if os.environ.get("EVERGREEN_RECORD"):
            (GOLDEN / name).write_bytes(content)
        assert content == (GOLDEN / name).read_bytes(), name
    second = await world.files(await world.made(kind))
    del second["manifest.txt"]
    assert second == files
