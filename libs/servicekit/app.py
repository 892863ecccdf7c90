"""How a service starts, serves and stops; the same for all of them.

Start: settings, logs, the database (waited for, with its schema new enough), the listener for
the other services, what identity knows, background work, then the listeners for the gateway.
Stop (SIGTERM, SIGINT): say NOT_SERVING, serve on while callers notice, refuse new calls, finish
those in flight, write what waits, close.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import uvloop

from contract.contexts import SEALERS
from contract.events.base import CallsRefused
from evergreen.v1 import enrollment_pb2_grpc, identity_pb2_grpc
from servicekit.build import current
from servicekit.data import key_check
from servicekit.data.batcher import Batcher
from servicekit.data.migrate import SHARED, latest_version
from servicekit.data.pooler import PoolerError
from servicekit.data.postgres import Database
from servicekit.data.quarantine import Keeper
from servicekit.errors import jittered
from servicekit.expiry import Expiry
from servicekit.feeds.changes import Changes
from servicekit.feeds.feed import wait_seconds
from servicekit.http.ops import OpsApp
from servicekit.http.protocol import DeviceServer
from servicekit.http.server import DeviceApp, Route
from servicekit.ids import Clock, now
from servicekit.messaging.jetstream import Messaging
from servicekit.messaging.outbox import Outbox
from servicekit.observability import logs
from servicekit.observability.logs import Waiting, brief
from servicekit.peers.closing import Closing, TenantWork
from servicekit.peers.devices import DeviceAccess, Mirror
from servicekit.peers.tenants import TenantDirectory
from servicekit.rpc.chain import CallChain
from servicekit.rpc.channels import connect
from servicekit.rpc.refused import RefusedCalls
from servicekit.rpc.server import GrpcServer, Register
from servicekit.security import fips, mode
from servicekit.security.sealing import ForbiddenSuiteError, SealingError, read_master_key
from servicekit.settings import ServiceSettings
from servicekit.vitals import Vitals

if TYPE_CHECKING:
    from servicekit.http.asgi import AsgiApp, HttpServer, WithHealth
    from servicekit.observability.spans import Tracer

log = logs.get(__name__)

T = TypeVar("T")

_READY_SECONDS: Final = 5.0
_NOT_READY_SECONDS: Final = 0.1
_RESTART_SECONDS: Final = 0.5
_NEW_OBJECTS: Final = 20_000
"""More of them than have gone again, and the collector looks at them; some 10 MB."""
_STOP_SECONDS: Final = 5.0
_WAITING_READERS: Final = 256
"""Places of readers that wait for something to read, which costs nothing."""
_HOPELESS: Final = (key_check.OtherKeyError, SealingError)


@dataclass(frozen=True, slots=True)
class Kit:
    """What a service is built from."""

    context: str
    settings: ServiceSettings
    database: Database
    messaging: Messaging
    outbox: Outbox
    tenants: TenantDirectory
    clock: Clock = now
    tracer: Tracer | None = None
    _channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    def channel(self, context: str) -> grpc.aio.Channel:
        """The channel to another service's internal listener."""
        if context not in self._channels:
            self._channels[context] = connect(self.settings, context, self.context, self.tracer)
        return self._channels[context]

    def device_access(self, mirror: Mirror[Any] | None = None) -> DeviceAccess:
        """What refuses locked-out devices; for services that devices call.

        With a `mirror` it also keeps what the registry tells of all devices.
        """
        registry = enrollment_pb2_grpc.EnrollmentInternalServiceStub(self.channel("enrollment"))
        return DeviceAccess(
            registry,
            self.database,
            self.tenants,
            self.context,
            mirror,
            wait_seconds=self.wait_seconds("enrollment"),
        )

    def wait_seconds(self, context: str) -> int:
        """How long a question to another service's feed waits for something to tell."""
        return wait_seconds(self.settings.target(context))


