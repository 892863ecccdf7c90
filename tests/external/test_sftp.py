"""Backups on an SFTP server: OpenSSH's."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.backup.stores.address import open_store
from cli.backup.stores.store import Access, StoreError, name_of
from tests.cli.backup.test_stores import AT, OTHER, TAG, keeps_what_it_is_given
from tests.support import debian
from tests.support.stack import PATIENCE, free_port, until

CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host
PidFile {directory}/pid
AuthorizedKeysFile {directory}/authorized
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Server:
    """An SFTP server, and how it is logged in to."""

    directory: Path
    port: int

    def target(self, path: str) -> str:
        return f"sftp://{getpass.getuser()}@127.0.0.1:{self.port}{path}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "EVERGREEN_BACKUP_SFTP_KEY_FILE": str(self.directory / "user key"),
            "EVERGREEN_BACKUP_SFTP_KNOWN_HOSTS_FILE": str(self.directory / "known hosts"),
        }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    debian.require("sshd", "sftp")
    found = Server(tmp_path_factory.mktemp("sftp"), free_port())
    directory = found.directory
    for name in ("host", "user key"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
        subprocess.run(key, check=True)
    shutil.copy(directory / "user key.pub", directory / "authorized")
    (directory / "config").write_text(CONFIG.format(port=found.port, directory=directory))
    public = (directory / "host.pub").read_text()
    (directory / "known hosts").write_text(f"[127.0.0.1]:{found.port} {public}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    log = (directory / "log").open("w")
    process = subprocess.Popen([program, "-D", "-e", "-f", str(directory / "config")], stderr=log)
    try:
        until((directory / "pid").exists, PATIENCE, "sshd does not start")
        yield found
    finally:
        process.terminate()
        process.wait(PATIENCE)
        log.close()


def test_an_sftp_server_keeps_what_it_is_given(server: Server, tmp_path: Path) -> None:
    """In a directory whose name is a pattern, as in one below the login's own."""
    store = tmp_path / 'a "[b] *'
    store.mkdir()
    access = Access.of_environment(server.environment)
    path = str(store).replace(" ", "%20").replace('"', "%22").replace("[", "%5B")
    found = open_store(server.target(path), access)
    keeps_what_it_is_given(found, tmp_path, os.urandom(300_000))
    (left,) = store.iterdir()
    assert left.stat().st_mode & 0o777 == 0o600
    unfinished = store / f".{name_of(TAG, AT)}.part"
    others = store / f".{name_of(OTHER, AT)}.part"
    for leftover in (unfinished, others):
        leftover.touch()
    found.tidy(TAG)
    assert not unfinished.exists()
    assert others.exists()
    for name in ("~", f"~/{tmp_path.name}-none"):
        if name == "~":
            open_store(server.target("/~"), access).all()
            continue
        with pytest.raises(StoreError, match="No such file"):
            open_store(server.target(f"/{name}"), access).all()


def test_a_server_that_is_not_known_is_refused(server: Server, tmp_path: Path) -> None:
    """Nothing is asked, and what to do is said."""
    for name, changes, reason in (
        (
            "known",
            {"EVERGREEN_BACKUP_SFTP_KNOWN_HOSTS_FILE": str(tmp_path / "none")},
            "ssh-keyscan",
        ),
        ("key", {"EVERGREEN_BACKUP_SFTP_KEY_FILE": str(tmp_path / "other")}, "public key"),
    ):
        (tmp_path / "none").touch()
        if name == "key":
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")]
            subprocess.run(key, check=True)
        access = Access.of_environment(server.environment | changes)
        with pytest.raises(StoreError, match=reason):
            open_store(server.target(str(tmp_path)), access).all()


def test_a_full_disk_of_the_server(server: Server, tmp_path: Path) -> None:
    """What did not arrive as a whole is no backup, and is removed."""
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "archive").write_bytes(os.urandom(10_000))
    found = open_store(server.target(str(store)), Access.of_environment(server.environment))
    name = name_of(TAG, AT)
    # A name that the server cannot write.
    (store / f".{name}.part").mkdir()
    with pytest.raises(StoreError):
        found.put(tmp_path / "archive", name)
    assert not (store / name).exists()
