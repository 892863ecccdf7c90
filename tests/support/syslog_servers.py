"""rsyslog and syslog-ng out of Debian's packages, unpacked and not installed, as receivers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import debian
from tests.support.stack import free_port

_PACKAGES = (
    "rsyslog", "rsyslog-openssl", "libestr0", "libfastjson4", "liblognorm5",
    "syslog-ng-core", "libivykis0", "libpcre3", "libnet1",
)  # fmt: skip
_ARCHITECTURE = "x86_64-linux-gnu"


def unpacked(directory: Path) -> Path:
    """The root of the unpacked packages; skips the test where they cannot be had."""
    root = directory / "root"
    if root.is_dir():
        return root
    directory.mkdir(parents=True, exist_ok=True)
    try:
        debian.download(_PACKAGES, directory)
    except debian.NotInstalledError as error:
        pytest.skip(str(error))
    root.mkdir()
    for package in directory.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    return root


def libraries(root: Path, *more: Path) -> dict[str, str]:
    """The environment in which unpacked programs find their libraries."""
    places = [*more, root / "usr/lib" / _ARCHITECTURE, root / "lib" / _ARCHITECTURE]
    return os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, places))}


@dataclass
class Receiver:
    """A program that receives, which can be killed and started again on the same port."""

    name: str
    command: Sequence[str | Path]
    environment: dict[str, str]
    file: Path
    """What it has received: one line a message."""
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self.file.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            list(map(str, self.command)), env=self.environment, stdout=log, stderr=log
        )

    def kill(self, signum: signal.Signals) -> None:
        """Ends it with a signal; a polite end may take a moment."""
        assert self.process is not None
        self.process.send_signal(signum)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.kill(signal.SIGKILL)

    def seen(self) -> list[tuple[str, int, str]]:
        """Tenant, sequence and id of each message, in the order of arrival."""
        if not self.file.exists():
            return []
        return [
            (tenant, int(sequence), entry)
            for entry, tenant, sequence in _PLACE.findall(self.file.read_bytes().decode())
        ]


_PLACE = re.compile(r'^.*?\bid="([^"]+)" tenant="([^"]+)" sequence="(\d+)"', re.M)


def rsyslog(root: Path, directory: Path, certificate: Path, key: Path, ca: Path) -> Receiver:
    """rsyslog, which listens with TLS."""
    directory.mkdir()
    port = free_port()
    modules = root / "usr/lib" / _ARCHITECTURE / "rsyslog"
    file = directory / "received"
    configuration = directory / "rsyslog.conf"
    configuration.write_text(
        f"""\
global(workDirectory="{directory}" maxMessageSize="64k"
       defaultNetstreamDriverCAFile="{ca}"
       defaultNetstreamDriverCertFile="{certificate}"
       defaultNetstreamDriverKeyFile="{key}")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="anon")
template(name="whole" type="string" string="%structured-data% %msg%\\n")
input(type="imtcp" port="{port}" address="127.0.0.1")
action(type="omfile" file="{file}" template="whole")
"""
    )
    command = [
        root / "usr/sbin/rsyslogd", "-n", "-M", modules, "-f", configuration,
        "-i", directory / "pid",
    ]  # fmt: skip
    return Receiver("rsyslog", command, libraries(root), file, port)


def syslog_ng(root: Path, directory: Path, certificate: Path, key: Path) -> Receiver:
    """syslog-ng, which listens with TLS."""
    directory.mkdir()
    port = free_port()
    place = root / "usr/lib/syslog-ng"
    (modules,) = (found for found in place.iterdir() if found.is_dir())
    file = directory / "received"
    configuration = directory / "syslog-ng.conf"
    sd = ".SDATA.evergreen@32473"
    configuration.write_text(
        f"""\
@version: {modules.name}
options {{ flush-lines(1); }};
source s {{ syslog(ip("127.0.0.1") port({port}) transport("tls") log-msg-size(65536)
  tls(key-file("{key}") cert-file("{certificate}") peer-verify(optional-untrusted))); }};
destination d {{ file("{file}" template("id=\\"${{{sd}.id}}\\" tenant=\\"${{{sd}.tenant}}\\" \
sequence=\\"${{{sd}.sequence}}\\" $MSG\\n")); }};
log {{ source(s); destination(d); }};
"""
    )
    command = [
        root / "usr/sbin/syslog-ng", "-F", "--no-caps", "-f", configuration,
        f"--module-path={modules}", "-R", directory / "persist", "-c", directory / "ctl",
        "-p", directory / "pid",
    ]  # fmt: skip
    return Receiver("syslog-ng", command, libraries(root, place), file, port)


def until_listening(port: int) -> None:
    """Waits until something listens on a port of this machine."""
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end, f"nothing listens on {port}"
            time.sleep(0.05)
