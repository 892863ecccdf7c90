"""The simulator's HTTP client, against a real server with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cli.sim import Answer, Client, EnrollError, Target, enroll
from cli.sim.fleet import explained
from tests.fakes.gateway import NOT_MODIFIED, OK, Gateway, Request, answer, certificate, serving
from tests.support.stack import PATIENCE, free_port

PATH = "/api/v1/devices/state"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with serving(tmp_path) as running:
        yield running


async def test_a_connection_is_kept_and_carries_what_agents_send(gateway: Gateway) -> None:
    async with Client(gateway.target, connections=1) as client:
        for number in range(3):
            found = await client.call(PATH, b'{"number": %d}' % number, "Token-1")
            assert found == Answer(200, b"{}")
    assert gateway.connections == 1
    assert [r.body for r in gateway.requests] == [{"number": n} for n in range(3)]
    assert {(r.path, r.token) for r in gateway.requests} == {(PATH, "Token-1")}


async def test_a_304_without_a_body_leaves_the_connection_usable(gateway: Gateway) -> None:
    gateway.script = lambda _: NOT_MODIFIED
    async with Client(gateway.target, connections=1) as client:
        assert [await client.call(PATH, b"{}") for _ in range(2)] == [Answer(304)] * 2
    assert gateway.connections == 1


async def test_a_refusal_comes_with_its_body_and_its_delay(gateway: Gateway) -> None:
    gateway.script = lambda _: answer(429, {"message": "later"}, "Retry-After: 7")
    async with Client(gateway.target) as client:
        found = await client.call(PATH, b"{}")
    assert (found.status, found.retry_after) == (429, "7")
    assert explained(found) == "429 later"


async def test_a_body_in_chunks_is_put_together(gateway: Gateway) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    gateway.script = lambda _: head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with Client(gateway.target) as client:
        assert (await client.call(PATH, b"{}")).body == b"abcde"


async def test_an_interim_answer_is_not_the_answer(gateway: Gateway) -> None:
    gateway.script = lambda _: b"HTTP/1.1 100 Continue\r\n\r\n" + OK
    async with Client(gateway.target) as client:
        assert await client.call(PATH, b"{}") == Answer(200, b"{}")


async def test_more_calls_than_connections_wait_for_their_turn(gateway: Gateway) -> None:
    async with Client(gateway.target, connections=2) as client:
        found = await asyncio.gather(*(client.call(PATH, b"{}") for _ in range(20)))
    assert {a.status for a in found} == {200}
    assert gateway.connections == 2
    assert len(gateway.requests) == 20


async def test_idle_connections_take_turns(gateway: Gateway) -> None:
    """None of them is left idle until the gateway closes it."""
    async with Client(gateway.target, connections=3) as client:
        await asyncio.gather(*(client.call(PATH, b"{}") for _ in range(3)))
        for _ in range(6):
            await client.call(PATH, b"{}")
    turns = [r.connection for r in gateway.requests]
    assert sorted(turns[:3]) == [1, 2, 3]
    assert turns[3:6] == turns[6:9]
    assert sorted(turns[3:6]) == [1, 2, 3]


async def test_thousands_of_connections_may_end_in_one_moment() -> None:
    """A gateway that restarts ends them all; who calls then opens new ones."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    many = 1200
    opened: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n{}"):
                writer.write(OK)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=2 * many)
    port = server.sockets[0].getsockname()[1]
    async with server, Client(Target("127.0.0.1", port, None), connections=many) as client:
        await asyncio.gather(*(client.call(PATH, b"{}") for _ in range(many)))
        assert len(opened) == many
        for writer in opened:
            writer.close()
        found: list[Answer] = []
        for _ in range(20):
            client.send(client.request(PATH.encode(), b"{}"), found.append)
            await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            while len(found) < 20:
                await asyncio.sleep(0.01)
        assert {answer.status or answer.fault for answer in found} <= {200, "closed"}
        assert (await client.call(PATH, b"{}")).status == 200


async def test_every_device_can_have_a_connection_of_its_own(gateway: Gateway) -> None:
    async with Client(gateway.target, connections=None) as client:
        for _ in range(2):
            await asyncio.gather(*(client.call(PATH, b"{}", lane=lane) for lane in range(5)))
    assert gateway.connections == 5


async def test_a_connection_that_is_announced_to_close_is_not_used_again(gateway: Gateway) -> None:
    gateway.script = lambda _: answer(200, {}, "Connection: close")
    async with Client(gateway.target, connections=1) as client:
        for _ in range(3):
            assert (await client.call(PATH, b"{}")).status == 200
    assert gateway.connections == 3


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (b"", "closed"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "closed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{", "closed"),
        (b"220 smtp.example ESMTP\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "protocol"),
    ],
)
async def test_a_broken_answer_is_a_fault_and_the_next_call_works(
    gateway: Gateway, said: bytes, fault: str
) -> None:
    gateway.script = lambda _: said
    gateway.hang_up = True
    async with Client(gateway.target, connections=1) as client:
        assert await client.call(PATH, b"{}") == Answer(0, fault=fault)
        gateway.script, gateway.hang_up = lambda _: OK, False
        assert (await client.call(PATH, b"{}")).status == 200


async def test_words_that_nobody_asked_for_end_the_connection(gateway: Gateway) -> None:
    gateway.script = lambda _: OK + OK
    async with Client(gateway.target, connections=1) as client:
        await client.call(PATH, b"{}")
        gateway.script = lambda _: answer(200, "right")
        found = await client.call(PATH, b"{}")
        # The second answer must never be taken for that of another call.
        assert found.body == b'"right"' or found.fault


