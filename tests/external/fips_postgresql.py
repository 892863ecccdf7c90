"""Debian's PostgreSQL in FIPS mode: an operator's own server, in the Debian of `fips_root`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.cpu import Process, below, processes
from contract.contexts import CONTEXTS
from deploy.certificates import Authority
from deploy.postgres import roles
from tests.external import fips_root
from tests.support.stack import PATIENCE, free_port, until

PASSWORD: Final = "a password of its own"
_PLACE: Final = "/var/lib/postgresql/fips"
_MAKE: Final = """\
bin=$(echo /usr/lib/postgresql/*/bin)
runuser -u postgres -- $bin/initdb -D "$1/data" -U admin --pwfile="$1/password" \\
  --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8
"""
_RUN: Final = """\
bin=$(echo /usr/lib/postgresql/*/bin)
runuser -u postgres -- $bin/postgres -D "$1/data" -p "$2" -c listen_addresses=127.0.0.1 \\
  -c unix_socket_directories=/tmp -c ssl=on -c ssl_cert_file="$1/tls.crt" \\
  -c ssl_key_file="$1/tls.key"
"""


@dataclass(frozen=True, slots=True)
class Postgresql:
    """A running server; its files as Debian sees them."""

    process: subprocess.Popen[bytes]
    port: int
    ca_file: str
    secrets: str

    def dsn(self, role: str, database: str) -> str:
        """An address with verified TLS."""
        query = f"sslmode=verify-full&sslrootcert={self.ca_file}"
        return f"postgresql://{role}@localhost:{self.port}/{database}?{query}"

    def server(self) -> Process:
        """The process that all others of it are children of."""
        return next(
            process
            for process in below(self.process.pid, processes())
            if Path(f"/proc/{process.pid}/exe").readlink().name == "postgres"
        )


@contextmanager
def running(debian: fips_root.Debian) -> Iterator[Postgresql]:
    """Makes one anew, with an administrator and the files of passwords that the roles will have."""
    place = debian.root / _PLACE.lstrip("/")
    shutil.rmtree(place, ignore_errors=True)
    secrets = place / "secrets"
    secrets.mkdir(parents=True)
    (place / "password").write_text(f"{PASSWORD}\n")
    for role in (roles.MIGRATOR, *map(roles.service_role, CONTEXTS)):
        (secrets / role.replace(roles.DATABASE, "postgres")).write_text(f"{PASSWORD}\n")
    Authority.ensure_in(place / "ca").ensure(place, "localhost")
    debian.must("chown", "-R", "postgres:postgres", _PLACE)
    debian.must("sh", "-ec", _MAKE, "make", _PLACE, **fips_root.required())
    port = free_port()
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            debian.command("sh", "-ec", _RUN, "run", _PLACE, str(port), **fips_root.required()),
            stdout=log,
            stderr=log,
        )
    try:

        def serves() -> bool:
            assert process.poll() is None, _read(place / "log")
            return "ready to accept connections" in _read(place / "log")

        until(serves, PATIENCE, "PostgreSQL did not start")
        yield Postgresql(process, port, f"{_PLACE}/ca.crt", f"{_PLACE}/secrets")
    finally:
        process.kill()
        process.wait()


def _read(log: Path) -> str:
    return log.read_text(errors="replace")
