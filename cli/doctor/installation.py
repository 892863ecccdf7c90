"""What of an installation is looked at, and where it is."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from cli.client import bootstrap
from cli.doctor.database import Login
from cli.doctor.messaging import Server
from cli.doctor.public import Public
from cli.errors import CliError
from cli.secrets import read_secret


@dataclass(frozen=True, slots=True)
class Installation:
    """The parts of one installation; those that are not known are not looked at."""

    public: Public
    databases: tuple[Login, ...] = ()
    nats: Server | None = None
    disks: tuple[Path, ...] = ()
    port: int | None = None
    """The port of this machine on which the gateway is to listen."""


def of_home(root: Path) -> Installation:
    """A home of `make run`.

    Raises:
        CliError: there is none.
    """
    from deploy.launcher.home import Home  # noqa: PLC0415
    from deploy.postgres import roles  # noqa: PLC0415
    from servicekit.access import CONTEXTS  # noqa: PLC0415

    home = Home(root)
    url = bootstrap(root, otherwise="set PUBLIC_URL")["url"]
    sockets = home.run_directory() / "postgres"

    def login(role: str, secret: str, context: str = "") -> Login:
        dsn = f"postgresql://{role}@/{roles.DATABASE}?host={sockets}"
        return Login(dsn, read_secret(home.secrets / secret), context)

    public = Public(url, home.tls / "ca.crt")
    ports = home.remembered().get("ports", {})
    nats_tls = '"tls"' in read_secret(home.nats / "nats.conf")
    nats_host = "tls://localhost" if nats_tls else "nats://127.0.0.1"
    return Installation(
        public,
        (
            login(roles.MIGRATOR, "postgres_migrator"),
            *(login(roles.service_role(c), f"postgres_{c}", c) for c in CONTEXTS),
        ),
        Server(
            f"{nats_host}:{ports.get('nats', 4222)}",
            "audit",
            read_secret(home.secrets / "nats_audit"),
            f"http://127.0.0.1:{ports.get('nats_monitor', 8222)}",
            home.tls / "ca.crt" if nats_tls else None,
        ),
        (root,),
        public.port,
    )


def given(environment: Mapping[str, str], ca_file: Path | None) -> Installation:
    """What the environment says, as containers have it.

    Raises:
        CliError: a setting is not what it should be.
    """

    def setting(name: str) -> str:
        return environment.get(name, "")

    def secret(name: str) -> str:
        return read_secret(Path(path)) if (path := setting(name)) else ""

    proxies = setting("TRUSTED_PROXIES") or "0"
    if not proxies.isdigit():
        raise CliError(f"TRUSTED_PROXIES is {proxies!r}; give the number of proxies before it")
    databases = []
    if dsn := setting("EVERGREEN_MIGRATE_DATABASE_URL"):
        databases.append(Login(dsn, secret("EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE") or None))
        if roles := setting("EVERGREEN_ROLE_SECRETS"):
            databases += _services(dsn, Path(roles))
    if dsn := setting("EVERGREEN_DATABASE_URL"):
        context = setting("EVERGREEN_CONTEXT") or "identity"
        databases.append(Login(dsn, secret("EVERGREEN_DATABASE_PASSWORD_FILE") or None, context))
    nats = None
    if url := setting("EVERGREEN_NATS_URL"):
        nats = Server(
            url,
            setting("EVERGREEN_NATS_USER"),
            secret("EVERGREEN_NATS_PASSWORD_FILE"),
            setting("EVERGREEN_NATS_MONITOR_URL").rstrip("/"),
            Path(inside) if (inside := setting("EVERGREEN_NATS_CA_FILE")) else None,
        )
    port = setting("HTTPS_PORT")
    own = Path(setting("EVERGREEN_HOME")) / "tls" / "ca.crt"
    is_given = (Path(setting("EVERGREEN_CERTIFICATE")) / "fullchain.pem").exists()
    # Behind a proxy the own CA is for the way from there to the gateway.
    is_own = setting("EVERGREEN_HOME") and own.exists() and not is_given and int(proxies) == 0
    if ca_file is None and is_own:
        ca_file = own
    public = Public(setting("PUBLIC_URL"), ca_file, int(proxies))
    if _is_loopback(public.host):
        # In a container that is another machine.
        public = replace(public, connect=setting("EVERGREEN_CONNECT"))
    return Installation(
        public,
        tuple(databases),
        nats,
        port=int(port) if port.isdigit() else None,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _services(dsn: str, secrets: Path) -> list[Login]:
    """The roles of the services, in the database of the migrations."""
    from deploy.postgres import roles  # noqa: PLC0415
    from servicekit.access import CONTEXTS  # noqa: PLC0415

    url = urlsplit(dsn)
    return [
        Login(
            url._replace(
                netloc=f"{roles.service_role(c)}@{url.netloc.rpartition('@')[2]}"
            ).geturl(),
            read_secret(secrets / f"postgres_{c}"),
            c,
        )
        for c in CONTEXTS
    ]
