"""The released device agent, simulated: what its wire contract says, and nothing more.

`Agent` has one method per call, for tests that want to see each answer, and `tick` for tests that
want the agent's own rhythm: it does what is due at the injected clock and backs off after failures
as the agent does.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from tests.fakes.agent.apply import ApplyError, Machine
from tests.fakes.agent.clock import Clock, SystemClock, rfc3339_nano
from tests.fakes.agent.gojson import DecodeError, marshal, unmarshal
from tests.fakes.agent.queue import Queue
from tests.fakes.agent.structs import DOCUMENT, ENROLLED, ENVELOPE
from tests.fakes.agent.verify import BadSignatureError, check_envelope, load_pinned_key

TIMEOUT_S = 30.0
BACKOFF_FIRST_S = 15.0
BACKOFF_LAST_S = 300.0


class CallError(Exception):
    """A call that the agent makes again: a status from 400 up, no connection, or a bad body."""

    def __init__(self, message: str, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class AgentEndedError(Exception):
    """The agent gave up for good: its first policy is badly signed, or cannot be applied."""


@dataclass(frozen=True)
class Hardware:
    """What the agent says about its machine when it enrolls."""

    serial: str = "SIM-0001"
    model: str = "Evergreen Book 14"
    cpu_model: str = "Simulated CPU"
    cpu_count: int = 4
    total_ram_bytes: int = 8_589_934_592
    has_tpm: bool = True


@dataclass(frozen=True)
class Applied:
    """A policy that was verified and put into effect."""

    version: str
    document: dict[str, Any]


@dataclass
class Task:
    """One of the agent's loops: how often it runs, and when it runs next."""

    every_s: float
    due_ns: int = 0
    failures: int = 0

    def done(self, now_ns: int) -> None:
        """Notes a success."""
        self.failures = 0
        self.due_ns = now_ns + int(self.every_s * 1e9)

    def failed(self, now_ns: int) -> None:
        """Notes a failure: 15 s, twice that, and so on up to 5 min."""
        wait_s = min(BACKOFF_FIRST_S * 2**self.failures, BACKOFF_LAST_S)
        self.failures += 1
        self.due_ns = now_ns + int(wait_s * 1e9)


@dataclass
class Tasks:
    """The agent's loops, with its defaults."""

    enroll: Task = field(default_factory=lambda: Task(0.0))
    policy: Task = field(default_factory=lambda: Task(60.0))
    state: Task = field(default_factory=lambda: Task(300.0))
    events: Task = field(default_factory=lambda: Task(30.0))
    attest: Task = field(default_factory=lambda: Task(3600.0))


