"""The product under load: started in a temporary home, and what the load needs to know of it."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from bench.cpu import Process, below, processes, usage
from bench.traffic import POLL, Call
from cli.sim.bodies import enroll_body, events_body
from deploy.launcher.home import Home
from deploy.postgres.roles import DATABASE
from servicekit.ids import now
from servicekit.keys.ring import KeyRing, RingKey
from servicekit.security.sealing import Sealer
from servicekit.security.signing import PublicKey
from services.identity.token_keys.tokens import TokenSigner
from tests.support import stack as product_stack
from tests.support.stack import Stack

_DEVICE_LIFE = timedelta(days=365)
_UNLIMITED = {
    f"EVERGREEN_GATEWAY_{name}": "1000000000:1000000000"
    for name in ("DEVICE", "TENANT", "USER", "ENROLL")
}
"""All load comes from one address and one organisation: their calls are counted as ever, by the
product and by the floors, but never too many."""
_HAVE_HEARD = (
    "SELECT EXISTS (SELECT FROM policy.devices WHERE device_id = $1::text::uuid)",
    "SELECT EXISTS (SELECT FROM telemetry.device WHERE id = $1::text::uuid AND serial <> '')",
    "SELECT done_xid > '3' AND done_xid >= (SELECT max(xid) FROM telemetry.event"
    " WHERE device_id = $1::text::uuid) FROM telemetry.event_relay",
)
_AT_REST = 0.3
"""Processors that it keeps busy at most when it has nothing to do."""


@dataclass(slots=True)
class Product:
    """A running product that is about to be measured."""

    stack: Stack
    name: str = "product"
    rest_cpus: float = 0.0
    """How many processors it keeps busy when nobody calls, once that was measured."""

    @property
    def port(self) -> int:
        return self.stack.port

    @property
    def ca_file(self) -> str:
        return self.stack.ca_file

    def processes(self) -> list[Process]:
        """All of its processes but the launcher, which only watches."""
        return below(self.stack.process.pid, processes())

    def is_success(self, call: Call, status: int) -> bool:
        """A poll has to be answered "not modified", for it is cheap only then."""
        return status == (304 if call.kind == POLL else 200)

    def publish_policy(self) -> int:
        """Puts a policy into force for the first organisation; answers its version."""
        with self.stack.client(self.stack.login()["token"]) as client:
            bundle = {
                "updates": {"channel": "stable"},
                "browser": {"homepage": "https://x.example"},
            }
            policy = {"name": "Bench", "orgId": self.stack.tenant_id, "bundle": bundle}
            made = client.post("/api/policies", json=policy).raise_for_status().json()
            published = client.post(f"/api/policies/{made['id']}/publish", json={})
            return int(published.raise_for_status().json()["version"])

    async def first_device(self) -> None:
        """Enrolls a device that reports an event, and waits until every reader has heard of it.

        From then on they go on from there: what is stored with an older transaction id is history.
        """
        with self.stack.client() as client:
            body = enroll_body(f"FIRST-{time.time_ns()}", self.stack.pre_shared_key)
            path = "/api/v1/devices"
            enrolled = client.post(f"{path}/enroll", content=body).raise_for_status().json()
            client.headers["authorization"] = f"Bearer {enrolled['device_token']}"
            event = events_body(enrolled["device_id"], [time.time_ns()])
            client.post(f"{path}/events", content=event).raise_for_status()
        connection = await self.superuser()
        try:
            for reader in _HAVE_HEARD:
                while not await connection.fetchval(reader, enrolled["device_id"]):
                    await asyncio.sleep(0.1)
        finally:
            await connection.close()

    async def restart_postgres(self) -> None:
        """Gives PostgreSQL memory for what is stored now, as each start does."""
        (before,) = self.stack.pids("postgres")
        self.stack.signal("postgres", signal.SIGINT)
        while self.stack.pids("postgres") in ([], [before]):
            await asyncio.sleep(0.1)
        while True:
            try:
                connection = await self.superuser()
            except (OSError, asyncpg.PostgresError):
                await asyncio.sleep(0.1)
            else:
                await connection.close()
                return

    async def superuser(self) -> asyncpg.Connection:
        """A connection that may write every table."""
        return await superuser(self.stack.home)

    async def signer(self) -> TokenSigner:
        """Signs tokens as identity does, with its keys."""
        return await signer(self.stack.home)

    async def tokens(self, device_ids: list[str]) -> list[str]:
        """A token for each device of the first organisation."""
        signer = await self.signer()
        tenant, now = self.stack.tenant_id, datetime.now(UTC) - timedelta(minutes=1)

        def sign() -> list[str]:
            return [signer.device_token(device, tenant, 1, now)[0] for device in device_ids]

        return await asyncio.to_thread(sign)

    async def settled(self, limit: float = 30.0) -> None:
        """Waits until it rests, at most so long: events published, reports written, feeds read."""
        end = time.monotonic() + limit
        before = self._spent()
        # Feeds tell within a second.
        pause = 1.5
        while time.monotonic() < end:
            await asyncio.sleep(pause)
            spent = self._spent() - before
            if spent < _AT_REST * pause:
                return
            before, pause = before + spent, 0.5

    async def measure_rest(self, seconds: float = 4.0) -> None:
        """Finds out what it uses when nobody calls."""
        before, began = self._spent(), time.monotonic()
        await asyncio.sleep(seconds)
        self.rest_cpus = (self._spent() - before) / (time.monotonic() - began)

    def _spent(self) -> float:
        return usage(self.processes()).total


async def superuser(directory: Path) -> asyncpg.Connection:
    """A connection that may write every table of the installation in a directory."""
    home = Home(directory)
    return await asyncpg.connect(
        host=str(home.run_directory() / "postgres"),
        user="postgres",
        password=(home.secrets / "postgres_superuser").read_text().strip(),
        database=DATABASE,
    )


async def signer(directory: Path) -> TokenSigner:
    """Signs tokens as identity does, with the keys of the installation in a directory."""
    sealer = Sealer.from_file(directory / "secrets" / "master_key", "identity-keys")
    connection = await superuser(directory)
    try:
        rows = await connection.fetch(
            "SELECT purpose, public_key, algorithm, sealed_seed, created_at"
            " FROM identity.signing_key ORDER BY created_at"
        )
    finally:
        await connection.close()
    ring = KeyRing(sealer.open, now)
    ring.replace(
        RingKey(
            PublicKey(row["public_key"]),
            row["purpose"],
            row["algorithm"],
            row["sealed_seed"],
            created_at=row["created_at"],
            signs_from=row["created_at"],
        )
        for row in rows
    )
    return TokenSigner(ring, _DEVICE_LIFE)


@contextmanager
def running(name: str = "product", home: Path | None = None) -> Iterator[Product]:
    """Starts a product: in a home that is kept, or in one that lives for this run only."""
    with ExitStack() as stack:
        if home is None:
            # On a disk, as in real life: /tmp may be in memory.
            temporary = tempfile.TemporaryDirectory(prefix="evergreen-bench-", dir="/var/tmp")
            home = Path(stack.enter_context(temporary)) / "home"
        home.parent.mkdir(parents=True, exist_ok=True)
        started = stack.enter_context(product_stack.running(home, **_UNLIMITED))
        yield Product(started, name)
