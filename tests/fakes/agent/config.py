"""The agent's configuration file, read and checked as the agent does at its start."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.agent.agent import AgentEndedError

_PATHS = (
    "device_token_path",
    "policy_cache_path",
    "event_queue_path",
    "state_queue_path",
    "policy_public_key",
)
_INTERVALS = ("policy_poll", "state_report", "event_flush")
_DURATION = re.compile(r"([1-9][0-9]*(h|m|s|ms))+")


@dataclass(frozen=True)
class Config:
    """What the agent takes from it."""

    backend_url: str
    policy_public_key: Path
    pre_shared_key: str


def read_config(path: Path) -> Config:
    """Reads a file of `--config`: JSON, whatever its name ends with.

    Raises `AgentEndedError` where the agent would not start.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise AgentEndedError(f"parse config: {error}") from error
    for name in ("backend_url", *_PATHS):
        if not isinstance(found.get(name), str) or not found[name]:
            raise AgentEndedError(f"{name} is required")
    for name in _INTERVALS:
        if _DURATION.fullmatch(found.get("intervals", {}).get(name, "")) is None:
            raise AgentEndedError(f"intervals.{name} must be >0")
    return Config(
        found["backend_url"],
        Path(found["policy_public_key"]),
        found.get("enrollment", {}).get("pre_shared_key", ""),
    )
