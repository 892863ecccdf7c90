"""The gateway as the launcher starts it, and what the launcher itself loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.launcher import gateway
from deploy.launcher.errors import LauncherError
from deploy.launcher.home import Home
from deploy.launcher.process import ProcessSpec
from deploy.launcher.tls import Tls


async def _process(directory: Path) -> ProcessSpec:
    home = Home(directory / "home")
    home.prepare()
    files = Tls(*(directory / name for name in ("ca.crt", "server.crt", "server.key")))
    return await gateway.process(
        home, home.run_directory(), port=8443, addresses=("127.0.0.1",), files=files
    )


async def test_its_configuration_is_written_by_another_process(tmp_path: Path) -> None:
    """Which answers Envoy's arguments."""
    spec = await _process(tmp_path)
    where = Path(spec.argv[spec.argv.index("--config-path") + 1])
    assert where.parent == tmp_path / "home" / "gateway"
    listener = (where.parent / "listener.yaml").read_text()
    assert "port_value: 8443" in listener
    # YAML breaks long paths over lines.
    clusters = "".join((where.parent / "clusters.yaml").read_text().split()).replace("\\", "")
    # Sockets lie elsewhere where the home's path is too long for them.
    run = Home(tmp_path / "home").run_directory()
    assert str(run / "policy.http.sock") in clusters
    assert where.stat().st_mode & 0o077 == 0


async def test_a_limit_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to do."""
    monkeypatch.setenv("EVERGREEN_GATEWAY_WORKERS", "x")
    with pytest.raises(LauncherError, match="EVERGREEN_GATEWAY_WORKERS is 'x'") as error:
        await _process(tmp_path)
    assert error.value.advice


def test_the_launcher_loads_nothing_that_only_others_need() -> None:
    """It stays as long as the product runs."""
    look = "import json, sys, deploy.launcher.main; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-P", "-c", look], check=True, capture_output=True, text=True
    )
    loaded = {name.split(".")[0] for name in json.loads(found.stdout)}
    assert "asyncpg" in loaded
    assert not loaded & {"grpc", "google", "typer", "yaml", "pydantic", "fastapi", "cli"}