@dataclass(slots=True)
class Parts:
    """What a service consists of."""

    calls_refused: type[CallsRefused] | None = None
    """The event that tells of refused calls of users."""
    public: Sequence[Register] = ()
    """Servicers that the gateway reaches."""
    internal: Sequence[Register] = ()
    """Servicers that only the other services reach."""
    services: Sequence[str] = ()
    """Full names of the public gRPC services, for health and reflection."""
    routes: dict[str, Route] = field(default_factory=dict)
    """HTTP-native device routes by path."""
    portal: Callable[[CallChain], AsgiApp] | None = None
    """Makes an ASGI application, which has its calls pass the chain; in a service without device
    routes."""
    devices: DeviceAccess | None = None
    batchers: Sequence[Batcher[Any, Any]] = ()
    changes: Changes | None = None
    """Answers the readers of the service's feeds; in a service that has some."""
    tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()
    """Background work that lives as long as the service; it is restarted when it fails."""
    closing: TenantWork | None = None
    """What is done with the rows of tenants that are archived, restored or deleted."""
    before_serving: Callable[[], Awaitable[None]] | None = None
    """What must be done (and is retried until it succeeds) before the first call."""
    ready: Callable[[], bool] = lambda: True
    """Whether the service has all that it needs, beside its database."""


Build = Callable[[Kit], Awaitable[Parts]]


def run(context: str, settings: ServiceSettings, build: Build) -> None:
    """Runs a service until it is told to stop; exits with 1 where it cannot work at all,
    with `mode.REFUSED` where FIPS mode is why."""
    logs.configure(context, settings.log_level, settings.log_format)
    _spare_the_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if status := runner.run(_serve(context, settings, build)):
            sys.exit(status)


def _spare_the_collector() -> None:
    """Lets the garbage collector look at less, and less often.

    Hardly anything here is garbage in a cycle, and with many calls in flight a seventh of a
    service's time went into looking for it.
    """
    gc.collect()
    # What was imported stays.
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


async def _serve(context: str, settings: ServiceSettings, build: Build) -> int:
    """Serves until it is told to stop; answers the exit status."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    database = await Database.open(settings)
    messaging = Messaging(settings)
    records = _tracer(settings, context)
    identity = connect(settings, "identity", context, records)
    channels = {"identity": identity}
    tenants = TenantDirectory(
        identity_pb2_grpc.IdentityInternalServiceStub(identity),
        now,
        wait_seconds(settings.target("identity")),
    )
    kit = Kit(
        context,
        settings,
        database,
        messaging,
        Outbox(database, context),
        tenants,
        tracer=records,
        _channels=channels,
    )
    starting = asyncio.create_task(start(kit, build))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if not starting.done():
        await _end([starting])
    else:
        try:
            running = await starting
        except (PoolerError, *_HOPELESS) as error:
            log.error("start refused", reason=str(error))
            status = mode.REFUSED if isinstance(error, ForbiddenSuiteError) else 1
            await _end([stopping])
        else:
            await stopping
            log.info("stopping")
            await running.stop(settings.drain_seconds)
    await messaging.close()
    for channel in channels.values():
        await channel.close()
    await database.close()
    if records is not None:
        await records.close()
    log.info("stopped")
    return status


@dataclass(slots=True)
class Running:
    """A service that serves."""

    public: GrpcServer
    internal: GrpcServer
    http: DeviceServer | HttpServer | None
    http_app: DeviceApp | WithHealth
    ops: DeviceServer
    changes: Changes | None
    batchers: Sequence[Batcher[Any, Any]]
    writers: Sequence[asyncio.Task[None]]
    tasks: Sequence[asyncio.Task[None]]

    async def stop(self, drain: float) -> None:
        """Serves on for `drain` seconds while callers notice, then stops in order."""
        self.http_app.serving = False
        await self.public.set_serving(False)
        await self.internal.set_serving(False)
        await asyncio.sleep(drain)
        if self.changes is not None:
            self.changes.close()
        await asyncio.gather(
            self.public.stop(_STOP_SECONDS),
            self.internal.stop(_STOP_SECONDS),
            *([self.http.stop()] if self.http else []),
        )
        for batcher in self.batchers:
            batcher.close()
        if self.writers:
            await asyncio.wait(self.writers, timeout=_STOP_SECONDS)
        await _end(self.tasks)
        await self.ops.stop()


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels tasks until they have ended.

    Once is not enough: `asyncio.wait_for` of Python 3.11 (in asyncpg and nats-py too) swallows a
    cancellation that comes together with what it waits for.
    """
    pending = set(tasks)
    give_up_at = asyncio.get_running_loop().time() + _STOP_SECONDS
    while pending and asyncio.get_running_loop().time() < give_up_at:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1.0)
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.warning("background work failed at stop", error=brief(error))


