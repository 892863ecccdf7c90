"""Binds devices to their TPMs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from contract.events.attestation import BoundTpm, TpmBindingReset, TpmBound
from servicekit.call import Call
from servicekit.data.postgres import Connection, Database
from servicekit.errors import not_found
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated
from servicekit.peers.tenants import TenantDirectory
from servicekit.security.digests import equal, sha256
from servicekit.serials import serial_key
from services.attestation.binding import store
from services.attestation.binding.endorsement import (
    Credential,
    EndorsementError,
    EndorsementKey,
    make_credential,
    new_secret,
    read_endorsement_key,
)
from services.attestation.binding.store import Bound, Candidate, Opened
from services.attestation.devices import store as device_store
from services.attestation.evidence.domain import RefusedError, name_of, read_signing_key
from services.attestation.evidence.examiners import Examiners
from services.attestation.grades import BindingReason, Reason
from services.attestation.trust import store as trust_store
from services.attestation.trust.certificates import CertificateError, Root, follow
from services.attestation.trust.service import Trust

log = logs.get(__name__)

OPEN_FOR: Final = timedelta(seconds=300)
"""So long a secret or a nonce is good."""
NONCE_BYTES: Final = 32
_FORGET_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a device wants to be bound to."""

    ek_public: bytes
    ek_certificate: bytes
    ek_chain: Sequence[bytes]
    ak_public: bytes


@dataclass(frozen=True, slots=True)
class Offer:
    """What a device gets: a credential, or why there is none."""

    id: UUID | None
    credential: Credential | None
    expires_at: datetime
    reasons: tuple[BindingReason | Reason, ...]


@dataclass(frozen=True, slots=True)
class Activated:
    """Whether a device is bound."""

    bound: Bound | None
    reason: BindingReason | None = None


@dataclass(frozen=True, slots=True)
class _Examined:
    """A candidate by itself."""

    endorsement: EndorsementKey
    candidate: Candidate
    certified: bool
    expired: bool


