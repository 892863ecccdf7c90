"""YAML, read with libyaml: the gateway's files take seconds in Python."""

from __future__ import annotations

from typing import Any

import yaml


def load(text: str) -> Any:
    """What a document says, as `yaml.safe_load` reads it."""
    return yaml.load(text, yaml.CSafeLoader)
