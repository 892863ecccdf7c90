"""What operators and probes ask a service."""

from __future__ import annotations

import httpx

from servicekit.feeds.feed import LAST_READ
from servicekit.http.ops import OpsApp
from servicekit.http.protocol import DeviceServer
from tests.support.stack import free_port


async def test_operators_are_told_how_a_service_is() -> None:
    """That it lives, what it lacks, its metrics, and nothing else."""
    lacks = ["database", "identity"]

    async def missing() -> list[str]:
        return lacks

    LAST_READ.labels("ops").set(1)
    address = f"127.0.0.1:{free_port()}"
    server = DeviceServer(address, OpsApp(missing))
    await server.start()
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        alive = await client.get("/healthz")
        assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
        assert alive.headers["content-type"] == "application/json"

        waiting = await client.get("/readyz?verbose")
        assert waiting.status_code == 503
        assert waiting.json() == {"status": "not ready", "missing": ["database", "identity"]}
        lacks.clear()
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "missing": []})

        metrics = await client.get("/metrics")
        assert metrics.status_code == 200
        assert metrics.headers["content-type"].startswith("text/plain; version=")
        assert 'evergreen_feed_last_read_timestamp_seconds{feed="ops"} 1.0' in metrics.text
        head = await client.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")

        assert (await client.get("/")).status_code == 404
        assert (await client.post("/healthz", content=b"x" * 100_000)).status_code == 405
        assert (await client.get("/healthz")).status_code == 200
    await server.stop()