def _tracer(settings: ServiceSettings, context: str) -> Tracer | None:
    """What records the service's spans; `None` without a collector."""
    if settings.traces is None:
        return None
    from servicekit.observability.spans import Tracer  # noqa: PLC0415 - nobody else loads the SDK

    return Tracer(settings.traces, context)


def _traced_chain(tracer: Tracer) -> Callable[..., CallChain]:
    from servicekit.rpc.traced import TracedChain  # noqa: PLC0415 - it loads the SDK

    return partial(TracedChain, tracer)


async def start(kit: Kit, build: Build) -> Running:
    """Starts a service; returns when it serves.

    Raises:
        PoolerError: there is a pooler before the database that mixes up sessions.
        SealingError: the service seals, and there is no master key.
        OtherKeyError: the master key is not the database's.
    """
    await _until_schema_is_new_enough(kit)
    master_key = await _own_master_key(kit)
    parts = await build(kit)
    most = kit.settings.max_calls
    tls = kit.settings.tls
    make_chain = CallChain if kit.tracer is None else _traced_chain(kit.tracer)
    refused = None
    if parts.calls_refused is not None:
        refused = RefusedCalls(kit.database, kit.outbox, parts.calls_refused, kit.clock)
        kit.tenants.on_foreign = refused.note_foreign
    chain = make_chain(
        max_calls=most,
        tenants=kit.tenants,
        devices=parts.devices,
        refused=refused.note if refused else None,
        clock=kit.clock,
    )
    public = GrpcServer(
        kit.settings.grpc_listen,
        chain,
        parts.public,
        parts.services,
        internal=False,
        tls=tls,
        probe=kit.settings.health_listen,
    )
    # A count of its own: a herd of devices must not keep the other services from the feeds.
    inside = make_chain(max_calls=most + _WAITING_READERS)
    internal = GrpcServer(
        kit.settings.internal_listen, inside, parts.internal, (), internal=True, tls=tls
    )
    http: DeviceServer | HttpServer | None = None
    http_app: DeviceApp | WithHealth
    if parts.portal is None:
        http_app = DeviceApp(chain, parts.routes)
        if kit.settings.http_listen:
            http = DeviceServer(kit.settings.http_listen, http_app, tls)
    else:
        from servicekit.http import asgi  # noqa: PLC0415 - nobody else loads uvicorn

        http_app = asgi.WithHealth(parts.portal(chain))
        http = asgi.HttpServer(kit.settings.http_listen, http_app, tls)
    if parts.devices is not None:
        await until_done("load locked-out devices", parts.devices.load)
    closing = Closing(
        kit.context,
        kit.database,
        kit.messaging,
        kit.tenants,
        identity_pb2_grpc.IdentityInternalServiceStub(kit.channel("identity")),
        parts.closing or TenantWork(),
    )
    await until_done("load closed tenants", closing.load)
    if parts.before_serving is not None:
        await until_done("prepare to serve", parts.before_serving)
    if master_key is not None:
        # Only now: it has opened the keys that there were.
        await until_done("note the master key", partial(_note_master_key, kit, master_key))
    writers = [_supervised(batcher.run, once=True) for batcher in parts.batchers]
    ops = DeviceServer(kit.settings.ops_listen, OpsApp(partial(_missing, kit, parts)))
    await ops.start()
    await internal.start()
    # Known before the first user calls, if identity is there; identity asks itself.
    await kit.tenants.follower.try_refresh()
    tasks = [
        _supervised(kit.tenants.follower.run),
        _supervised(kit.tenants.api_tokens.run),
        _supervised(lambda: kit.outbox.run(kit.messaging)),
        _supervised(Keeper(kit.database, kit.context).run),
        _supervised(closing.run),
        _supervised(Vitals(kit.context, kit.database, partial(_missing, kit, parts)).run),
        *([_supervised(expiry.run)] if (expiry := Expiry(kit.settings)).has_any else []),
        *([_supervised(parts.devices.follower.run)] if parts.devices else []),
        *([_supervised(parts.changes.run)] if parts.changes else []),
        *([_supervised(refused.run)] if refused else []),
        *(_supervised(task) for task in parts.tasks),
    ]
    tasks.append(_supervised(lambda: _watch_readiness(kit, parts, public, internal)))
    await public.start()
    if http is not None:
        await http.start()
    await internal.set_serving(True)
    await public.set_serving(True)
    runs = current()
    log.info("serving", version=runs.version, commit=runs.commit, **_fips())
    return Running(
        public=public,
        internal=internal,
        http=http,
        http_app=http_app,
        ops=ops,
        changes=parts.changes,
        batchers=parts.batchers,
        writers=writers,
        tasks=tasks,
    )


