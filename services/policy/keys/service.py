"""The keys that sign policies: made at the first start, sealed at rest, followed in memory."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection, Database
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import Cursor
from servicekit.ids import Clock, new_id
from servicekit.keys import log as key_log
from servicekit.keys.log import Action
from servicekit.observability import logs
from servicekit.peers.tenants import TenantNode
from servicekit.security.sealing import Sealer, SealingError
from servicekit.security.signing import PublicKey, pem_bundle
from services.policy.keys import store
from services.policy.keys.domain import Keys, PolicyKey, State
from services.policy.keys.signing import Signer

PURPOSE: Final = "policy-signing"

log = logs.get(__name__)


class KeyRing:
    """The policy-signing keys. `load` comes before everything else; its feed is run by the service.

    Args:
        changes: tells when keys have changed; without it only `load` reads them.
    """

    def __init__(
        self, database: Database, sealer: Sealer, clock: Clock, changes: Changes | None = None
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._clock = clock
        self._keys = Keys({})
        self._signers: dict[str, Signer] = {}
        self._signer: Signer | None = None
        self._first = ""
        self.follower = None if changes is None else changes.follower("policy keys", self._fetch)

    @property
    def signer(self) -> Signer:
        """What signs what is stored; devices that pin another key get that one's signature."""
        assert self._signer is not None, "the keys are loaded before the first call"
        return self._signer

    @property
    def keys(self) -> Keys:
        """All keys, as far as this process knows."""
        return self._keys

    @property
    def first_id(self) -> str:
        """The first key, which devices pin of which nothing else is known."""
        return self._first

    @property
    def are_several(self) -> bool:
        """Whether devices may pin different keys."""
        return len(self._keys.by_id) > 1

    @property
    def public(self) -> tuple[PublicKey, ...]:
        """The public keys of the installation that sign, the one of new devices first."""
        found = [k for k in self._keys.of_tenant(None) if k.public.id in self._signers]
        found.sort(key=lambda key: (key.state is not State.ACTIVE, key.created_at))
        return tuple(key.public for key in found)

    def pem(self) -> str:
        """The public keys in PEM."""
        return pem_bundle(self.public)

    def signer_of(self, key_id: str) -> Signer | None:
        """What signs for the devices that pin a key; `None` for one that is retired, or unknown."""
        return self._signers.get(key_id)

    async def fresh(self) -> None:
        """Reads what has changed, as far as that is possible now."""
        if self.follower is not None:
            await self.follower.try_refresh()

    async def found(self, key_id: str) -> PolicyKey | None:
        """A key by the id that signatures name, also one that another process made just now."""
        if key_id not in self._keys.by_id:
            await self.fresh()
        return self._keys.by_id.get(key_id)

    async def admitting(self, key_id: str) -> PolicyKey | None:
        """A key with which devices that pin it may be let in now, unless it ends.

        Args:
            key_id: empty for the first key.
        """
        await self.fresh()
        found = self._keys.by_id.get(key_id or self._first)
        if found is None or found.public.id not in self._signers:
            return None
        return None if found.is_ending(self._clock()) else found

    async def given(self, line: Sequence[UUID], key_id: str) -> PolicyKey | None:
        """The key that new enrollment tokens of an organisation are to carry.

        Args:
            line: the organisation and those above it, the root first.
            key_id: the one that was asked for; empty for the active one.
        """
        await self.fresh()
        at = self._clock()
        return self._keys.usable(key_id, line, at) if key_id else self._keys.given(line, at)

    async def run(self) -> None:
        """Follows the keys, for as long as the service lives."""
        if self.follower is not None:
            await self.follower.run()

    async def load(self) -> None:
        """Reads the keys, and makes the first one when there is none.

        Raises:
            SealingError: the master key is not the one that sealed; or the key is gone with which
                policies were signed: devices pin it, and end when they meet another one.
        """
        async with self._database.system_transaction("keys belong to no tenant") as connection:
            await store.lock(connection)
            keys = await store.keys(connection)
            if not keys:
                if await store.has_signed(connection):
                    raise SealingError(
                        "the key is gone that signed the policies, and devices take no other one:"
                        " restore a backup"
                    )
                keys = [await self._make(connection)]
            elif not any(key.is_first for key in keys):
                keys = await self._mark_first(connection, keys)
            await self._take(connection, keys)
            await self._begin_log(connection, keys)
            await self._enter_loss(connection)
            await self._enter_ends(connection, keys)
        first = self._keys.first
        assert first is not None, "one of the keys is marked"
        self._first = first.public.id

    def new_key(self, tenant_id: UUID | None, request_id: UUID | None) -> tuple[PolicyKey, Signer]:
        """A key that is stored nowhere yet."""
        seed = secrets.token_bytes(32)
        signer = Signer(seed)
        key = PolicyKey(
            id=new_id(),
            public=signer.public,
            created_at=self._clock(),
            sealed_seed=self._sealer.seal(seed),
            tenant_id=tenant_id,
            state=State.NEXT,
            request_id=request_id,
        )
        return key, signer

    def opened(self, key: PolicyKey) -> Signer | None:
        """What signs with a key; `None` when it is retired.

        Raises:
            SealingError: the master key is not the one that sealed it.
            ValueError: the private half does not fit the public one.
        """
        if key.sealed_seed is None or key.state is State.RETIRED:
            return None
        if (known := self._signers.get(key.public.id)) is not None:
            return known
        signer = Signer(self._sealer.open(key.sealed_seed))
        if signer.public != key.public:
            raise ValueError(f"the private half of policy key {key.public.id} does not fit")
        return signer

    async def end_of_tenant(self, connection: Connection, tenant: TenantNode) -> int:
        """Ends the keys of a tenant that is deleted, before their rows go; answers how many.

        The public log stays, and says that they ended. No process signs with them any more: each
        one calls this until it answers 0, when the ends are stored.

        Args:
            connection: of the tenant.
            tenant: the tenant.
        """
        await store.lock(connection)
        ended = [
            replace(
                key,
                state=State.RETIRED,
                sealed_seed=None,
                retired_at=self._clock(),
                ending_until=None,
            )
            for key in await store.keys(connection)
            if key.tenant_id == tenant.id and key.state is not State.RETIRED
        ]
        for key in ended:
            await store.update(connection, key)
        if ended:
            await self._enter_ends(connection, ended)
            return len(ended)
        left = {id_: k for id_, k in self._keys.by_id.items() if k.tenant_id != tenant.id}
        self._signers = {id_: one for id_, one in self._signers.items() if id_ in left}
        self._keys = Keys(left, self._keys.has_root, self._keys.certified)
        return 0

    async def _take(self, connection: Connection, changed: Iterable[PolicyKey]) -> None:
        keys = {**self._keys.by_id, **{key.public.id: key for key in changed}}
        root = await store.root(connection)
        waiting = [key for key in keys.values() if key.state is State.NEXT]
        certified = await store.certified(connection, root, waiting)
        signers: dict[str, Signer] = {}
        for id_, key in keys.items():
            try:
                made = self.opened(key)
            except (SealingError, ValueError) as error:
                if key.signs:
                    raise
                # The others go on signing; devices of this one wait.
                log.error("policy key not opened", key_id=id_, error=str(error))
                continue
            if made is not None:
                signers[id_] = made
        found = Keys(keys, root is not None, certified)
        signing = found.signing
        if signing is None and self._signer is None:
            raise ValueError("no policy key signs")
        self._keys, self._signers = found, signers
        # Between two pages of changes none may be marked.
        if signing is not None:
            self._signer = signers[signing.public.id]

    async def _make(self, connection: Connection) -> PolicyKey:
        key, _ = self.new_key(None, None)
        key = replace(
            key, signs=True, is_first=True, state=State.ACTIVE, activated_at=key.created_at
        )
        await store.insert(connection, key)
        log.info("policy key created", key_id=key.public.id)
        return key

    async def _mark_first(
        self, connection: Connection, keys: Iterable[PolicyKey]
    ) -> list[PolicyKey]:
        """Marks the key that a process of the release before has made meanwhile: it makes one."""
        first = next(key for key in keys if key.signs)
        await store.mark_first(connection, first)
        return [replace(key, is_first=key is first) for key in keys]

    async def _begin_log(self, connection: Connection, keys: Iterable[PolicyKey]) -> None:
        """Enters the keys of before there was a log."""
        head = await store.head(connection)
        if head.sequence:
            return
        # One that vouches for the others first.
        for key in sorted(keys, key=lambda key: (not key.signs, key.created_at)):
            signers = [self._signers[key.public.id], self.signer]
            entry = key_log.entry(
                head,
                Action.ADD,
                key_log.scope_of(key.tenant_id),
                key.public,
                key.created_at,
                signers,
            )
            head = await store.append(connection, Action.ADD, key.public, entry)

    async def _enter_loss(self, connection: Connection) -> None:
        """Goes on above what was entered in the log since the backup that was restored."""
        lost = await store.take_loss(connection)
        if lost is None:
            return
        vouching = self._keys.active(None)
        made = None if vouching is None else self._signers.get(vouching.public.id)
        signer = made or self.signer
        head = await store.head(connection)
        entry = key_log.restored_entry(head, lost, self._clock(), signer)
        await store.append(connection, Action.RESTORED, signer.public, entry)
        log.warning("log of policy keys goes on after a restore", number=key_log.sequence_of(entry))

    async def _enter_ends(self, connection: Connection, keys: Iterable[PolicyKey]) -> None:
        """Enters the ends of keys that a restore knew from the audit log, as it signs nothing, and
        of those of tenants that are deleted."""
        entered = await store.ends(connection)
        ends = [
            (key, action, at)
            for key in keys
            for action, at in (
                (Action.REVOKE, key.compromised_at),
                (Action.RETIRE, key.retired_at),
            )
            if at is not None and (key.public.id, action) not in entered
        ]
        if not ends:
            return
        vouching = self._keys.active(None)
        signer = None if vouching is None else self._signers.get(vouching.public.id)
        if vouching is None or signer is None or vouching.compromised_at is not None:
            log.error(
                "ends of policy keys not entered in their log: no key of the installation can sign",
                key_ids=sorted({key.public.id for key, _, _ in ends}),
            )
            return
        head = await store.head(connection)
        for key, action, at in ends:
            scope = key_log.scope_of(key.tenant_id)
            entry = key_log.entry(head, action, scope, key.public, at, [signer])
            head = await store.append(connection, action, key.public, entry)

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        async with self._database.system_transaction("the cache has all tenants") as connection:
            page, changed = await store.changed_since(connection, Cursor.parse(cursor))
            try:
                await self._take(connection, changed)
            except (SealingError, ValueError) as error:
                log.error("policy keys not taken", error=str(error))
        return str(page.cursor), page.more
