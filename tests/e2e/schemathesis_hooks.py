"""Loaded by Schemathesis: who calls, and what a generated request must not be.

`EVERGREEN_CONTRACT` names a JSON file: `tokens` (bearer tokens that take turns, so that no caller
reaches its rate limit), `devices` (the device id of each token that is a device's) and `spared`
(ids of what the run itself stands on).
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st

_CONTRACT: dict[str, Any] = json.loads(Path(os.environ["EVERGREEN_CONTRACT"]).read_text())
_TOKENS: list[str] = _CONTRACT["tokens"]
_DEVICES: dict[str, str] = _CONTRACT["devices"]
_SPARED: list[str] = _CONTRACT["spared"]

# A time that every rule takes: an enrollment token has to expire in the future, and not too far.
_NOW = datetime.now(UTC)
schemathesis.openapi.format(
    "date-time",
    st.timedeltas(min_value=timedelta(days=1), max_value=timedelta(days=1000)).map(
        lambda later: (_NOW + later).isoformat()
    ),
)


class Callers:
    """Gives each request one of the tokens."""

    def __init__(self) -> None:
        self._turns = itertools.cycle(_TOKENS)
        self._lock = threading.Lock()

    def get(self, case: schemathesis.Case, context: schemathesis.AuthContext) -> str:
        with self._lock:
            return next(self._turns)

    def set(self, case: schemathesis.Case, data: str, context: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {data}"
        # A device speaks for itself, or nothing but refusals would be tested.
        body = case.body
        if isinstance(body, dict) and isinstance(body.get("device_id"), str):
            case.body = body | {"device_id": _DEVICES.get(data, body["device_id"])}


if _TOKENS:
    schemathesis.auth(refresh_interval=None)(Callers)


@schemathesis.hook
def map_query(context: schemathesis.HookContext, query: Any) -> Any:
    """Leaves page tokens out: what they look like is nobody's business, so no schema says it."""
    if isinstance(query, dict) and isinstance(query.get("pageToken"), str):
        return {name: value for name, value in query.items() if name != "pageToken"}
    return query


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Leaves alone what the run stands on: a caller that is disabled ends the test."""
    return not any(value in _SPARED for value in (case.path_parameters or {}).values())
