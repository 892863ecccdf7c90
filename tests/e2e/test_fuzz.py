"""Whatever is sent, over JSON and over native gRPC, to any route: nothing is answered with a 5xx.

`EVERGREEN_FUZZ_CALLS=5000` makes so many calls of each kind (a few hundred without it), and
`EVERGREEN_FUZZ_SEED` makes others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import grpc
import httpx
import pytest

from contract.access import Audience
from tests.e2e.fuzz import Fuzzer, request_type
from tests.e2e.rpcs import Rpc, rpcs
from tests.e2e.world import PASSWORD, Org, make_org, ok
from tests.support import stack as test_stack
from tests.support.stack import Stack

pytestmark = pytest.mark.long

CALLS = int(os.environ.get("EVERGREEN_FUZZ_CALLS", "200"))
SEED = int(os.environ.get("EVERGREEN_FUZZ_SEED", "20261129"))
PLENTY = "1000000:100000"
RPCS = [rpc for rpc in rpcs() if rpc.rule.audience is not Audience.INTERNAL]
OFTEN = [r for r in RPCS if r.rule.audience is not Audience.USER or "AuthService" in r.name]
"""What anybody on the way in can reach: a third of all calls."""
BAD = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
}


@pytest.fixture(scope="module")
def generous(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A product of its own whose rates refuse nobody, or that would be all that is found."""
    rates = (
        "DEVICE",
        "TENANT",
        "USER",
        "LOGIN",
        "REFRESH",
        "INVITATION",
        "ENROLL",
        "OPEN",
        "OTHER",
    )
    limits = {f"EVERGREEN_GATEWAY_{name}": PLENTY for name in rates}
    with test_stack.running(tmp_path_factory.mktemp("fuzz") / "home", **limits) as found:
        yield found


@dataclass
class Callers:
    """An organisation with users and devices that may be lost on the way."""

    stack: Stack
    org: Org
    fuzzer: Fuzzer

    def __post_init__(self) -> None:
        policy = self.org.publish()
        self.devices = [self.org.device() for _ in range(4)]
        self.refresh = self.org.stack.login(self._user("Admin"), PASSWORD)["refreshToken"]
        self.tokens = [self._token() for _ in range(3)]
        self.fuzzer.known += [
            self.org.id,
            self.org.code,
            self.org.pre_shared_key,
            policy["id"],
            self.refresh,
            *(device.device_id for device in self.devices[:3] if device.device_id),
        ]

    def _user(self, role: str) -> str:
        email = f"{uuid4().hex[:12]}@school.example"
        user = {"email": email, "role": role, "tenantId": self.org.id, "password": PASSWORD}
        ok(self.org.root.post("/api/users", json=user))
        return email

    def _token(self) -> str:
        return str(self.stack.login(self._user("Owner"), PASSWORD)["token"])

    def of(self, rpc: Rpc) -> str:
        """The token to call with: mostly the right one."""
        if self.fuzzer.chance(0.05):
            return self.fuzzer.random.choice(("", "x", "e30.e30.AAAA"))
        if rpc.rule.audience in (Audience.DEVICE, Audience.DEVICE_LAPSED):
            return str(self.fuzzer.random.choice(self.devices).device_token)
        return (
            "" if rpc.rule.audience is Audience.PUBLIC else self.fuzzer.random.choice(self.tokens)
        )

    def lost(self, token: str) -> None:
        """Stands in for a user whose session a call has ended."""
        if token in self.tokens:
            self.tokens[self.tokens.index(token)] = self._token()

    def pick(self) -> Rpc:
        return self.fuzzer.random.choice(OFTEN if self.fuzzer.chance(0.33) else RPCS)


@pytest.fixture
def callers(generous: Stack, request: pytest.FixtureRequest) -> Iterator[Callers]:
    with generous.client(generous.login()["token"]) as root:
        fuzzer = Fuzzer(SEED + len(request.node.name))
        yield Callers(generous, make_org(generous, root), fuzzer)


