"""The keys that sign policies: made at the first start, sealed at rest, public for everyone."""

from __future__ import annotations

import secrets

from servicekit.data.postgres import Connection, Database
from servicekit.ids import Clock
from servicekit.observability import logs
from servicekit.security.sealing import Sealer, SealingError
from servicekit.security.signing import PublicKey, pem_bundle
from services.policy.keys import store
from services.policy.keys.signing import Signer
from services.policy.keys.store import StoredKey

PURPOSE = "policy-signing"

log = logs.get(__name__)


class KeyRing:
    """The policy-signing keys. `load` comes before everything else."""

    def __init__(self, database: Database, sealer: Sealer, clock: Clock) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock
        self._signer: Signer | None = None
        self._public: tuple[PublicKey, ...] = ()

    @property
    def signer(self) -> Signer:
        """What signs new versions."""
        assert self._signer is not None, "the keys are loaded before the first call"
        return self._signer

    @property
    def public(self) -> tuple[PublicKey, ...]:
        """All public keys, the signing one first."""
        return self._public

    def pem(self) -> str:
        """The public keys in PEM."""
        return pem_bundle(self._public)

    async def load(self) -> None:
        """Reads the keys, and makes the first one when there is none.

        Raises:
            SealingError: the master key is not the one that sealed; or the key is gone with which
                policies were signed: devices pin it, and end when they meet another one.
        """
        async with self._database.system_transaction("keys belong to no tenant") as connection:
            keys = await store.signing_keys(connection)
            if not keys:
                if await store.has_signed(connection):
                    raise SealingError(
                        "the key is gone that signed the policies, and devices take no other one:"
                        " restore a backup"
                    )
                keys = [await self._make(connection)]
        signing = next(key for key in keys if key.signs)
        signer = Signer(self._sealer.open(signing.sealed_seed))
        if signer.public != signing.public:
            raise ValueError("the stored policy key does not fit its public key")
        self._signer = signer
        self._public = tuple(key.public for key in keys)

    async def _make(self, connection: Connection) -> StoredKey:
        seed = secrets.token_bytes(32)
        key = StoredKey(Signer(seed).public, self._sealer.seal(seed), signs=True)
        await store.insert_signing_key(connection, key, self._clock())
        log.info("policy key created", key_id=key.public.id)
        return key
