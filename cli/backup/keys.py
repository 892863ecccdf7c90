"""Whether the master key opens the private keys that lie sealed in the database."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from cli.errors import CliError
from servicekit.keys import Signer
from servicekit.sealing import Sealer, SealingError

MASTER_KEY: Final = "secrets/master_key"
PURPOSES: Final = {
    "identity.signing_key": "identity-keys",
    "policy.signing_keys": "policy-signing",
    "audit.signing_key": "audit-signing",
}
"""The tables with sealed keys, and the purpose that each is sealed for."""


class MissingKeyError(CliError):
    """Without a key, or with the wrong one, what was restored would be of no use."""


class SealedKeys:
    """Checks sealed keys with a master key.

    Raises:
        MissingKeyError: there is none, or it is no key.
    """

    def __init__(self, master_key: bytes | None) -> None:
        if master_key is None:
            raise MissingKeyError(
                "the master key is missing; without it the keys that sign tokens, policies and"
                " the audit log cannot be opened"
            )
        try:
            self._key = base64.b64decode(master_key.strip(), validate=True)
            self._sealers = {table: Sealer(self._key, use) for table, use in PURPOSES.items()}
        except (binascii.Error, SealingError) as broken:
            raise MissingKeyError(f"the master key is not one: {broken}") from broken
        self.opened = 0

    def check(self, table: str, public_key: bytes, sealed_seed: bytes) -> None:
        """Opens one key.

        Raises:
            MissingKeyError: the master key is another one.
        """
        try:
            seed = self._sealers[table].open(sealed_seed)
        except SealingError as wrong:
            raise MissingKeyError(
                f"the master key is not the one that sealed the keys in {table}"
            ) from wrong
        if Signer(seed).public.raw != public_key:
            raise MissingKeyError(f"a private key in {table} does not belong to its public key")
        self.opened += 1
