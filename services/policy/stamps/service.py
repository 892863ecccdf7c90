"""How it stands with every organisation, in memory, and numbers drawn for devices.

Each process follows the database's own feed. What it knows may be a second old, which is right for
"not modified" and for nothing else: a delivery asks for a fresh view first, and a
number is drawn in the database alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final
from uuid import UUID

from servicekit.data.postgres import Connection, Database
from servicekit.errors import DomainError
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import Cursor
from servicekit.ids import Clock
from servicekit.observability import logs
from services.policy.freshness import Freshness
from services.policy.keys.service import KeyRing
from services.policy.keys.signing import Statement
from services.policy.stamps import numbers, store
from services.policy.stamps.cache import Cache
from services.policy.stamps.domain import (
    Bundle,
    Content,
    Document,
    Edition,
    Known,
    Signature,
    Stamp,
    Standing,
    Targets,
)
from services.policy.stamps.metrics import DRAWS
from services.policy.stamps.numbers import Counter, Numbered, Wanted
from services.policy.vault import Vault
from services.policy.versions import next_version

log = logs.get(__name__)

DOCUMENT_BYTES: Final = 256 << 20
_STAMP_BYTES: Final = 64 << 20
_SIGNATURE_BYTES: Final = 16 << 20
_DOCUMENTS_AT_ONCE: Final = 50
"""One can be half a megabyte."""
_SIGNED_AT_ONCE: Final = 20
"""So many statements are signed before others are answered."""
_READERS: Final = 4
_DRAWS: Final = 10
_DRAWS_WITHIN: Final = timedelta(minutes=1)
_REFUSED_SECONDS: Final = 60.0
_MOST_REFUSED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Stamping:
    """A stored document for which a new number is to stand."""

    wanted: Wanted
    body: bytes
    shared: bool
    """Whether it is for all devices of the organisation."""


class Stamps:
    """What each number stands for. Its feed is run by the service."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        keys: KeyRing,
        vault: Vault,
        clock: Clock,
        document_bytes: int = DOCUMENT_BYTES,
    ) -> None:
        self._database = database
        self._keys = keys
        self._vault = vault
        self._clock = clock
        self._standings: dict[str, Standing] = {}
        self._documents: Cache[Content, Document] = Cache(document_bytes)
        self._stamps: Cache[tuple[UUID, int], Stamp] = Cache(_STAMP_BYTES)
        self._signatures: Cache[tuple[Content | bytes, str], Signature] = Cache(_SIGNATURE_BYTES)
        self._readers = asyncio.Semaphore(_READERS)
        self._freshness = Freshness("database")
        self._refused: dict[tuple[UUID, Targets, int], float] = {}
        self._known: dict[UUID, Known] = {}
        self.on_change: list[Callable[[Set[UUID]], None]] = []
        """Are told of tenants with which it stands otherwise, in their order."""
        self.follower = changes.follower("policies in force", self._fetch)

    @property
    def standings(self) -> Mapping[str, Standing]:
        """How it stands with organisations, by their ids; always the same mapping."""
        return self._standings

    @property
    def known(self) -> Mapping[UUID, Known]:
        """What is in force for tenants; always the same mapping."""
        return self._known

    def last(self, tenant_id: UUID) -> int:
        """The highest number of an organisation that stands for anything."""
        org = self._standings.get(str(tenant_id))
        return 0 if org is None else org.last

    async def fresh(self) -> bool:
        """Reads what has changed; callers share a reading. Answers whether that was possible."""
        return await self._freshness.ask(self.follower.refresh)

    async def bundle(self, tenant_id: UUID, version: int, *, shared: bool = False) -> Bundle | None:
        """What a number of an org stands for; `None` for nothing, or when it cannot be read now.

        Args:
            shared: nothing that was made for some of the org's devices.
        """
        key = (tenant_id, version)
        found = await self._found(key)
        if found is None or not shared or found.stamp.shared:
            return found
        # It may be for all devices since.
        found = await self._found(key, anew=True)
        return found if found is not None and found.stamp.shared else None

    def signed(self, bundle: Bundle, key_id: str) -> Bundle | None:
        """The same for a device that pins a key; `None` when that signs nothing any more.

        A key makes the same signature of the same bytes each time and everywhere, so none is
        stored: a herd is served from memory.
        """
        signer = self._keys.signer_of(key_id)
        if signer is None:
            return None
        if bundle.document.key_id == key_id and bundle.stamp.key_id == key_id:
            return bundle
        signature = self._signed_once(
            (bundle.stamp.content, key_id), lambda: signer.sign(bundle.document.body)
        )

        def sign_again(statement: Statement) -> Statement:
            made = self._signed_once(
                (statement.signature, key_id), lambda: signer.again(statement).signature
            )
            return Statement(statement.payload, made, key_id)

        document = replace(bundle.document, signature=signature, key_id=key_id)
        return replace(bundle, document=document, sign_again=sign_again)

    def _signed_once(self, place: tuple[Content | bytes, str], sign: Callable[[], bytes]) -> bytes:
        made = self._signatures.get(place)
        if made is None:
            made = Signature(sign())
            self._signatures.put(place, made)
        return made.value

    async def _found(self, key: tuple[UUID, int], *, anew: bool = False) -> Bundle | None:
        if not anew and (found := self._kept(key)) is not None:
            return found
        try:
            async with self._readers:
                # Somebody else may have read it meanwhile.
                if not anew and (found := self._kept(key)) is not None:
                    return found
                return await self._read(key)
        except DomainError as away:
            log.info("policy unreadable", error=away.message)
            return None

    async def draw(self, tenant_id: UUID, wanted: Standing, has: int) -> int | None:
        """A number above `has` that stands for what is wanted, as a device needs it.

        `None` when that is no longer what the devices are to have, when `has` never stood for
        anything (a liar's number, or one that a restore lost), and when too many were drawn or the
        database is away.
        """
        loop = asyncio.get_running_loop()
        asked = (tenant_id, wanted.targets, has)
        if self._refused.get(asked, 0.0) > loop.time():
            return None
        try:
            async with self._database.system_transaction(
                "a document may be of a tenant above"
            ) as connection:
                number = await self._draw(connection, tenant_id, wanted, has)
        except DomainError as away:
            log.info("no number drawn", error=away.message)
            return None
        if number is None:
            if len(self._refused) >= _MOST_REFUSED:
                self._refused.clear()
            self._refused[asked] = loop.time() + _REFUSED_SECONDS / _DRAWS
            return None
        await self.follower.try_refresh()
        return number

    async def _draw(
        self, connection: Connection, tenant_id: UUID, wanted: Standing, has: int
    ) -> int | None:
        counter = await numbers.lock_counter(connection, tenant_id)
        # Other processes publish and draw too; they have to wait from here on.
        now_wanted = await self._wanted(connection, tenant_id, wanted)
        if now_wanted is None or wanted.want is None or now_wanted.content != wanted.want.content:
            return None
        if now_wanted.newest > has:
            return now_wanted.newest
        if not await numbers.stood_for_something(connection, tenant_id, has):
            DRAWS.note("unknown_number")
            return None
        now = self._clock()
        earlier = await numbers.earlier_draw(connection, tenant_id, _DRAWS)
        if earlier is not None and earlier > now - _DRAWS_WITHIN:
            DRAWS.note("deferred")
            return None
        content = now_wanted.content
        document = (await store.documents(connection, self._vault, [content])).get(content)
        if document is None:
            return None
        DRAWS.note("drawn")
        stamping = Stamping(
            Wanted(tenant_id, content, wanted.apart), document.body, shared=not wanted.targets
        )
        (number,) = await self.stamp(connection, [stamping], {tenant_id: counter}, "draw")
        return number

    async def _wanted(
        self, connection: Connection, tenant_id: UUID, wanted: Standing
    ) -> Edition | None:
        """What the devices are to have that were to have `wanted`; the counter is locked."""
        org = (await store.standings(connection, [tenant_id])).get(tenant_id)
        if org is None or not wanted.targets:
            return None if org is None else org.want
        found = await store.profile(connection, tenant_id, wanted.targets, org.last)
        if found is None or found.recipe != wanted.recipe:
            return None
        return found.want if await store.is_in_force(connection, tenant_id, wanted) else None

    async def stamp(
        self,
        connection: Connection,
        stamping: Sequence[Stamping],
        counters: Mapping[UUID, Counter],
        cause: str,
    ) -> list[int]:
        """Lets new numbers stand for stored documents; answers them.

        Args:
            counters: of the organisations, which are still locked.
        """
        last = {one.wanted.tenant_id: counters[one.wanted.tenant_id].last for one in stamping}
        previous = await numbers.previous_payloads(connection, self._vault, last)
        now = self._clock()
        numbered: list[Numbered] = []
        for at, one in enumerate(stamping):
            if at % _SIGNED_AT_ONCE == 0:
                await asyncio.sleep(0)
            tenant_id, content, _ = one.wanted
            number = next_version(last[tenant_id], counters[tenant_id].reported)
            statement = self._keys.signer.state(
                one.body,
                version=number,
                tenant=str(tenant_id),
                previous=previous.get(tenant_id),
                issued_at=now,
            )
            last[tenant_id], previous[tenant_id] = number, statement.payload
            stamp = Stamp.of(content, statement, one.body, shared=one.shared)
            numbered.append(Numbered(one.wanted, number, stamp))
        await numbers.insert_numbers(connection, numbered, now, cause)
        await numbers.move_counters(connection, last)
        return [one.version for one in numbered]

    def _kept(self, key: tuple[UUID, int]) -> Bundle | None:
        stamp = self._stamps.get(key)
        document = None if stamp is None else self._documents.get(stamp.content)
        return None if stamp is None or document is None else Bundle(key[1], document, stamp)

    async def _read(self, key: tuple[UUID, int]) -> Bundle | None:
        tenant_id, version = key
        async with self._database.system_transaction(
            "a document may be of a tenant above"
        ) as connection:
            stamp = (await store.stamps(connection, [key])).get(key)
            if stamp is None:
                former = await store.former(connection, self._vault, tenant_id, version)
                if former is None:
                    return None
                stamp, document = former
            else:
                found = self._documents.get(stamp.content)
                if found is None:
                    read = await store.documents(connection, self._vault, [stamp.content])
                    found = read.get(stamp.content)
                if found is None:
                    log.info("document gone", tenant=str(tenant_id), version=version)
                    return None
                document = found
        self._stamps.put(key, stamp)
        self._documents.put(stamp.content, document)
        return Bundle(version, document, stamp)

    async def _fetch(self, cursor: str) -> tuple[str, bool]:
        async with self._database.system_transaction("the cache has all tenants") as connection:
            page, changed = await store.changed_since(connection, Cursor.parse(cursor))
            found = await store.standings(connection, changed) if changed else {}
            known = await store.known(connection, changed, found) if changed else {}
            await self._preload(connection, found, known)
        for tenant_id, standing in found.items():
            self._standings[str(tenant_id)] = standing
        self._known.update(known)
        if known:
            for tell in self.on_change:
                tell(known.keys())
        return str(page.cursor), page.more

    async def _preload(
        self,
        connection: Connection,
        found: Mapping[UUID, Standing],
        known: Mapping[UUID, Known],
    ) -> None:
        """Reads what devices are about to ask for, so that they get it without the database."""
        all_of = [
            *found.items(),
            *((id_, one) for id_, org in known.items() for one in org.profiles.values()),
        ]
        wanted = {
            (tenant_id, standing.want.newest): standing.want.content
            for tenant_id, standing in all_of
            if standing.want is not None
        }
        unknown = [key for key in wanted if key not in self._stamps]
        for key, stamp in (await store.stamps(connection, unknown)).items() if unknown else ():
            self._stamps.put(key, stamp)
        await self._keep(connection, wanted.values())

    async def _keep(self, connection: Connection, contents: Iterable[Content]) -> None:
        missing = [content for content in dict.fromkeys(contents) if content not in self._documents]
        for start in range(0, len(missing), _DOCUMENTS_AT_ONCE):
            # What is new is wanted soon. At the start all is new, and not all may have room.
            if self._documents.full and not self.follower.synced:
                return
            some = missing[start : start + _DOCUMENTS_AT_ONCE]
            for content, document in (await store.documents(connection, self._vault, some)).items():
                self._documents.put(content, document)