class Agent:
    """One device.

    `pinned_key` is PEM text, 32 raw bytes or a file. `state_dir` keeps identity and queues over a
    restart; without it they live in memory. `state_of` answers the device's state without its
    timestamp, `evidence_of` the boot evidence or `None`.
    """

    def __init__(
        self,
        url: str,
        *,
        pinned_key: bytes | str | Path,
        ca_file: str | Path | None = None,
        pre_shared_key: str = "",
        hardware: Hardware | None = None,
        enrollment_file: Path | None = None,
        state_dir: Path | None = None,
        clock: Clock | None = None,
        transport: httpx.BaseTransport | None = None,
        state_of: Callable[[], dict[str, Any]] | None = None,
        evidence_of: Callable[[], dict[str, Any] | None] | None = None,
    ) -> None:
        verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file else True
        self._http = httpx.Client(
            base_url=url,
            verify=verify,
            timeout=TIMEOUT_S,
            transport=transport,
            headers={"user-agent": "Go-http-client/1.1", "accept-encoding": "gzip"},
        )
        self._key = load_pinned_key(pinned_key)
        self._pre_shared_key = pre_shared_key
        self._clock = clock or SystemClock()
        self._state_dir = state_dir
        self._state_of = state_of or default_state
        self._evidence_of = evidence_of or (lambda: None)
        self._attested_pcrs: dict[str, str] | None = None
        self.hardware = hardware or Hardware()
        self.device_id = ""
        self.device_token = ""
        self.version = ""
        self.applied: list[Applied] = []
        self.machine = Machine()
        self.tasks = Tasks()
        self.events = Queue(state_dir / "events" if state_dir else None)
        self.states = Queue(state_dir / "states" if state_dir else None)
        self._load(enrollment_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; queues and identity stay."""
        self._http.close()

    @property
    def enrolled(self) -> bool:
        """Whether the agent has an identity."""
        return bool(self.device_id)

    @property
    def document(self) -> dict[str, Any] | None:
        """The document in effect."""
        return self.applied[-1].document if self.applied else None

    def enroll(self) -> None:
        """Asks for an identity and applies the policy that comes with it.

        Raises `CallError`, or `AgentEndedError` when that policy is badly signed or
        cannot be applied.
        """
        request: dict[str, Any] = asdict(self.hardware)
        if self._pre_shared_key:
            request["pre_shared_key"] = self._pre_shared_key
        answer = self._call("enroll", request, authorized=False)
        self._take_identity(self._decode(ENROLLED, answer))

    def pull(self) -> bool:
        """Asks for a newer policy; `False` when there is none.

        Raises `CallError`, `BadSignatureError` or `ApplyError`, after which the old version and
        token stay.
        """
        answer = self._call("policy", {"current_version": self.version})
        if answer.status_code == 304:
            assert answer.content == b"", "a 304 has no body"
            return False
        envelope = self._decode(ENVELOPE, answer)
        check_envelope(self._key, envelope)
        self._apply(envelope)
        if envelope["device_token"]:
            self.device_token = envelope["device_token"]
            self._save()
        return True

    def report_state(self) -> None:
        """Queues the device's state and sends all states that wait, each in a call of its own."""
        self.states.add({"timestamp": rfc3339_nano(self._clock.time_ns()), **self._state_of()})
        waiting = self.states.entries()
        for state in waiting:
            self._call("state", {"device_id": self.device_id, "state": state})
        self.states.sent(len(waiting))

    def record(self, kind: str, payload: Any = None) -> str:
        """Queues an event and answers its id: the time in nanoseconds."""
        now_ns = self._clock.time_ns()
        event = {
            "id": str(now_ns),
            "type": kind,
            "timestamp": rfc3339_nano(now_ns),
            "payload": payload,
        }
        self.events.add(event)
        return str(now_ns)

    def send_events(self) -> int:
        """Sends the whole queue in one call and answers its length; it stays after a failure."""
        waiting = self.events.entries()
        if not waiting:
            return 0
        self._call("events", {"device_id": self.device_id, "events": waiting})
        self.events.sent(len(waiting))
        return len(waiting)

    def attest(self) -> bool:
        """Sends boot evidence, unless there is none or its PCR set was sent before."""
        evidence = self._evidence_of()
        if evidence is None or evidence["pcrs"] == self._attested_pcrs:
            return False
        self._call("attest", {"device_id": self.device_id, "evidence": evidence})
        self._attested_pcrs = dict(evidence["pcrs"])
        return True

    def tick(self) -> list[str]:
        """Does what is due now and answers the names of the calls that failed.

        An agent without an identity enrolls and does nothing else. Raises `AgentEndedError`.
        """
        failed = []
        if not self.enrolled:
            if not self._run("enroll", self.tasks.enroll, self.enroll):
                return ["enroll"]
            if not self.enrolled:
                return []
        loops: tuple[tuple[str, Task, Callable[[], object]], ...] = (
            ("policy", self.tasks.policy, self.pull),
            ("state", self.tasks.state, self.report_state),
            ("events", self.tasks.events, self.send_events),
            ("attest", self.tasks.attest, self.attest),
        )
        for name, task, call in loops:
            if not self._run(name, task, call):
                failed.append(name)
        return failed

    def next_due_ns(self) -> int:
        """When `tick` has something to do again."""
        if not self.enrolled:
            return self.tasks.enroll.due_ns
        loops = (self.tasks.policy, self.tasks.state, self.tasks.events, self.tasks.attest)
        return min(task.due_ns for task in loops)

    def _run(self, name: str, task: Task, call: Callable[[], object]) -> bool:
        if self._clock.time_ns() < task.due_ns:
            return True
        try:
            call()
        except (CallError, BadSignatureError, ApplyError):
            task.failed(self._clock.time_ns())
            return False
        task.done(self._clock.time_ns())
        return True

    def _call(
        self, name: str, request: dict[str, Any], *, authorized: bool = True
    ) -> httpx.Response:
        headers = {"content-type": "application/json"}
        if authorized:
            headers["authorization"] = f"Bearer {self.device_token}"
        body = json.dumps(request, ensure_ascii=False, separators=(",", ":"))
        try:
            answer = self._http.post(
                f"/api/v1/devices/{name}",
                content=body.encode("utf-8", "replace"),
                headers=headers,
            )
        except httpx.HTTPError as error:
            raise CallError(f"{name}: {error!r}") from error
        if answer.status_code >= 400:
            text = f"{name}: {answer.status_code} {answer.text[:500]}"
            raise CallError(text, answer.status_code, answer.content)
        return answer

    def _decode(self, schema: Any, answer: httpx.Response) -> Any:
        try:
            return unmarshal(schema, answer.content)
        except DecodeError as error:
            raise CallError(f"decode: {error}", answer.status_code, answer.content) from error

    def _take_identity(self, answer: dict[str, Any]) -> None:
        envelope = answer["policy"]
        if envelope["version"]:
            try:
                check_envelope(self._key, envelope)
            except BadSignatureError as error:
                raise AgentEndedError(str(error)) from error
        self.device_id = answer["device_id"]
        self.device_token = answer["device_token"]
        self._save()
        if envelope["version"]:
            try:
                self._apply(envelope)
            except ApplyError as error:
                raise AgentEndedError(str(error)) from error

    def _apply(self, envelope: dict[str, Any]) -> None:
        self.machine.apply(json.loads(marshal(DOCUMENT, envelope["policy"])))
        self.version = envelope["version"]
        self.applied.append(Applied(envelope["version"], envelope["policy"]))
        self._save()

    def _load(self, enrollment_file: Path | None) -> None:
        saved = self._state_dir / "identity.json" if self._state_dir else None
        if saved is not None and saved.exists():
            identity = json.loads(saved.read_text())
            self.device_id = identity["device_id"]
            self.device_token = identity["device_token"]
            self.version = identity["version"]
        elif enrollment_file is not None:
            self._take_identity(unmarshal(ENROLLED, enrollment_file.read_bytes()))

    def _save(self) -> None:
        if self._state_dir is not None:
            identity = {
                "device_id": self.device_id,
                "device_token": self.device_token,
                "version": self.version,
            }
            (self._state_dir / "identity.json").write_text(json.dumps(identity))


def default_state() -> dict[str, Any]:
    """The state of a healthy laptop."""
    return {
        "installed_apps": [{"id": "org.gnome.Calculator", "version": "46.1", "branch": "stable"}],
        "update_status": "idle",
        "disk_total_bytes": 256_000_000_000,
        "disk_free_bytes": 200_000_000_000,
        "battery_percent": 87.5,
        "last_error": "",
    }
