"""Traces (OpenTelemetry): what an operator says about them, and the part that is running.

The gateway begins a trace and decides whether it is recorded; services continue those that are.
Nothing of OpenTelemetry's SDK is imported here: without a collector no service ever loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
RATIO: Final = "OTEL_TRACES_SAMPLER_ARG"
PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
SAMPLER: Final = "OTEL_TRACES_SAMPLER"
VARIABLES: Final = (ENDPOINT, RATIO, PROTOCOL, SAMPLER)
"""The standard's variables that this product reads."""

DEFAULT_RATIO: Final = 0.01
_LEAST_RATIO: Final = 0.0001
"""The finest that Envoy knows."""
_DEFAULT_PORT: Final = 4317
# Said for other programs on the machine, these would otherwise be ignored without a word.
_ONLY: Final = {PROTOCOL: "grpc", SAMPLER: "parentbased_traceidratio"}


@dataclass(frozen=True, slots=True)
class Traces:
    """Where spans go, by OTLP over gRPC, and how many."""

    host: str
    port: int
    tls: bool
    ratio: float
    """The share of the calls that is recorded, 0 to 1."""

    @property
    def address(self) -> str:
        """`HOST:PORT`, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Traces | None:
        """What the variables say; `None` when there is no collector.

        Raises:
            ValueError: a variable does not hold what it should; it is named.
        """
        endpoint = environment.get(ENDPOINT, "").strip()
        if not endpoint:
            return None
        for name, only in _ONLY.items():
            if (found := environment.get(name, "").strip()) not in {"", only}:
                raise ValueError(f"{name} is {found!r}; {only} is the only one here: leave it out.")
        host, port, tls = _parsed(endpoint)
        return cls(host, port, tls, _ratio(environment.get(RATIO, "").strip()))


def _parsed(endpoint: str) -> tuple[str, int, bool]:
    wrong = ValueError(
        f"{ENDPOINT} is {endpoint!r}, not http://HOST[:PORT] or https://HOST[:PORT]."
    )
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError:
        raise wrong from None
    rest = (url.path.strip("/"), url.query, url.fragment, url.username, url.password)
    if url.scheme not in {"http", "https"} or not url.hostname or any(rest) or port == 0:
        raise wrong
    return url.hostname, port or _DEFAULT_PORT, url.scheme == "https"


def _ratio(text: str) -> float:
    try:
        ratio = float(text) if text else DEFAULT_RATIO
    except ValueError:
        ratio = -1.0
    if ratio == 0 or _LEAST_RATIO <= ratio <= 1:
        return ratio
    raise ValueError(f"{RATIO} is {text!r}, not a number from {_LEAST_RATIO} to 1, or 0 for none.")


class RunningSpan(Protocol):
    """A span that is being recorded (`servicekit.observability.spans.Span`)."""

    @property
    def trace_id(self) -> str:
        """The trace's id, as people look for it."""

    @property
    def traceparent(self) -> str:
        """What makes another service's span a child of this one."""

    def child(self, name: str) -> RunningSpan:
        """Begins a part of it."""

    def call(self, method: str) -> RunningSpan:
        """Begins a call to another service."""

    def step(self, name: str) -> AbstractContextManager[None]:
        """A part of it that is the running one until the block ends."""

    def ended(self) -> AbstractContextManager[None]:
        """Ends it with the block."""

    def event(self, name: str) -> None:
        """Marks a moment."""

    def end(self, code: str, reason: str = "") -> None:
        """Ends it with a status as gRPC names them."""


current_span: ContextVar[RunningSpan | None] = ContextVar("current_span", default=None)
"""The span of what the running task does; `None` where nothing is recorded."""

_NOTHING: Final = nullcontext()


def step(name: str) -> AbstractContextManager[object]:
    """A part of the call's work, as a span of its own when the call is recorded."""
    span = current_span.get()
    return _NOTHING if span is None else span.step(name)
