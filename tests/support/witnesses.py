"""Witnesses of the audit log that run in the test's own process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from auditlog.keys import CheckpointKey
from auditlog.witnesses import WitnessKey
from cli.audit_witness_server import Memory, serve


@dataclass
class RunningWitness:
    """The server of `evergreen audit witness`."""

    name: str
    directory: Path
    logs: dict[str, Sequence[CheckpointKey]] = field(default_factory=dict)
    port: int = 0

    @property
    def key(self) -> WitnessKey:
        return WitnessKey(f"{self.name}.example", self.name.encode().ljust(32, b"."))

    @property
    def line(self) -> str:
        """Its line of a policy."""
        return f"witness {self.name} {self.key.public.text} http://127.0.0.1:{self.port}/"

    @contextmanager
    def running(self) -> Iterator[RunningWitness]:
        """Answers, on the port that it had before, if it had one."""
        with (
            Memory.open(self.directory / f"{self.name}.sqlite") as memory,
            serve(("127.0.0.1", self.port), self.key, self.logs, memory) as server,
        ):
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()
