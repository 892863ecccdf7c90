"""NATS for the product: its configuration, with one user a service and what each may do.

Three accounts: the services' with the streams; the integrators', which reaches nothing but
imported requests to durable consumers; and the system account, in which identity answers who may
connect (auth callout) and cuts connections. An answer crosses from one account to another only to
whoever asked, so that an integrator cannot have messages delivered where it may not publish.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from contract.subjects import DOMAIN, EVENTS, STREAMS, SUBJECT_ROOT, reader_requests
from servicekit.security import mode
from servicekit.security.tls import Tls

INBOX: Final = "_INBOX_"
"""Where answers to a user arrive, followed by its name: nobody reads another one's."""

CLUSTER_PORT: Final = 6222
"""Where the servers of a cluster reach each other."""

CONSUMERS: Final[Mapping[str, tuple[str, ...]]] = {"audit": ("audit",)}
"""The durable consumers that a service may have; one may read the events of all contexts."""

SERVICES: Final = "EVERGREEN"
INTEGRATORS: Final = "INTEGRATORS"
SYSTEM: Final = "SYS"
"""The accounts."""

GATEKEEPER: Final = "gatekeeper"
"""Identity's user in the system account."""
OPERATOR: Final = "operator"
"""The user who may delete a stream, so that it is made anew."""

_API: Final = "$JS.API"


def permissions(context: str) -> dict[str, Any]:
    """What the user of one service may publish and subscribe to.

    It publishes events of its own context only, whichever tenant they belong to. A user with
    a consumer may read the stream through it, and nobody subscribes to the events past the stream.
    Everyone may see how far the audit log has got, so that no outbox forgets what it lacks. A
    stream's keeper may change it: audit marks it anew when events must be published again.
    Identity makes the consumers of integrators. Deleting a stream is left to the operator.
    """
    publish = [f"{SUBJECT_ROOT}.*.{context}.>", f"{_API}.CONSUMER.INFO.{EVENTS.name}.audit"]
    deny = []
    for stream in STREAMS:
        if stream is EVENTS or context in {stream.keeper, "identity"}:
            publish += [f"{_API}.STREAM.{what}.{stream.name}" for what in ("INFO", "CREATE")]
        if context == stream.keeper:
            publish.append(f"{_API}.STREAM.UPDATE.{stream.name}")
        if context == "identity":
            consumer = f"{_API}.CONSUMER"
            publish += [
                f"{consumer}.CREATE.{stream.name}.>",
                f"{consumer}.DURABLE.CREATE.{stream.name}.*",
                f"{consumer}.DELETE.{stream.name}.*",
                f"{consumer}.INFO.{stream.name}.*",
                f"{consumer}.LIST.{stream.name}",
            ]
            deny += [
                f"{consumer}.{what}.{stream.name}.{own}"
                for own in (name for names in CONSUMERS.values() for name in names)
                for what in ("CREATE", "DURABLE.CREATE", "DELETE")
            ]
    for durable in CONSUMERS.get(context, ()):
        publish += [
            f"{_API}.CONSUMER.INFO.{EVENTS.name}.{durable}",
            f"{_API}.CONSUMER.CREATE.{EVENTS.name}.{durable}",
            f"{_API}.CONSUMER.CREATE.{EVENTS.name}.{durable}.>",
            f"{_API}.CONSUMER.DURABLE.CREATE.{EVENTS.name}.{durable}",
            f"{_API}.CONSUMER.DELETE.{EVENTS.name}.{durable}",
            f"{_API}.CONSUMER.MSG.NEXT.{EVENTS.name}.{durable}",
            f"$JS.ACK.{EVENTS.name}.{durable}.>",
        ]
    return {
        "publish": {"allow": publish, **({"deny": deny} if deny else {})},
        "subscribe": {"allow": [f"{INBOX}{context}.>"]},
    }


def _accounts(passwords: Mapping[str, str]) -> dict[str, Any]:
    services = {name: p for name, p in passwords.items() if name not in {GATEKEEPER, OPERATOR}}
    users: list[dict[str, Any]] = [
        {"user": context, "password": password, "permissions": permissions(context)}
        for context, password in services.items()
    ]
    if OPERATOR in passwords:
        what = [f"{_API}.STREAM.{what}.{s.name}" for s in STREAMS for what in ("INFO", "DELETE")]
        users.append(_user(OPERATOR, passwords, {"publish": {"allow": what}}))
    system = {
        "publish": {"allow": ["$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.*.KICK"]},
        "allow_responses": {"max": 1, "expires": "10s"},
    }
    shared = list(zip(reader_requests(_API), reader_requests(f"$JS.{DOMAIN}.API"), strict=True))
    return {
        SERVICES: {
            "jetstream": "enabled",
            "users": users,
            "exports": [
                {"service": there, "accounts": [INTEGRATORS]}
                | ({"response_type": "stream"} if ".MSG.NEXT." in there else {})
                for there, _ in shared
            ],
        },
        INTEGRATORS: {
            "imports": [
                {"service": {"account": SERVICES, "subject": there}, "to": here}
                for there, here in shared
            ],
        },
        SYSTEM: {
            "users": [_user(GATEKEEPER, passwords, system, "$SYS.REQ.USER.AUTH")]
            if GATEKEEPER in passwords
            else []
        },
    }


