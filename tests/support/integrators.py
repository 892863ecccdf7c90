"""Programs that read a tenant's events from NATS, and what they must not do there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Sequence
from typing import Any

import nats
from nats.aio.client import Client

from contract.subjects import DOMAIN, EVENTS, STREAMS
from evergreen.v1 import identity_pb2 as pb
from tests.support.callers import Metadata
from tests.support.identity import Identity
from tests.support.stack import PATIENCE


class Integrators:
    """Programs that connect with credentials."""

    def __init__(self, urls: Sequence[str], tls: ssl.SSLContext | None = None) -> None:
        """`urls` are those of NATS, of which any will do."""
        self._urls = list(urls)
        self._tls = tls
        self.clients: list[Client] = []
        self.errors: list[str] = []

    async def connect(self, user: str, secret: str, **more: Any) -> Client:
        async def keep(error: Exception) -> None:
            self.errors.append(str(error))

        client = await nats.connect(
            **{
                "servers": self._urls,
                "tls": self._tls,
                "user": user,
                "password": secret,
                "inbox_prefix": f"_INBOX_{user}",
                "error_cb": keep,
                "allow_reconnect": False,
                "connect_timeout": PATIENCE,
                **more,
            },
        )
        self.clients.append(client)
        return client

    async def refused(self, user: str, secret: str, **more: Any) -> bool:
        try:
            await self.connect(user, secret, **more)
        except (nats.errors.Error, OSError):
            return True
        return False

    async def close(self) -> None:
        for client in self.clients:
            await client.close()


async def create(
    identity: Identity, by: Metadata, tenant_id: str = "", **more: Any
) -> pb.EventCredential:
    return await identity.credentials.CreateEventCredential(
        pb.CreateEventCredentialRequest(tenant_id=tenant_id, name="SIEM", **more), metadata=by
    )


async def read(client: Client, user: str, count: int, stream: str = EVENTS.name) -> list[Any]:
    """The next messages of the credential's consumer, in order, acknowledged."""
    found: dict[int, Any] = {}
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            # The consumer is there a moment after the credential.
            with contextlib.suppress(TimeoutError, nats.js.errors.Error, nats.errors.Error):
                reader = await client.jetstream(domain=DOMAIN).pull_subscribe_bind(user, stream)
                try:
                    messages = await reader.fetch(100, timeout=0.5)
                finally:
                    await reader.unsubscribe()
                for message in messages:
                    # One whose acknowledgement is not confirmed comes again, behind others.
                    found[message.metadata.sequence.stream] = message
                    await message.ack_sync()
    return [found[sequence] for sequence in sorted(found)]


async def nothing_more(client: Client, user: str) -> bool:
    reader = await client.jetstream(domain=DOMAIN).pull_subscribe_bind(user, EVENTS.name)
    try:
        await reader.fetch(1, timeout=0.5)
    except TimeoutError:
        return True
    return False


def actions(messages: list[Any]) -> list[str]:
    return [json.loads(message.data)["data"]["action"] for message in messages]


async def rename(identity: Identity, by: Metadata, tenant_id: str, name: str) -> None:
    await identity.tenants.UpdateTenant(
        pb.UpdateTenantRequest(id=tenant_id, name=name), metadata=by
    )


def forbidden(own: str, other: str, tenant: str) -> list[str]:
    """Subjects that an integrator must not publish to."""
    api = f"$JS.{DOMAIN}.API"
    return [
        f"evergreen.v1.{tenant}.policy.published",
        f"{api}.CONSUMER.MSG.NEXT.{EVENTS.name}.{other}",
        f"{api}.CONSUMER.INFO.{EVENTS.name}.{other}",
        f"{api}.CONSUMER.MSG.NEXT.{EVENTS.name}.audit",
        f"$JS.ACK.{EVENTS.name}.{other}.1.1.1.1.0",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.USER.AUTH",
        "$SYS.REQ.ACCOUNT.PING.CONNZ",
        "_INBOX_identity.x",
        f"_INBOX_{other}.x",
        *(
            f"{prefix}.{request}"
            for prefix in ("$JS.API", api)
            for stream in STREAMS
            for request in (
                f"CONSUMER.CREATE.{stream.name}.{own}",
                f"CONSUMER.CREATE.{stream.name}.{own}.evergreen.v1.{tenant}.>",
                f"CONSUMER.CREATE.{stream.name}.{own}.evergreen.v1.>",
                f"CONSUMER.DURABLE.CREATE.{stream.name}.{own}",
                f"CONSUMER.DELETE.{stream.name}.{own}",
                f"CONSUMER.LIST.{stream.name}",
                f"STREAM.MSG.GET.{stream.name}",
                f"DIRECT.GET.{stream.name}",
                f"DIRECT.GET.{stream.name}.evergreen.v1.{tenant}.policy.published",
                f"STREAM.INFO.{stream.name}",
                f"STREAM.PURGE.{stream.name}",
                f"STREAM.DELETE.{stream.name}",
                f"STREAM.UPDATE.{stream.name}",
                f"STREAM.MSG.DELETE.{stream.name}",
                "STREAM.NAMES",
                "INFO",
            )
        ),
    ]


LISTENS = (
    ">",
    "evergreen.v1.>",
    "evergreen.v1.{tenant}.>",
    "_INBOX_{other}.>",
    "_INBOX_identity.>",
    "_INBOX.>",
    "$SYS.>",
    "$JS.>",
)
"""Subjects that an integrator must not subscribe to."""


async def check_that_nothing_else_is_permitted(
    integrators: Integrators, client: Client, own: str, other: str, tenant: str
) -> None:
    """The whole matrix, on the real server: publishing, subscribing, other readers' consumers."""
    assert integrators.errors == []

    async def errors(count: int) -> set[str]:
        async with asyncio.timeout(PATIENCE):
            while len(integrators.errors) < count:
                await asyncio.sleep(0.02)
        found = {error.lower() for error in integrators.errors}
        integrators.errors.clear()
        return found

    subjects = forbidden(own, other, tenant)
    for subject in subjects:
        await client.publish(subject, b"{}")
    await client.flush()
    told = await errors(len(subjects))
    for subject in subjects:
        assert any("publish" in e and f'"{subject.lower()}"' in e for e in told), subject

    listens = [subject.format(tenant=tenant, other=other) for subject in LISTENS]
    for subject in listens:
        await client.subscribe(subject)
    await client.flush()
    told = await errors(len(listens))
    for subject in listens:
        assert any("subscription" in e and f'"{subject.lower()}"' in e for e in told), subject
