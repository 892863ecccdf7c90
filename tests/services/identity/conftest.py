"""Passwords of identity's tests are hashed in a twentieth of the time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from servicekit.security import libsodium, passwords


@pytest.fixture(scope="module", autouse=True)
def quick_hashes() -> Iterator[None]:
    """argon2id with 64 KiB of memory: tests log in thousands of times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libsodium, "MEMORY", 64 * 1024)
        patch.setattr(passwords, "_STANDARD", "$argon2id$v=19$m=64,t=2,p=1$")
        yield
