"""Prints a tenant's events as they come, each once (docs/integrators.md). Needs nats-py."""

import asyncio
import json
import os
import ssl

import nats


async def main() -> None:
    user, ca_file = os.environ["EVENTS_USER"], os.environ.get("EVENTS_CA_FILE")
    stream = os.environ.get("EVENTS_STREAM", "EVERGREEN")
    seen: set[str] = set()  # keep this in your database, in one transaction with what you do
    while True:
        try:
            client = await nats.connect(
                os.environ["EVENTS_URL"],
                user=user,
                password=os.environ["EVENTS_SECRET"],
                inbox_prefix=f"_INBOX_{user}",
                tls=ssl.create_default_context(cafile=ca_file),
            )
            jetstream = client.jetstream(domain="evergreen")
            reader = await jetstream.pull_subscribe_bind(user, stream)
            while client.is_connected:
                for message in await reader.fetch(100, timeout=5):
                    event = json.loads(message.data)
                    if event["id"] not in seen:
                        print(json.dumps(event), flush=True)
                        seen.add(event["id"])
                    await message.ack()
        except (TimeoutError, nats.errors.Error, OSError):
            await asyncio.sleep(1)  # nothing new, or NATS is away; nothing is lost meanwhile


asyncio.run(main())
