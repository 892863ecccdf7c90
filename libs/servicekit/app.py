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
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import uvloop
from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from evergreen.v1 import enrollment_pb2_grpc, identity_pb2_grpc
from servicekit import logs
from servicekit.batcher import Batcher
from servicekit.chain import CallChain
from servicekit.changes import Changes
from servicekit.channels import connect
from servicekit.devices import DeviceAccess
from servicekit.errors import jittered
from servicekit.grpc_server import GrpcServer, Register
from servicekit.http_protocol import DeviceServer
from servicekit.http_server import DeviceApp, HttpServer, Route, WithHealth
from servicekit.ids import Clock, now
from servicekit.logs import brief
from servicekit.messaging import Messaging
from servicekit.migrate import latest_version
from servicekit.outbox import Outbox
from servicekit.postgres import Database
from servicekit.settings import ServiceSettings
from servicekit.tenants import TenantDirectory
from servicekit.tracing import tracer
from servicekit.vitals import Vitals

if TYPE_CHECKING:
    from servicekit.spans import Tracer

log = logs.get(__name__)

T = TypeVar("T")

_READY_SECONDS: Final = 1.0
_RESTART_SECONDS: Final = 0.5
_NEW_OBJECTS: Final = 20_000
"""More of them than have gone again, and the collector looks at them; some 10 MB."""
_STOP_SECONDS: Final = 5.0
_WAITING_READERS: Final = 256
"""Places of readers that wait for something to read, which costs nothing."""


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

    def device_access(self) -> DeviceAccess:
        """What refuses locked-out devices; for services that devices call."""
        registry = enrollment_pb2_grpc.EnrollmentInternalServiceStub(self.channel("enrollment"))
        return DeviceAccess(registry, self.database, self.context)


@dataclass(slots=True)
class Parts:
    """What a service consists of."""

    public: Sequence[Register] = ()
    """Servicers that the gateway reaches."""
    internal: Sequence[Register] = ()
    """Servicers that only the other services reach."""
    services: Sequence[str] = ()
    """Full names of the public gRPC services, for health and reflection."""
    routes: dict[str, Route] = field(default_factory=dict)
    """HTTP-native device routes by path."""
    portal: Any = None
    """An ASGI application; in a service without device routes."""
    devices: DeviceAccess | None = None
    batchers: Sequence[Batcher[Any, Any]] = ()
    changes: Changes | None = None
    """Answers the readers of the service's feeds; in a service that has some."""
    tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]] = ()
    """Background work that lives as long as the service; it is restarted when it fails."""
    before_serving: Callable[[], Awaitable[None]] | None = None
    """What must be done (and is retried until it succeeds) before the first call."""
    ready: Callable[[], bool] = lambda: True
    """Whether the service has all that it needs, beside its database."""


Build = Callable[[Kit], Awaitable[Parts]]


def run(context: str, settings: ServiceSettings, build: Build) -> None:
    """Runs a service until it is told to stop."""
    logs.configure(context, settings.log_level, settings.log_format)
    _spare_the_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(context, settings, build))


def _spare_the_collector() -> None:
    """Lets the garbage collector look at less, and less often.

    Hardly anything here is garbage in a cycle, and with many calls in flight a seventh of a
    service's time went into looking for it.
    """
    gc.collect()
    # What was imported stays.
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


async def _serve(context: str, settings: ServiceSettings, build: Build) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    database = await Database.open(settings)
    messaging = Messaging(settings)
    records = tracer(settings.traces, context)
    identity = connect(settings, "identity", context, records)
    channels = {"identity": identity}
    tenants = TenantDirectory(identity_pb2_grpc.IdentityInternalServiceStub(identity), now)
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
    if not starting.done():
        await _end([starting])
    else:
        running = await starting
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


@dataclass(slots=True)
class Running:
    """A service that serves."""

    public: GrpcServer
    internal: GrpcServer
    http: DeviceServer | HttpServer | None
    http_app: DeviceApp | WithHealth
    ops: HttpServer
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
            log.warning("background work ended badly", error=brief(error))


async def start(kit: Kit, build: Build) -> Running:
    """Starts a service; returns when it serves."""
    await _until_schema_is_new_enough(kit)
    parts = await build(kit)
    most = kit.settings.max_calls
    tls = kit.settings.tls
    make_chain = CallChain if kit.tracer is None else kit.tracer.chain
    chain = make_chain(max_calls=most, tenants=kit.tenants, devices=parts.devices, clock=kit.clock)
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
        http_app = WithHealth(parts.portal)
        http = HttpServer(kit.settings.http_listen, http_app, tls)
    if parts.devices is not None:
        await until_done("load locked-out devices", parts.devices.load)
    if parts.before_serving is not None:
        await until_done("prepare to serve", parts.before_serving)
    writers = [_supervised(batcher.run, once=True) for batcher in parts.batchers]
    ops = HttpServer(kit.settings.ops_listen, _ops_app(kit, parts))
    await ops.start()
    await internal.start()
    # Known before the first user calls, if identity is there; identity asks itself.
    await kit.tenants.follower.try_refresh()
    tasks = [
        _supervised(kit.tenants.follower.run),
        _supervised(lambda: kit.outbox.run(kit.messaging)),
        _supervised(Vitals(kit.context, kit.database, partial(_missing, kit, parts)).run),
        *([_supervised(parts.devices.follower.run)] if parts.devices else []),
        *([_supervised(parts.changes.run)] if parts.changes else []),
        *(_supervised(task) for task in parts.tasks),
    ]
    tasks.append(_supervised(lambda: _watch_readiness(kit, parts, public, internal)))
    await public.start()
    if http is not None:
        await http.start()
    await internal.set_serving(True)
    await public.set_serving(True)
    log.info("serving")
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


async def _until_schema_is_new_enough(kit: Kit) -> None:
    needed = latest_version(kit.context)
    told = False
    while True:
        try:
            if await kit.database.schema_version(kit.context) >= needed:
                return
            reason = f"its schema is older than {needed}; run `evergreen migrate up`"
        except Exception as error:
            reason = brief(error)
        if not told:
            log.warning("waiting for the database", reason=reason)
            told = True
        await asyncio.sleep(jittered(_RESTART_SECONDS))


async def until_done(what: str, work: Callable[[], Awaitable[T]]) -> T:
    """Tries until it works: what a service needs may come up after it."""
    told = False
    while True:
        try:
            return await work()
        except Exception as error:
            if not told:
                log.warning("waiting", what=what, error=brief(error))
                told = True
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
                log.exception("background work failed and is started again")
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
        await asyncio.sleep(_READY_SECONDS if ready else _READY_SECONDS / 10)


def _ops_app(kit: Kit, parts: Parts) -> FastAPI:
    app = FastAPI(title=f"evergreen {kit.context}", openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, Any]:
        missing = await _missing(kit, parts)
        response.status_code = 503 if missing else 200
        return {"status": "not ready" if missing else "ready", "missing": missing}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app
