"""PostgreSQL's settings on one small machine that also runs everything else."""

from __future__ import annotations

from typing import Final

from deploy.machine import machine_memory
from servicekit.security import mode

# What PostgreSQL acknowledged survives a crash of the machine: never turn these off.
DURABILITY: Final = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}

SETTINGS: Final = DURABILITY | {
    # Reached over the Unix socket only.
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    # Seven pools of a few connections each, the launcher, and room for an operator.
    "max_connections": "120",
    "work_mem": "8MB",
    "maintenance_work_mem": "128MB",
    # The first change of a page after a checkpoint writes all of it. Compressing it with pglz, as
    # every build can, takes longer than the rest of an insert: an event among many others would
    # cost three times what it costs among few.
    "wal_compression": "off",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    # Short statements: compiling them costs more than it brings.
    "jit": "off",
    # A service that hangs in a transaction must not hold locks and old rows for ever.
    "idle_in_transaction_session_timeout": "60s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # deploy/launcher/events.py reads this prefix: time, process, SQLSTATE.
    "log_line_prefix": "%m [%p] %e ",
    "log_checkpoints": "off",
    "log_lock_waits": "on",
    "log_error_verbosity": "terse",
    # A statement may hold personal data and secrets as literals.
    "log_min_error_statement": "panic",
    "log_parameter_max_length_on_error": "0",
}

_MIB: Final = 1 << 20
_LEAST: Final = 256
"""Mebibytes that it shares at least."""

_APPROVED_TLS: Final = {
    "ssl_ciphers": "ECDHE+AESGCM",
    "ssl_tls13_ciphers": "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256",
    "ssl_groups": "prime256v1:secp384r1",
}

# Every connection gives its role's password, those of the superuser too.
HBA: Final = "local all all scram-sha-256\n"

# Over a network, nothing but TLS.
NETWORK_HBA: Final = HBA + "hostssl all all all scram-sha-256\n"


def for_memory(memory: int, stored: int | None = None) -> dict[str, str]:
    """The settings that follow from the machine's memory.

    An event touches two pages at random in its week's indexes, which have 120 MB for each million
    events. What is not in PostgreSQL's own memory is copied into it, checked, and something else
    written for it: that doubles what an event costs. But it also needs memory to keep account of
    its own: a small database that is given 3 GB uses 70 MB more.

    Args:
        memory: the machine's, in bytes.
        stored: bytes that the databases have now, to which they may as much again be added before
            the next start; `None` where that is not known.
    """
    shared = min(max(memory // 8 // _MIB, _LEAST), 4096)
    if stored is not None:
        shared = min(shared, max(2 * stored // _MIB, _LEAST))
    return {"shared_buffers": f"{shared}MB", "effective_cache_size": f"{memory // 3 // _MIB}MB"}


def approved_tls() -> dict[str, str]:
    """The settings by which PostgreSQL, from 18 on, keeps to approved algorithms in TLS; none where
    FIPS mode is off."""
    return _APPROVED_TLS if mode.is_required() else {}


def configuration(*, stored: int | None = None, **more: str) -> str:
    """The text of `postgresql.conf`: the settings above, and those given.

    Args:
        stored: as `for_memory` takes it.
        more: further settings.
    """
    approved = approved_tls() if more.get("ssl") == "on" else {}
    wanted = SETTINGS | for_memory(machine_memory(), stored) | approved | more
    lines = [
        "# Written at each start. Settings of your own belong in custom.conf beside this file.",
        *(f"{name} = '{_quoted(value)}'" for name, value in wanted.items()),
        "include_if_exists = 'custom.conf'",
    ]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
