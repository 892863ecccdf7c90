"""A real Active Directory domain controller: Debian's Samba, its LDAP alone; it needs root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from deploy.certificates import now
from deploy.launcher import tls
from tests.support.stack import until

_PACKAGES: Final = (
    "samba",
    "samba-ad-dc",
    "samba-ad-provision",
    "samba-dsdb-modules",
    "samba-vfs-modules",
    "winbind",
    "python3-samba",
)
ADDRESS: Final = "127.0.0.10"
"""Its ports are the well-known ones."""
BASE: Final = "DC=school,DC=test"
PASSWORD: Final = "Sch00l-Passw0rd!"
SERVICE: Final = "svc-evergreen@school.test"
_ADMIN_PASSWORD: Final = "Adm1n-Passw0rd!"
_PATIENCE: Final = 120.0

_CONFIGURATION: Final = """\
[global]
	bind interfaces only = Yes
	interfaces = {address}/8
	binddns dir = {place}/dc/bind-dns
	cache directory = {place}/dc/cache
	lock directory = {place}/dc
	private dir = {place}/dc/private
	state directory = {place}/dc/state
	pid directory = {place}/dc
	ncalrpc dir = {place}/dc/ncalrpc
	log file = {place}/dc/log.%m
	netbios name = DC1
	realm = SCHOOL.TEST
	workgroup = SCHOOL
	server role = active directory domain controller
	server services = ldap
	tls enabled = yes
	tls keyfile = {place}/server.key
	tls certfile = {place}/server.crt
	tls cafile = {place}/ca.crt
"""


def group_dn(name: str) -> str:
    return f"CN={name},OU=Groups,{BASE}"


@dataclass(frozen=True, slots=True)
class Samba:
    """Where it listens, and how to change what it has."""

    directory: Path

    @property
    def ldaps(self) -> str:
        return f"ldaps://{ADDRESS}"

    @property
    def allowed(self) -> str:
        """What allows to connect to it, as a setting says it: it is on this machine."""
        return f"{ADDRESS}/32:636,{ADDRESS}/32:389"

    @property
    def starttls(self) -> str:
        return f"ldap://{ADDRESS}"

    @property
    def ca_pem(self) -> str:
        return (self.directory / "ca.crt").read_text()

    def tool(self, *arguments: str) -> None:
        """Runs `samba-tool`, on the database itself."""
        database = ["-s", self.directory / "run.conf", "-H", self.directory / "dc/private/sam.ldb"]
        _run(["samba-tool", *arguments, *database])


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def _require() -> None:
    """Installs Samba, or skips the test."""
    if shutil.which("samba") and shutil.which("samba-tool"):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip(f"needs {' '.join(_PACKAGES)}, and root on Debian")
    # Only unpacked and configured: its own services would take the ports.
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *_PACKAGES]
        for command in (["apt-get", "update", "-q"], install):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=600,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
            if done.returncode != 0:
                pytest.skip(f"Samba could not be installed: {done.stderr[-300:]}")
    finally:
        if made:
            policy.unlink()


@contextmanager
def running(directory: Path) -> Iterator[Samba]:
    """Provisions a domain, runs its controller, and fills it."""
    _require()
    if os.geteuid() != 0:
        pytest.skip("a domain controller needs root")
    directory.mkdir()
    tls.ensure(directory, ["dc1.school.test", ADDRESS], now())
    # Without a file of our own /etc/samba/smb.conf is merged in.
    (directory / "empty.conf").write_text("[global]\n")
    (directory / "run.conf").write_text(_CONFIGURATION.format(address=ADDRESS, place=directory))
    _run(
        ["samba-tool", "domain", "provision", f"--configfile={directory / 'empty.conf'}",
         "--realm=SCHOOL.TEST", "--domain=SCHOOL", "--server-role=dc", "--dns-backend=NONE",
         f"--adminpass={_ADMIN_PASSWORD}", "--host-name=dc1", f"--host-ip={ADDRESS}",
         f"--targetdir={directory / 'dc'}", f"--option=interfaces={ADDRESS}/8",
         "--option=bind interfaces only=yes"]
    )  # fmt: skip
    found = Samba(directory)
    with (directory / "samba.log").open("wb") as log:
        process = subprocess.Popen(
            ["samba", "-i", "-M", "single", f"--configfile={directory / 'run.conf'}",
             "--debug-stdout"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until(_answers, _PATIENCE, "Samba does not start")
        _fill(found)
        yield found
    finally:
        process.terminate()
        process.wait(30)


def _answers() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, 636)) == 0


def _fill(samba: Samba) -> None:
    tool = samba.tool
    tool("domain", "passwordsettings", "set", "--complexity=on", "--min-pwd-age=0",
         "--account-lockout-threshold=3", "--account-lockout-duration=10",
         "--reset-account-lockout-after=10")  # fmt: skip
    tool("ou", "add", f"OU=Staff,{BASE}")
    tool("ou", "add", f"OU=Groups,{BASE}")
    for user in (
        "svc-evergreen", "olive", "adam", "audrey", "dora", "nina", "lock", "expired",
        "mustchange", "nobody",
    ):  # fmt: skip
        tool("user", "create", user, PASSWORD, f"--mail-address={user}@school.test",
             f"--given-name={user}", "--surname=Test", "--userou=OU=Staff")  # fmt: skip
    for group in ("EG-Owners", "EG-Admins", "EG-Auditors", "Teachers", "Dept-IT"):
        tool("group", "add", group, "--groupou=OU=Groups")
    members = {
        "EG-Owners": "olive",
        "EG-Admins": "Dept-IT",
        "Dept-IT": "adam,Teachers",
        "Teachers": "nina",
        "EG-Auditors": "audrey,dora,lock,expired,mustchange",
    }
    for group, names in members.items():
        tool("group", "addmembers", group, names)
    tool("user", "disable", "dora")
    tool("user", "setexpiry", "svc-evergreen", "--noexpiry")
    tool("user", "setpassword", "mustchange", f"--newpassword={PASSWORD}",
         "--must-change-at-next-login")  # fmt: skip
    tool("user", "setexpiry", "expired", "--days=0")
