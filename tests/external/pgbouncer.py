"""A real PgBouncer before the tests' PostgreSQL, with the configuration of docs/postgresql.md."""

from __future__ import annotations

import configparser
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from contract.contexts import CONTEXTS
from deploy.certificates import now
from deploy.launcher import tls
from deploy.launcher.home import password
from deploy.launcher.postgres import MIGRATOR_SECRET
from deploy.postgres import roles
from tests.support import debian
from tests.support.documented import read
from tests.support.servers import Servers, TestDatabase
from tests.support.stack import PATIENCE, free_port, until

HOST: Final = "postgres.school.example"
"""What stands for PostgreSQL's host in the document."""


@dataclass(frozen=True, slots=True)
class Pooler:
    """Where it listens."""

    port: int
    database: TestDatabase

    def dsn(self, role: str, host: str = "127.0.0.1", **query: str) -> str:
        """The address for a role, without the password."""
        url = f"postgresql://{role}@{host}:{self.port}/{self.database.name}"
        return f"{url}?{urlencode(query)}" if query else url


def require() -> None:
    """Installs PgBouncer, or skips the test."""
    debian.require("pgbouncer")


def documented() -> configparser.RawConfigParser:
    """The configuration as the document has it."""
    (block,) = (one for one in read("docs/postgresql.md") if one.language == "ini")
    found = configparser.RawConfigParser()
    found.read_string(block.text)
    return found


@contextmanager
def running(
    directory: Path,
    database: TestDatabase,
    more: dict[str, str] | None = None,
    *,
    with_tls: bool = False,
    users: Mapping[str, str] | None = None,
) -> Iterator[Pooler]:
    """Runs PgBouncer before a database.

    Args:
        directory: is made for its files, and for the CA (`ca.crt`).
        database: its name is the same before and behind.
        more: goes over the documented settings.
        with_tls: whether it takes TLS alone, with a certificate for `localhost`.
        users: role → password; without it, the roles that the launcher makes.
    """
    require()
    servers = database.servers
    directory.mkdir()
    port = free_port()
    configuration = documented()
    target = configuration["databases"].pop("evergreen").replace(HOST, "/proc/self/fd/{fd}")
    (directory / "userlist.txt").write_text(
        "".join(f'"{role}" "{secret}"\n' for role, secret in (users or _users(servers)).items())
    )
    # The server's sockets are its user's alone, and the directories above are closed to that user:
    # PgBouncer, which refuses to be root, runs as it, and inherits what it needs.
    sockets = os.open(servers.postgres.socket_directory, os.O_RDONLY | os.O_DIRECTORY)
    files = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    owner = os.fstat(sockets)
    given = target.format(fd=sockets).replace("dbname=evergreen", f"dbname={database.name}")
    configuration["databases"][database.name] = given
    configuration["databases"]["*"] = given.partition(" dbname=")[0]
    settings = configuration["pgbouncer"]
    own = f"/proc/self/fd/{files}"
    for name in [name for name in settings if "tls" in name]:
        # PostgreSQL itself is at a socket.
        if not with_tls or name.startswith("server"):
            del settings[name]
    if with_tls:
        tls.ensure(directory, ["localhost"], now())
        settings["client_tls_cert_file"] = f"{own}/server.crt"
        settings["client_tls_key_file"] = f"{own}/server.key"
    settings.update(
        {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "auth_file": f"{own}/userlist.txt",
            "unix_socket_dir": "",
            **(more or {}),
        }
    )
    path = directory / "pgbouncer.ini"
    with path.open("w") as file:
        configuration.write(file)
    for each in (directory, *directory.iterdir()):
        os.chown(each, owner.st_uid, owner.st_gid)
    process = subprocess.Popen(
        [_binary(), f"{own}/pgbouncer.ini"],
        user=owner.st_uid if os.geteuid() == 0 else None,
        pass_fds=(sockets, files),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: _answers(port), PATIENCE, "PgBouncer does not start")
        yield Pooler(port, database)
    finally:
        process.kill()
        process.wait()
        os.close(sockets)
        os.close(files)


def _binary() -> str:
    # Debian has it in /usr/sbin, which is not on everybody's path.
    return shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"


def _users(servers: Servers) -> dict[str, str]:
    secrets = {roles.MIGRATOR: MIGRATOR_SECRET} | {
        roles.service_role(context): f"postgres_{context}" for context in CONTEXTS
    }
    return {role: servers.home.secret(secret, password) for role, secret in secrets.items()}


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
