"""Makes the files of an installation in containers: secrets, certificates, configurations.

Secrets and CAs are made once and never changed; certificates are renewed when they are due;
configurations are written anew each time, for they are this release's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from contract.contexts import BY_NAME, CONTEXTS
from deploy import gateway, nats
from deploy.certificates import SERVER, Authority, AuthorityError, now
from deploy.containers import layout
from deploy.containers.layout import MOUNTED, Layout
from deploy.containers.settings import Installation, InstallationError
from deploy.gateway.settings import DESCRIPTORS
from deploy.launcher.errors import LauncherError
from deploy.launcher.home import MASTER_KEY, Home, master_key, password
from deploy.launcher.nats import ISSUER
from deploy.postgres.settings import NETWORK_HBA, configuration
from deploy.private_files import private_directory, write_private
from servicekit.observability.tracing import Traces
from servicekit.security import nkey
from servicekit.security.tls import Tls

RELOADED: Final = Path(__file__).with_name("reloaded.sh")
"""Starts a server that is to take over renewed certificates."""
CHAIN: Final = "server.crt"
KEY: Final = "server.key"
"""The certificate that the gateway shows to devices and browsers."""

_NATS_USERS: Final = (*CONTEXTS, nats.GATEKEEPER, nats.OPERATOR)
_ONCE: Final[dict[str, Callable[[], str]]] = {
    # The first one: what lacks it alone had it.
    MASTER_KEY: master_key,
    "admin_password": password,
    "enrollment_secret": password,
    "postgres_superuser": password,
    "postgres_migrator": password,
    **{f"postgres_{context}": password for context in CONTEXTS},
    **{f"nats_{user}": password for user in _NATS_USERS},
    ISSUER: nkey.new_seed,
}

MADE: Final = {
    "operator/secrets/master_key": "seals the private keys in the database: keep it with backups",
    "operator/secrets/admin_password": "the first Owner's password, until it is changed",
    "operator/secrets/enrollment_secret": "with the tenant code, the first pre-shared key",
    "operator/secrets/postgres_*, nats_*": "passwords, one for each role and user",
    "operator/tls": "the CA that devices and browsers trust, when no certificate is given",
    "operator/inside": "the CA of the certificates inside the walls",
    "postgres, nats, gateway": "configuration and certificate of each server",
    ", ".join(CONTEXTS): "what each service needs, and no more",
}
"""What is made, and what it is for."""


def make(root: Path, installation: Installation, *, keep: bool) -> None:
    """Makes all files below `root`.

    Args:
        root: the directory; each container gets one below it.
        installation: what the administrator says.
        keep: whether an installation may be there already; it is then completed.

    Raises:
        InstallationError: there is one, or the settings cannot work.
    """
    installation.check()
    there = Layout(root)
    operator = there.operator
    if operator.secrets.exists() and not keep:
        raise InstallationError(
            f"{root} holds an installation already, and its secrets are never overwritten; say"
            " --keep to make only what is missing"
        )
    _require_data(there.of("postgres-data"), installation)
    for path in (operator.root, operator.secrets, operator.tls):
        private_directory(path)
    secrets = _secrets(operator)
    try:
        _certify(there, installation)
    except AuthorityError as error:
        raise InstallationError(str(error)) from error
    for context in CONTEXTS:
        _service(there, context, secrets)
    _postgres(there, secrets)
    _nats(there, secrets)
    render_gateway(there.of("gateway"), installation, MOUNTED)


def _require_data(data: Path, installation: Installation) -> None:
    """Refuses to start a PostgreSQL that has no data beside an older one that has: it would begin
    anew, and the installation with it.

    Raises:
        InstallationError: that is so.
    """
    wanted = installation.postgres_major
    if wanted is None or installation.empty_database:
        return
    # As the official images lay them out from 18 on.
    found = sorted(int(path.parts[-3]) for path in data.glob("[0-9]*/docker/PG_VERSION"))
    if found and wanted not in found:
        raise InstallationError(
            f"the data are of PostgreSQL {found[-1]}, and this release starts {wanted}, which would"
            " begin with an empty database. Go back to the release before, make a backup, and"
            " restore it here with EMPTY_DATABASE=1: docs/upgrade.md#a-newer-postgresql"
        )


def _certify(there: Layout, installation: Installation) -> None:
    inside = Authority.ensure_in(there.inside_ca)
    for name in ("postgres", "nats", "gateway", *CONTEXTS):
        # Integrators reach NATS from outside.
        others = installation.hosts if name == "nats" else ()
        inside.ensure(_directory(there, name), name, *others)
    _public_certificate(there, installation)


def _secrets(operator: Home) -> dict[str, str]:
    """All secrets by name; those that are missing are made.

    Raises:
        InstallationError: one is empty, or the master key of an installation is gone.
    """
    key = operator.secrets / MASTER_KEY
    if not key.exists() and any((operator.secrets / name).exists() for name in _ONCE):
        raise InstallationError(
            f"{key} is gone, and the database's private keys do not open with a new one: put it"
            " back, from a backup or a copy"
        )
    try:
        return {name: operator.secret(name, made) for name, made in _ONCE.items()}
    except LauncherError as error:
        raise InstallationError(f"{error.message} {error.advice}") from error


def _directory(there: Layout, name: str) -> Path:
    path = there.of(name)
    if not path.is_dir():
        private_directory(path)
    return path


def _service(there: Layout, context: str, secrets: dict[str, str]) -> None:
    given = {
        "database_password": secrets[f"postgres_{context}"],
        "nats_password": secrets[f"nats_{context}"],
    }
    if BY_NAME[context].seals:
        given["master_key"] = secrets["master_key"]
    if context == "identity":
        given["admin_password"] = secrets["admin_password"]
        given["events_issuer"] = secrets[ISSUER]
        given["nats_gatekeeper_password"] = secrets[f"nats_{nats.GATEKEEPER}"]
    if context == "enrollment":
        given["enrollment_secret"] = secrets["enrollment_secret"]
    for name, text in given.items():
        _write(there.of(context) / name, text + "\n")


def _postgres(there: Layout, secrets: dict[str, str]) -> None:
    directory = there.of("postgres")
    _write(directory / "superuser_password", secrets["postgres_superuser"] + "\n")
    _write(directory / "pg_hba.conf", NETWORK_HBA)
    _write(directory / RELOADED.name, RELOADED.read_text(encoding="utf-8"))
    text = configuration(
        listen_addresses="*",
        unix_socket_permissions="0777",
        hba_file=str(MOUNTED / "pg_hba.conf"),
        ssl="on",
        ssl_cert_file=str(MOUNTED / "tls.crt"),
        ssl_key_file=str(MOUNTED / "tls.key"),
        ssl_min_protocol_version="TLSv1.2",
    )
    _write(directory / "postgresql.conf", text)


def _nats(there: Layout, secrets: dict[str, str]) -> None:
    text = nats.render(
        layout.NATS_PORT,
        layout.NATS_MONITOR_PORT,
        MOUNTED / "store",
        {user: secrets[f"nats_{user}"] for user in _NATS_USERS},
        host="0.0.0.0",  # noqa: S104 - with TLS, inside the walls
        monitor_host="0.0.0.0",  # noqa: S104 - the operator's container looks at it
        tls=Tls(MOUNTED / "ca.crt", MOUNTED / "tls.crt", MOUNTED / "tls.key"),
        issuer=nkey.public_key(secrets[ISSUER]),
    )
    _write(there.of("nats") / "nats.conf", text)
    _write(there.of("nats") / RELOADED.name, RELOADED.read_text(encoding="utf-8"))


def _public_certificate(there: Layout, installation: Installation) -> None:
    directory = there.of("gateway")
    chain, key = directory / CHAIN, directory / KEY
    if installation.certificate is not None:
        _write(key, (installation.certificate / "privkey.pem").read_text(encoding="ascii"))
        _write(chain, (installation.certificate / "fullchain.pem").read_text(encoding="ascii"))
    else:
        local = Authority.ensure_in(there.operator.tls, f"Evergreen CA of {installation.host}")
        names = list(dict.fromkeys([*installation.hosts, "localhost", "127.0.0.1", "gateway"]))
        local.ensure_files(chain, key, names, SERVER, now())


def render_gateway(directory: Path, installation: Installation, mounted: Path) -> None:
    """Writes Envoy's configuration into a directory that Envoy will find at `mounted`.

    Raises:
        InstallationError: a limit in the environment is not one, or the console's or the
            collector's address.
    """
    directory.mkdir(parents=True, exist_ok=True)
    _copy(DESCRIPTORS, directory / DESCRIPTORS.name)
    try:
        files = gateway.render(_gateway_settings(installation, mounted))
    except ValueError as wrong:
        raise InstallationError(str(wrong)) from wrong
    for name, text in files.items():
        _write(directory / name, text)


def _gateway_settings(installation: Installation, mounted: Path) -> gateway.GatewaySettings:
    workers = installation.gateway_workers
    server, inside = installation.server_certificate, installation.inside_certificate or mounted
    limits = gateway.Limits.of_environment(os.environ, workers=workers)
    return gateway.GatewaySettings(
        directory=mounted,
        port=layout.GATEWAY_PORT,
        addresses=(installation.listen,),
        certificate_file=server / "tls.crt" if server else mounted / CHAIN,
        private_key_file=server / "tls.key" if server else mounted / KEY,
        contexts={context: _endpoints(installation, context) for context in CONTEXTS},
        inside=Tls(inside / "ca.crt", inside / "tls.crt", inside / "tls.key"),
        admin="127.0.0.1:9901",
        metrics=f"{installation.listen}:{layout.OPS_PORT}",
        console=installation.console_url,
        public_url=installation.public_url,
        former_public_urls=installation.former_public_urls,
        trusted_proxies=installation.trusted_proxies,
        descriptors_at=mounted / DESCRIPTORS.name,
        reflection=gateway.reflection_of(os.environ),
        traces=Traces.of_environment(os.environ),
        limits=limits,
    )


def _endpoints(installation: Installation, context: str) -> gateway.Endpoints:
    host = installation.service_host.format(context=context)
    http = f"{host}:{layout.HTTP_PORT}" if BY_NAME[context].http else ""
    return gateway.Endpoints(f"{host}:{layout.GRPC_PORT}", http)


def _write(path: Path, text: str) -> None:
    """Writes what differs; a file that did not change is not touched."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_private(path, text)


def _copy(source: Path, target: Path) -> None:
    content = source.read_bytes()
    if not target.exists() or target.read_bytes() != content:
        temporary = target.with_name(f".{target.name}")
        temporary.write_bytes(content)
        temporary.replace(target)
