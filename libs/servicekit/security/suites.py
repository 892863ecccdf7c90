"""The names of the algorithms, as they are stored beside what they made.

A stored value names its suite, so that a later release can use another one and still read it. A
name is never used for another algorithm, and a suite is read for ever. `servicekit.security.mode`
says which of them new values are made with.
"""

from __future__ import annotations

from typing import Final

ED25519: Final = "ed25519"
"""Signatures of tokens, policies and checkpoints (RFC 8032)."""
XCHACHA20POLY1305: Final = "xchacha20poly1305"
"""Sealing, under a key that keyed BLAKE2b derives (libsodium)."""
ARGON2ID: Final = "argon2id"
"""Password hashes (RFC 9106)."""
PBKDF2_SHA256: Final = "pbkdf2-sha256"
"""Password hashes where only approved algorithms may be used (SP 800-132)."""
AES256GCM: Final = "aes256gcm"
"""Sealing where only approved algorithms may be used, under a key that HKDF-SHA256 derives
(SP 800-38D, SP 800-56C)."""
ES256: Final = "es256"
"""Signatures of tokens where only approved algorithms may be used: ECDSA with P-256 and SHA-256
(FIPS 186-5, RFC 7518)."""
