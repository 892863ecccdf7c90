"""Debian 13 in a directory, made by debootstrap: its FIPS module, and the product built for it.

`EVERGREEN_TEST_FIPS_ROOT` names the directory, which is then left for the next run; without it, it
is made anew. `EVERGREEN_TEST_FIPS_WHEELS` names one that keeps the two wheels which take long.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from servicekit.security import mode
from tests.support.paths import ROOT

CONFIGURATION: Final = (ROOT / "deploy/docker/openssl-fips.cnf").read_text()
MODULES: Final = "/usr/lib/x86_64-linux-gnu/ossl-modules"
PYTHON: Final = "/opt/evergreen/bin/python"
"""With all that the product and its tests need; the product lies in `/evergreen`."""

_PACKAGES: Final = (
    "openssl-provider-fips",
    "openssl",
    "python3",
    "python3-cryptography",
    "python3-cffi-backend",
    "python3-jwt",
    "ca-certificates",
)
_TO_BUILD: Final = (
    "build-essential",
    "cargo",
    "libffi-dev",
    "libssl-dev",
    "pkg-config",
    "python3-dev",
    "python3-venv",
    "zlib1g-dev",
)
_TO_TEST: Final = ("curl", "git", "openssh-client", "postgresql", "procps", "tzdata")
_NEWER: Final = "python3-cryptography"
"""Debian 13's own refuses Ed25519 in FIPS mode by itself; the next release's is linked with the
same libcrypto."""
_APT: Final = ("-o", "APT::Sandbox::User=root", "-o", "Acquire::Check-Valid-Until=false")
_TRUSTED: Final = "/etc/ssl/certs/ca-certificates.crt"
_INSIDE: Final = """\
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
mkdir -p "$0$1"
mount --bind -o ro "$1" "$0$1"
cd "$0"
root=$0
shift
chroot "$root" env -i -C / "$@" || exit $?
exit 0
"""
"""The shell is the first process: it waits for those that others leave behind."""


class Debian:
    """An installation of Debian 13 in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def command(self, *command: str, **environment: str) -> list[str]:
        """A command in it as one of this machine, with processes of its own and nothing of our
        environment. All that it starts ends with it."""
        told = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environment}
        words = [f"{name}={value}" for name, value in told.items()]
        return [
            "unshare", "--mount", "--pid", "--fork", "--kill-child",
            "sh", "-ec", _INSIDE, str(self.root), _git("--git-common-dir"), *words, *command,
        ]  # fmt: skip

    def run(
        self, *command: str, seconds: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in it."""
        return subprocess.run(
            self.command(*command, **environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )

    def must(self, *command: str, seconds: float = 300, **environment: str) -> str:
        """Runs a command that has to succeed; answers what it prints."""
        done = self.run(*command, seconds=seconds, DEBIAN_FRONTEND="noninteractive", **environment)
        assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
        return done.stdout


@contextmanager
def directory(factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where Debian is, or is to be installed; removed afterwards unless it is to be kept."""
    kept = os.environ.get("EVERGREEN_TEST_FIPS_ROOT")
    root = Path(kept) if kept else factory.mktemp("debian") / "root"
    yield root
    if not kept:
        shutil.rmtree(root)


@functools.cache
def _git(what: str) -> str:
    """A directory of this checkout's history."""
    return _said("rev-parse", "--path-format=absolute", what).strip()


def _said(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def copy(found: Debian) -> None:
    """Lays this checkout's files, as they are now, into `/evergreen`; what is compiled stays."""
    place = found.root / "evergreen"
    wanted = set(_said("ls-files", "-co", "--exclude-standard").splitlines())
    known = place / ".files"
    before = set(known.read_text().splitlines()) if known.exists() else set()
    for name in sorted(wanted):
        source, target = ROOT / name, place / name
        if not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.stat().st_mtime_ns != source.stat().st_mtime_ns:
            shutil.copy2(source, target)
    for name in before - wanted:
        (place / name).unlink(missing_ok=True)
    known.write_text("\n".join(sorted(wanted)))
    (place / ".git").write_text(f"gitdir: {_git('--git-dir')}\n")


def required(**more: str) -> dict[str, str]:
    """The environment of FIPS mode in it."""
    return {mode.FIPS: mode.REQUIRED, "OPENSSL_CONF": "/etc/evergreen/openssl.cnf", **more}


def install(found: Debian) -> None:
    """Installs Debian with its module, and some that are none."""
    if (found.root / "etc/evergreen/fipsmodule.cnf").exists():
        copy(found)
        return
    subprocess.run(
        [
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(_PACKAGES)}",
            "trixie",
            str(found.root),
            "http://deb.debian.org/debian",
        ],
        check=True,
        timeout=600,
    )
    (found.root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    newer = found.root / "etc/apt/sources.list.d/newer.list"
    newer.write_text("deb http://deb.debian.org/debian sid main\n")
    found.must("apt-get", *_APT, "update", "-q")
    get = " ".join(("apt-get", *_APT, "download", "-q", "-t", "sid", _NEWER))
    found.must("sh", "-c", f"cd /tmp && {get} && dpkg -x {_NEWER}_*.deb /opt/unpacked")
    (found.root / "opt/newer").symlink_to("unpacked/usr/lib/python3/dist-packages")
    newer.unlink()
    found.must("apt-get", *_APT, "update", "-q")
    copy(found)
    _place_modules(found)


def _place_modules(found: Debian) -> None:
    """Lays the module's configuration, and what has to be refused, where tests find them."""
    place = found.root / "etc/evergreen"
    place.mkdir()
    (place / "openssl.cnf").write_text(CONFIGURATION)
    for name, change in (("empty", None), ("changed", 1)):
        directory = found.root / "opt" / name
        directory.mkdir()
        if change is not None:
            whole = bytearray((found.root / f"{MODULES.lstrip('/')}/fips.so").read_bytes())
            whole[len(whole) // 2] ^= change
            (directory / "fips.so").write_bytes(whole)
    library = found.root / "opt/library/nacl"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("")
    # At the end: an installation that has it is whole.
    found.must(
        "openssl", "fipsinstall", "-out", "/etc/evergreen/fipsmodule.cnf",
        "-module", f"{MODULES}/fips.so",
    )  # fmt: skip


def build(found: Debian) -> None:
    """Builds what the product and its tests run on there, with one OpenSSL: half an hour, where
    the two wheels are not kept."""
    done = found.root / "opt/evergreen/.installed"
    wanted = (ROOT / "requirements.txt").read_text()
    if done.exists() and done.read_text() == wanted:
        return
    kept = os.environ.get("EVERGREEN_TEST_FIPS_WHEELS")
    wheels = found.root / "opt/wheels"
    wheels.mkdir(exist_ok=True)
    if kept:
        Path(kept).mkdir(parents=True, exist_ok=True)
        _copy_wheels(Path(kept), wheels)
    # No server is started by its package.
    policy = found.root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    found.must("apt-get", *_APT, "install", "-y", "-q", "--no-install-recommends",
               *_TO_BUILD, *_TO_TEST, seconds=900)  # fmt: skip
    # A proxy of this machine may have a CA of its own.
    if Path(_TRUSTED).exists():
        shutil.copy(_TRUSTED, found.root / _TRUSTED.lstrip("/"))
    trust = {"PIP_CERT": _TRUSTED, "CARGO_HTTP_CAINFO": _TRUSTED, "SSL_CERT_FILE": _TRUSTED}
    found.must(
        "sh", "/evergreen/deploy/docker/fips-wheels.sh", "/evergreen/requirements.txt",
        "/opt/wheels", seconds=7200, **trust,
    )  # fmt: skip
    if kept:
        _copy_wheels(wheels, Path(kept))
    shutil.rmtree(found.root / "opt/evergreen", ignore_errors=True)
    script = (
        "cd /tmp && python3 -m venv /opt/evergreen\n"
        "pip='/opt/evergreen/bin/pip --no-cache-dir --quiet'\n"
        "$pip install --no-deps --require-hashes -r /evergreen/requirements.txt\n"
        "$pip install --no-deps --no-index --force-reinstall /opt/wheels/*.whl\n"
        "$pip install --no-deps --no-build-isolation --editable /evergreen\n"
    )
    found.must("sh", "-ec", script, seconds=1800, **trust)
    done.write_text(wanted)


def _copy_wheels(source: Path, target: Path) -> None:
    for wheel in source.glob("*.whl"):
        shutil.copy(wheel, target)
