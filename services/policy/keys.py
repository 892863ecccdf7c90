"""The keys that sign policies: made at the first start, sealed at rest, public for everyone."""

from __future__ import annotations

import secrets

from servicekit import logs
from servicekit.ids import Clock
from servicekit.keys import PublicKey, pem_bundle
from servicekit.postgres import Connection, Database
from servicekit.sealing import Sealer
from services.policy import store
from services.policy.signing import Signer
from services.policy.store import StoredKey

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

        Raises `SealingError` when the master key is not the one that sealed.
        """
        async with self._database.transaction() as connection:
            keys = await store.signing_keys(connection)
            if not keys:
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
        log.info("made the key that signs policies", key_id=key.public.id)
        return key
