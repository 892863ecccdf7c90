"""Calls that are made again while a busy machine answers that it cannot now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx

from tests.support.stack import PATIENCE

_SECONDS = 0.2


class _Patient(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        until = asyncio.get_running_loop().time() + PATIENCE
        while True:
            call = await continuation(client_call_details, request)
            late = asyncio.get_running_loop().time() > until
            if late or await call.code() is not grpc.StatusCode.UNAVAILABLE:
                return call
            await asyncio.sleep(_SECONDS)


def patient_channel(target: str) -> grpc.aio.Channel:
    """A channel to a service's public listener."""
    return grpc.aio.insecure_channel(target, interceptors=[_Patient()])


async def patiently(call: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """The answer of a call that may be made twice."""
    until = asyncio.get_running_loop().time() + PATIENCE
    while True:
        answer = await call()
        late = asyncio.get_running_loop().time() > until
        if late or answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            return answer
        await asyncio.sleep(_SECONDS)
