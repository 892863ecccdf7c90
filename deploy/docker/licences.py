"""Licences of packages as SPDX expressions, from what the packages say of themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import Distribution
from typing import Final

_EXPRESSION: Final = re.compile(
    r"[A-Za-z0-9.+-]+(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]+)*"  # no package needs parentheses
).fullmatch
_SPELLED: Final[Mapping[str, str]] = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2 License": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "GPLv2": "GPL-2.0-only",
    "ISC License": "ISC",
    "LGPL v3": "LGPL-3.0-only",
    "MIT License": "MIT",
    "MIT license": "MIT",
    "The MIT License (MIT)": "MIT",
}
"""What packages call a licence in words."""
_CLASSIFIED: Final[Mapping[str, str]] = {
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""Classifiers that mean one licence; `BSD License` means several."""
_READ: Final[Mapping[str, str]] = {
    "contourpy": "BSD-3-Clause",
    "cycler": "BSD-3-Clause",
    "itsdangerous": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "kiwisolver": "BSD-3-Clause",
    "matplotlib": "PSF-2.0",  # its own text, on the model of Python's
    "promql-parser": "MIT",
    "pyasn1-modules": "BSD-2-Clause",
    "pyrage": "MIT",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "scim2-client": "Apache-2.0",  # the whole text, as the next one
    "scim2-tester": "Apache-2.0",
    "segno": "BSD-3-Clause",
    "uvloop": "MIT OR Apache-2.0",
}
"""Packages that do not name their licence: it was read in their source."""


def licence_of(distribution: Distribution) -> str | None:
    """The licence of an installed package; `None` when nobody knows it."""
    name = canonical(distribution.name)
    if name in _READ:
        return _READ[name]
    told = distribution.metadata
    if expression := told["License-Expression"]:
        return expression if _EXPRESSION(expression) else None
    words = (told["License"] or "").strip()
    if words in _SPELLED:
        return _SPELLED[words]
    if words and words not in {"UNKNOWN", "Dual License"} and _EXPRESSION(words):
        return words
    for classifier in told.get_all("Classifier", []):
        if classifier in _CLASSIFIED:
            return _CLASSIFIED[classifier]
    return None


def canonical(name: str) -> str:
    """A package's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()
