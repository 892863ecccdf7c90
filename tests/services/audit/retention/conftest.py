"""A log with entries of years ago, and the operator's side of it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest_asyncio

from auditlog.archive import MANIFEST, Archive
from auditlog.export import verify
from auditlog.keys import CheckpointKey
from auditlog.leaves import TreeVerifier
from auditlog.notes import Signature
from auditlog.reports import ManifestFile
from auditlog.verify import Verifier
from evergreen.v1 import audit_pb2 as pb
from evergreen.v1 import audit_pb2_grpc as rpc
from servicekit.ids import now
from servicekit.keys import store as key_store
from servicekit.rpc.channels import open_channel
from servicekit.security.sealing import read_master_key
from services.audit.log.domain import CHECKPOINTS
from services.audit.log.recorder import Recorder
from services.audit.retention.archives import Archiver, key_ring, seeing_all
from services.audit.retention.prune import Plan, plan, prune
from services.identity.tree import tenant_lines
from tests.support.audit import ORG, TREE, Audit, event, message
from tests.support.callers import Metadata

LONG_AGO = datetime(2015, 3, 1, tzinfo=UTC)
UNTIL = datetime(2020, 1, 1, tzinfo=UTC)
NEWEST = 1_000
"""Entries that stay of each chain."""


@dataclass
class Operator:
    """The audit service, with what its operator does on the machine."""

    audit: Audit
    rules: rpc.AuditRetentionServiceAsyncStub
    salted: bool = True

    async def record(
        self, old: int, new: int = NEWEST, tenant_id: UUID = ORG.id, **more: Any
    ) -> list[UUID]:
        """Records entries of long ago, and as many of today that those may be pruned."""
        sent = [
            event(n, tenant_id, occurred_at=LONG_AGO + timedelta(hours=n), **more)
            for n in range(old)
        ]
        sent += [event(n, tenant_id) for n in range(new)]
        recorder = Recorder(self.audit.kit.database, self.audit.kit.clock, salted=self.salted)
        await recorder.handle([message(one) for one in sent])
        return [one.id for one in sent]

    async def keep(self, years: int | None, by: Metadata | None = None, **more: Any) -> None:
        """Says for how long a log is kept; the root's and so all logs when no tenant is given."""
        wish: dict[str, Any] = {} if years is None else {"keep_years": years}
        await self.rules.UpdateAuditRetention(
            pb.UpdateAuditRetentionRequest(**wish, **more), metadata=by or self.audit.owner
        )

    async def migrator(self) -> asyncpg.Connection[asyncpg.Record]:
        """A connection of the role that owns the tables."""
        dsn, password = self.audit.database.of_migrator()
        return await asyncpg.connect(dsn, password=password)

    @asynccontextmanager
    async def machine(self) -> AsyncIterator[Any]:
        """As `migrator`, closed at the end."""
        connection = await self.migrator()
        try:
            yield connection
        finally:
            await connection.close()

    async def archive(
        self, directory: Path, until: datetime = UNTIL, tenant_id: UUID | None = None
    ) -> Archive:
        """Writes an archive."""
        key = self.audit.kit.settings.master_key_file
        async with self.machine() as connection:
            async with seeing_all(connection):
                ring = await key_ring(connection, read_master_key(key), now())
            await Archiver(connection, ring, now(), "root").write(directory, until, tenant_id)
        return Archive.open(directory)

    async def sign(self, archive: Archive, file: Path) -> None:
        """Signs an archive anew, of which a file was changed."""
        data = file.read_bytes()
        listed = ManifestFile(file.name, len(data), hashlib.sha256(data).hexdigest())
        old = archive.manifest
        files = tuple(listed if one.name == file.name else one for one in old.files)
        async with self.machine() as connection, seeing_all(connection):
            key = read_master_key(self.audit.kit.settings.master_key_file)
            ring = await key_ring(connection, key, now())
        new = replace(old, files=files)
        signatures = tuple(
            Signature.by(old.signatures[0].name, one.public.raw, one.sign(new.text.encode()))
            for one in ring.signers(CHECKPOINTS)
        )
        (archive.directory / MANIFEST).write_text(replace(new, signatures=signatures).write())

    async def keys(self) -> list[CheckpointKey]:
        """The public keys."""
        async with self.machine() as connection:
            found = await key_store.keys(connection, "audit")
        return [CheckpointKey(key.public.raw) for key in found]

    async def plans(self, archive: Archive) -> list[Plan]:
        """What may be pruned."""
        async with self.machine() as connection:
            async with seeing_all(connection):
                lines = await tenant_lines(connection)
            return [
                await plan(connection, archive, chain, lines.of(UUID(chain.tenant_id)), now())
                for chain in archive.manifest.chains
            ]

    async def prune(self, archive: Archive) -> list[int]:
        """Prunes all that may go; answers how many entries of each chain went."""
        found = await self.plans(archive)
        async with self.machine() as connection:
            return [await prune(connection, archive, one, "root") for one in found]

    async def bury(self, tenant_id: UUID) -> None:
        """Leaves of a tenant what identity leaves of one that is deleted."""
        connection = await self.audit.database.superuser()
        await connection.execute(
            "WITH gone AS (DELETE FROM identity.tenant WHERE id = $1 RETURNING *)"
            " INSERT INTO identity.tenant_tombstone (id, parent_id, kind, name, code, created_at,"
            " archived_at, archived_by, deletion_requested_at, deleted_at, deleted_by, erased_rows)"
            " SELECT id, parent_id, kind, name, code, created_at, now(), '', now(), now(), '', '{}'"
            " FROM gone",
            tenant_id,
        )
        await connection.close()

    async def add_forwarder(self, tenant_id: UUID, sequence: int | None = None) -> UUID:
        """A forwarder of a tenant and those below it, which has delivered up to an entry."""
        forwarder = UUID(int=9)
        await self.audit.sql(
            "INSERT INTO audit.forwarder (id, tenant_id, name, kind, enabled, below_too, filter,"
            " config, sealed_secrets, start_at, revision, created_at, created_by, updated_at)"
            " VALUES ($1, $2, 'SIEM', 'webhook', true, true, '{}', '{}', '', 'now', 1, now(), '',"
            " now())",
            forwarder,
            tenant_id,
        )
        if sequence is not None:
            await self.audit.sql(
                "INSERT INTO audit.forwarder_position (forwarder_id, tenant_id, chain_id, sequence,"
                " sent) VALUES ($1, $2, $3, $4, $4)",
                forwarder,
                tenant_id,
                ORG.id,
                sequence,
            )
        return forwarder

    async def verified(
        self, *anchors: Any, tree: TreeVerifier | None = None, archives: Any = None, **wish: Any
    ) -> tuple[list[str], Verifier]:
        """What is wrong with the log, by an export."""
        verifier = Verifier(anchors)
        lines = (await self.audit.export(**wish)).splitlines()
        found = [one.message for one in verify(lines, verifier, tree, archives)]
        return found, verifier


@pytest_asyncio.fixture
async def operator(audit: Audit) -> AsyncIterator[Operator]:
    """The running service, and its operator."""
    connection = await audit.database.superuser()
    await connection.executemany(
        "INSERT INTO identity.tenant (id, parent_id, kind, name, code, created_at, updated_at)"
        " VALUES ($1, $2, $3, $4, $5, now(), now())",
        [
            (one.id, one.parent_id, one.kind, one.name, f"code-{one.id}"[:20] + str(n))
            for n, one in enumerate(TREE)
        ],
    )
    await connection.close()
    channel = open_channel(audit.kit.settings.grpc_listen, "test")
    yield Operator(audit, rpc.AuditRetentionServiceStub(channel))
    await channel.close()
