"""How a release was built: an in-toto statement with SLSA's provenance (v1).

It is not signed: the publisher of a release signs `SHA256SUMS`, which covers it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from tools.release.record import Release
from tools.release.tree import origin, rfc3339

FILE: Final = "provenance.intoto.json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "https://slsa.dev/provenance/v1"
_BUILD_TYPE: Final = "urn:evergreen:tools.release:1"
_BUILDER: Final = "urn:evergreen:local"
"""Someone's own machine: nothing vouches for it but that person's signature."""
_INPUTS: Final = ("requirements.txt", "deploy/docker/requirements.txt", "Dockerfile")


def statement(release: Release, tree: Path, built: Mapping[str, str], began: datetime) -> str:
    """The statement about what was built.

    Args:
        built: the SHA-256 of each thing, by its name.
    """
    subject = [{"name": name, "digest": {"sha256": digest}} for name, digest in built.items()]
    source = origin()
    made: dict[str, Any] = {
        "_type": _STATEMENT,
        "subject": subject,
        "predicateType": _PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {"version": release.version, "source": source},
                "internalParameters": {
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                },
                "resolvedDependencies": [
                    {
                        "uri": f"git+{source}" if source else "urn:evergreen:source",
                        "digest": {"gitCommit": release.commit},
                    },
                    *(_input(tree, name) for name in _INPUTS),
                ],
            },
            "runDetails": {
                "builder": {"id": _BUILDER},
                "metadata": {
                    "invocationId": f"urn:uuid:{uuid4()}",
                    "startedOn": rfc3339(began),
                    "finishedOn": rfc3339(datetime.now(UTC)),
                },
            },
        },
    }
    return json.dumps(made, indent=2) + "\n"


def _input(tree: Path, name: str) -> dict[str, Any]:
    """A file of the source that fixes what else got in: packages by hash, the base image."""
    digest = hashlib.sha256((tree / name).read_bytes()).hexdigest()
    return {"name": name, "digest": {"sha256": digest}}
