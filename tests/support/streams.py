"""What a stream holds, read from its beginning."""

from __future__ import annotations

import json
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

_BATCH = 500


async def read_stream(jetstream: JetStreamContext, stream: str, subject: str) -> list[Any]:
    """The contents of every message on a subject, oldest first; none while the stream is away.

    Reads to the end: other tests of the same servers may have left any number of messages.
    """
    found: list[Any] = []
    try:
        subscription = await jetstream.pull_subscribe(
            subject, stream=stream, config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
        )
        count = _BATCH
        while count == _BATCH:
            messages = await subscription.fetch(_BATCH, timeout=0.5)
            found += [json.loads(message.data) for message in messages]
            count = len(messages)
    except (TimeoutError, NotFoundError):
        pass
    return found
