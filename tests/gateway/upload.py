"""Uploads over h2 by hand: an answer that comes before the upload's end is read, too."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h2.config
import h2.connection
import h2.events

from tests.gateway.harness import Gateway


async def upload(
    gateway: Gateway, path: str, size: int, *, token: str, announced: bool = True
) -> tuple[int, dict[str, Any]]:
    """Sends a body of blanks and answers the status and the JSON of the answer."""
    context = gateway.certificate.trust()
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("localhost", gateway.settings.port, ssl=context)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    headers = [(":method", "POST"), (":path", path), (":scheme", "https"), (":authority", "a")]
    headers.append(("authorization", f"Bearer {token}"))
    if announced:
        headers.append(("content-length", str(size)))
    connection.send_headers(1, headers)
    status, body, left = 0, b"", size
    while True:
        while left and not status:
            room = min(
                connection.local_flow_control_window(1), connection.max_outbound_frame_size, left
            )
            if room <= 0:
                break
            left -= room
            connection.send_data(1, b" " * room, end_stream=not left)
        writer.write(connection.data_to_send())
        received = await asyncio.wait_for(reader.read(65536), 60)
        if not received:
            raise ConnectionError("closed without an answer")
        for event in connection.receive_data(received):
            if isinstance(event, h2.events.ResponseReceived):
                status = next(int(v) for k, v in event.headers if k in (":status", b":status"))
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
            elif isinstance(event, h2.events.StreamEnded):
                writer.close()
                return status, json.loads(body)
