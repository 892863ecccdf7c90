"""NATS for the product: its configuration, with one user a service and what each may do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from servicekit.tls import Tls

STREAM: Final = "EVERGREEN"
SUBJECTS: Final = "evergreen.v1"

INBOX: Final = "_INBOX_"
"""Where answers to a service arrive, followed by its name: nobody reads another one's."""

CLUSTER_PORT: Final = 6222
"""Where the servers of a cluster reach each other."""

CONSUMERS: Final[Mapping[str, tuple[str, ...]]] = {"audit": ("audit",)}
"""The durable consumers that a service may have; one may read the events of all contexts."""


def permissions(context: str) -> dict[str, Any]:
    """What the user of one service may publish and subscribe to.

    It publishes events of its own context only, whichever tenant they belong to. Whoever may have
    a consumer may read the stream through it, and nobody subscribes to the events past the stream.
    Everyone may see how far the audit log has got, so that no outbox forgets what it lacks. Audit
    may change the stream: it marks it anew when events must be published again. Deleting it is left
    to an operator.
    """
    publish = [
        f"{SUBJECTS}.*.{context}.>",
        f"$JS.API.STREAM.INFO.{STREAM}",
        f"$JS.API.STREAM.CREATE.{STREAM}",
        f"$JS.API.CONSUMER.INFO.{STREAM}.audit",
    ]
    if context == "audit":
        publish.append(f"$JS.API.STREAM.UPDATE.{STREAM}")
    for durable in CONSUMERS.get(context, ()):
        publish += [
            f"$JS.API.CONSUMER.INFO.{STREAM}.{durable}",
            f"$JS.API.CONSUMER.CREATE.{STREAM}.{durable}",
            f"$JS.API.CONSUMER.CREATE.{STREAM}.{durable}.>",
            f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{durable}",
            f"$JS.API.CONSUMER.DELETE.{STREAM}.{durable}",
            f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{durable}",
            f"$JS.ACK.{STREAM}.{durable}.>",
        ]
    return {"publish": {"allow": publish}, "subscribe": {"allow": [f"{INBOX}{context}.>"]}}


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
) -> str:
    """The text of the server's configuration; it holds the passwords.

    Args:
        port: where clients connect.
        monitor_port: where the server tells its health.
        store: JetStream's directory.
        passwords: context → password of its user, whose name is that of the context.
        host: the address for clients; loopback needs no TLS.
        tls: the server's certificate.
        monitor_host: the address for `monitor_port`.
        name: the server's name, its own in a cluster.
        cluster: the hosts of all servers of the cluster; they trust each other by certificates.
    """
    secured: dict[str, dict[str, Any]] = {}
    if tls is not None:
        files = {"cert_file": str(tls.certificate_file), "key_file": str(tls.key_file)}
        secured = {"tls": {**files, "timeout": 5}}
    clustered: dict[str, dict[str, Any]] = {}
    if cluster and tls is not None:
        clustered["cluster"] = {
            "name": "evergreen",
            "listen": f"{host}:{CLUSTER_PORT}",
            "routes": [f"nats-route://{server}:{CLUSTER_PORT}" for server in cluster],
            "tls": {**secured["tls"], "ca_file": str(tls.ca_file), "verify": True},
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
        "authorization": {
            "users": [
                {"user": context, "password": password, "permissions": permissions(context)}
                for context, password in passwords.items()
            ]
        },
    }
    return json.dumps(configuration, indent=2) + "\n"
