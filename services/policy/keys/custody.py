"""What administrators do with keys: create, activate, certify, retire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.policy import (
    LoggedKeySnapshot,
    PolicyKeyActivated,
    PolicyKeyCertified,
    PolicyKeyCompromised,
    PolicyKeyCreated,
    PolicyKeyRetired,
    PolicyRootSet,
    RetiredKeySnapshot,
    RootSnapshot,
)
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database, Scope
from servicekit.errors import (
    Code,
    DomainError,
    aborted,
    failed_precondition,
    invalid_field,
    not_found,
    permission_denied,
    unavailable,
)
from servicekit.ids import Clock
from servicekit.keys import log as key_log
from servicekit.keys.log import Action, Envelope, Head
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.devices import DeviceAccess
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.rpc.pagination import Page
from servicekit.security.signing import PublicKey, read_pem_bundle
from services.policy.keys import store
from services.policy.keys.domain import (
    ENDED_WITHIN,
    ENDING,
    Keys,
    PolicyKey,
    State,
    check_activation,
    check_retirement,
    check_room,
    has_room,
)
from services.policy.keys.service import KeyRing
from services.policy.keys.signing import Signer
from services.policy.keys.store import PinningDevice

_NOBODY: Final = (0, 0)


@dataclass(frozen=True, slots=True)
class Shown:
    """A key as people see it."""

    key: PolicyKey
    devices: int = 0
    """So many of the caller's devices pin it,"""
    called: int = 0
    """and so many of them ever asked for a policy."""


