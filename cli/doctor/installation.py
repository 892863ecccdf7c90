"""What of an installation is looked at, and where it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from cli.client import bootstrap
from cli.doctor.database import Login
from cli.doctor.machine import is_loopback
from cli.doctor.messaging import Server
from cli.doctor.public import Public
from cli.errors import CliError
from cli.secrets import read_secret
from servicekit.http.origins import origins_of


@dataclass(frozen=True, slots=True)
class Installation:
    """The parts of one installation; those that are not known are not looked at."""

    public: Public
    """Where devices and browsers find it."""
    gateway: Public | None = None
    """The same gateway on this machine, where the public address is another one."""
    gateway_monitor: str = ""
    """The address of its metrics."""
    gateway_admin: Path | None = None
    """The socket of its administration."""
    databases: tuple[Login, ...] = ()
    nats: Server | None = None
    former: tuple[Public, ...] = ()
    """Its addresses of before, which are still to work."""
    logs: Path | None = None
    """Where the gateway's log lies."""
    given: Path | None = None
    """The directory of a certificate that is not the local CA's."""
    services: Mapping[str, str] = field(default_factory=dict)
    """Service → the address of its operations port."""
    disks: tuple[Path, ...] = ()
    port: int | None = None
    """The port of this machine on which the gateway is to listen."""
    private: tuple[Path, ...] = ()
    """Files and directories for their owner alone."""
    master_key: Path | None = None
    authorities: tuple[Path, ...] = ()
    """Directories of local CAs, with their keys."""
    processes: tuple[tuple[str, int], ...] = ()
    """Those of it on this machine, by name."""
    stopped: str = ""
    """Why nothing of it runs, where that is known; then how to start it."""
    start: str = "docker compose up --wait"
    """How it is started."""


def of_home(root: Path, ca_file: Path | None = None) -> Installation:
    """A home of `make run`.

    Raises:
        CliError: there is none.
    """
    from contract.contexts import CONTEXTS  # noqa: PLC0415
    from deploy.launcher.gateway import administration  # noqa: PLC0415
    from deploy.launcher.home import Home  # noqa: PLC0415
    from deploy.launcher.supervisor import leftovers  # noqa: PLC0415
    from deploy.postgres import roles  # noqa: PLC0415

    home = Home(root)
    facts = bootstrap(root, otherwise="set PUBLIC_URL")
    noted = home.remembered()
    run = home.run_directory()
    master_key = home.secrets / "master_key"

    def login(role: str, secret: str, context: str = "") -> Login:
        dsn = f"postgresql://{role}@/{roles.DATABASE}?host={run / 'postgres'}"
        key = "" if context else _text(master_key)
        return Login(dsn, _text(home.secrets / secret), context, key)

    local = Public(facts["url"], home.tls / "ca.crt", what="gateway")
    url = str(noted.get("public_url") or facts["url"])
    given = Path(noted["tls_directory"]) if noted.get("tls_directory") else None
    # Who has a certificate of another CA has devices trust that one.
    trusted = ca_file if given else home.tls / "ca.crt"
    public = Public(url, trusted)
    former = tuple(_former(str(old), trusted) for old in noted.get("former_public_urls") or ())
    ports = noted.get("ports", {})
    nats_tls = '"tls"' in _text(home.nats / "nats.conf")
    nats_host = "tls://localhost" if nats_tls else "nats://127.0.0.1"
    holder = home.holder()
    logs = Path(noted.get("logs") or home.logs)
    return Installation(
        public,
        None if public.is_local else local,
        gateway_admin=administration(run),
        former=former,
        logs=logs,
        given=given,
        databases=(
            login(roles.MIGRATOR, "postgres_migrator"),
            *(login(roles.service_role(c), f"postgres_{c}", c) for c in CONTEXTS),
        ),
        nats=Server(
            f"{nats_host}:{ports.get('nats', 4222)}",
            "audit",
            _text(home.secrets / "nats_audit"),
            f"http://127.0.0.1:{ports.get('nats_monitor', 8222)}",
            home.tls / "ca.crt" if nats_tls else None,
        ),
        services={c: f"http://127.0.0.1:{ports[c]}" for c in CONTEXTS if c in ports},
        disks=(root,),
        port=local.port,
        private=(
            home.root,
            home.secrets,
            home.tls,
            home.bootstrap_file,
            home.nats / "nats.conf",
            *sorted(home.secrets.glob("*")),
            *sorted(home.tls.glob("*.key")),
        ),
        master_key=master_key,
        authorities=(home.tls,),
        processes=tuple(leftovers(run).items()),
        stopped="" if holder else f"no `evergreen up` runs on {root}",
        start=f"EVERGREEN_HOME={root} evergreen up (or `make run`); {logs} says how it ended",
    )


