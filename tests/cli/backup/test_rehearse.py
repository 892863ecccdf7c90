"""What a rehearsed restore is started with."""

from __future__ import annotations

from pathlib import Path

from cli.backup.rehearse import environment
from servicekit.security import mode


def test_a_rehearsal_uses_the_algorithms_of_its_command(tmp_path: Path) -> None:
    """It opens all keys of the installation, so that FIPS mode counts for it, too; of the other
    settings it has none."""
    algorithms = {
        mode.FIPS: "required",
        mode.SUITES: "approved",
        mode.SHA256: "0" * 64,
        "OPENSSL_CONF": "/etc/evergreen/openssl.cnf",
        "OPENSSL_MODULES": "/opt/fips",
    }
    others = {"EVERGREEN_PORT": "8443", "EVERGREEN_OUTBOUND": "true", "NOTIFY_SOCKET": "/run/n"}
    found = environment(tmp_path, {**algorithms, **others})
    assert {name: found.get(name) for name in algorithms} == algorithms
    assert found["EVERGREEN_HOME"] == str(tmp_path)
    assert found["EVERGREEN_OUTBOUND"] == "false"
    assert not {"EVERGREEN_PORT", "NOTIFY_SOCKET"} & found.keys()
