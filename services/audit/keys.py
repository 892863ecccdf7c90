"""The keys that sign checkpoints: made at the first start, sealed in the database."""

from __future__ import annotations

import secrets
from typing import Final

from servicekit import logs
from servicekit.ids import Clock
from servicekit.keys import PublicKey, Signer
from servicekit.postgres import Database
from servicekit.sealing import Sealer
from services.audit import store
from services.audit.store import StoredKey

log = logs.get(__name__)

PURPOSE: Final = "audit-signing"


class Keys:
    """Signs with the newest key; answers the public halves of all."""

    def __init__(self, database: Database, sealer: Sealer, clock: Clock) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock
        self._signer: Signer | None = None
        self.public: tuple[PublicKey, ...] = ()

    @property
    def signer(self) -> Signer:
        """The newest key. To be asked for after `load`."""
        assert self._signer is not None
        return self._signer

    async def load(self) -> None:
        """Opens the keys, and makes the first one."""
        async with self._database.transaction() as connection:
            stored = await store.signing_keys(connection)
            if not stored:
                seed = secrets.token_bytes(32)
                public = Signer(seed).public
                first = StoredKey(public.id, public.raw, self._sealer.seal(seed))
                await store.add_first_key(connection, first, self._clock())
                stored = await store.signing_keys(connection)
                log.info("checkpoints are signed with a new key", key=stored[0].key_id)
        self._signer = Signer(self._sealer.open(stored[0].sealed_seed))
        self.public = tuple(PublicKey(key.public_key) for key in stored)
