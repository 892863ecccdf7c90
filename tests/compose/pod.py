"""One pod: its probes as they are rendered, and its end."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import subprocess
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.compose.docker import Docker
from tests.helm.chart import Object
from tests.support.stack import PATIENCE, until

_SECONDS = 30.0


@dataclass(frozen=True)
class Pod:
    """A pod whose one container runs."""

    docker: Docker
    container: str
    spec: Object

    @property
    def address(self) -> str:
        """Its address on the network."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return self.docker("inspect", f"--format={form}", self.container).stdout.strip()

    def probe(self, kind: str) -> bool:
        """Whether one of its probes (`startup`, `readiness`, `liveness`) succeeds now."""
        (container,) = self.spec["containers"]
        probe = container[f"{kind}Probe"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        if "exec" in probe:
            return self.run(*probe["exec"]["command"]).returncode == 0
        if not self.address:
            return False
        if "grpc" in probe:
            return _serves(f"{self.address}:{probe['grpc']['port']}")
        wanted = probe["httpGet"]
        port = ports.get(wanted["port"], wanted["port"])
        return _answers(wanted.get("scheme", "HTTP"), self.address, port, wanted["path"])

    def until_ready(self) -> None:
        """Waits for its probes, in kubelet's order; one that serves nobody has none."""
        for kind in ("startup", "readiness", "liveness"):
            if f"{kind}Probe" not in self.spec["containers"][0]:
                continue
            try:
                until(lambda kind=kind: self.probe(kind), 5 * PATIENCE, f"no {kind}", pause=0.5)
            except AssertionError as never:
                raise AssertionError(f"{never}: {self.logs()}") from never

    @property
    def is_stopped(self) -> bool:
        """Whether it was."""
        form = "--format={{.State.Status}}"
        return self.docker("inspect", form, self.container).stdout.strip() == "exited"

    def logs(self) -> str:
        """The end of what it printed."""
        done = self.docker("logs", "--tail=30", self.container)
        return done.stdout + done.stderr

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in its container."""
        return self.docker("exec", self.container, *words, check=False)

    def put(self, path: str, content: bytes) -> None:
        """Writes a file in its container, as `kubectl exec -i … < file` does."""
        write = ("sh", "-c", f"cat > {path}")
        self.docker("exec", "--interactive", self.container, *write, stdin=content)

    def restarts(self) -> int:
        """How often its container ended by itself."""
        form = "--format={{.RestartCount}}"
        return int(self.docker("inspect", form, self.container).stdout)

    def stop(self) -> int:
        """Ends it as kubelet does: `preStop`, SIGTERM, and SIGKILL when the grace is over.

        Answers the exit code; 137 is SIGKILL's.
        """
        (container,) = self.spec["containers"]
        if hook := container.get("lifecycle", {}).get("preStop"):
            done = self.run(*hook["exec"]["command"])
            assert done.returncode == 0, done.stderr
        grace = self.spec["terminationGracePeriodSeconds"]
        self.docker("stop", f"--time={grace}", self.container)
        form = "--format={{.State.ExitCode}}"
        return int(self.docker("inspect", form, self.container).stdout)


def _serves(address: str) -> bool:
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_SECONDS
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _answers(scheme: str, host: str, port: int, path: str) -> bool:
    connection = (
        http.client.HTTPSConnection(
            host, port, timeout=_SECONDS, context=ssl._create_unverified_context()
        )
        if scheme == "HTTPS"
        else http.client.HTTPConnection(host, port, timeout=_SECONDS)
    )
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return 200 <= connection.getresponse().status < 400
    return False