def _user(
    name: str, passwords: Mapping[str, str], allowed: Mapping[str, Any], *subscribe: str
) -> dict[str, Any]:
    inbox = {"subscribe": {"allow": [f"{INBOX}{name}.>", *subscribe]}}
    return {"user": name, "password": passwords[name], "permissions": {**allowed, **inbox}}


def _approved_tls() -> dict[str, Any]:
    """What keeps TLS to approved algorithms in FIPS mode, as far as the server can be told.

    Not `GODEBUG=fips140=on`: in Go's own FIPS mode the server refuses `auth_callout`, by which
    integrators log in. So TLS 1.3 still has ChaCha20, for clients that offer nothing else.
    """
    if not mode.is_required():
        return {}
    return {
        "min_version": "1.2",
        "cipher_suites": [
            f"TLS_ECDHE_{key}_WITH_AES_{size}"
            for key in ("ECDSA", "RSA")
            for size in ("256_GCM_SHA384", "128_GCM_SHA256")
        ],
        "curve_preferences": ["CurveP256", "CurveP384", "CurveP521"],
    }


def render(
    port: int,
    monitor_port: int,
    store: Path,
    passwords: Mapping[str, str],
    *,
    host: str = "127.0.0.1",
    tls: Tls | None = None,
    monitor_host: str = "127.0.0.1",
    name: str = "evergreen",
    cluster: Sequence[str] = (),
    issuer: str = "",
) -> str:
    """The text of the server's configuration; it holds the passwords.

    Args:
        port: where clients connect.
        monitor_port: where the server tells its health.
        store: JetStream's directory.
        passwords: user → password: one for each context, and `GATEKEEPER` and `OPERATOR`.
        host: the address for clients; loopback needs no TLS.
        tls: the server's certificate.
        monitor_host: the address for `monitor_port`.
        name: the server's name, its own in a cluster.
        cluster: the hosts of all servers of the cluster; they trust each other by certificates.
        issuer: the public half of identity's key (`servicekit.security.nkey`), which signs what an
            integrator may do; nobody but `passwords` has a way in without it.
    """
    secured: dict[str, dict[str, Any]] = {}
    if tls is not None:
        files = {"cert_file": str(tls.certificate_file), "key_file": str(tls.key_file)}
        secured = {"tls": {**files, "timeout": 5, **_approved_tls()}}
    clustered: dict[str, dict[str, Any]] = {}
    if cluster and tls is not None:
        clustered["cluster"] = {
            "name": "evergreen",
            "listen": f"{host}:{CLUSTER_PORT}",
            "routes": [f"nats-route://{server}:{CLUSTER_PORT}" for server in cluster],
            # Services are told all servers, and nobody outside can reach what these would tell.
            "no_advertise": True,
            "tls": {**secured["tls"], "ca_file": str(tls.ca_file), "verify": True},
        }
    authorization: dict[str, Any] = {"timeout": 5}
    if issuer:
        authorization["auth_callout"] = {
            "issuer": issuer,
            "account": SYSTEM,
            # All others are identity's to judge.
            "auth_users": list(passwords),
        }
    configuration = {
        "server_name": name,
        "listen": f"{host}:{port}",
        **secured,
        **clustered,
        "http": f"{monitor_host}:{monitor_port}",
        "logtime_utc": True,
        # An acknowledged message is on the disk. Jepsen lost some without this.
        "jetstream": {
            "store_dir": str(store),
            "sync_interval": "always",
            "max_memory_store": 64 * 1024**2,
            "max_file_store": 10 * 1024**3,
        },
        "max_payload": 4 * 1024**2,
        # What one connection may cost. Who reads too slowly is cut off, and comes again.
        # Of those that nobody has logged in on, identity cuts what one address has too many.
        "max_connections": 8192,
        "max_subscriptions": 256,
        "max_pending": 32 * 1024**2,
        "write_deadline": "10s",
        "accounts": _accounts(passwords),
        "system_account": SYSTEM,
        "authorization": authorization,
    }
    return json.dumps(configuration, indent=2) + "\n"
