"""Prints a tenant's events as they come, each once (docs/integrators.md). Needs nats-py."""

import asyncio
import json
import os
import ssl

import nats

USER, STREAM = os.environ["EVENTS_USER"], os.environ.get("EVENTS_STREAM", "EVERGREEN")
seen: set[str] = set()  # keep this in your database, in one transaction with what you do


async def read(client: nats.NATS) -> None:
    reader = await client.jetstream(domain="evergreen").pull_subscribe_bind(USER, STREAM)
    while client.is_connected:
        try:
            messages = await reader.fetch(100, timeout=5)
        except TimeoutError:
            continue  # nothing new
        for message in messages:
            event = json.loads(message.data)
            if event["id"] not in seen:
                print(json.dumps(event), flush=True)
                seen.add(event["id"])
            await message.ack()


async def main() -> None:
    while True:
        try:
            client = await nats.connect(
                os.environ["EVENTS_URL"].split(","),
                user=USER,
                password=os.environ["EVENTS_SECRET"],
                inbox_prefix=f"_INBOX_{USER}",
                tls=ssl.create_default_context(cafile=os.environ.get("EVENTS_CA_FILE")),
                ping_interval=10,
                allow_reconnect=False,
            )
            async with client:
                await read(client)
        except (nats.errors.Error, OSError):
            pass  # NATS is away, or wants you to connect again; nothing is lost meanwhile
        await asyncio.sleep(1)


asyncio.run(main())
