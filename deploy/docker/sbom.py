"""Prints a bill of materials (CycloneDX 1.5, JSON) of the image that it runs in."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import Distribution, distributions

_SPDX_LIKE = 40
"""Longer texts in a package's `License` are the licence itself, not its name."""


def main() -> None:
    """Writes the document to standard output."""
    own = [d for d in distributions() if d.name == "evergreen-backend"]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": _python(own[0], kind="application")},
        "components": [
            *sorted((_python(d) for d in distributions() if d not in own), key=_name),
            *_debian(),
        ],
    }
    json.dump(document, sys.stdout, indent=1)


def _python(distribution: Distribution, kind: str = "library") -> dict[str, object]:
    name = distribution.name.lower().replace("_", "-")
    found: dict[str, object] = {
        "type": kind,
        "name": name,
        "version": distribution.version,
        "purl": f"pkg:pypi/{name}@{distribution.version}",
    }
    told = distribution.metadata
    licence = told["License-Expression"] or told["License"] or ""
    if 0 < len(licence) <= _SPDX_LIKE:
        found["licenses"] = [{"license": {"name": licence}}]
    return found


def _debian() -> list[dict[str, object]]:
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
        }
        for name, version, architecture in (line.split() for line in listed.splitlines())
    ]


def _name(component: dict[str, object]) -> str:
    return str(component["name"])


if __name__ == "__main__":
    main()
