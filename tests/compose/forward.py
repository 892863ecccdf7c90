"""What a Service with a port of its own does: hands connections on, to each pod in turn."""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


async def _main(listen: int, host: str, port: int) -> None:
    turn = itertools.count()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            found = sorted({str(info[4][0]) for info in socket.getaddrinfo(host, port)})
        except OSError:
            found = []
        first = next(turn)
        for number in range(len(found)):
            try:
                there = await asyncio.open_connection(found[(first + number) % len(found)], port)
            except OSError:
                continue
            await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
            there[1].close()
            break
        writer.close()

    server = await asyncio.start_server(serve, port=listen)
    async with server:
        await server.serve_forever()


asyncio.run(_main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
