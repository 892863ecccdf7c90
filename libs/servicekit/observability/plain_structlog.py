"""structlog without rich.

Where rich is installed, structlog loads it for the looks of tracebacks, which no service prints:
4 MB of every process.
"""

from __future__ import annotations

import sys

_hidden = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "rich"}
sys.modules["rich"] = None  # type: ignore[assignment]  # so Python says that there is none
try:
    import structlog as structlog  # noqa: PLC0414 - for others to import from here
finally:
    del sys.modules["rich"]
    sys.modules.update(_hidden)
