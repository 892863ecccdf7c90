"""The example of docs/sign-in.md, as it is printed, against a real OpenLDAP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.external import openldap
from tests.external.openldap import SERVICE_PASSWORD, password_of
from tests.support.documented import Commands, script
from tests.support.stack import LDAP_PORT, Stack

PLACE = "ldaps://ldap.school.example"


def test_the_example(stack: Stack, tmp_path: Path) -> None:
    """Each command does what the page says, and nina is an Admin of the organisation."""
    with (
        openldap.running(tmp_path / "programs", tmp_path / "ldap", LDAP_PORT) as server,
        Commands("docs/sign-in.md", "servers") as commands,
    ):
        (tmp_path / "ca.pem").write_text(server.ca_pem)
        (tmp_path / "bind-password").write_text(SERVICE_PASSWORD + "\n")
        (tmp_path / "nina-password").write_text(password_of("nina") + "\n")
        create, *others = commands.take("Example: OpenLDAP")
        blocks = [create.filled({PLACE: server.ldaps}), *others]
        bin_directory = Path(sys.executable).parent
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script(blocks, tmp_path)],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{bin_directory}:{os.environ['PATH']}",
                "EVERGREEN_HOME": str(stack.home),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert "ok     role: Admin of Default" in lines
        assert any("nina@school.test" in line and "Admin" in line for line in lines)
        assert any("School directory" in line and " ok " in line for line in lines)
        assert not [line for line in lines if "FAILED" in line]
    with stack.first_owner() as root:
        (directory,) = root.get("/api/directories").json()["directories"]
        root.delete(f"/api/directories/{directory['id']}").raise_for_status()
        root.delete("/api/email-domains/school.test").raise_for_status()