def _former(url: str, ca_file: Path | None) -> Public:
    address = Public(url, ca_file)
    return replace(address, what=f"former.{address.host}")


def _text(path: Path) -> str:
    """A secret or a configuration; what cannot be read fails where it is used, or a check of the
    files says so."""
    try:
        return read_secret(path)
    except CliError:
        return ""


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
    secrets = Path(roles) if (roles := setting("EVERGREEN_ROLE_SECRETS")) else None
    if dsn := setting("EVERGREEN_MIGRATE_DATABASE_URL"):
        password = secret("EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE") or None
        key = _text(secrets / "master_key") if secrets else ""
        databases.append(Login(dsn, password, master_key=key))
        if secrets:
            databases += _services(dsn, secrets)
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
    if is_loopback(public.host):
        # In a container that is another machine.
        public = replace(public, connect=setting("EVERGREEN_CONNECT"))
    home = Path(setting("EVERGREEN_HOME")) if setting("EVERGREEN_HOME") else None
    private = [path for path in (secrets, home and home / "tls") if path]
    # In Kubernetes a job has the CAs in a Secret of its own, and pods have no directory of them.
    signs = [home / "tls", home / "inside"] if home and (home / "inside").is_dir() else []
    if is_given:
        signs = signs[1:]
    try:
        former = origins_of(setting("FORMER_PUBLIC_URLS"))
    except ValueError as error:
        raise CliError(f"FORMER_PUBLIC_URLS: {error}") from error
    return Installation(
        public,
        gateway_monitor=setting("EVERGREEN_GATEWAY_MONITOR_URL").rstrip("/"),
        former=tuple(
            replace(_former(old, ca_file), trusted_proxies=int(proxies)) for old in former
        ),
        databases=tuple(databases),
        nats=nats,
        services=_operations(setting("EVERGREEN_OPS_TARGET")),
        port=int(port) if port.isdigit() else None,
        private=tuple(
            file
            for path in private
            for pattern in ("*_*", "*.key")
            for file in path.glob(pattern)
            # In Kubernetes they are links, and what they lead to is in a directory beside them.
            if file.is_file()
        ),
        master_key=secrets / "master_key" if secrets else None,
        authorities=tuple(signs),
        processes=(("this container", os.getpid()),) if setting("TZ") else (),
    )


def _operations(target: str) -> dict[str, str]:
    """The services' operations ports, from HOST:PORT with `{context}` in it.

    Raises:
        CliError: it is not that.
    """
    from contract.contexts import CONTEXTS  # noqa: PLC0415

    if target and "{context}" not in target:
        raise CliError(
            f"EVERGREEN_OPS_TARGET is {target!r}; give HOST:PORT with {{context}} for the service"
        )
    return {c: f"http://{target.replace('{context}', c)}" for c in CONTEXTS} if target else {}


def _services(dsn: str, secrets: Path) -> list[Login]:
    """The roles of the services, in the database of the migrations."""
    from contract.contexts import CONTEXTS  # noqa: PLC0415
    from deploy.postgres import roles  # noqa: PLC0415

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
