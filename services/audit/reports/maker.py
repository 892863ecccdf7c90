"""Makes reports: each by one process, at most two at a time, and one of a tenant."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from prometheus_client import Counter

from auditlog.notes import Signature
from auditlog.reports import SIGNS_AS, ManifestFile, ReportManifest
from contract.events.audit import ReportCreated, ReportFailed, ReportFailure, ReportMade
from servicekit.call import begin_background_call
from servicekit.data.postgres import Database, Scope
from servicekit.ids import Clock, new_id
from servicekit.keys.service import SigningKeys
from servicekit.messaging.events import CloudEvent
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Repeated, brief
from servicekit.peers.tenants import TenantDirectory, TenantNode
from servicekit.security import fips
from servicekit.security.digests import Sha256, sha256_hex
from services.audit.log.domain import CHECKPOINTS, MOST_BASES, Base, Bases
from services.audit.notices.domain import REPORTS
from services.audit.notices.service import Notices
from services.audit.reports import schedule_store, store
from services.audit.reports.domain import MOST_ROWS, File, Kind, Parameters, Report, Status, written
from services.audit.reports.files import Files, Part
from services.audit.reports.kinds import PRODUCERS, Asked
from services.audit.reports.letters import ended
from services.audit.reports.log import Log
from services.audit.reports.page import About, Pruned
from services.audit.reports.service import Bounds
from services.audit.reports.sources import AwayError, Sources

log = logs.get(__name__)

_MADE: Final = Counter("evergreen_reports_total", "Reports by what came of them.", ["outcome"])
_AT_ONCE: Final = 2
_LOOK_SECONDS: Final = 2.0
_LEASE_SECONDS: Final = 30.0
_RENEW_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 1800.0
"""So long an attempt may take."""
_MOST_ATTEMPTS: Final = 5
"""Attempts that ended without a word: the process died, or something was broken."""
_WAIT: Final = timedelta(minutes=10)
"""So long another service may be away."""
_AGAIN: Final = timedelta(seconds=10)
_LATEST: Final = timedelta(hours=6)
"""So long after it was asked for a report is begun."""


class _LostError(Exception):
    """The report was deleted, or another process has it."""


class _DamagedError(Exception):
    """What is stored is not what was written."""


@dataclass(frozen=True, slots=True)
class _Written:
    """What was written of a report."""

    rows: int
    files: tuple[File, ...]
    begun_at: datetime
    """When the first row was read,"""
    ended_at: datetime
    """and the last one."""


class _RefusedError(Exception):
    """The report cannot be made."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Maker:
    """Makes reports, for as long as the service lives.

    Args:
        database: the service's.
        outbox: takes events.
        tenants: the tree.
        keys: sign manifests.
        sources: the owners of what reports say.
        notices: takes mails.
        bounds: how much is kept.
        host: the public name of the installation.
        clock: the time.
    """

    def __init__(
        self,
        database: Database,
        outbox: Outbox,
        tenants: TenantDirectory,
        keys: SigningKeys,
        sources: Sources,
        notices: Notices,
        bounds: Bounds,
        host: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._tenants = tenants
        self._keys = keys
        self._sources = sources
        self._notices = notices
        self._bounds = bounds
        self._signs_as = host + SIGNS_AS
        self._clock = clock
        self._log = Log(database)
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There is a report to make."""
        self._wake.set()

    async def run(self) -> None:
        """Makes what waits."""
        outage = Repeated(log, "reports postponed")
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._wake.clear()
                begin_background_call()
                try:
                    while len(running) < _AT_ONCE and (found := await self._claim()) is not None:
                        task = asyncio.create_task(self._try(*found))
                        running.add(task)
                        task.add_done_callback(running.discard)
                        task.add_done_callback(lambda _: self._wake.set())
                    outage.worked()
                except Exception as error:
                    outage.failed(error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), _LOOK_SECONDS)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _claim(self) -> tuple[Report, UUID] | None:
        if not self._tenants.follower.synced:
            return None
        lease = new_id()
        async with self._database.system_transaction(
            "reports of all tenants have their turn"
        ) as connection:
            report = await store.claim(connection, lease, self._clock(), _LEASE_SECONDS)
        return (report, lease) if report else None

    async def _try(self, report: Report, lease: UUID) -> None:
        """Makes one report; whatever fails, its lease runs out and it is tried again."""
        begin_background_call()
        try:
            await self._make(report, lease)
        except Exception as error:
            log.exception("report not made", report=str(report.id), error=brief(error))

    async def _make(self, report: Report, lease: UUID) -> None:
        """Makes one report, and says what came of it."""
        scope = Scope.of(report.tenant_id)
        try:
            if report.attempts > _MOST_ATTEMPTS:
                raise _RefusedError("INTERNAL", "it could not be made; the log has the details")
            if self._clock() - report.as_of > _LATEST:
                hours = _LATEST.total_seconds() / 3600
                raise _RefusedError("TOO_LATE", f"it waited for more than {hours:g} hours")
            async with asyncio.timeout(_LONGEST_SECONDS), self._held(report, lease):
                written_files = await self._write(report, lease)
            await self._finish(report, lease, written_files)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1), self._database.transaction(scope) as connection:
                    await store.release(connection, report, lease)
            raise
        except _LostError:
            log.info("report not finished: deleted or taken over", report=str(report.id))
        except _RefusedError as refused:
            await self._fail(report, lease, refused.reason, str(refused))
        except TimeoutError:
            minutes = _LONGEST_SECONDS / 60
            await self._fail(report, lease, "TOO_LONG", f"it took longer than {minutes:g} minutes")
        except AwayError as away:
            await self._wait(report, lease, away)

    async def _write(self, report: Report, lease: UUID) -> _Written:
        scope = Scope.of(report.tenant_id)
        begun_at = self._clock()
        async with self._database.transaction(scope) as connection:
            if not await store.forget_parts(connection, report, lease):
                raise _LostError
            load = await store.load(
                connection, report.tenant_id, scheduled=report.schedule_id is not None
            )
        room = self._bounds.share - load.bytes

        async def keep(name: str, number: int, content: bytes) -> None:
            async with self._database.transaction(scope) as connection:
                if not await store.keep_part(connection, report, lease, name, number, content):
                    raise _LostError

        kind = PRODUCERS[report.kind].KIND
        orgs = self._tenants.subtree(report.tenant_id, deleted=kind.with_deleted)
        own = next((node for node in orgs if node.id == report.tenant_id), None)
        if own is None:
            raise _LostError
        asked = Asked(
            orgs=sorted(orgs, key=lambda node: (node.name, node.id)),
            parameters=report.parameters,
            as_of=report.as_of,
            sources=self._sources,
            log=self._log,
            above=self._tenants.above,
        )
        producer = PRODUCERS[report.kind](asked)
        files = Files(report.kind, kind.tables, report.formats, keep)
        waits = report.waiting_since is not None
        async with contextlib.aclosing(producer.pages()) as pages:
            async for table, rows in pages:
                if waits:
                    async with self._database.transaction(scope) as connection:
                        await store.answered(connection, report, lease)
                    waits = False
                if files.rows + len(rows) > MOST_ROWS:
                    raise _RefusedError("TOO_MANY_ROWS", f"it has more than {MOST_ROWS:,} rows")
                await files.add(table, rows)
                self._check_size(files.bytes, room)
        gone = await self._pruned(kind, orgs, report.parameters)
        ended_at = self._clock()
        about = About(
            report_kind=kind.name,
            title=kind.title,
            text=kind.about,
            org_id=str(own.id),
            org_name=own.name,
            parameters=report.parameters.given(),
            as_of=report.as_of,
            made_from=kind.made_from,
            cryptography=fips.named(),
            pruned=[_to_pruned(base, orgs) for base in gone.shown],
            pruned_chains=gone.count,
        )
        await files.close(about, producer.summary())
        self._check_size(files.bytes, room)
        stored = [
            await self._stored(report, name, media, files.kept(name)) for name, media in files.names
        ]
        return _Written(files.rows, tuple(stored), begun_at, ended_at)

    async def _pruned(
        self, kind: Kind, orgs: Sequence[TenantNode], parameters: Parameters
    ) -> Bases:
        """What was pruned of the log that a kind of report may be about."""
        if "audit" not in kind.made_from:
            return Bases()
        # Others ask the log who did something, however long ago.
        start = parameters.start if kind.made_from == ("audit",) else None
        return await self._log.pruned([node.id for node in orgs], start, MOST_BASES)

    def _check_size(self, size: int, room: int) -> None:
        """Refuses files that are too large.

        Args:
            size: of all files of a report, in bytes.
            room: what is left for its tenant, in bytes.

        Raises:
            _RefusedError: they are.
        """
        if size > self._bounds.report_bytes:
            most = self._bounds.report_bytes >> 20
            raise _RefusedError(
                "TOO_LARGE", f"its files are larger than {most} MiB; ask for one format"
            )
        if size > room:
            raise _RefusedError("REPORTS_FULL", "the tenant keeps as much as it may; delete some")

    @contextlib.asynccontextmanager
    async def _held(self, report: Report, lease: UUID) -> AsyncIterator[None]:
        """Holds the lease while a report is made; without it, making it ends.

        Raises:
            _LostError: the report was deleted, or another process has it.
        """
        body = asyncio.current_task()
        assert body is not None
        lost = False

        async def renew() -> None:
            nonlocal lost
            while not lost:
                await asyncio.sleep(_RENEW_SECONDS)
                try:
                    async with self._database.transaction(Scope.of(report.tenant_id)) as connection:
                        lost = not await store.renew(connection, report, lease, _LEASE_SECONDS)
                except Exception as error:
                    # With the database away, the lease may run out.
                    log.warning("lease not renewed", report=str(report.id), error=brief(error))
            body.cancel()

        holder = asyncio.create_task(renew())
        try:
            yield
        except asyncio.CancelledError:
            # Another end, of the process or of the time, goes before.
            if lost and body.uncancel() == 0:
                raise _LostError from None
            raise
        finally:
            holder.cancel()

    async def _stored(
        self, report: Report, name: str, media_type: str, wanted: Mapping[int, Part]
    ) -> File:
        """A file with the digest of what is stored.

        Raises:
            _DamagedError: that is not what was written.
        """
        digest, size, number = Sha256(), 0, -1
        found: dict[int, Part] = {}
        while True:
            async with self._database.transaction(Scope.of(report.tenant_id)) as connection:
                part = await store.part(connection, report.id, name, number)
            if part is None:
                break
            number, content = part
            found[number] = Part.of(content)
            digest.update(content)
            size += len(content)
        if found != wanted:
            raise _DamagedError(f"{name}: parts are not what was written")
        return File(name, media_type, size, digest.hexdigest())

    async def _finish(self, report: Report, lease: UUID, made: _Written) -> None:
        rows, files = made.rows, made.files
        unsigned = ReportManifest(
            id=str(report.id),
            kind=report.kind,
            org_id=str(report.tenant_id),
            parameters=report.parameters.canonical(),
            as_of=written(report.as_of),
            read_from=written(made.begun_at),
            read_until=written(made.ended_at),
            rows=rows,
            files=tuple(ManifestFile(file.name, file.bytes, file.sha256) for file in files),
            cryptography=fips.named(),
        )
        message = unsigned.text.encode()
        manifest = replace(
            unsigned,
            signatures=tuple(
                Signature.by(self._signs_as, signer.public.raw, signer.sign(message))
                for signer in self._keys.ring.signers(CHECKPOINTS)
            ),
        )
        size = sum(file.bytes for file in files)
        event = CloudEvent(
            ReportCreated(
                id=report.id,
                after=ReportMade(
                    kind=report.kind,
                    requested_by=report.requested_by,
                    as_of=report.as_of,
                    rows=rows,
                    bytes=size,
                    manifest_sha256=sha256_hex(message),
                ),
            ),
            report.tenant_id,
        )
        done = replace(
            report,
            status=Status.READY,
            finished_at=self._clock(),
            rows=rows,
            bytes=size,
            manifest=manifest.write(),
            entry_id=event.id,
            files=files,
        )
        await self._end(done, lease, event)
        _MADE.labels("ready").inc()

    async def _fail(self, report: Report, lease: UUID, reason: str, text: str) -> None:
        """Ends a report that cannot be made; what was written of it goes."""
        log.warning("report failed", report=str(report.id), kind=report.kind, reason=reason)
        event = CloudEvent(
            ReportFailed(
                id=report.id,
                after=ReportFailure(
                    kind=report.kind, requested_by=report.requested_by, reason=reason
                ),
            ),
            report.tenant_id,
        )
        failed = replace(
            report,
            status=Status.FAILED,
            finished_at=self._clock(),
            entry_id=event.id,
            error=f"{reason}: {text}",
        )
        with contextlib.suppress(_LostError):
            await self._end(failed, lease, event)
            _MADE.labels("failed").inc()

    async def _end(self, report: Report, lease: UUID, event: CloudEvent) -> None:
        async with self._database.transaction(Scope.of(report.tenant_id)) as connection:
            if not await store.finish(connection, report, lease):
                raise _LostError
            if report.status is Status.FAILED:
                await store.delete_parts(connection, report)
            await self._outbox.append(connection, event)
            if report.schedule_id is not None:
                people = await schedule_store.notified(
                    connection, report.tenant_id, report.schedule_id
                )
                await self._notices.add(
                    connection, report.tenant_id, ended(report), REPORTS, addresses=people
                )

    async def _wait(self, report: Report, lease: UUID, away: AwayError) -> None:
        """Tries again later, as long as that may help."""
        at = self._clock()
        async with self._database.transaction(Scope.of(report.tenant_id)) as connection:
            since = await store.waiting_since(connection, report) or at
        log.warning("report waits", report=str(report.id), waits_for=away.context)
        if at - since >= _WAIT:
            await self._fail(report, lease, "NOT_AVAILABLE", str(away))
            return
        async with self._database.transaction(Scope.of(report.tenant_id)) as connection:
            await store.postpone(connection, report, lease, at + _AGAIN, at)


def _to_pruned(base: Base, orgs: Sequence[TenantNode]) -> Pruned:
    return Pruned(
        org_id=str(base.tenant_id),
        org_name=next((node.name for node in orgs if node.id == base.tenant_id), ""),
        sequence=base.sequence,
        last_occurred_at=base.last_occurred_at,
        pruned_at=base.pruned_at,
        archive_sha256=base.archive_sha256.hex(),
    )