def _fips() -> dict[str, str]:
    """What a start says of the FIPS module and of the suites; nothing where both are as usual."""
    suites = {"suites": mode.APPROVED} if mode.writes_approved() else {}
    if (module := fips.module()) is None:
        return suites
    named = {"fips_module": f"{module.name} {module.version}", "fips_sha256": module.sha256}
    return suites | named


async def _until_schema_is_new_enough(kit: Kit) -> None:
    needed = {schema: latest_version(schema) for schema in (SHARED, kit.context)}
    waiting = Waiting(log, "waiting for the database")
    while True:
        try:
            await kit.database.require_sessions()
            older = [
                f"{schema} is older than {version}"
                for schema, version in needed.items()
                if await kit.database.schema_version(schema) < version
            ]
            if not older:
                return
            reason = f"the schema {older[0]}; run `evergreen migrate up`"
        except PoolerError:
            raise
        except Exception as error:
            reason = brief(error)
        waiting.still(reason)
        await asyncio.sleep(jittered(_RESTART_SECONDS))


async def _own_master_key(kit: Kit) -> bytes | None:
    """The master key of a service that seals, before it makes or opens a key with it.

    Raises:
        SealingError: there is none.
        OtherKeyError: it is not the database's.
    """
    if kit.context not in SEALERS:
        return None
    key = read_master_key(kit.settings.master_key_file)

    async def compare() -> None:
        async with kit.database.system_transaction("keys belong to no tenant") as connection:
            await key_check.is_noted(connection, key)

    await until_done("compare the master key", compare)
    return key


async def _note_master_key(kit: Kit, key: bytes) -> None:
    async with kit.database.system_transaction("keys belong to no tenant") as connection:
        await key_check.note(connection, key)


async def until_done(what: str, work: Callable[[], Awaitable[T]]) -> T:
    """Tries until it works: what a service needs may come up after it.

    Raises:
        SealingError, OtherKeyError: the master key is not the one; that does not pass.
    """
    waiting = Waiting(log, "waiting", what=what)
    while True:
        try:
            return await work()
        except _HOPELESS:
            raise
        except Exception as error:
            waiting.still(brief(error))
            await asyncio.sleep(jittered(_RESTART_SECONDS))


def _supervised(
    work: Callable[[], Coroutine[Any, Any, None]], *, once: bool = False
) -> asyncio.Task[None]:
    async def forever() -> None:
        while True:
            try:
                await work()
                if once:
                    return
            except Exception:
                log.exception("background work failed, restarted")
            await asyncio.sleep(jittered(_RESTART_SECONDS))

    return asyncio.create_task(forever())


async def _missing(kit: Kit, parts: Parts) -> list[str]:
    missing = []
    try:
        await kit.database.ping()
    except Exception:
        missing.append("database")
    if not kit.tenants.follower.synced:
        missing.append("identity")
    if parts.devices is not None and not parts.devices.ready:
        missing.append("enrollment")
    if not parts.ready():
        missing.append(kit.context)
    return missing


async def _watch_readiness(
    kit: Kit, parts: Parts, public: GrpcServer, internal: GrpcServer
) -> None:
    while True:
        ready = not await _missing(kit, parts)
        await public.set_ready(ready)
        await internal.set_ready(ready)
        await asyncio.sleep(_READY_SECONDS if ready else _NOT_READY_SECONDS)