async def test_a_call_without_an_answer_is_given_up_and_so_is_one_that_waits(
    gateway: Gateway,
) -> None:
    gateway.script = lambda _: None
    async with Client(gateway.target, connections=1, timeout=0.2) as client:
        async with asyncio.timeout(PATIENCE):
            found = await asyncio.gather(*(client.call(PATH, b"{}") for _ in range(3)))
        assert [a.fault for a in found] == ["timeout"] * 3


async def test_calls_in_flight_are_answered_when_the_client_closes(gateway: Gateway) -> None:
    gateway.script = lambda _: None
    async with Client(gateway.target, connections=1) as client:
        calls = [asyncio.create_task(client.call(PATH, b"{}")) for _ in range(2)]
        while not gateway.requests:
            await asyncio.sleep(0.01)
    assert [(await call).fault for call in calls] == ["closed", "closed"]


async def test_nobody_there(tmp_path: Path) -> None:
    certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    target = Target.of(f"https://localhost:{free_port()}", tmp_path / "cert.pem")
    async with Client(target, connections=2) as client:
        found = await asyncio.gather(*(client.call(PATH, b"{}") for _ in range(5)))
    assert {a.fault for a in found} == {"connect"}


async def test_a_certificate_of_another_ca_is_not_trusted(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    certificate(tmp_path / "other" / "cert.pem", tmp_path / "other" / "key.pem")
    target = Target.of(gateway.url, tmp_path / "other" / "cert.pem")
    async with Client(target) as client:
        found = await client.call(PATH, b"{}")
        assert found.fault == "tls"
        assert "--ca-file" in explained(found)
        with pytest.raises(EnrollError, match="--ca-file"):
            await enroll(client, "default:secret", ["SN-1"])


async def test_something_that_never_speaks_tls(tmp_path: Path) -> None:
    certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"https://127.0.0.1:{deaf.getsockname()[1]}"
        async with Client(Target.of(url, tmp_path / "cert.pem"), timeout=0.2) as client:
            assert (await client.call(PATH, b"{}")).fault == "timeout"


def enrolled(request: Request) -> bytes:
    serial = request.body["serial"]
    token, policy = f"token of {serial}", {"version": "4", "signature": "", "policy": {}}
    return answer(200, {"device_id": f"id of {serial}", "device_token": token, "policy": policy})


async def test_enrolling_waits_where_it_is_asked_to(gateway: Gateway) -> None:
    refused: list[str] = []

    def script(request: Request) -> bytes:
        if len(refused) < 3:
            refused.append(request.body["serial"])
            return answer(429, {"message": "busy"}, "Retry-After: 0")
        return enrolled(request)

    gateway.script = script
    wanted = [f"SN-{number}" for number in range(6)]
    said: list[str] = []
    async with Client(gateway.target) as client:
        devices = await enroll(
            client, "default:secret", wanted, first_index=10, waiting=said.append
        )
    assert not said, "the limit is met by every large fleet"
    assert [d.serial for d in devices] == wanted
    assert [d.index for d in devices] == list(range(10, 16))
    assert (devices[5].id, devices[5].token) == ("id of SN-5", "token of SN-5")
    assert devices[0].version == "4"
    assert {r.body["pre_shared_key"] for r in gateway.requests} == {"default:secret"}


async def test_enrolling_says_once_that_a_part_is_away(gateway: Gateway) -> None:
    refused: list[str] = []

    def script(request: Request) -> bytes:
        if len(refused) < 3:
            refused.append(request.body["serial"])
            return answer(503, {"message": "not now"}, "Retry-After: 0")
        return enrolled(request)

    gateway.script = script
    said: list[str] = []
    async with Client(gateway.target) as client:
        assert await enroll(client, "default:secret", ["SN-1", "SN-2"], waiting=said.append)
    assert len(said) == 1
    assert said[0].startswith("503 not now; ")


async def test_enrolling_where_nobody_is_says_so_and_can_be_stopped(tmp_path: Path) -> None:
    certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    target = Target.of(f"https://localhost:{free_port()}", tmp_path / "cert.pem")
    said: list[str] = []
    stop = asyncio.Event()

    def waiting(why: str) -> None:
        said.append(why)
        stop.set()

    async with Client(target) as client, asyncio.timeout(PATIENCE):
        wanted = ["SN-1", "SN-2"]
        assert await enroll(client, "default:secret", wanted, waiting=waiting, stop=stop) == []
    assert len(said) == 1
    assert "nothing answers at that address" in said[0]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (answer(403, {"message": "the secret is wrong"}), "403 the secret is wrong"),
        (answer(200, {"hello": "world"}), "not this product's"),
        (answer(200, "text"), "not this product's"),
        (answer(404), "404"),
    ],
)
async def test_enrolling_ends_with_what_was_said(gateway: Gateway, said: bytes, why: str) -> None:
    gateway.script = lambda _: said
    async with Client(gateway.target) as client:
        with pytest.raises(EnrollError, match=why):
            await enroll(client, "default:secret", ["SN-1", "SN-2"])


async def test_a_first_policy_with_a_bad_signature_ends_enrolling(gateway: Gateway) -> None:
    gateway.script = enrolled
    async with Client(gateway.target) as client:
        with pytest.raises(EnrollError, match="signature"):
            await enroll(client, "default:secret", ["SN-1"], check=lambda _: False)


@pytest.mark.parametrize("url", ["localhost:8443", "ftp://host", "https://", "https://host/path"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        Target.of(url)