@pytest.mark.timeout(180 + CALLS)
def test_json(generous: Stack, callers: Callers) -> None:
    """Each route of the REST and device API, `/auth/*`, enroll and attest among them."""
    fuzzer, statuses, found = callers.fuzzer, Counter[int](), list[str]()
    routes = [rpc for rpc in RPCS if rpc.path]
    with generous.client() as client:
        for number in range(CALLS):
            rpc = callers.pick()
            rpc = rpc if rpc.path else fuzzer.random.choice(routes)
            token, request = callers.of(rpc), _request(client, fuzzer, rpc)
            if token:
                request.headers["authorization"] = f"Bearer {token}"
            try:
                status = client.send(request).status_code
            except httpx.TimeoutException:
                status = 599
            statuses[status] += 1
            if status == 401:
                callers.lost(token)
            if status >= 500 and (status != 501 or rpc.rule.offered):
                found.append(
                    f"{number} {status} {request.method} {request.url} {request.read()[:300]!r}"
                )
    print(f"{CALLS} calls: {dict(sorted(statuses.items()))}")
    assert not found
    # They are no mere refusals of strangers.
    assert statuses[200] > CALLS / 10
    assert statuses[400] > CALLS / 10


def _request(client: httpx.Client, fuzzer: Fuzzer, rpc: Rpc) -> httpx.Request:
    kind = request_type(rpc.name)
    names = [part[1:-1] for part in rpc.path.replace(":", "/").split("/") if part.startswith("{")]
    url = rpc.url(**{name: quote(fuzzer.text()[:2_000].encode(), safe="") or "x" for name in names})
    if rpc.method in ("GET", "DELETE"):
        if fuzzer.chance(0.5):
            # Only what fits into a URL.
            fields = kind.DESCRIPTOR.fields
            pairs = [(fuzzer.random.choice(fields).json_name, fuzzer.text()[:500]) for _ in fields]
            url += "?" + "&".join(f"{name}={quote(text.encode(), safe='')}" for name, text in pairs)
        return client.build_request(rpc.method, url)
    snake = "DeviceService/" in rpc.name
    kind_of_content = (
        "application/json"
        if fuzzer.chance(0.95)
        else fuzzer.random.choice(
            ("text/plain", "application/grpc", "", "application/json; charset=utf-16")
        )
    )
    return client.build_request(
        rpc.method,
        url,
        content=fuzzer.body(kind, snake=snake),
        headers={"content-type": kind_of_content},
    )


@pytest.mark.timeout(180 + CALLS)
def test_native_grpc(generous: Stack, callers: Callers) -> None:
    """Each RPC that the gateway lets through, with messages of random fields and broken bytes."""
    fuzzer, codes, found = callers.fuzzer, Counter[str](), list[str]()
    credentials = grpc.ssl_channel_credentials(Path(generous.ca_file).read_bytes())
    with grpc.secure_channel(f"localhost:{generous.port}", credentials) as channel:
        for number in range(CALLS):
            rpc = callers.pick()
            sent = fuzzer.message(request_type(rpc.name)).SerializeToString()
            sent = fuzzer.broken(sent) if fuzzer.chance(0.4) else sent
            token = callers.of(rpc)
            metadata = [("authorization", f"Bearer {token}")] if token else []
            code = _call(channel, rpc, sent, metadata)
            codes[code.name] += 1
            if code is grpc.StatusCode.UNAUTHENTICATED:
                callers.lost(token)
            if code in BAD and (code is not grpc.StatusCode.UNIMPLEMENTED or rpc.rule.offered):
                found.append(f"{number} {code.name} {rpc.name} {len(sent)} bytes {sent[:300]!r}")
    print(f"{CALLS} calls: {dict(sorted(codes.items()))}")
    assert not found
    assert codes["OK"] > CALLS / 12
    assert codes["INVALID_ARGUMENT"] > CALLS / 10


def _call(
    channel: grpc.Channel, rpc: Rpc, sent: bytes, metadata: list[tuple[str, str]]
) -> grpc.StatusCode:
    try:
        # A list of one answer and a stream of many are the same on the wire.
        for _ in channel.unary_stream(rpc.name)(sent, metadata=metadata, timeout=60):
            pass
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]  # grpc's errors are calls too
        return code
    return grpc.StatusCode.OK