class _NotBoundError(Exception):
    def __init__(self, reason: BindingReason | Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Bindings:
    """The TPMs of devices."""

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        trust: Trust,
        examiners: Examiners,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._trust = trust
        self._examiners = examiners
        self._clock = clock

    async def offer(self, call: Call, asked: Asked) -> Offer:
        """Begins to bind the calling device to a TPM.

        Raises:
            DomainError: RESOURCE_EXHAUSTED when too many attest at once.
        """
        device_id, tenant_id = UUID(call.caller.id), UUID(call.caller.tenant_id)
        now = self._clock()
        expires_at = now + OPEN_FOR
        with self._examiners.place(call.caller.tenant_id):
            roots = await self._trust.roots()
            try:
                found = await self._examiners.run(
                    call.caller.tenant_id, lambda: _examine(asked, roots, now)
                )
                secret = new_secret()
                proof = sha256(sha256(secret + str(device_id).encode()))
                opened = Opened(new_id(), found.candidate, proof, expires_at)
                async with self._database.system_transaction(
                    "a TPM is one device's in the whole installation"
                ) as connection:
                    await self._admit(connection, device_id, tenant_id, found)
                    await store.open_enrollment(connection, device_id, tenant_id, opened)
            except _NotBoundError as refused:
                return Offer(None, None, now, (refused.reason,))
            credential = await self._examiners.run(
                call.caller.tenant_id,
                lambda: make_credential(found.endorsement, found.candidate.ak_name, secret),
            )
        told = (BindingReason.EK_CERTIFICATE_EXPIRED,) if found.expired else ()
        return Offer(opened.id, credential, expires_at, told)

    async def _admit(
        self, connection: Connection, device_id: UUID, tenant_id: UUID, found: _Examined
    ) -> None:
        """Refuses a TPM that is not known, or another device's, and a device with another TPM."""
        candidate = found.candidate
        if await device_store.lock_device(connection, device_id, tenant_id) is None:
            raise _NotBoundError(BindingReason.ENROLLMENT_UNKNOWN)
        holder = await store.holder_of_key(connection, candidate.ek_sha256)
        if holder not in {None, device_id}:
            raise _NotBoundError(BindingReason.EK_OF_ANOTHER_DEVICE)
        bound = await store.binding_of(connection, device_id)
        if bound is not None and bound.ek_sha256 != candidate.ek_sha256:
            raise _NotBoundError(BindingReason.BOUND_TO_ANOTHER_TPM)
        if not await self._is_known(
            connection, device_id, tenant_id, candidate, certified=found.certified
        ):
            raise _NotBoundError(BindingReason.EK_UNTRUSTED)
        holder = await store.holder_of_name(connection, candidate.ak_name)
        if holder not in {None, device_id}:
            raise _NotBoundError(BindingReason.AK_OF_ANOTHER_DEVICE)

    async def _is_known(
        self,
        connection: Connection,
        device_id: UUID,
        tenant_id: UUID,
        candidate: Candidate,
        *,
        certified: bool,
    ) -> bool:
        """Whether a TPM is one that the device may be bound to, by a root or by a list."""
        serial = serial_key(await store.serial_of(connection, device_id))
        listed = await store.is_listed(connection, tenant_id, serial, candidate.ek_sha256)
        # A list says which TPM is a machine's: another one's certificate does not count against it.
        return certified if listed is None else listed

    async def activate(self, call: Call, enrollment_id: UUID, proof: bytes) -> Activated:
        """Binds the calling device to the TPM of its open enrollment; there is one attempt."""
        device_id, tenant_id = UUID(call.caller.id), UUID(call.caller.tenant_id)
        async with self._database.system_transaction(
            "a TPM is one device's in the whole installation"
        ) as connection:
            if await device_store.lock_device(connection, device_id, tenant_id) is None:
                return Activated(None, BindingReason.ENROLLMENT_UNKNOWN)
            now = self._clock()
            opened = await store.take_enrollment(connection, device_id, enrollment_id)
            if opened is None:
                return Activated(None, BindingReason.ENROLLMENT_UNKNOWN)
            if opened.expires_at <= now:
                return Activated(None, BindingReason.ENROLLMENT_EXPIRED)
            if not equal(sha256(proof), opened.proof_sha256):
                return Activated(None, BindingReason.ACTIVATION_WRONG)
            before = await store.binding_of(connection, device_id)
            candidate = opened.candidate
            root = candidate.root_sha256
            # A root or a list may have changed since the enrollment was opened.
            if not await self._is_known(
                connection,
                device_id,
                tenant_id,
                candidate,
                certified=root is not None and await trust_store.is_trusted(connection, root),
            ):
                return Activated(None, BindingReason.EK_UNTRUSTED)
            taken = await store.bind(connection, new_id(), device_id, tenant_id, candidate, now)
            if taken is not None:
                return Activated(None, taken)
            if before is None:
                event = TpmBound(
                    id=device_id,
                    after=BoundTpm(
                        certified=candidate.root_sha256 is not None,
                        ek_hash_prefix=prefix_of(candidate.ek_sha256),
                    ),
                )
                await self._outbox.append(connection, CloudEvent(event, tenant_id))
            return Activated(await store.binding_of(connection, device_id))

    async def challenge(self, call: Call) -> tuple[bytes, datetime]:
        """A nonce for the calling device's next evidence, and until when it is good."""
        device_id, tenant_id = UUID(call.caller.id), UUID(call.caller.tenant_id)
        nonce = secrets.token_bytes(NONCE_BYTES)
        expires_at = self._clock() + OPEN_FOR
        async with self._database.system_transaction(
            "a device is deleted in the whole installation"
        ) as connection:
            if await device_store.lock_device(connection, device_id, tenant_id) is not None:
                await store.write_challenge(
                    connection, device_id, tenant_id, sha256(nonce), expires_at
                )
        return nonce, expires_at

    async def reset(self, call: Call, device_id: UUID) -> None:
        """Frees a device of the caller's subtree from its TPM; nothing happens where it has none.

        Raises:
            DomainError: NOT_FOUND.
        """
        scope = await self._tenants.query_scope(call.caller)
        async with self._database.transaction(scope) as connection:
            org_id = await store.lock_shown(connection, scope, device_id)
            if org_id is None:
                raise not_found("device", device_id)
            before = await store.binding_of(connection, device_id)
            if not await device_store.unbind(connection, [device_id]) or before is None:
                return
            event = TpmBindingReset(
                id=device_id,
                before=BoundTpm(certified=None, ek_hash_prefix=prefix_of(before.ek_sha256)),
            )
            await self._outbox.append(connection, CloudEvent(event, org_id))

    async def forget(self) -> None:
        """Deletes what has expired, for as long as the service lives."""
        outage = Repeated(log, "expired challenges are not deleted")
        while True:
            try:
                async with self._database.system_transaction(
                    "challenges of all tenants expire"
                ) as connection:
                    # A little later than needed: an answer says that it has expired.
                    await store.forget_expired(connection, self._clock() - 12 * OPEN_FOR)
                outage.worked()
            except Exception as error:
                outage.failed(error)
            await asyncio.sleep(_FORGET_SECONDS)


def prefix_of(ek_sha256: bytes) -> str:
    """What is shown of an endorsement key: it names a machine for life."""
    return ek_sha256.hex()[:8]


def _examine(asked: Asked, roots: Mapping[bytes, Root], now: datetime) -> _Examined:
    """What a candidate is by itself; raises `_NotBoundError`."""
    try:
        endorsement = read_endorsement_key(asked.ek_public)
    except EndorsementError as broken:
        raise _NotBoundError(BindingReason.EK_TEMPLATE) from broken
    try:
        public = read_signing_key(asked.ak_public)
    except RefusedError as refused:
        raise _NotBoundError(refused.reason) from refused
    root, expired = None, False
    if asked.ek_certificate:
        try:
            found = follow(asked.ek_certificate, asked.ek_chain, roots, now)
        except CertificateError as broken:
            raise _NotBoundError(BindingReason.EK_CERTIFICATE_MALFORMED) from broken
        if found.spki != endorsement.spki:
            raise _NotBoundError(BindingReason.EK_CERTIFICATE_OTHER_KEY)
        root, expired = found.root, found.expired
    candidate = Candidate(
        ek_sha256=endorsement.sha256,
        ek_certificate=asked.ek_certificate or None,
        root_sha256=root,
        ak_name=name_of(asked.ak_public, public.name_alg),
        ak_public=asked.ak_public,
    )
    return _Examined(endorsement, candidate, root is not None, expired)
