"""How calls of a service are refused."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import grpc

from servicekit.rpc.server import H_ERROR


@dataclass(frozen=True)
class Refused:
    """How a gRPC call was refused: its status, and the body that the gateway would answer."""

    code: grpc.StatusCode
    body: dict[str, Any]

    @property
    def reason(self) -> str:
        found: str = self.body["details"][0]["reason"]
        return found

    @property
    def fields(self) -> list[str]:
        return fields_of(self.body)


def fields_of(body: dict[str, Any]) -> list[str]:
    """Which fields the body of an error says are wrong."""
    return [
        violation["field"]
        for detail in body["details"]
        for violation in detail.get("fieldViolations", ())
    ]


async def refusal(call: Awaitable[Any]) -> Refused:
    """Waits for a call that has to fail."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return refused_with(error)
    raise AssertionError(f"the call was answered: {answer}")


def refused_with(error: grpc.aio.AioRpcError) -> Refused:
    """How a call was refused that raised this."""
    trailing = dict(error.trailing_metadata() or ())
    return Refused(error.code(), json.loads(trailing[H_ERROR]))
