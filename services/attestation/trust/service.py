"""By what TPMs are known."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from contract.events.attestation import (
    EndorsementKeysExported,
    EndorsementKeysImported,
    ImportedKeys,
    RootSnapshot,
    TrustRootAdded,
    TrustRootRemoved,
)
from contract.events.base import Export
from servicekit.call import Call
from servicekit.data.postgres import Database, Scope
from servicekit.errors import (
    already_exists,
    failed_precondition,
    invalid_field,
    not_found,
    permission_denied,
)
from servicekit.ids import Clock, new_id
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.peers.tenants import TenantDirectory
from servicekit.serials import serial_key
from servicekit.times import TOO_LATE
from services.attestation.trust import store
from services.attestation.trust.certificates import CertificateError, Root, read_root
from services.attestation.trust.domain import ListedKey, Source, TrustRoot

MOST_ROOTS: Final = 500
MOST_LISTED: Final = 200_000
"""Keys that an organisation lists."""
_EXPORT_PAGE: Final = 2_000
_HEADER: Final = ["serial", "ek_hash"]
_HASH_BYTES: Final = 32


class Trust:
    """The roots of the installation, and the keys that organisations list."""

    def __init__(
        self, database: Database, outbox: Outbox, tenants: TenantDirectory, clock: Clock
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._clock = clock
        self._roots: dict[bytes, Root] = {}

    async def roots(self) -> Mapping[bytes, Root]:
        """The roots by SHA-256, as they are now; their content is read once."""
        known = self._roots
        async with self._database.system_transaction("roots belong to no tenant") as connection:
            digests = await store.root_digests(connection)
            new = await store.root_certificates(connection, [d for d in digests if d not in known])
        known = known | {digest: Root(digest, certificate) for digest, certificate in new.items()}
        # One that was removed in between is none.
        self._roots = {digest: known[digest] for digest in digests if digest in known}
        return self._roots

    async def list_roots(self) -> list[TrustRoot]:
        """The roots by subject."""
        async with self._database.system_transaction("roots belong to no tenant") as connection:
            return await store.list_roots(connection)

    async def add_root(self, call: Call, pem: str, *, validate_only: bool) -> TrustRoot:
        """Adds a root, or only reads it.

        Raises:
            DomainError: PERMISSION_DENIED to everyone but Owners of the root tenant;
                INVALID_ARGUMENT, ALREADY_EXISTS, FAILED_PRECONDITION when there are too many.
        """
        tenant_id = await self._root_tenant(call)
        try:
            found = read_root(pem)
        except CertificateError as broken:
            raise invalid_field("certificatePem", str(broken)) from broken
        root = TrustRoot(
            id=new_id(),
            sha256=found.sha256,
            certificate=found.certificate,
            subject=found.subject,
            not_before=found.not_before,
            not_after=_carried(found.not_after),
            created_at=self._clock(),
        )
        if validate_only:
            return root
        async with self._database.system_transaction("roots belong to no tenant") as connection:
            if len(await store.list_roots(connection)) >= MOST_ROOTS:
                raise failed_precondition(
                    "TOO_MANY_ROOTS", f"there are {MOST_ROOTS} roots; remove one first"
                )
            if not await store.insert_root(connection, root):
                raise already_exists("ROOT_EXISTS", "certificatePem: is trusted already")
            event = TrustRootAdded(id=root.id, after=_snapshot(root))
            await self._outbox.append(connection, CloudEvent(event, tenant_id))
        return root

    async def remove_root(self, call: Call, root_id: UUID) -> None:
        """Removes a root.

        Raises:
            DomainError: PERMISSION_DENIED as `add_root`; NOT_FOUND.
        """
        tenant_id = await self._root_tenant(call)
        async with self._database.system_transaction("roots belong to no tenant") as connection:
            root = await store.delete_root(connection, root_id)
            if root is None:
                raise not_found("TPM root", root_id)
            event = TrustRootRemoved(id=root.id, before=_snapshot(root))
            await self._outbox.append(connection, CloudEvent(event, tenant_id))

    async def import_keys(
        self, call: Call, org_id: UUID, text: str, *, replace: bool
    ) -> ImportedKeys:
        """Takes a list of serial numbers and endorsement keys of an organisation.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree; INVALID_ARGUMENT with the
                line; FAILED_PRECONDITION when there would be too many.
        """
        scope = await self._tenants.query_scope(call.caller, org_id)
        keys = sorted(set(_parsed(text)))
        async with self._database.transaction(scope) as connection:
            removed = await store.keep_listed(connection, org_id, keys) if replace else 0
            added = await store.add_listed(connection, org_id, keys)
            if await store.count_listed(connection, org_id) > MOST_LISTED:
                raise failed_precondition(
                    "TOO_MANY_KEYS", f"an organisation lists at most {MOST_LISTED} keys"
                )
            done = ImportedKeys(added=added, unchanged=len(keys) - added, removed=removed)
            if added or removed:
                event = EndorsementKeysImported(id=org_id, after=done)
                await self._outbox.append(connection, CloudEvent(event, org_id))
        return done

    async def export_keys(
        self, call: Call, org_id: UUID, source: Source
    ) -> AsyncGenerator[Sequence[ListedKey], None]:
        """Serial numbers and endorsement keys of an organisation, in order.

        There is always a first page, be it empty. The audit log hears of it when it begins.

        Raises:
            DomainError: NOT_FOUND for an org that is not in the subtree.
        """
        await self._tenants.require_org(call.caller, org_id)
        scope = Scope.of(org_id)
        given = {"source": source.value}
        event = EndorsementKeysExported(id=org_id, after=Export(format="csv", filter=given))
        async with self._database.transaction(scope) as connection:
            await self._outbox.append(connection, CloudEvent(event, org_id))
        after: ListedKey | None = None
        begun = False
        while not begun or after is not None:
            async with self._database.transaction(scope) as connection:
                page = await store.list_keys(connection, org_id, source, after, _EXPORT_PAGE)
            yield page.items
            after, begun = page.after, True

    async def _root_tenant(self, call: Call) -> UUID:
        scope = await self._tenants.query_scope(call.caller, None)
        if scope.tenant_ids is None:
            return UUID(call.caller.tenant_id)
        raise permission_denied(
            "ROOT_ONLY", "what TPMs are known by is decided by Owners of the root tenant"
        )


def _carried(at: datetime) -> datetime:
    """A time of a certificate that never ends, as the product carries times."""
    return min(at, TOO_LATE.replace(day=30))


def _snapshot(root: TrustRoot) -> RootSnapshot:
    return RootSnapshot(subject=root.subject, sha256=root.sha256.hex(), not_after=root.not_after)


def _parsed(text: str) -> list[tuple[str, bytes]]:
    lines = csv.reader(io.StringIO(text.removeprefix("\ufeff")))
    found: list[tuple[str, bytes]] = []
    try:
        header = [cell.strip().lower() for cell in next(lines, [])]
        if header != _HEADER:
            raise invalid_field("csv", f"must begin with the header {','.join(_HEADER)}")
        for row in lines:
            if row:
                found.append(_line(row, lines.line_num))
    except csv.Error as broken:
        raise invalid_field("csv", f"is no CSV: {broken}") from broken
    return found


def _line(row: list[str], number: int) -> tuple[str, bytes]:
    try:
        serial, ek_hash = row
        digest = bytes.fromhex(ek_hash)
    except ValueError:
        serial, digest = "", b""
    key = serial_key(serial)
    if not key or len(key) > 128 or "\0" in key or len(digest) != _HASH_BYTES:
        raise invalid_field(
            "csv", f"line {number} must be a serial number and 64 hexadecimal digits"
        )
    return key, digest
