"""PostgreSQL's settings fit the machine."""

from __future__ import annotations

import pytest

from deploy.postgres.settings import configuration, for_memory
from servicekit.security import mode

GIB = 1 << 30


def test_its_memory_grows_with_the_machine() -> None:
    """An eighth; small machines keep enough for its work, large ones their memory for files."""
    assert for_memory(1 * GIB)["shared_buffers"] == "256MB"
    assert for_memory(24 * GIB)["shared_buffers"] == "3072MB"
    assert for_memory(512 * GIB)["shared_buffers"] == "4096MB"


def test_its_memory_grows_with_what_there_is_to_keep_in_it() -> None:
    """Twice the databases' size, between the least and what the machine can give."""
    assert for_memory(24 * GIB, 0)["shared_buffers"] == "256MB"
    assert for_memory(24 * GIB, 1 * GIB)["shared_buffers"] == "2048MB"
    assert for_memory(24 * GIB, 50 * GIB)["shared_buffers"] == "3072MB"
    assert for_memory(1 * GIB, 50 * GIB)["shared_buffers"] == "256MB"


def test_what_is_given_counts() -> None:
    """And each setting stands there once."""
    lines = configuration(shared_buffers="64MB").splitlines()
    assert [line for line in lines if line.startswith("shared_buffers")] == [
        "shared_buffers = '64MB'"
    ]


def test_tls_is_held_to_approved_algorithms_in_fips_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is TLS; a setting that is given counts all the same."""
    assert "ssl_groups" not in configuration(ssl="on")
    monkeypatch.setattr(mode, "_required", True)
    assert "ssl_groups" not in configuration()
    lines = configuration(ssl="on", ssl_ciphers="ECDHE-ECDSA-AES256-GCM-SHA384").splitlines()
    assert "ssl_groups = 'prime256v1:secp384r1'" in lines
    assert [line for line in lines if line.startswith("ssl_ciphers")] == [
        "ssl_ciphers = 'ECDHE-ECDSA-AES256-GCM-SHA384'"
    ]
