"""What a stream holds, read from its beginning."""

from __future__ import annotations

import json
from typing import Any

from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

_BATCH = 500
_SECONDS = 10.0
"""What is there comes at once, but where the stream is thrown away meanwhile."""


async def read_stream(
    jetstream: JetStreamContext, stream: str, subject: str, *, behind: int = 0
) -> list[Any]:
    """The contents of every message on a subject, oldest first; none while the stream is away.

    Reads to the end: other tests of the same servers may have left any number of messages.

    Args:
        behind: the sequence number of what is not of interest, as `end_of` answers it.
    """
    found: list[Any] = []
    # Without a limit of what is not acknowledged: it is read, and left as it is.
    config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, max_ack_pending=-1)
    if behind:
        config.deliver_policy, config.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, behind + 1
    try:
        subscription = await jetstream.pull_subscribe(subject, stream=stream, config=config)
        waiting = (await subscription.consumer_info()).num_pending or 0
        while len(found) < waiting:
            # As many as there are: for more it would be waited.
            messages = await subscription.fetch(min(waiting - len(found), _BATCH), _SECONDS)
            found += [json.loads(message.data) for message in messages]
        await subscription.unsubscribe()
    except (TimeoutError, NotFoundError):
        pass
    return found


async def end_of(jetstream: JetStreamContext, stream: str) -> int:
    """The sequence number of a stream's last message; 0 while it is away."""
    try:
        return (await jetstream.stream_info(stream)).state.last_seq
    except NotFoundError:
        return 0
