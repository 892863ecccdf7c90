"""Prints a tenant's events as they come, each once (docs/integrators.md). Needs nats-py."""

import asyncio
import json
import os
import signal
import ssl
import time
from contextlib import suppress

import nats

URL, USER, SECRET = (os.environ[f"EVENTS_{name}"] for name in ("URL", "USER", "SECRET"))
STREAM = os.environ.get("EVENTS_STREAM", "EVERGREEN")
TLS = ssl.create_default_context(cafile=os.environ.get("EVENTS_CA_FILE"))
LOGIN = {"user": USER, "password": SECRET, "inbox_prefix": f"_INBOX_{USER}", "tls": TLS}
seen: set[str] = set()  # keep this in your database, in one transaction with what you do


async def read() -> None:
    client = await nats.connect(URL.split(","), **LOGIN, ping_interval=10, allow_reconnect=False)
    async with client:
        reader = await client.jetstream(domain="evergreen").pull_subscribe_bind(USER, STREAM)
        while client.is_connected:
            with suppress(TimeoutError):  # nothing new
                for message in await reader.fetch(100, timeout=5):
                    event = json.loads(message.data)
                    if event["id"] not in seen:
                        print(json.dumps(event), flush=True)
                        seen.add(event["id"])
                    await message.ack()


signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it; asyncio's waits may swallow it
while True:  # NATS is away at times, or wants you to connect again; nothing is lost meanwhile
    with suppress(nats.errors.Error, OSError):
        asyncio.run(read())
    time.sleep(1)
