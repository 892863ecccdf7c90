"""THE list of the six bounded contexts, and what everybody else needs to know of each.

Settings, the launcher, containers, the chart and the command line are made from it; files that only
a person writes (Compose, Prometheus, the Dockerfile, import-linter) are compared with it by tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A bounded context: one service, one database schema, one prefix of subjects."""

    name: str
    """Also of its schema, its process or container, its NATS user, and its certificate."""
    http: bool = True
    """Whether the gateway also reaches it by plain HTTP: for the agent's form of RPCs, or pages."""
    seals: bool = False
    """Whether it keeps private keys or secrets in its schema, and so needs the master key."""

    @property
    def role(self) -> str:
        """Its role in the database."""
        return f"evergreen_{self.name}"


BY_NAME: Final[Mapping[str, Context]] = {
    context.name: context
    for context in (
        Context(name="identity", seals=True),
        Context(name="enrollment"),
        Context(name="policy", seals=True),
        Context(name="telemetry"),
        Context(name="attestation"),
        Context(name="audit", http=False, seals=True),
    )
}
"""The contexts, in the order in which they depend on each other."""

CONTEXTS: Final = tuple(BY_NAME)
"""Their names."""
HTTP_CONTEXTS: Final = tuple(c.name for c in BY_NAME.values() if c.http)
SEALERS: Final = tuple(c.name for c in BY_NAME.values() if c.seals)
