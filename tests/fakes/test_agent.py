"""The simulated agent behaves as the released one: what it sends, keeps, repeats and gives up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.policy.authoring.document import App, Apps, Document
from services.policy.authoring.goencoding import encode_document
from services.policy.keys.signing import Signer, envelope
from tests.fakes.agent import Agent, AgentEndedError, BadSignatureError, CallError, ManualClock

SIGNER = Signer(bytes(32))
DOCUMENT = encode_document(Document(apps=Apps((App("a&b", "stable", "flathub"),))))
GOOD = SIGNER.sign(DOCUMENT)


class Backend:
    """A backend that answers what a test tells it to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, str | None]] = []
        self.answers: dict[str, httpx.Response] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        body = json.loads(request.content)
        self.asked.append((name, body, request.headers.get("authorization")))
        return self.answers.get(name, httpx.Response(200, content=b""))

    def calls(self, name: str) -> list[Any]:
        return [body for asked, body, _ in self.asked if asked == name]


def enrolled(version: str = "1", signature: bytes = GOOD) -> bytes:
    policy = envelope(version, signature, DOCUMENT)
    return b'{"device_id":"d","device_token":"t","policy":' + policy + b"}"


@pytest.fixture
def backend() -> Backend:
    found = Backend()
    found.answers["enroll"] = httpx.Response(200, content=enrolled())
    found.answers["policy"] = httpx.Response(304)
    return found


@pytest.fixture
def agent(backend: Backend) -> Iterator[Agent]:
    with make(backend) as found:
        yield found


def make(backend: Backend, **more: Any) -> Agent:
    return Agent(
        "https://backend",
        pinned_key=SIGNER.public.pem(),
        pre_shared_key="code:secret",
        transport=httpx.MockTransport(backend),
        clock=ManualClock(),
        **more,
    )


def test_enrolling_applies_the_policy(agent: Agent, backend: Backend) -> None:
    """The key goes with the hardware, no token does; the policy is in effect at once."""
    agent.enroll()
    ((_, body, authorization),) = backend.asked
    assert (body["pre_shared_key"], authorization) == ("code:secret", None)
    assert (agent.device_id, agent.version) == ("d", "1")
    assert agent.document is not None


def test_an_empty_version_applies_nothing(agent: Agent, backend: Backend) -> None:
    """Its signature is not even looked at."""
    backend.answers["enroll"] = httpx.Response(200, content=enrolled("", b"x" * 64))
    agent.enroll()
    assert (agent.enrolled, agent.version, agent.applied) == (True, "", [])


def test_a_bad_first_signature_ends_the_agent(agent: Agent, backend: Backend) -> None:
    backend.answers["enroll"] = httpx.Response(200, content=enrolled("1", b"x" * 64))
    with pytest.raises(AgentEndedError):
        agent.tick()
    assert not agent.enrolled


def test_a_new_policy_brings_a_new_token(agent: Agent, backend: Backend) -> None:
    """A 200 replaces the token, a 304 does not, a bad signature changes nothing."""
    agent.enroll()
    assert not agent.pull()
    backend.answers["policy"] = httpx.Response(
        200, content=envelope("2", b"x" * 64, DOCUMENT, "evil")
    )
    with pytest.raises(BadSignatureError):
        agent.pull()
    assert (agent.version, agent.device_token) == ("1", "t")
    backend.answers["policy"] = httpx.Response(200, content=envelope("2", GOOD, DOCUMENT, "new"))
    assert agent.pull()
    assert (agent.version, agent.device_token) == ("2", "new")
    assert backend.calls("policy") == [{"current_version": "1"}] * 3
    agent.report_state()
    assert backend.asked[-1][2] == "Bearer new"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"version":1}', b'{"policy":{"apps":[]}}', b'{"version":"1"}x']
)
def test_a_body_that_does_not_decode_is_a_failure(
    agent: Agent, backend: Backend, body: bytes
) -> None:
    agent.enroll()
    backend.answers["policy"] = httpx.Response(200, content=body)
    with pytest.raises(CallError):
        agent.pull()


def test_the_queue_is_sent_whole_until_it_is_taken(agent: Agent, backend: Backend) -> None:
    """After a failure the same events come again, with the newer ones behind them."""
    agent.enroll()
    first = agent.record("app.installed", {"name": "<&>"})
    backend.answers["events"] = httpx.Response(503, content=b"later")
    with pytest.raises(CallError) as caught:
        agent.send_events()
    assert (caught.value.status, caught.value.body) == (503, b"later")
    second = agent.record("app.removed")
    backend.answers["events"] = httpx.Response(202)
    assert agent.send_events() == 2
    assert agent.send_events() == 0
    sent = [[event["id"] for event in body["events"]] for body in backend.calls("events")]
    assert sent == [[first], [first, second]]
    assert int(second) > int(first)


def test_identity_and_queues_outlive_a_restart(tmp_path: Path, backend: Backend) -> None:
    with make(backend, state_dir=tmp_path) as agent:
        agent.enroll()
        event = agent.record("boot")
    with make(backend, state_dir=tmp_path) as agent:
        assert (agent.device_id, agent.version) == ("d", "1")
        agent.send_events()
    with make(backend, state_dir=tmp_path) as agent:
        assert len(agent.events) == 0
    assert backend.calls("events")[0]["events"][0]["id"] == event
    assert len(backend.calls("enroll")) == 1


def test_an_enrollment_file_replaces_enrolling(tmp_path: Path, backend: Backend) -> None:
    file = tmp_path / "enrollment.json"
    file.write_bytes(enrolled())
    with make(backend, enrollment_file=file) as agent:
        agent.tick()
    assert agent.version == "1"
    assert not backend.calls("enroll")


def test_it_backs_off_and_recovers(backend: Backend) -> None:
    """15 s after the first failure, doubling to 5 min; a success brings the old rhythm back."""
    clock = ManualClock()
    with Agent(
        "https://backend",
        pinned_key=SIGNER.public.raw,
        transport=httpx.MockTransport(backend),
        clock=clock,
    ) as agent:
        assert agent.tick() == []
        assert len(backend.calls("policy")) == 1
        backend.answers["policy"] = httpx.Response(500)
        clock.advance(61)
        waits = []
        for _ in range(7):
            assert agent.tick() == ["policy"]
            waits.append(round((agent.tasks.policy.due_ns - clock.time_ns()) / 1e9))
            clock.advance(waits[-1] - 1)
            assert agent.tick() == []
            clock.advance(2)
        assert waits == [15, 30, 60, 120, 240, 300, 300]
        backend.answers["policy"] = httpx.Response(304)
        assert agent.tick() == []
        assert agent.tasks.policy.failures == 0


def test_unchanged_evidence_is_not_sent_again(backend: Backend) -> None:
    evidence: dict[str, Any] = {"pcrs": {"0": "aa"}}
    with make(backend, evidence_of=lambda: evidence) as agent:
        agent.enroll()
        assert agent.attest()
        assert not agent.attest()
        evidence["pcrs"] = {"0": "bb"}
        assert agent.attest()
