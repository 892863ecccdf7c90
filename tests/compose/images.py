"""The images: ours by the product's Dockerfile, and stand-ins with the names of public ones.

Without a registry nothing can be pulled, so the base is made by `debootstrap`, and the servers come
from the packages that are installed here anyway.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import yaml

from tests.compose.docker import Docker
from tests.support.paths import ROOT

_STAND_INS = Path(__file__).with_name("stand_ins")
_BASE = "debian:trixie-slim"
_FIPS = "evergreen-backend-fips"
_CA = Path("/etc/ssl/certs/ca-certificates.crt")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CREATED = "2031-02-03T04:05:06Z"
"""What our image is told of its build."""
LIMIT = 300 * 10**6
"""Bytes of the layers above the base."""


def compose_file() -> dict[str, dict[str, dict[str, str]]]:
    """The product's compose file as data."""
    found: dict[str, dict[str, dict[str, str]]] = yaml.safe_load(
        (ROOT / "docker-compose.yaml").read_text()
    )
    return found


def ours() -> str:
    """The name of our image."""
    name = compose_file()["services"]["policy"]["image"]
    return name.replace("${EVERGREEN_VERSION:-", "").replace("}", "")


def build_all(docker: Docker) -> None:
    """Makes what is missing of the base and the stand-ins, and builds our image anew."""
    if not _has(docker, _BASE):
        _make_base(docker)
    services = compose_file()["services"]
    package = find_spec("envoy")
    assert package is not None and package.origin is not None
    envoy = Path(package.origin).with_name("_bin") / "envoy"
    for name, files in {
        "postgres": [],
        "nats": [Path(sys.executable).with_name("nats-server")],
        "envoy": [envoy],
        "prometheus": [],
    }.items():
        image = services["gateway" if name == "envoy" else name]["image"]
        if not _has(docker, image):
            _stand_in(docker, name, image, files)
    began = time.monotonic()
    build(docker)
    print(f"\nour image: {time.monotonic() - began:.0f} s")


def build(docker: Docker, commit: str = COMMIT, *, tree: Path = ROOT, tag: str = "") -> str:
    """Builds an image of ours; answers its id."""
    told = {"COMMIT": commit, "CREATED": CREATED}
    words = (f"--build-arg={name}={value}" for name, value in told.items())
    done = docker("build", "--quiet", "--network=host", *words, "--tag", tag or ours(), tree)
    return done.stdout.strip()


def build_fips(docker: Docker, wheels: Path) -> str:
    """Builds the image for FIPS mode upon ours, from wheels that are there already; answers its
    name."""
    name = f"{_FIPS}:{ours().partition(':')[2]}"
    with tempfile.TemporaryDirectory(prefix="evergreen-fips-") as place:
        context = Path(place)
        for file in ("Dockerfile.fips", ".dockerignore"):
            shutil.copy(ROOT / file, context)
        shutil.copytree(ROOT / "deploy/docker", context / "deploy/docker")
        (context / "fips-wheels").mkdir()
        for wheel in wheels.glob("*.whl"):
            shutil.copy(wheel, context / "fips-wheels")
        words = (f"--build-arg=BASE={ours()}", "--file", context / "Dockerfile.fips")
        docker("build", "--quiet", "--network=host", *words, "--tag", name, context)
    return name


def layers_above_the_base(docker: Docker) -> int:
    """Bytes of our image's own layers."""
    sizes = [
        int(docker("image", "inspect", "--format={{.Size}}", image).stdout)
        for image in (ours(), _BASE)
    ]
    return sizes[0] - sizes[1]


def _has(docker: Docker, image: str) -> bool:
    return docker("image", "inspect", image, check=False).returncode == 0


def _make_base(docker: Docker) -> None:
    with tempfile.TemporaryDirectory(prefix="evergreen-base-") as name:
        subprocess.run(
            ["debootstrap", "--variant=minbase", "trixie", name],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        # Where packages come through a proxy with a CA of its own, pip must know it.
        shutil.copy(_CA, Path(name) / "etc" / "build-ca.pem")
        shutil.rmtree(Path(name) / "var/cache/apt/archives", ignore_errors=True)
        shutil.rmtree(Path(name) / "var/lib/apt/lists", ignore_errors=True)
        with subprocess.Popen(
            ["tar", "--create", f"--directory={name}", "--one-file-system", "."],
            stdout=subprocess.PIPE,
        ) as tar:
            assert tar.stdout is not None
            subprocess.run(
                [docker.program, "import", "--change=ENV PIP_CERT=/etc/build-ca.pem", "-", _BASE],
                env={**os.environ, **docker.environment},
                stdin=tar.stdout,
                stdout=subprocess.DEVNULL,
                check=True,
            )


def _stand_in(docker: Docker, name: str, image: str, files: list[Path]) -> None:
    with tempfile.TemporaryDirectory(prefix="evergreen-image-") as context:
        for path in (*(_STAND_INS / name).iterdir(), *files):
            shutil.copy(path, context)
        docker("build", "--quiet", "--network=host", "--tag", image, context)
