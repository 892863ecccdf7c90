"""Reading the product's events as an integrator does, and holding them against the contract."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nats
from jsonschema import Draft7Validator
from nats.aio.client import Client

from contract.events.telemetry import DeviceEvents
from contract.subjects import DOMAIN, SUBJECT_ROOT
from tools.asyncapi import described_events, envelope

PATIENCE = 60.0
_described = functools.cache(described_events)


@functools.cache
def _validator(name: str) -> Draft7Validator:
    return Draft7Validator(
        envelope(_described()[name]), format_checker=Draft7Validator.FORMAT_CHECKER
    )


def check_event(event: dict[str, Any]) -> None:
    """Raises when an event is not what the contract says."""
    name = event["type"].removeprefix(f"{SUBJECT_ROOT}.")
    _validator(name).validate(event)
    assert name == DeviceEvents.NAME or event["data"]["action"] == name


@dataclass
class Reader:
    """A program that reads one stream with a credential; from a test that is not asynchronous."""

    url: str
    ca_file: str
    user: str
    secret: str
    stream: str
    events: list[dict[str, Any]] = field(default_factory=list)

    def until(self, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """All events since the first, each once, as soon as they are enough."""
        asyncio.run(asyncio.wait_for(self._read(enough), PATIENCE))
        return self.events

    def until_cut_off(self) -> None:
        """Waits until NATS refuses the credential."""
        asyncio.run(asyncio.wait_for(self._refused(), PATIENCE))

    async def _connect(self) -> Client:
        async def quiet(_: Exception) -> None:
            pass

        return await nats.connect(
            self.url,
            user=self.user,
            password=self.secret,
            inbox_prefix=f"_INBOX_{self.user}",
            tls=ssl.create_default_context(cafile=self.ca_file),
            error_cb=quiet,
            allow_reconnect=False,
        )

    async def _read(self, enough: Callable[[list[dict[str, Any]]], bool]) -> None:
        client = await self._connect()
        while not enough(self.events):
            if client.is_closed:
                client = await self._connect()
            # The consumer is there a moment after the credential.
            with contextlib.suppress(TimeoutError, nats.errors.Error, nats.js.errors.Error):
                jetstream = client.jetstream(domain=DOMAIN)
                subscription = await jetstream.pull_subscribe_bind(self.user, self.stream)
                for message in await subscription.fetch(100, timeout=0.5):
                    event = json.loads(message.data)
                    if event["id"] not in {known["id"] for known in self.events}:
                        self.events.append(event)
                    await message.ack()
        await client.close()

    async def _refused(self) -> None:
        while True:
            try:
                await (await self._connect()).close()
            except (nats.errors.Error, OSError):
                return
            await asyncio.sleep(0.1)