class Custody:
    """The use cases around keys."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        ring: KeyRing,
        devices: DeviceAccess,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._ring = ring
        self._devices = devices
        self._clock = clock

    async def list(
        self, call: Call, org_id: UUID | None, after: UUID | None, limit: int
    ) -> Page[Shown, UUID]:
        """The keys of the caller's subtree, and those above that its devices may pin, by id."""
        scope = await self._tenants.query_scope(call.caller, org_id)
        await self._ring.fresh()
        whose = org_id or UUID(call.caller.tenant_id)
        line = {node.id for node in self._tenants.line(whose)}
        found = sorted(
            (
                key
                for key in self._ring.keys.by_id.values()
                if key.tenant_id is None
                or key.tenant_id in line
                or scope.tenant_ids is None
                or key.tenant_id in scope.tenant_ids
            ),
            key=lambda key: key.id,
        )
        behind = [key for key in found if after is None or key.id > after]
        counts = await self._counts(scope)
        shown = [Shown(key, *counts.get(key.public.id, _NOBODY)) for key in behind[: limit + 1]]
        return Page.of(shown, limit, lambda one: one.key.id)

    async def devices(
        self, call: Call, key_id: UUID, after: UUID | None, limit: int
    ) -> Page[PinningDevice, UUID]:
        """The caller's devices that pin a key, by id.

        Raises:
            DomainError: NOT_FOUND; UNAVAILABLE when the registry is away.
        """
        key = await self._visible(call, key_id)
        scope = await self._tenants.query_scope(call.caller)
        await self._registry()
        async with self._database.transaction(scope) as connection:
            return await store.devices(
                connection, scope, key.public.id, after, limit, is_first=self._is_first(key)
            )

    async def create(
        self, call: Call, org_id: UUID | None, request_id: UUID | None, *, activate: bool
    ) -> Shown:
        """Makes a key for a tenant, or for the installation where that is the root tenant.

        A request with the id of an earlier one answers its key, and makes none.

        Args:
            activate: whether new enrollment tokens carry it at once.

        Raises:
            DomainError: NOT_FOUND for the tenant; FAILED_PRECONDITION while another one waits to be
                activated, where there are too many, and where a root has to certify it first.
        """
        asked = org_id or UUID(call.caller.tenant_id)
        tenant = await self._tenants.require(call.caller, asked, to_add=True)
        whose = None if tenant.kind == "root" else tenant.id
        async with self._changing() as (connection, keys):
            for known in keys.of_tenant(whose):
                if request_id is not None and known.request_id == request_id:
                    return Shown(known)
            check_room(keys, whose, self._clock())
            key, signer = self._ring.new_key(whose, request_id)
            if activate:
                await self._check_activation(connection, key)
            await self._add(connection, keys, key, signer, tenant.id)
            if activate:
                key = await self._activate(connection, keys, key, tenant.id)
        await self._ring.fresh()
        return Shown(key)

    async def activate(self, call: Call, key_id: UUID) -> Shown:
        """Lets new enrollment tokens carry a key; the one that they carried so far is retiring.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION.
        """
        tenant, _ = await self._own(call, key_id)
        async with self._changing() as (connection, keys):
            key = _found(keys, key_id)
            if key.state is not State.ACTIVE:
                await self._check_activation(connection, key)
                key = await self._activate(connection, keys, key, tenant.id)
        await self._ring.fresh()
        return Shown(key)

    async def retire(self, call: Call, key_id: UUID, lost_devices: int) -> Shown:
        """Ends a key for good: its private half is erased.

        Args:
            lost_devices: the number of devices that pin it, where they are given up.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION while devices pin it, or new enrollment
                tokens carry it; UNAVAILABLE when the registry cannot be asked.
        """
        tenant, known = await self._own(call, key_id)
        if known.state is State.RETIRED:
            return Shown(known)
        until = await self._close(key_id, lost_devices)
        try:
            # Who was let in before is in the registry; from here on nobody is.
            await self._registry()
            key = await self._end(key_id, lost_devices, until, tenant.id)
        except BaseException:
            await self._reopen(key_id, until)
            raise
        await self._ring.fresh()
        return Shown(key)

    async def _close(self, key_id: UUID, lost_devices: int) -> datetime:
        """Lets no device in with a key; answers until when."""
        await self._registry()
        async with self._changing() as (connection, keys):
            key = _found(keys, key_id)
            until = self._clock() + ENDING
            if key.state is not State.RETIRED:
                check_retirement(key, await self._count(connection, key), lost_devices)
                await store.update(connection, replace(key, ending_until=until))
        return until

    async def _reopen(self, key_id: UUID, until: datetime) -> None:
        """Lets devices in again; where that fails they are after some minutes."""
        with suppress(Exception):
            async with self._changing() as (connection, keys):
                key = _found(keys, key_id)
                if key.ending_until == until:
                    await store.update(connection, replace(key, ending_until=None))
            await self._ring.fresh()

    async def _end(
        self, key_id: UUID, lost_devices: int, until: datetime, tenant_id: UUID
    ) -> PolicyKey:
        async with self._changing() as (connection, keys):
            before = _found(keys, key_id)
            if before.state is State.RETIRED:
                return before
            if before.ending_until != until or self._clock() > until - ENDING + ENDED_WITHIN:
                raise aborted("KEY_CHANGED", "the key changed meanwhile; try again")
            count = await self._count(connection, before)
            check_retirement(before, count, lost_devices)
            key = replace(
                before,
                state=State.RETIRED,
                sealed_seed=None,
                signs=False,
                retired_at=self._clock(),
                ending_until=None,
            )
            await store.update(connection, key)
            heir = keys.active(None)
            assert heir is not None, "the installation always has an active key"
            if before.signs:
                await store.update(connection, replace(heir, signs=True))
            head = await self._log(connection, Action.RETIRE, key, [self._opened(heir)])
            after = retired_snapshot(key, head, count)
            event = PolicyKeyRetired(id=key.id, before=before.snapshot(), after=after)
            await self._outbox.append(connection, CloudEvent(event, tenant_id))
        return key

    async def mark_compromised(self, call: Call, key_id: UUID) -> Shown:
        """Says that a key is in wrong hands: no new enrollment token carries it.

        It signs on for the devices that pin it, which take nothing else. An active one has its
        successor at once, or where its tenant may not make
        one more, new tokens carry the key of the tenants above.

        Raises:
            DomainError: NOT_FOUND; FAILED_PRECONDITION where a root has to certify the successor.
        """
        tenant, _ = await self._own(call, key_id)
        async with self._changing() as (connection, found):
            before = _found(found, key_id)
            if before.compromised_at is not None:
                return Shown(before)
            key, keys = replace(before, compromised_at=self._clock()), found
            if before.state is State.ACTIVE:
                keys = await self._succeed(connection, keys, before, tenant.id)
                key = replace(key, state=State.RETIRING)
            await store.update(connection, key)
            vouching = keys.active(key.tenant_id)
            if vouching is None or vouching.id == key.id:
                vouching = keys.active(None)
            head = await self._log(connection, Action.REVOKE, key, [self._opened(vouching)])
            after = logged_snapshot(key, head)
            event = PolicyKeyCompromised(id=key.id, before=before.snapshot(), after=after)
            await self._outbox.append(connection, CloudEvent(event, tenant.id))
        await self._ring.fresh()
        return Shown(key)

    # The offline root

    async def root(self) -> PublicKey | None:
        """The root that certifies keys; `None` for none."""
        async with self._database.system_transaction("keys belong to no tenant") as connection:
            return await store.root(connection)

    async def set_root(self, call: Call, pem: str, replaces: str) -> PublicKey:
        """Lets an offline root certify keys from now on; new keys need it.

        Args:
            replaces: the id of the root until now; empty for none.

        Raises:
            DomainError: INVALID_ARGUMENT for the PEM; ABORTED when another one is the root.
        """
        try:
            (key,) = read_pem_bundle(pem)
            key.verifier  # noqa: B018 - raises where the bytes are no point
        except ValueError as error:
            raise invalid_field("publicKeyPem", "must be one Ed25519 public key in PEM") from error
        tenant = await self._tenants.require(call.caller, UUID(call.caller.tenant_id))
        if tenant.kind != "root":
            raise permission_denied("ROOT_ONLY", "only Owners of the root tenant set the root key")
        async with self._changing() as (connection, keys):
            before = await store.root(connection)
            if before is not None and before.id == key.id:
                return key
            if (before.id if before else "") != replaces:
                raise aborted(
                    "ROOT_CHANGED", f"replaces: the root is {before.id if before else 'not set'}"
                )
            if key.id in keys.by_id:
                raise invalid_field("publicKeyPem", "is a key that signs policies; take another")
            vouching = [self._opened(keys.active(None))]
            await self._enter(connection, Action.ROOT, None, key, vouching)
            # So that every process looks again.
            await store.touch(connection)
            event = PolicyRootSet(
                id=tenant.id,
                before=RootSnapshot(key_id=before.id if before else ""),
                after=RootSnapshot(key_id=key.id),
            )
            await self._outbox.append(connection, CloudEvent(event, tenant.id))
        await self._ring.fresh()
        return key

    async def request(self, call: Call, key_id: UUID) -> Envelope:
        """What the offline root signs to certify a key.

        Raises:
            DomainError: NOT_FOUND.
        """
        _, key = await self._own(call, key_id)
        return key_log.certificate_request(key_log.scope_of(key.tenant_id), key.public)

    async def certify(self, call: Call, key_id: UUID, payload: bytes, signature: bytes) -> Shown:
        """Takes the root's certificate of a key.

        Args:
            payload: of the request.
            signature: the root's over the request.

        Raises:
            DomainError: NOT_FOUND; INVALID_ARGUMENT when it is of another key, or not the root's;
                FAILED_PRECONDITION when there is no root, or the key is retired or compromised.
        """
        tenant, _ = await self._own(call, key_id)
        async with self._changing() as (connection, keys):
            before = _found(keys, key_id)
            root = await store.root(connection)
            if root is None:
                raise failed_precondition("NO_ROOT", "there is no offline root; set one first")
            asked = key_log.certificate_request(key_log.scope_of(before.tenant_id), before.public)
            if payload != asked.payload:
                raise invalid_field("payload", "is no request to certify this key")
            certificate = replace(asked, signatures=((root.id, signature),))
            if not certificate.is_signed_by(root):
                raise invalid_field("signature", f"is not that of the root {root.id}")
            if await store.certified(connection, root, [before]):
                return Shown(before)
            if before.state is State.RETIRED or before.compromised_at is not None:
                raise failed_precondition("KEY_ENDED", "the key is retired or compromised")
            key = replace(before, certified_by=root.id)
            await store.update(connection, key)
            head = await self._log(
                connection, Action.CERTIFY, key, [self._opened(key)], certificate=certificate
            )
            after = logged_snapshot(key, head)
            event = PolicyKeyCertified(id=key.id, before=before.snapshot(), after=after)
            await self._outbox.append(connection, CloudEvent(event, tenant.id))
        await self._ring.fresh()
        return Shown(key)

    async def log(self, after: int, limit: int) -> Page[Envelope, int]:
        """Entries of the published log behind a number."""
        async with self._database.system_transaction("the log is public") as connection:
            return await store.entries(connection, after, limit)

    # Parts of the above

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[tuple[Connection, Keys]]:
        """A transaction in which nobody else changes keys, and the keys."""
        async with self._database.system_transaction(
            "keys of tenants above sign the log"
        ) as connection:
            await store.lock(connection)
            yield connection, Keys.of(await store.keys(connection))

    async def _add(
        self,
        connection: Connection,
        keys: Keys,
        key: PolicyKey,
        signer: Signer,
        tenant_id: UUID,
    ) -> None:
        await store.insert(connection, key)
        vouching = keys.active(key.tenant_id) or keys.active(None)
        head = await self._log(connection, Action.ADD, key, [signer, self._opened(vouching)])
        event = PolicyKeyCreated(id=key.id, after=logged_snapshot(key, head))
        await self._outbox.append(connection, CloudEvent(event, tenant_id))

    async def _activate(
        self, connection: Connection, keys: Keys, key: PolicyKey, tenant_id: UUID
    ) -> PolicyKey:
        if (former := keys.active(key.tenant_id)) is not None:
            await store.update(connection, replace(former, state=State.RETIRING))
        active = replace(key, state=State.ACTIVE, activated_at=self._clock())
        await store.update(connection, active)
        event = PolicyKeyActivated(id=key.id, before=key.snapshot(), after=active.snapshot())
        await self._outbox.append(connection, CloudEvent(event, tenant_id))
        return active

    async def _check_activation(self, connection: Connection, key: PolicyKey) -> None:
        root = await store.root(connection)
        certified = await store.certified(connection, root, [key])
        check_activation(key, is_certified=root is None or bool(certified))

    async def _succeed(
        self, connection: Connection, keys: Keys, key: PolicyKey, tenant_id: UUID
    ) -> Keys:
        """Gives a key that ends its successor: the next one, or a new one; answers all keys.

        A tenant that may not make one more is left with the keys of those above.
        """
        waiting = [one for one in keys.of_tenant(key.tenant_id) if one.state is State.NEXT]
        successor = next((one for one in waiting if one.compromised_at is None), None)
        if successor is None:
            if not has_room(keys, key.tenant_id, self._clock()):
                return keys
            successor, signer = self._ring.new_key(key.tenant_id, None)
            await self._check_activation(connection, successor)
            await self._add(connection, keys, successor, signer, tenant_id)
        await self._check_activation(connection, successor)
        await self._activate(connection, keys, successor, tenant_id)
        return Keys.of(await store.keys(connection))

    async def _log(
        self,
        connection: Connection,
        action: Action,
        key: PolicyKey,
        signers: Sequence[Signer],
        *,
        certificate: Envelope | None = None,
    ) -> Head:
        return await self._enter(
            connection, action, key.tenant_id, key.public, signers, certificate=certificate
        )

    async def _enter(
        self,
        connection: Connection,
        action: Action,
        tenant_id: UUID | None,
        key: PublicKey,
        signers: Sequence[Signer],
        *,
        certificate: Envelope | None = None,
    ) -> Head:
        """Adds an entry to the log; answers its end. The keys are locked."""
        head = await store.head(connection)
        entry = key_log.entry(
            head,
            action,
            key_log.scope_of(tenant_id),
            key,
            self._clock(),
            signers,
            certificate=certificate,
        )
        return await store.append(connection, action, key, entry)

    def _opened(self, key: PolicyKey | None) -> Signer:
        signer = None if key is None else self._ring.opened(key)
        if signer is None:
            raise failed_precondition("NO_KEY", "no key is left that could sign the log")
        return signer

    async def _own(self, call: Call, key_id: UUID) -> tuple[TenantNode, PolicyKey]:
        """A key that the caller may change, and whose it is.

        Raises:
            DomainError: NOT_FOUND, also for a key of a tenant above.
        """
        key = await self._known(key_id)
        root = self._tenants.root
        whose = key.tenant_id or (root.id if root else None)
        if whose is None:
            raise unavailable("the tenants are not known yet; try again")
        try:
            return await self._tenants.require(call.caller, whose), key
        except DomainError as error:
            if error.code is Code.NOT_FOUND:
                raise not_found("policy key", key_id) from error
            raise

    async def _visible(self, call: Call, key_id: UUID) -> PolicyKey:
        """A key that the caller may see: also one of the tenants above."""
        key = await self._known(key_id)
        line = {node.id for node in self._tenants.line(UUID(call.caller.tenant_id))}
        if key.tenant_id is None or key.tenant_id in line:
            return key
        return (await self._own(call, key_id))[1]

    async def _known(self, key_id: UUID) -> PolicyKey:
        await self._ring.fresh()
        return _found(self._ring.keys, key_id)

    async def _count(self, connection: Connection, key: PolicyKey) -> int:
        """How many devices pin a key."""
        return await store.count_pinning(connection, key.public.id, is_first=self._is_first(key))

    def _is_first(self, key: PolicyKey) -> bool:
        return key.public.id == self._ring.first_id

    async def _registry(self) -> None:
        """Reads what the registry tells of devices.

        Raises:
            DomainError: UNAVAILABLE.
        """
        try:
            await self._devices.follower.refresh()
        except Exception as error:
            raise unavailable("the device registry is not available; try again") from error

    async def _counts(self, scope: Scope) -> Mapping[str, tuple[int, int]]:
        async with self._database.transaction(scope) as connection:
            return await store.count_devices(connection, scope, self._ring.first_id)


def _found(keys: Keys, key_id: UUID) -> PolicyKey:
    found = next((key for key in keys.by_id.values() if key.id == key_id), None)
    if found is None:
        raise not_found("policy key", key_id)
    return found


def logged_snapshot(key: PolicyKey, head: Head) -> LoggedKeySnapshot:
    """What events say of a key and of the entry of the log that says the same."""
    return LoggedKeySnapshot(
        **asdict(key.snapshot()), log_sequence=head.sequence, log_sha256=head.sha256
    )


def retired_snapshot(key: PolicyKey, head: Head, devices: int) -> RetiredKeySnapshot:
    """Likewise, with the number of devices that pin the key and were given up."""
    return RetiredKeySnapshot(**asdict(logged_snapshot(key, head)), lost_devices=devices)
