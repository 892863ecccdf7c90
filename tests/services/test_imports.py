"""What the services load: code is nine tenths of their memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from contract.contexts import CONTEXTS

_NOBODYS = {
    *("rich", "pygments", "attr"),  # structlog's, for the looks of tracebacks
    *("httpx", "requests", "aiohttp", "matplotlib", "numpy", "pytest"),
    *("cli", "deploy", "bench", "tests"),
}
_OF_PAGES = {"fastapi", "starlette", "uvicorn", "anyio", "click", "opentelemetry"}
_PAGES = {"identity"}
"""Who has pages for browsers."""
_LOOK = """
import json, os, sys
import services.{context}.__main__
loaded = {{name.split(".")[0] for name, module in sys.modules.items() if module is not None}}
print(json.dumps([sorted(loaded), len(os.listdir("/proc/self/task"))]))
"""


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_service_loads_what_it_uses(context: str) -> None:
    """No libraries of other programs, no servers that it has no use for, and not a thread yet."""
    found = subprocess.run(
        [sys.executable, "-P", "-c", _LOOK.format(context=context)],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded, threads = json.loads(found.stdout)
    allowed = _OF_PAGES if context in _PAGES else set()
    assert {"grpc", "asyncpg", "nats"} <= set(loaded)
    assert set(loaded) & ((_NOBODYS | _OF_PAGES) - allowed) == set()
    assert threads == 1
