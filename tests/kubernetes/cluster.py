"""A cluster, and what the tests ask it."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helm.chart import HELM, Object
from tests.support.stack import until

PATIENCE = 600.0
"""Seconds that pods may take: everything runs on one small machine."""
RESTRICTED = {
    f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")
}
_FORWARD = Path(__file__).parents[1] / "compose" / "forward.py"


@dataclass(frozen=True)
class Cluster:
    """The cluster of `KUBECONFIG`."""

    kubectl_program: str

    @classmethod
    def found(cls) -> Cluster | None:
        """The cluster, if there is one."""
        program = shutil.which("kubectl")
        return cls(program) if os.environ.get("KUBECONFIG") and program else None

    def run(
        self, *words: str | Path, stdin: str = "", check: bool = True, seconds: float = PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program.

        Raises:
            AssertionError: it failed, with what it said.
        """
        done = subprocess.run(
            [str(word) for word in words],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        if check:
            assert done.returncode == 0, f"{done.args}:\n{done.stdout}\n{done.stderr}"
        return done

    def kubectl(
        self, *words: str | Path, **more: Any
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Runs kubectl."""
        return self.run(self.kubectl_program, *words, **more)

    @contextmanager
    def namespace(self, labels: Mapping[str, str] | None = None) -> Iterator[Namespace]:
        """A namespace for the block, by default one in which Pod Security is enforced."""
        name = f"evergreen-test-{secrets.token_hex(3)}"
        labelled = {"name": name, "labels": dict(RESTRICTED if labels is None else labels)}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": labelled})
        try:
            yield Namespace(self, name)
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")

    def apply(self, *objects: Object, namespace: str = "default") -> None:
        """Makes objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("-n", namespace, "apply", "--server-side", "-f", "-", stdin=json.dumps(listed))


@dataclass(frozen=True)
class Namespace:
    """A namespace of the cluster."""

    cluster: Cluster
    name: str

    def kubectl(self, *words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        """Runs kubectl in it."""
        return self.cluster.kubectl("-n", self.name, *words, **more)

    def helm(self, *words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        """Runs Helm in it."""
        return self.cluster.run(HELM, "--namespace", self.name, *words, **more)

    def apply(self, *objects: Object) -> None:
        """Makes objects in it."""
        self.cluster.apply(*objects, namespace=self.name)

    def get(self, what: str, *words: str) -> Any:
        """An object, or a list of them."""
        return json.loads(self.kubectl("get", what, *words, "-o", "json").stdout)

    def secret(self, name: str) -> dict[str, str]:
        """What a Secret holds."""
        data = self.get(f"secret/{name}").get("data", {})
        return {key: base64.b64decode(text).decode() for key, text in data.items()}

    def make_secret(
        self, name: str, files: Mapping[str, str | bytes], kind: str = "Opaque"
    ) -> None:
        """Makes a Secret."""
        data = {
            key: base64.b64encode(text.encode() if isinstance(text, str) else text).decode()
            for key, text in files.items()
        }
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name},
                "data": data,
            }
        )

    def pods(self, component: str = "") -> dict[str, Object]:
        """The pods by name, all or those of a part of the product, that are not being ended."""
        words = (f"-l=app.kubernetes.io/component={component}",) if component else ()
        return {
            pod["metadata"]["name"]: pod
            for pod in self.get("pods", *words)["items"]
            if "deletionTimestamp" not in pod["metadata"]
        }

    def pod(self, component: str) -> str:
        """A running pod of a part of the product."""
        return next(
            name
            for name, pod in self.pods(component).items()
            if pod["status"]["phase"] == "Running"
        )

    def restarts(self) -> dict[str, int]:
        """How often the containers of each pod were started again."""
        return {
            name: sum(c["restartCount"] for c in pod["status"].get("containerStatuses", []))
            for name, pod in self.pods().items()
        }

    def exec(self, pod: str, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command in a pod."""
        return self.kubectl("exec", "-i", pod, "--", *words, **more)

    def reaches(self, pod: str, host: str, port: int) -> bool:
        """Whether a pod of our image gets a connection."""
        code = (
            "import socket, sys\n"
            "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()\n"
            "except OSError as error: print(error); sys.exit(7)"
        )
        done = self.exec(pod, "python3", "-c", code, host, str(port), check=False)
        assert done.returncode in {0, 7}, done.stderr
        return done.returncode == 0

    def job(self, name: str, cron_job: str) -> str:
        """Runs a CronJob's job now; answers what it said."""
        self.kubectl("create", "job", f"--from=cronjob/{cron_job}", name)

        def ended() -> str:
            status = self.get(f"job/{name}")["status"]
            kinds = [c["type"] for c in status.get("conditions", []) if c["status"] == "True"]
            return next((kind for kind in kinds if kind in {"Complete", "Failed"}), "")

        outcome = until(ended, PATIENCE, f"{name} does not end", pause=1)
        said = self.kubectl("logs", f"job/{name}").stdout
        assert outcome == "Complete", said
        return said

    @contextmanager
    def forwarded(self, service: str, port: int, here: int) -> Iterator[None]:
        """Leads a port of this machine to a Service, whichever pods it has."""
        address = self.get(f"service/{service}")["spec"]["clusterIP"]
        words = [sys.executable, str(_FORWARD), str(here), address, str(port)]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait()
