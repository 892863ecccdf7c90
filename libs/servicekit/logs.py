"""Structured logs: one event a line, with the id of the call it belongs to."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from servicekit.call import current_call
from servicekit.tracing import current_span

_TELL_AFTER: Final = 5


def _add_call(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    call = current_call.get()
    if call.request_id:
        event.setdefault("request_id", call.request_id)
    if (span := current_span.get()) is not None:
        event.setdefault("trace_id", span.trace_id)
    return event


def configure(service: str, level: str, fmt: str) -> None:
    """Sends all logs, those of libraries too, to standard output."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _add_call,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if fmt == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _renamed(service),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in (
        "uvicorn",
        "uvicorn.error",
        "uvicorn.access",
        "nats",
        "httpx",
        "grpc",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _renamed(service: str) -> Any:
    def processor(
        _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    return processor


def brief(error: BaseException) -> str:
    """An error in one line: its type and what it says."""
    details = getattr(error, "details", None)
    text = details() if callable(details) else str(error)
    return f"{type(error).__name__}: {' '.join(str(text).split())[:300]}"


class Repeated:
    """Tells of work that is tried again and again: of an outage once, not every second.

    At a common start, and when another part restarts, a few failures (fewer than `after`) are
    normal.
    """

    def __init__(
        self,
        logger: structlog.stdlib.BoundLogger,
        what: str,
        *,
        after: int = _TELL_AFTER,
        **names: str,
    ) -> None:
        self._log = logger
        self._what = what
        self._after = after
        self._names = names
        self._failures = 0

    def failed(self, error: BaseException) -> None:
        """Notes a failure; a warning when it is the one that makes an outage of them."""
        self._failures += 1
        tell = self._log.warning if self._failures == self._after else self._log.debug
        tell(self._what, error=brief(error), **self._names)

    def worked(self) -> None:
        """Notes a success; tells of it after an outage."""
        if self._failures >= self._after:
            self._log.info(f"{self._what}: over", **self._names)
        self._failures = 0


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
