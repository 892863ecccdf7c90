"""Who may call what through the gateway: generated from every row of the access table."""

from __future__ import annotations

import asyncio
import re

import grpc
import httpx
import pytest

from contract.access import ACCESS, Audience
from deploy.gateway.api import Method, load
from deploy.gateway.settings import DESCRIPTORS
from tests.gateway.harness import Gateway, bearer, error_of
from tests.gateway.tokens import DAY, DEVICE

METHODS = load(DESCRIPTORS)
ALLOWED = {
    Audience.PUBLIC: {"none", "garbage", "user", "device", "lapsed", "long-lapsed"},
    Audience.USER: {"user"},
    # That it has lapsed is for the services to see.
    Audience.DEVICE: {"device", "lapsed"},
    Audience.DEVICE_LAPSED: {"device", "lapsed"},
}


@pytest.fixture(scope="module")
def tokens(shared_gateway: Gateway) -> dict[str, str | None]:
    """One of every kind."""
    signer = shared_gateway.signer
    return {
        "none": None,
        "garbage": "abc.def.ghi",
        "user": signer.user(),
        "device": signer.device(),
        "lapsed": signer.device(lifetime=-89 * DAY),
        "long-lapsed": signer.device(lifetime=-91 * DAY),
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.path.rpartition(".")[2])
async def test_each_json_route_takes_its_own_audience_only(
    gateway: Gateway, tokens: dict[str, str | None], method: Method
) -> None:
    """JSON: the right token reaches the owning context; no other token reaches any."""

    async def call(token: str | None) -> httpx.Response:
        # Over HTTP/2 a refusal resets the stream, on which httpx may not have sent its body yet.
        return await gateway.http1.request(
            method.verb,
            re.sub(r"{\w+(?:=\*\*)?}", DEVICE, method.template),
            headers=bearer(token) if token else {},
            content=b"{}" if method.verb in ("POST", "PATCH") else None,
        )

    answers = await asyncio.gather(*(call(token) for token in tokens.values()))
    for kind, answer in zip(tokens, answers, strict=True):
        if kind in ALLOWED[method.rule.audience]:
            assert answer.status_code == 200, (kind, answer.text)
        elif kind == "none" and method.template == "/auth/logout":
            assert answer.content == b"{}"  # there is nothing to end, and nobody is asked
        else:
            error_of(answer, 401, "UNAUTHENTICATED")
    _reached(gateway, method, "http" if method.rule.agent_form else "grpc")


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.path.rpartition(".")[2])
async def test_each_rpc_takes_its_own_audience_only(
    gateway: Gateway, tokens: dict[str, str | None], method: Method
) -> None:
    """Native gRPC: the same rule as the JSON form's."""
    answers = await asyncio.gather(
        *(gateway.grpc(method.path, token=token) for token in tokens.values()),
        return_exceptions=True,
    )
    for kind, answer in zip(tokens, answers, strict=True):
        if kind in ALLOWED[method.rule.audience]:
            assert answer == b"", kind
        else:
            assert isinstance(answer, grpc.aio.AioRpcError), kind
            assert answer.code() is grpc.StatusCode.UNAUTHENTICATED
    _reached(gateway, method, "grpc")


def _reached(gateway: Gateway, method: Method, form: str) -> None:
    path = method.template if form == "http" else method.path
    expected = [(method.rule.context, path, form)] * len(ALLOWED[method.rule.audience])
    assert [(s.context, s.path, s.form) for s in gateway.backends.seen] == expected


@pytest.mark.parametrize("path", [p for p, r in ACCESS.items() if r.audience is Audience.INTERNAL])
async def test_internal_rpcs_are_not_there(
    gateway: Gateway, tokens: dict[str, str | None], path: str
) -> None:
    """What only services call has no address at the gateway, whatever the token."""
    for token in tokens.values():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await gateway.grpc(path, token=token)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        headers = bearer(token) if token else {}
        error_of(await gateway.http.post(path, headers=headers, json={}), 404, "NOT_FOUND")
    assert gateway.backends.seen == []


async def test_what_is_not_in_the_table_is_not_there(
    gateway: Gateway, tokens: dict[str, str | None]
) -> None:
    """Unknown RPCs and services of other packages are refused even with a good token."""
    for path in (
        "/evergreen.v1.PolicyService/Nothing",
        "/evergreen.v1.PolicyService/ListPolicies/",
        "/evergreen.v1.PolicyService",
        "/evergreen.v2.PolicyService/ListPolicies",
        "/grpc.channelz.v1.Channelz/GetServers",
        "/",
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await gateway.grpc(path, token=tokens["user"])
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED, path
    assert gateway.backends.seen == []


async def test_a_grpc_call_has_one_method(gateway: Gateway, tokens: dict[str, str | None]) -> None:
    """Any other is the caller's mistake: answered here, and no service is tried again for it."""
    paths = [method.path for method in METHODS]
    for kind in ("application/grpc", "application/grpc+proto", "application/grpc-web+proto"):
        for path in [*paths, "/grpc.health.v1.Health/Check", "/api/users", "/api/policies/x"]:
            token = tokens["device" if "Device" in path else "user"] or ""
            headers = {**bearer(token), "content-type": kind}
            for verb in ("GET", "PUT"):
                answer = await gateway.http.request(verb, path, headers=headers)
                assert answer.status_code < 500, (kind, path)
                refused = answer.headers.get("grpc-status", "0") != "0"
                assert refused or answer.status_code >= 400, (kind, path)
                assert answer.headers.get("grpc-status") not in {"13", "14"}, (kind, path)
    assert gateway.backends.seen == []
