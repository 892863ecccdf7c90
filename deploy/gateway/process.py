"""How Envoy is started."""

from __future__ import annotations

from pathlib import Path


def arguments(bootstrap: Path, *, workers: int, log_level: str = "warning") -> list[str]:
    """The arguments of Envoy, without the program.

    Args:
        bootstrap: what `write` returned.
        workers: threads that serve requests; as many as processors that are free for them.
        log_level: of Envoy's own messages, not of the access log.
    """
    return [
        "--config-path", str(bootstrap),
        "--concurrency", str(workers),
        "--log-level", log_level,
        # The access log's lines wait no longer than this for company.
        "--file-flush-interval-msec", "1000",
        # Says so every second while identity is away.
        "--component-log-level", "jwt:error",
        # A second Envoy of this machine would be taken for an older one of this gateway.
        "--disable-hot-restart",
        "--drain-time-s", "5",
        "--parent-shutdown-time-s", "10",
    ]  # fmt: skip
