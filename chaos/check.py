"""Whether every promise was kept: in PostgreSQL, on the streams, in the audit log."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter, defaultdict
from typing import Any
from uuid import UUID

import asyncpg
import nats.js.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from chaos.load import Promises
from chaos.product import Product
from contract.contexts import CONTEXTS
from deploy.launcher.home import password
from deploy.launcher.postgres import SUPERUSER, SUPERUSER_SECRET
from tests.support.stack import PATIENCE

_DEVICE_EVENTS = ".telemetry.device_events"


async def broken_promises(product: Product, promises: Promises) -> list[str]:
    """What was promised and is not so; empty when everything is."""
    connection = await asyncpg.connect(
        product.servers.postgres.dsn(SUPERUSER),
        password=product.home.secret(SUPERUSER_SECRET, password),
    )
    try:
        found = list(promises.defects)
        found += await _events(connection, promises)
        found += await _states(connection, promises)
        found += await _audit(connection, promises)
        found += await _streams(product, connection)
        found += await asyncio.to_thread(_audit_chain, product)
        return found
    finally:
        await connection.close()


async def _events(connection: asyncpg.Connection[Any], promises: Promises) -> list[str]:
    stored: dict[str, list[int]] = defaultdict(list)
    for row in await connection.fetch("SELECT device_id, event_id FROM telemetry.event"):
        stored[str(row["device_id"])].append(int(row["event_id"]))
    found = []
    for device, noted in promises.noted.items():
        have, told = stored.pop(device, []), promises.ledger.events.get(device, [])
        if lost := set(told) - set(have):
            found.append(f"{device}: {len(lost)} acknowledged events are lost")
        if len(have) != len(set(have)):
            found.append(f"{device}: {len(have) - len(set(have))} events are stored twice")
        if len(told) != len(set(told)):
            found.append(f"{device}: events were acknowledged twice")
        if invented := set(have) - noted:
            found.append(f"{device}: {len(invented)} events that it never sent")
    if stored:
        found.append(f"events of {len(stored)} devices that are not ours")
    return found


async def _states(connection: asyncpg.Connection[Any], promises: Promises) -> list[str]:
    rows = await connection.fetch(
        "SELECT id, (extract(epoch FROM observed_at) * 1000000)::bigint AS micros"
        " FROM telemetry.device WHERE observed_at IS NOT NULL"
    )
    stored = {str(row["id"]): row["micros"] for row in rows}
    return [
        f"{device}: an acknowledged state is lost"
        for device, told in promises.ledger.states.items()
        if stored.get(device, 0) < told // 1000 - 1
    ]


async def _audit(connection: asyncpg.Connection[Any], promises: Promises) -> list[str]:
    """Every event of an outbox is in the log, and every action that was acknowledged."""
    missing = "unknown"
    async with asyncio.timeout(2 * PATIENCE):
        while missing:
            outboxes = " UNION ALL ".join(f"SELECT id FROM {c}.outbox" for c in CONTEXTS)
            missing = await connection.fetchval(
                f"SELECT count(*) FROM ({outboxes}) o"
                " WHERE NOT EXISTS (SELECT FROM audit.entry e WHERE e.id = o.id)"
            )
            await asyncio.sleep(0.5)
    rows = await connection.fetch(
        "SELECT action, resource, count(*) AS times FROM audit.entry GROUP BY action, resource"
    )
    logged = Counter({(row["action"], row["resource"]): row["times"] for row in rows})
    lost = (promises.actions - logged).total()
    return [f"{lost} acknowledged actions are not in the audit log"] if lost else []


async def _streams(product: Product, connection: asyncpg.Connection[Any]) -> list[str]:
    """Every event of a device and of an outbox is on the streams, each under one message id."""
    devices = {
        (str(row["device_id"]), row["event_id"])
        for row in await connection.fetch("SELECT device_id, event_id FROM telemetry.event")
    }
    outboxes = " UNION ALL ".join(f"SELECT id FROM {context}.outbox" for context in CONTEXTS)
    domain = {row["id"] for row in await connection.fetch(outboxes)}
    lacking: tuple[int, int] = (1, 1)
    for _ in range(30):
        events, ids = await _on_streams(product)
        lacking = (len(devices - events), len(domain - ids))
        if lacking == (0, 0):
            return []
        await asyncio.sleep(2)
    return [f"the streams lack {lacking[0]} events of devices and {lacking[1]} other events"]


async def _on_streams(product: Product) -> tuple[set[tuple[str, str]], set[UUID]]:
    client = await product.servers.operator()
    try:
        jetstream = client.jetstream()
        events: set[tuple[str, str]] = set()
        ids: set[UUID] = set()
        for stream in await jetstream.streams_info():
            name = stream.config.name
            subscription = await jetstream.pull_subscribe(
                "evergreen.v1.>",
                stream=name,
                config=ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL),
            )
            seen = 0
            while seen < stream.state.messages:
                try:
                    messages = await subscription.fetch(500, timeout=5)
                except (TimeoutError, nats.js.errors.NotFoundError):
                    break
                seen += len(messages)
                for message in messages:
                    event = json.loads(message.data)
                    if message.subject.endswith(_DEVICE_EVENTS):
                        events.update(_device_events(event))
                    else:
                        ids.add(UUID(event["id"]))
            await subscription.unsubscribe()
        return events, ids
    finally:
        await client.close()


def _device_events(event: dict[str, Any]) -> set[tuple[str, str]]:
    return {(found["deviceId"], found["eventId"]) for found in event["data"]["events"]}


def _audit_chain(product: Product) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "audit", "verify", "--home", str(product.home.root)],
        capture_output=True,
        text=True,
        check=False,
    )
    return [] if done.returncode == 0 else [f"audit verify: {done.stdout}{done.stderr}"]
