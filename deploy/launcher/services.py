"""The six services as processes: what each is told by its environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from contract.contexts import BY_NAME, CONTEXTS
from deploy.launcher import backups, nats
from deploy.launcher.events import parse_service
from deploy.launcher.home import MASTER_KEY, Home, master_key, password
from deploy.launcher.postgres import Postgres
from deploy.launcher.process import ProcessSpec
from deploy.launcher.zygote import Zygote
from deploy.postgres.roles import service_role
from servicekit import build
from servicekit.observability import tracing
from servicekit.security import nkey


def socket(run: Path, context: str, kind: str) -> Path:
    """The socket of a service: `gw` for the gateway, `int` for services, `http` for raw HTTP."""
    return run / f"{context}.{kind}.sock"


def _tuning() -> dict[str, str]:
    """The services' settings in the launcher's own environment, but none that it decides itself."""
    own = {
        "EVERGREEN_HOME",
        "EVERGREEN_PORT",
        "EVERGREEN_ADMIN_EMAIL",
        "EVERGREEN_ADMIN_PASSWORD",
        "EVERGREEN_EVENTS_LISTEN",
        "EVERGREEN_PUBLIC_URL",
        "EVERGREEN_FORMER_PUBLIC_URLS",
        "EVERGREEN_TLS_DIRECTORY",
        "EVERGREEN_CONSOLE_URL",
    }
    return {
        name: value
        for name, value in os.environ.items()
        if (
            name.startswith("EVERGREEN_")
            and not name.startswith(backups.SETTINGS)
            and name not in own
        )
        or name in tracing.VARIABLES
    }


def process(
    context: str,
    *,
    home: Home,
    run: Path,
    postgres: Postgres,
    ports: Mapping[str, int],
    admin_email: str,
    log_level: str,
    public_url: str = "",
    former_public_urls: Sequence[str] = (),
    console_url: str = "",
    nats_tls: bool = False,
    zygote: Zygote | None = None,
) -> ProcessSpec:
    """The process of one service."""
    nats_url = f"{'tls://localhost' if nats_tls else 'nats://127.0.0.1'}:{ports['nats']}"
    environment = _tuning() | {
        "EVERGREEN_GRPC_LISTEN": f"unix:{socket(run, context, 'gw')}",
        "EVERGREEN_INTERNAL_LISTEN": f"unix:{socket(run, context, 'int')}",
        "EVERGREEN_OPS_LISTEN": f"127.0.0.1:{ports[context]}",
        "EVERGREEN_DATABASE_URL": postgres.dsn(service_role(context)),
        "EVERGREEN_DATABASE_PASSWORD_FILE": str(home.secret_file(f"postgres_{context}", password)),
        "EVERGREEN_NATS_URL": nats_url,
        **({"EVERGREEN_NATS_CA_FILE": str(home.tls / "ca.crt")} if nats_tls else {}),
        "EVERGREEN_NATS_USER": context,
        "EVERGREEN_NATS_PASSWORD_FILE": str(home.secret_file(f"nats_{context}", password)),
        # The gateway is stopped first: no caller is left that would have to notice.
        "EVERGREEN_DRAIN_SECONDS": "0.2",
        "EVERGREEN_LOG_FORMAT": "json",
        "EVERGREEN_LOG_LEVEL": log_level,
        # Found once for all of them.
        build.COMMIT_SETTING: build.current().commit,
    }
    if BY_NAME[context].seals:
        environment["EVERGREEN_MASTER_KEY_FILE"] = str(home.secret_file(MASTER_KEY, master_key))
    if BY_NAME[context].http:
        environment["EVERGREEN_HTTP_LISTEN"] = f"unix:{socket(run, context, 'http')}"
    for other in CONTEXTS:
        environment[f"EVERGREEN_{other.upper()}_TARGET"] = f"unix:{socket(run, other, 'int')}"
    if context in {"identity", "audit"}:
        environment["EVERGREEN_PUBLIC_URL"] = public_url
    if context == "identity":
        environment["EVERGREEN_FORMER_PUBLIC_URLS"] = ",".join(former_public_urls)
        environment["EVERGREEN_CONSOLE_URL"] = console_url
        environment["EVERGREEN_ADMIN_EMAIL"] = admin_email
        environment["EVERGREEN_ADMIN_PASSWORD_FILE"] = str(home.secrets / "admin_password")
        environment["EVERGREEN_EVENTS_ISSUER_FILE"] = str(
            home.secret_file(nats.ISSUER, nkey.new_seed)
        )
        environment["EVERGREEN_NATS_GATEKEEPER_PASSWORD_FILE"] = str(
            home.secret_file("nats_gatekeeper", password)
        )
        environment.setdefault("EVERGREEN_EVENTS_URL", nats_url)
    if context == "enrollment":
        environment["EVERGREEN_BOOTSTRAP_ENROLLMENT_SECRET_FILE"] = str(
            home.secrets / "enrollment_secret"
        )

    async def remove_sockets() -> None:
        # What a killed process left behind cannot be bound again.
        for kind in ("gw", "int", "http"):
            socket(run, context, kind).unlink(missing_ok=True)

    return ProcessSpec(
        name=context,
        # -P: the home's directories (secrets, nats, …) are no packages to import from.
        argv=(sys.executable, "-P", "-m", f"services.{context}"),
        parse=parse_service,
        cwd=home.root,
        env=environment,
        shown_from="info",
        fork=zygote.fork if zygote else None,
        prepare=remove_sockets,
        grace=15.0,
    )
