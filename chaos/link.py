"""A connection between two parts of the product that can be slowed down or cut."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

_CHUNK = 1 << 16


class Link:
    """Listens in front of a socket and passes everything on, for as long as it is whole.

    Args:
        listen: where callers come, `unix:PATH` or `HOST:PORT`.
        target: where they are to get.
    """

    def __init__(self, listen: str, target: str) -> None:
        self.listen = listen
        self._target = target
        self._whole = asyncio.Event()
        self._whole.set()
        self._delay = 0.0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to listen."""
        if self.listen.startswith("unix:"):
            path = Path(self.listen.removeprefix("unix:"))
            self._server = await asyncio.start_unix_server(self._serve, path, backlog=1024)
            # As the real one: PostgreSQL's clients may be anybody, and need a password.
            path.chmod(0o777)
        else:
            host, _, port = self.listen.rpartition(":")
            self._server = await asyncio.start_server(self._serve, host, int(port), backlog=1024)

    async def close(self) -> None:
        """Stops listening and ends what is open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """From now on nothing arrives, and nobody is told: a partition."""
        self._whole.clear()

    def slow(self, seconds: float) -> None:
        """From now on everything arrives later."""
        self._delay = seconds

    def mend(self) -> None:
        """Makes it as it was; what waited arrives."""
        self._delay = 0.0
        self._whole.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._whole.wait()
            if self._target.startswith("unix:"):
                far = await asyncio.open_unix_connection(self._target.removeprefix("unix:"))
            else:
                host, _, port = self._target.rpartition(":")
                far = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            self._tasks.discard(task)
        pumps = [
            asyncio.create_task(self._pump(reader, far[1])),
            asyncio.create_task(self._pump(far[0], writer)),
        ]
        self._tasks.update(pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        # What one side said before it closed has been passed on by its pump.
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._tasks.difference_update(pumps)
        for end in (writer, far[1]):
            with contextlib.suppress(OSError):
                end.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._whole.wait()
                sink.write(data)
                await sink.drain()
