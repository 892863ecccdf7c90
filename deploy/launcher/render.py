"""Events as text: one line each, for a person at a terminal or as JSON."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any, Final

from contract.contexts import CONTEXTS
from deploy.launcher.events import LogEvent

_NAME_WIDTH: Final = 11
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""As syslog numbers them."""
_RESET: Final = "\x1b[0m"
_DIM: Final = "\x1b[2m"
_LEVEL_STYLES: Final = {
    "debug": _DIM,
    "info": "",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[1;31m",
}
# Readable on dark and on light backgrounds; red and yellow stay for levels.
_NAME_STYLES: Final = ("\x1b[36m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[96m", "\x1b[95m")
_KNOWN_NAMES: Final = ("evergreen", "postgres", "nats", "gateway", *CONTEXTS, "backup")
# What a device or a stranger sent may be logged: control characters never reach the terminal.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_PLAIN_VALUE: Final = re.compile(r"[^\s\"'=]+")
_LONGEST_VALUE: Final = 300


def as_json(event: LogEvent) -> str:
    """The event as one JSON object: time, process, level, event, then its context."""
    return json.dumps(
        {
            "time": event.time.isoformat(),
            "process": event.source,
            "level": event.level,
            "event": event.message,
            **event.context,
        },
        default=str,
    )


def as_journal(event: LogEvent) -> str:
    """The event as a line for systemd's journal, which knows the time and reads the level in it."""
    context = " ".join(f"{printable(key)}={_value(value)}" for key, value in event.context.items())
    text = f"{event.source}: {printable(event.message)}"
    return f"<{_PRIORITIES[event.level]}>{text} {context}".rstrip()


def as_text(event: LogEvent, *, colour: bool) -> str:
    """The event as one readable line: local time, process, level, message, key=value."""
    time = event.time.astimezone().strftime("%H:%M:%S.%f")[:-3]
    name = f"{event.source:<{_NAME_WIDTH}}"
    level = f"{event.level:<8}"
    message = printable(event.message)
    context = " ".join(f"{printable(key)}={_value(value)}" for key, value in event.context.items())
    if not colour:
        return " ".join(part for part in (time, name, level, message, context) if part)
    style = _LEVEL_STYLES[event.level]
    parts = [
        f"{_DIM}{time}{_RESET}",
        f"{name_style(event.source)}{name}{_RESET}",
        f"{style}{level}{_RESET}" if style else level,
        f"{style}{message}{_RESET}" if style else message,
    ]
    if context:
        parts.append(f"{_DIM}{context}{_RESET}")
    return " ".join(parts)


def name_style(name: str) -> str:
    """The escape sequence of a process's colour; always the same for the same name."""
    index = _KNOWN_NAMES.index(name) if name in _KNOWN_NAMES else zlib.crc32(name.encode())
    return _NAME_STYLES[index % len(_NAME_STYLES)]


def printable(text: str) -> str:
    """The text without anything that a terminal would obey."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, str) and "\n" in text.strip():
        # A traceback: its last line names the error; the log file has all of it.
        text = text.strip().rsplit("\n", 1)[-1].strip()
    if len(text) > _LONGEST_VALUE:
        text = text[:_LONGEST_VALUE] + "…"
    text = printable(text)
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)
