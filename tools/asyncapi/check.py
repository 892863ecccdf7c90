"""Holds the AsyncAPI document against the specification's own JSON Schema (part of `make lint`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jsonschema import Draft7Validator

from tools.asyncapi import ROOT, document

_SCHEMA = ROOT / "node_modules" / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"


def main(schema: Path = _SCHEMA) -> None:
    """Ends with a message when the document is none of AsyncAPI 3.0."""
    validator = Draft7Validator(json.loads(schema.read_text(encoding="utf-8")))
    broken = sorted(validator.iter_errors(document()), key=lambda error: list(error.path))
    for error in broken:
        where = "/".join(map(str, error.path))
        sys.stderr.write(f"asyncapi: {where}: {error.message[:300]}\n")
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    main()
