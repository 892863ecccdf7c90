"""What the launcher says at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.launcher import summary
from deploy.launcher.home import Home
from servicekit.build import VERSION
from servicekit.security import fips


def test_a_start_names_the_fips_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the digest of its file; without FIPS mode, nothing is said of it."""
    home = Home(tmp_path)
    assert summary.heading(home).endswith(f"{VERSION} in {tmp_path}\n")
    module = fips.Module("OpenSSL FIPS Provider", "3.5.9", "", "", "ab" * 32, "")
    monkeypatch.setattr(fips, "module", lambda: module)
    assert summary.heading(home).splitlines()[-1] == (
        f"FIPS mode, OpenSSL FIPS Provider 3.5.9, SHA-256 {'ab' * 32}"
    )
