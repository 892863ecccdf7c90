"""What the processes print, read as events: services' JSON, PostgreSQL, NATS and Envoy."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

FORMER_NAME: Final = "former_name"
"""As in deploy/gateway/access_log.py: what is noted of calls by an old public name."""
LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_LEVEL_NAMES: Final = {
    "trace": "debug",
    "notice": "info",
    "log": "info",
    "warn": "warning",
    "exception": "error",
    "fatal": "critical",
    "panic": "critical",
}


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event of one process."""

    time: datetime.datetime
    source: str
    level: str
    message: str
    context: Mapping[str, Any] = field(default_factory=dict)

    @property
    def severity(self) -> int:
        """The level as a number; a higher one is more severe."""
        return LEVELS[self.level]


Parser = Callable[[str, str], LogEvent | None]
"""Reads a line of the process named first; None for a line that says nothing."""


def now() -> datetime.datetime:
    """The current time, UTC."""
    return datetime.datetime.now(datetime.UTC)


def _level(name: str) -> str:
    name = name.lower()
    return name if name in LEVELS else _LEVEL_NAMES.get(name, "info")


# The way to an exception is for the file; the line that names it is for the terminal.
_TRACEBACK: Final = re.compile(r"\s|Traceback \(most recent|During handling of|The above exception")


def parse_service(source: str, line: str) -> LogEvent | None:
    """A service's line: a JSON object; anything else was not meant to be there, so it is shown."""
    if not line.strip():
        return None
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return LogEvent(now(), source, "debug" if _TRACEBACK.match(line) else "warning", line)
    message = str(found.pop("event", found.pop("message", "")))
    level = _level(str(found.pop("level", "info")))
    time = _time(found.pop("time", None))
    if found.get("service") == source:
        del found["service"]
    return LogEvent(time, source, level, message, found)


def _time(text: object) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return now()


# log_line_prefix of deploy/postgres: time, process, SQLSTATE.
_POSTGRES = re.compile(
    r"(?P<time>[-\d]+ [:\d]+\.\d+) UTC \[\d+\] (?P<state>\w{5}) "
    r"(?P<level>[A-Z]+\d?):\s+(?P<text>.*)"
)
_POSTGRES_LEVELS: Final = {
    "WARNING": "warning",
    "ERROR": "error",
    "FATAL": "error",
    "PANIC": "critical",
}
# Constraint violations and serialization failures are answers to a statement that its service
# deals with; shutting down and starting up refuse connections by design; a client that has ended
# says itself why.
_POSTGRES_EXPECTED: Final = re.compile(r"08|23|40|57P0[1-3]")


def parse_postgres(source: str, line: str) -> LogEvent | None:
    """A line of PostgreSQL with the prefix that deploy/postgres configures."""
    found = _POSTGRES.match(line)
    if not found:
        return LogEvent(now(), source, "info", line.strip()) if line.strip() else None
    level = _POSTGRES_LEVELS.get(found["level"], "info")
    if _POSTGRES_EXPECTED.match(found["state"]):
        level = "info"
    time = _time(found["time"]).replace(tzinfo=datetime.UTC)
    return LogEvent(time, source, level, found["text"])


_NATS = re.compile(
    r"\[\d+\] (?P<time>[/\d]+ [:\d]+\.\d+) \[(?P<level>[A-Z]{3})\] (?P<text>.*)", re.DOTALL
)
_NATS_LEVELS: Final = {"WRN": "warning", "ERR": "error", "FTL": "critical", "DBG": "debug"}
# The passwords are random, and only the user who runs the server can read the file.
_NATS_EXPECTED: Final = ("Plaintext passwords detected",)


def parse_nats(source: str, line: str) -> LogEvent | None:
    """A line of the NATS server (UTC, as deploy/nats configures)."""
    found = _NATS.match(line)
    if not found:
        return LogEvent(now(), source, "info", line.strip()) if line.strip() else None
    time = _time(found["time"].replace("/", "-")).replace(tzinfo=datetime.UTC)
    expected = found["text"].startswith(_NATS_EXPECTED)
    level = "info" if expected else _NATS_LEVELS.get(found["level"], "info")
    return LogEvent(time, source, level, found["text"])


ENVOY_LOG_FORMAT: Final = "%Y-%m-%dT%T.%f+00:00 %l %n %v"
_ENVOY = re.compile(
    r"(?P<time>[-\dT:.]+\+00:00) (?P<level>[a-z]+) (?P<logger>\S+) (?P<text>.*)", re.DOTALL
)


# What a person needs of a failed request; the log file has the rest.
_REQUEST_CONTEXT: Final = ("details", "upstream", "duration_ms", "client", "request_id")


def _request(source: str, line: str) -> LogEvent:
    """A line of Envoy's access log, which has what failed on this side."""
    try:
        found = json.loads(line)
        time = _time(found["time"])
        if FORMER_NAME in found:
            message = f"{found.get('path')} called by {found[FORMER_NAME]}"
            return LogEvent(time, source, "debug", message, found)
        message = f"{found.get('method')} {found.get('path')} answered {found.get('status')}"
    except (ValueError, KeyError):
        return LogEvent(now(), source, "warning", line)
    context = {key: found[key] for key in _REQUEST_CONTEXT if key in found}
    # A health check that says no is an answer, not a failure.
    failed = "grpc_status" in found or found.get("status", 500) >= 500
    level = "warning" if failed and found.get("path") != "/readyz" else "info"
    return LogEvent(time, source, level, message, context)


# How the launcher stops it.
_ENVOY_EXPECTED: Final = ("caught ENVOY_SIGTERM",)


def parse_envoy(source: str, line: str) -> LogEvent | None:
    """A line of Envoy started with `ENVOY_LOG_FORMAT`."""
    found = _ENVOY.match(line)
    if not found and line.startswith("{"):
        return _request(source, line)
    if not found:
        return LogEvent(now(), source, "info", line.strip()) if line.strip() else None
    expected = found["text"].startswith(_ENVOY_EXPECTED)
    level = "info" if expected else _level(found["level"])
    return LogEvent(_time(found["time"]), source, level, found["text"], {"logger": found["logger"]})
