"""`evergreen up`: starts everything in order, says so, and stops everything in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import datetime
import gc
import json
import signal
import ssl
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import asyncpg

from contract.contexts import CONTEXTS
from deploy.certificates import AuthorityError
from deploy.launcher import (
    backups,
    bootstrap,
    gateway,
    nats,
    ports,
    probe,
    services,
    summary,
    tls,
    zygote,
)
from deploy.launcher.console import Console
from deploy.launcher.errors import LauncherError
from deploy.launcher.home import MASTER_KEY, Home, master_key, password
from deploy.launcher.logs import Logs
from deploy.launcher.notify import notify
from deploy.launcher.options import Options
from deploy.launcher.postgres import MIGRATOR_SECRET, Postgres
from deploy.launcher.report import Report, Step
from deploy.launcher.supervisor import Supervised, Supervisor, clear_leftovers
from deploy.postgres import roles
from deploy.private_files import write_private
from servicekit.data import migrate
from servicekit.data.key_check import OtherKeyError
from servicekit.security.sealing import SealingError, read_master_key
from servicekit.security.tls import Tls

_PORTS: Final = ("nats", "nats_monitor", *CONTEXTS)
# A step takes a second or two; a slow disk or a busy machine may take its time.
_PATIENCE: Final = 120.0
_GIVEN_CHECK: Final = 15.0
_CERTIFICATE_CHECK: Final = 3600.0
LONGEST_STOP_SECONDS: Final = 90
"""Each group has its grace, and five seconds after it."""
_STOP_ORDER: Final = (
    ("backup", "gateway"),
    (zygote.NAME, *CONTEXTS),
    ("nats",),
    ("postgres",),
)


class Launcher:
    """One installation: its start, its run and its stop."""

    def __init__(self, options: Options, home: Home, console: Console) -> None:
        self._options = options
        self._home = home
        self._console = console
        self._logs = Logs(options.logs, console, options.log_level, options.log_bounds)
        self._report = Report(console)
        self._run = home.run_directory()
        self._supervisor = Supervisor(self._logs, self._run)
        self._postgres = Postgres(home, self._run, CONTEXTS)
        self._zygote = zygote.Zygote(self._run) if zygote.CAN_ADOPT else None
        self._ports: dict[str, int] = {}
        self._addresses: tuple[str, ...] = ()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Runs until a signal asks to stop; whatever happens, no process is left.

        Raises:
            LauncherError: the start cannot go on.
        """
        self._handle_signals()
        try:
            await self._until_stopped(self._start())
            await self._until_stopped(self._keep_certificates())
        finally:
            await self._stop()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        asked_at = 0.0

        def stop(number: signal.Signals) -> None:
            nonlocal asked_at
            if not self._stopping.is_set():
                asked_at = loop.time()
                self._stopping.set()
            # make and the terminal may both pass on the first one.
            elif number == signal.SIGINT and loop.time() - asked_at > 0.3:
                self._console.say("Stopping without further delay.")
                self._supervisor.hurry()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:
            if not self._stopping.is_set():
                raise _first_of(group) from None

    async def _start(self) -> None:
        self._console.say(summary.heading(self._home))
        self._logs.calm = True
        with self._report.shown():
            with self._report.step("Secrets, ports, certificate") as step:
                files = self._prepare(step)
            api = bootstrap.Api(f"https://localhost:{self._options.port}", files.ca_certificate)
            if self._zygote is not None:
                self._supervisor.start(self._zygote.process())
            async with asyncio.TaskGroup() as group:
                # Services take the longest, and wait for the database by themselves; only a new
                # database has no roles for them yet.
                early = self._postgres.exists
                database = group.create_task(self._start_database())
                for context in CONTEXTS if early else ():
                    group.create_task(self._start_service(context))
                group.create_task(self._start_nats(files))
                group.create_task(self._start_gateway(files))
                await database
                for context in () if early else CONTEXTS:
                    group.create_task(self._start_service(context))
            with self._report.step("Everything ready") as step:
                await self._wait_until_ready(files, step)
                facts = await bootstrap.write(self._home, api, self._options.admin_email)
        if self._zygote is not None:
            self._zygote.end()
            await self._supervisor.stop([[zygote.NAME]])
        _give_memory_back()
        notify(
            "READY=1",
            f"STATUS=Ready after {self._report.seconds:.1f} s: {self._options.public_url}",
        )
        if self._options.backups:
            self._supervisor.start(backups.process(self._home))
        self._logs.calm = False
        if self._console.format == "console":
            self._console.say(
                summary.ready(
                    self._home, self._options.logs, facts, self._events(), self._report.seconds
                )
            )
        else:
            seconds = round(self._report.seconds, 1)
            where = {key: facts[key] for key in ("url", "ca_file", "email")}
            self._logs.event("info", "ready", seconds=seconds, **where)

    def _events(self) -> str:
        """Where integrators connect."""
        port = self._ports["nats"]
        if self._options.events_listen is None:
            return f"nats://127.0.0.1:{port}  (this machine only: docs/integrators.md)"
        return f"tls://localhost:{port}"

    def _prepare(self, step: Step) -> tls.Tls:
        """Does what needs no process: leftovers, ports, secrets, the certificate."""
        cleared = clear_leftovers(self._run)
        if cleared:
            step.note = f"ended what an earlier start left: {', '.join(cleared)}"
        self._addresses = ports.gateway_addresses(
            self._options.port, loopback_only=self._options.loopback_only
        )
        kept = self._home.remembered().get("ports", {})
        self._ports = ports.pick(_PORTS, kept)
        if self._options.events_listen is not None:
            self._ports["nats"] = self._options.events_listen[1]
        self._home.remember(
            ports=self._ports,
            public_url=self._options.public_url,
            former_public_urls=self._options.former_public_urls,
            tls_directory=str(self._options.tls_directory or ""),
            logs=str(self._options.logs),
        )
        given = self._options.admin_password
        if given and not self._home.bootstrap_file.exists():
            write_private(self._home.secrets / bootstrap.ADMIN_PASSWORD, given + "\n")
        self._ensure_master_key()
        for name in (bootstrap.ADMIN_PASSWORD, bootstrap.ENROLLMENT_SECRET):
            self._home.secret(name, password)
        return self._certificate()

    def _ensure_master_key(self) -> None:
        """Makes the master key of a new installation, before its database.

        Raises:
            LauncherError: there is a database already; a new key would not open its keys.
        """
        if self._postgres.exists and not (self._home.secrets / MASTER_KEY).exists():
            raise LauncherError(
                f"There is a database in {self._home.postgres}, and its master key is gone.",
                advice=f"Put the key back into {self._home.secrets / MASTER_KEY}, or restore a"
                " backup: evergreen backup restore FILE --replace",
            )
        self._home.secret(MASTER_KEY, master_key)

    def _certificate(self) -> tls.Tls:
        at = datetime.datetime.now(datetime.UTC)
        try:
            urls = (self._options.public_url, *self._options.former_public_urls)
            files = tls.ensure(self._home.tls, tls.host_names(urls), at)
        except AuthorityError as error:
            raise LauncherError(f"The gateway's certificate is due: {error}.") from error
        if self._options.tls_directory is None:
            return files
        try:
            given, _ = tls.take(self._options.tls_directory, self._home.tls, at)
        except tls.GivenCertificateError as error:
            raise LauncherError(
                f"The certificate in EVERGREEN_TLS_DIRECTORY cannot be used. {error}.",
                advice=f"It must hold {tls.CHAIN} and {tls.KEY}, readable for this user; without"
                " EVERGREEN_TLS_DIRECTORY the local CA's certificate is served.",
            ) from error
        return replace(files, given=given)

    async def _start_database(self) -> None:
        with self._report.step("PostgreSQL") as step:
            if await self._postgres.prepare():
                step.note = "a new database"
            process = self._supervisor.start(self._postgres.process())
            connections: list[asyncpg.Connection[asyncpg.Record]] = []

            async def connected() -> bool:
                connection = await self._postgres.connect()
                connections.extend([connection] if connection else [])
                return bool(connection)

            await probe.wait_until(connected, process, _PATIENCE)
            try:
                await roles.ensure(connections[0], self._postgres.passwords())
            finally:
                await connections[0].close()
        with self._report.step("Database migrations") as step:
            secret = self._home.secret(MIGRATOR_SECRET, password)
            try:
                key = read_master_key(self._home.secrets / MASTER_KEY)
                applied = await migrate.up(
                    self._postgres.dsn(roles.MIGRATOR), secret, master_key=key
                )
            except (SealingError, OtherKeyError) as error:
                raise LauncherError(
                    f"The master key does not fit: {error}.",
                    advice=f"{self._home.secrets / MASTER_KEY} must hold the key that the database"
                    " was made with.",
                ) from error
            except (migrate.MigrationError, asyncpg.PostgresError) as error:
                raise LauncherError(
                    f"The database's schema could not be brought up to date: {error}",
                    advice="Was this home used by a newer release? Then start that one.",
                ) from error
            step.note = f"{len(applied)} applied" if applied else "up to date"

    async def _start_nats(self, files: tls.Tls) -> None:
        with self._report.step("NATS"):
            spec = nats.process(
                self._home,
                CONTEXTS,
                self._ports,
                **self._nats_listen(files),
            )
            process = self._supervisor.start(spec)
            await self._ready_at(process, self._ports["nats_monitor"], "/healthz")

    def _nats_listen(self, files: tls.Tls) -> dict[str, Any]:
        """Loopback in the clear for the services alone; with TLS as soon as others may come."""
        if self._options.events_listen is None:
            return {}
        certificate = Tls(files.ca_certificate, files.server_certificate, files.server_key)
        return {"host": self._options.events_listen[0], "tls": certificate}

    async def _start_gateway(self, files: tls.Tls) -> None:
        with self._report.step("Gateway"):
            spec = await gateway.process(
                self._home,
                self._run,
                port=self._options.port,
                addresses=self._addresses,
                files=files,
                public_url=self._options.public_url,
                former_public_urls=self._options.former_public_urls,
                console_url=self._options.console_url,
            )
            process = self._supervisor.start(spec)
            await self._ready_at(process, gateway.administration(self._run), "/ready")

    async def _start_service(self, context: str) -> None:
        with self._report.step(f"Service {context}"):
            spec = services.process(
                context,
                home=self._home,
                run=self._run,
                postgres=self._postgres,
                ports=self._ports,
                admin_email=self._options.admin_email,
                log_level=self._options.log_level,
                public_url=self._options.public_url,
                former_public_urls=self._options.former_public_urls,
                console_url=self._options.console_url,
                nats_tls=self._options.events_listen is not None,
                zygote=self._zygote,
            )
            process = self._supervisor.start(spec)
            await self._ready_at(process, self._ports[context], "/readyz")

    @staticmethod
    async def _ready_at(process: Supervised, where: int | Path, path: str) -> None:
        async def ready() -> bool:
            status, _ = await probe.http(where, path)
            return status == 200

        await probe.wait_until(ready, process, _PATIENCE)

    async def _wait_until_ready(self, files: tls.Tls, step: Step) -> None:
        context = ssl.create_default_context(cafile=str(files.ca_certificate))

        async def ready() -> bool:
            status, body = await probe.http(self._options.port, "/readyz", tls=context)
            if status != 200:
                with contextlib.suppress(ValueError, AttributeError):
                    step.note = str(json.loads(body).get("message", ""))
            return status == 200

        await probe.wait_until(ready, self._supervisor["gateway"], _PATIENCE)
        step.note = ""

    async def _keep_certificates(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew_certificates())
            if self._options.tls_directory is not None:
                group.create_task(self._follow_given(self._options.tls_directory))

    async def _follow_given(self, source: Path) -> None:
        """Takes over a certificate that was renewed; the gateway follows the files."""
        told = ""
        while True:
            await asyncio.sleep(_GIVEN_CHECK)
            try:
                _, changed = tls.take(source, self._home.tls, datetime.datetime.now(datetime.UTC))
            except (tls.GivenCertificateError, OSError) as error:
                # It may be half written; what is served stays.
                if str(error) != told:
                    self._logs.event("warning", "certificate not taken over", reason=str(error))
                told = str(error)
                continue
            told = ""
            if changed:
                self._logs.event("info", "certificate taken over", source=str(source))

    async def _renew_certificates(self) -> None:
        """Renews the gateway's certificate in time, for as long as the product runs.

        Envoy notices new files by itself. No connection is cut.
        """
        while True:
            await asyncio.sleep(_CERTIFICATE_CHECK)
            before = (self._home.tls / "server.crt").read_bytes()
            try:
                renewed = self._certificate().server_certificate.read_bytes() != before
            except (LauncherError, OSError) as error:
                # Devices still accept the old one; the doctor says until when.
                self._logs.event("error", "certificate not renewed", reason=str(error))
                continue
            if renewed:
                self._logs.event("info", "certificate renewed")
                if self._options.events_listen is not None:
                    self._supervisor["nats"].reload()

    async def _stop(self) -> None:
        if not self._supervisor.has_started:
            return
        self._logs.calm = True
        notify("STOPPING=1", "STATUS=Stopping ...")
        self._console.say("\nStopping ...")
        began = time.monotonic()
        if self._zygote is not None:
            # A start that is given up: nobody waits for it any more.
            self._zygote.end()
        await self._supervisor.stop(_STOP_ORDER)
        self._console.say(f"Stopped after {time.monotonic() - began:.1f} s.")


def _give_memory_back() -> None:
    """Gives the system back what the start needed; what follows is little for a long time."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that is worth telling: the first one of ours, otherwise the first of all."""
    found: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting.extend(error.exceptions)
        else:
            found.append(error)
    return next((error for error in found if isinstance(error, LauncherError)), found[0])
