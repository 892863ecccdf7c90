"""Structured logs: one event a line, with the id of the call it belongs to."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from servicekit.call import current_call
from servicekit.observability.plain_structlog import structlog
from servicekit.observability.tracing import current_span

_TELL_AFTER: Final = 5
START_SECONDS: Final = 60.0
"""So long after a process began, what it waits for is no warning: the others start as well."""
_start: Final = {"at": time.monotonic()}


def add_call(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Adds the ids of the running call and of its trace."""
    call = current_call.get()
    if call.request_id:
        event.setdefault("request_id", call.request_id)
    if (span := current_span.get()) is not None:
        event.setdefault("trace_id", span.trace_id)
    return event


def configure(service: str, level: str, fmt: str) -> None:
    """Sends all logs, those of libraries too, to standard output. The process begins here."""
    _start["at"] = time.monotonic()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        add_call,
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
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_header)
    logging.getLogger("asyncio").addFilter(_is_no_end_of_tls)


def _is_no_header(record: logging.LogRecord) -> bool:
    """Leaves out what gRPC says of a header that is no UTF-8: an error with its whole value.

    A client can send any number of them, and the call is served or refused all the same.
    """
    return record.msg != "Invalid encoding on %s"


def _is_no_end_of_tls(record: logging.LogRecord) -> bool:
    """Leaves out what asyncio says each time a server ends a connection of nats-py with TLS.

    It tells that a stream should have been told of TLS; the connection ends as it should.
    """
    return not str(record.msg).startswith("returning true from eof_received()")


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


def is_starting() -> bool:
    """Whether the process began a moment ago, so that others may not be there yet."""
    return time.monotonic() - _start["at"] < START_SECONDS


class Repeated:
    """Tells of work that is tried again and again: of an outage once, not every second.

    When another part restarts, a few failures (fewer than `after`) are normal; at a common start,
    more of them.
    """

    def __init__(
        self,
        logger: structlog.stdlib.BoundLogger,
        what: str,
        /,
        *,
        after: int = _TELL_AFTER,
        starting: Callable[[], bool] = is_starting,
        **names: str,
    ) -> None:
        self._log = logger
        self._what = what
        self._after = after
        self._starting = starting
        self._names = names
        self._failures = 0
        self._told = False

    def failed(self, error: BaseException) -> None:
        """Notes a failure; a warning when it is the one that makes an outage of them."""
        self._failures += 1
        tell = self._log.debug
        if self._failures >= self._after and not self._told and not self._starting():
            tell, self._told = self._log.warning, True
        tell(self._what, error=brief(error), **self._names)

    def worked(self) -> None:
        """Notes a success; tells of it after an outage that was told of."""
        if self._told:
            self._log.info(f"{self._what}: over", **self._names)
        self._failures, self._told = 0, False


class Waiting:
    """Tells once of something that a start waits for, and once more when that takes long."""

    def __init__(
        self,
        logger: structlog.stdlib.BoundLogger,
        what: str,
        /,
        *,
        starting: Callable[[], bool] = is_starting,
        **names: str,
    ) -> None:
        self._log = logger
        self._what = what
        self._starting = starting
        self._names = names
        self._told: set[bool] = set()

    def still(self, reason: str) -> None:
        """Notes that it is not there yet."""
        starting = self._starting()
        if starting not in self._told:
            self._told.add(starting)
            tell = self._log.info if starting else self._log.warning
            tell(self._what, reason=reason, **self._names)


def get(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
