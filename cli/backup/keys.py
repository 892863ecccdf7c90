"""Whether the master key opens the private keys that lie sealed in the database."""

from __future__ import annotations

from typing import Final

from cli.backup.catalog import SEALED, SECRETS
from cli.errors import CliError
from servicekit.security import mode
from servicekit.security.sealing import (
    ForbiddenSuiteError,
    Sealer,
    SealingError,
    parse_master_key,
    uses_standard,
)
from servicekit.security.signing import PublicKey, Signer

MASTER_KEY: Final = "secrets/master_key"


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
            self.master_key = parse_master_key(master_key)
        except SealingError as broken:
            raise MissingKeyError(f"the master key is not one: {broken}") from broken
        self._sealers = {
            table: Sealer(self.master_key, use) for table, use in {**SEALED, **SECRETS}.items()
        }
        self.opened = 0

    def seal_anew(self, table: str, sealed_seed: bytes, own: SealedKeys) -> bytes:
        """The same private key, sealed with another master key.

        Raises:
            MissingKeyError: this master key is not the one that sealed it.
        """
        return own._sealers[table].seal(self._open(table, sealed_seed))

    def secrets_anew(self, table: str, sealed: bytes, own: SealedKeys) -> bytes:
        """The same secrets, sealed with another master key; those that do not open stay as they
        are, for their service says so.

        Raises:
            MissingKeyError: FIPS mode forbids to open them: they would be lost with this master
                key.
        """
        try:
            return own._sealers[table].seal(self._sealers[table].open(sealed))
        except ForbiddenSuiteError as forbidden:
            raise MissingKeyError(
                f"secrets in {table} are sealed in a way that FIPS mode forbids, and cannot be"
                " sealed with this installation's master key: restore with EVERGREEN_FIPS=off, and"
                " run `evergreen fips migrate` then"
            ) from forbidden
        except SealingError:
            return sealed

    def check(self, table: str, public_key: bytes, sealed_seed: bytes) -> None:
        """Opens one key.

        Raises:
            MissingKeyError: the master key is another one.
        """
        seed = self._open(table, sealed_seed)
        if Signer(seed, PublicKey(public_key).algorithm).public.raw != public_key:
            raise MissingKeyError(f"a private key in {table} does not belong to its public key")
        self.opened += 1

    def _open(self, table: str, sealed_seed: bytes) -> bytes:
        try:
            return self._sealers[table].open(sealed_seed)
        except SealingError as wrong:
            if mode.is_required() and uses_standard(sealed_seed):
                raise MissingKeyError(f"a key in {table} cannot be opened: {wrong}") from wrong
            raise MissingKeyError(
                f"the master key is not the one that sealed the keys in {table}"
            ) from wrong
