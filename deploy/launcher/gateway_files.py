"""`python -m deploy.launcher.gateway_files`: writes Envoy's configuration for the launcher.

It reads what is wanted as JSON, and the limits from the environment. It answers Envoy's arguments,
or what is wrong with the environment, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from contract.contexts import BY_NAME, CONTEXTS
from deploy import gateway
from deploy.launcher.services import socket
from servicekit.observability.tracing import Traces


def write(wanted: dict[str, Any]) -> tuple[str, ...]:
    """Writes the files; answers Envoy's arguments.

    Raises:
        ValueError: a limit in the environment is not one.
    """
    run = Path(wanted["run"])
    workers = gateway.workers_of(os.environ)
    settings = gateway.GatewaySettings(
        directory=Path(wanted["directory"]),
        port=wanted["port"],
        addresses=tuple(wanted["addresses"]),
        certificate_file=Path(wanted["certificate_file"]),
        private_key_file=Path(wanted["private_key_file"]),
        more_certificates=tuple(
            (Path(chain), Path(key)) for chain, key in wanted["more_certificates"]
        ),
        contexts={context: _endpoints(run, context) for context in CONTEXTS},
        public_url=wanted["public_url"],
        former_public_urls=tuple(wanted["former_public_urls"]),
        console=wanted["console"],
        admin=wanted["admin"],
        reflection=gateway.reflection_of(os.environ),
        traces=Traces.of_environment(os.environ),
        limits=gateway.Limits.of_environment(os.environ, workers=workers),
    )
    written = gateway.write(settings)
    return tuple(gateway.arguments(written, workers=workers, log_level="info"))


def _endpoints(run: Path, context: str) -> gateway.Endpoints:
    return gateway.Endpoints(
        grpc=f"unix:{socket(run, context, 'gw')}",
        http=f"unix:{socket(run, context, 'http')}" if BY_NAME[context].http else "",
    )


def main() -> None:
    """Answers one question."""
    wanted = json.load(sys.stdin)
    try:
        answer: dict[str, Any] = {"arguments": write(wanted)}
    except ValueError as wrong:
        answer = {"wrong": str(wrong)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
