"""Pods as local containers: what a node of Kubernetes makes of the chart's objects.

Each container gets exactly what was rendered: image, command, arguments, environment, user and
groups, a read-only root, no capabilities, its limit of memory, and its volumes with the owners and
modes that kubelet gives them. Services become names on one network. What a node cannot show:
scheduling, NetworkPolicies, and that the API server takes the objects (tests/helm has the schemas).
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.compose import images
from tests.compose.docker import Docker
from tests.compose.pod import Pod
from tests.helm.chart import Object, containers
from tests.support.stack import PATIENCE, until

NAMESPACE = "fleet"
"""As tests/helm renders."""
_FORWARD = Path(__file__).with_name("forward.py")
_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

Files = Mapping[str, bytes]


@dataclass
class Cluster:
    """A namespace on one node: its objects, its network, and the pods that run."""

    docker: Docker
    objects: list[Object]
    given: Mapping[str, Files] = field(default_factory=dict)
    """Secrets that are there before the chart's."""

    def __post_init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="evergreen-pods-"))
        self.network = f"evergreen-{os.getpid()}-{secrets.token_hex(3)}"
        self.pods: dict[str, Pod] = {}
        self._numbers = itertools.count()
        self._containers: list[str] = []
        self.docker("network", "create", self.network)
        self.secrets = dict(self.given) | {
            found["metadata"]["name"]: secret_of(found) for found in self.of_kind("Secret")
        }

    def of_kind(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return [found for found in self.objects if found["kind"] == kind]

    def secret(self, name: str, key: str) -> str:
        """A value of a secret."""
        value: bytes = self.secrets[name][key]
        return value.decode()

    def remove(self) -> None:
        """Everything that was started goes."""
        if self._containers:
            self.docker("rm", "--force", "--volumes", *self._containers, check=False)
        self.docker("network", "rm", self.network, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def container(self, image: str, *options: str | Path, words: tuple[str, ...] = ()) -> str:
        """Starts a container on the network; answers its id."""
        started = self.docker("run", "--detach", "--network", self.network, *options, image, *words)
        self._containers.append(started.stdout.strip())
        return self._containers[-1]

    def load_balancer(self, service: str, port: int, *aliases: str) -> None:
        """Starts what a Service of that type is: its own port, which leads to the pods'."""
        (found,) = (s for s in self.of_kind("Service") if s["metadata"]["name"] == service)
        (listed,) = found["spec"]["ports"]
        names = [word for alias in aliases for word in ("--network-alias", alias)]
        self.container(
            images.ours(),
            "--entrypoint=python",
            "--user=0",
            f"--publish=127.0.0.1:{port}:{listed['port']}",
            f"--volume={_FORWARD}:/forward.py:ro",
            *names,
            *(f"--network-alias={name}" for name in _names_of(service)),
            words=("/forward.py", str(listed["port"]), f"pods.{service}", self._target(found)),
        )

    def start(self, owner: str, number: int = 0) -> Pod:
        """Starts a pod of a Deployment or StatefulSet, its init containers first."""
        kind, _, name = owner.partition("/")
        (found,) = (one for one in self.of_kind(kind) if one["metadata"]["name"] == name)
        template = found["spec"]["template"]
        pod = f"{name}-{number}"
        names = (
            [pod] if kind == "Deployment" else [pod, *_names_of(pod, found["spec"]["serviceName"])]
        )
        volumes = self._volumes(template["spec"], pod)
        for claim in found["spec"].get("volumeClaimTemplates", ()):
            volumes[claim["metadata"]["name"]] = self._empty(template["spec"], pod)
        for service in self.of_kind("Service"):
            if service["spec"]["selector"].items() <= template["metadata"]["labels"].items():
                names += self._aliases(service)
        for container in template["spec"].get("initContainers", ()):
            self._to_its_end(template["spec"], container, pod, volumes)
        (container,) = template["spec"]["containers"]
        options = [f"--hostname={pod}", "--restart=always"]
        options += [f"--network-alias={alias}" for alias in names]
        words = self._words(template["spec"], container, pod, volumes)
        started = self.container(container["image"], *options, *words[0], words=words[1])
        self.pods[pod] = Pod(self.docker, started, template["spec"])
        return self.pods[pod]

    def run(self, owner: Object, *options: str) -> str:
        """Runs a Job, or a pod that ends; answers what it printed.

        Raises:
            AssertionError: it failed.
        """
        name = owner["metadata"]["name"]
        spec = owner["spec"]["template"]["spec"] if owner["kind"] == "Job" else owner["spec"]
        volumes = self._volumes(spec, name)
        return "".join(
            self._to_its_end(spec, container, name, volumes, *options)
            for container in containers(spec)
        )

    def _to_its_end(
        self, spec: Object, container: Object, pod: str, volumes: dict[str, Path], *options: str
    ) -> str:
        mine, words = self._words(spec, container, pod, volumes)
        again = spec.get("restartPolicy", "Always") != "Never"
        command = ("run", "--rm", "--network", self.network, *mine, *options, container["image"])
        said = ""

        def ends_well() -> bool:
            nonlocal said
            done = self.docker(*command, *words, check=False)
            said = done.stdout + done.stderr
            assert again or done.returncode == 0, said
            return done.returncode == 0

        try:
            until(ends_well, PATIENCE, "it fails again and again", pause=2)
        except AssertionError as failed:
            raise AssertionError(f"{pod} {container['name']}: {failed}: {said}") from failed
        return said

    def _words(
        self, spec: Object, container: Object, pod: str, volumes: dict[str, Path]
    ) -> tuple[list[str], tuple[str, ...]]:
        """What `docker run` is told before and after the image."""
        security = spec["securityContext"] | container["securityContext"]
        environment = self._environment(spec, container, pod)
        options = [
            f"--user={security['runAsUser']}:{security['runAsGroup']}",
            f"--group-add={security['fsGroup']}",
            f"--memory={bytes_of(container['resources']['limits']['memory'])}",
            *(f"--cap-drop={name}" for name in security["capabilities"]["drop"]),
            *(f"--env={name}={value}" for name, value in environment.items()),
        ]
        if security["readOnlyRootFilesystem"]:
            options.append("--read-only")
        if not security["allowPrivilegeEscalation"]:
            options.append("--security-opt=no-new-privileges")
        for mount in container["volumeMounts"]:
            mode = "ro" if mount.get("readOnly") else "rw"
            options.append(f"--volume={volumes[mount['name']]}:{mount['mountPath']}:{mode}")
        words = [_expanded(word, environment) for word in container.get("args", ())]
        if command := container.get("command"):
            options.append(f"--entrypoint={command[0]}")
            words = [*command[1:], *words]
        return options, tuple(words)

    def _environment(self, spec: Object, container: Object, pod: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            name = source["configMapRef"]["name"]
            (data,) = (
                m["data"] for m in self.of_kind("ConfigMap") if m["metadata"]["name"] == name
            )
            found |= data
        for entry in container.get("env", ()):
            source = entry.get("valueFrom", {})
            if "secretKeyRef" in source:
                value = self.secret(source["secretKeyRef"]["name"], source["secretKeyRef"]["key"])
            elif "resourceFieldRef" in source:
                wanted = source["resourceFieldRef"]
                assert wanted["resource"] == "limits.memory"
                (of,) = (c for c in spec["containers"] if c["name"] == wanted["containerName"])
                value = str(bytes_of(of["resources"]["limits"]["memory"]))
            elif "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "metadata.name"
                value = pod
            else:
                value = _expanded(entry.get("value", ""), found)
            found[entry["name"]] = value
        return found

    def _volumes(self, spec: Object, pod: str) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for volume in spec["volumes"]:
            if "emptyDir" in volume:
                found[volume["name"]] = self._empty(spec, pod)
                continue
            if "hostPath" in volume:
                found[volume["name"]] = Path(volume["hostPath"]["path"])
                continue
            projected = volume.get("projected", volume.get("secret", {}))
            sources = projected.get("sources", [volume])
            files: dict[str, bytes] = {}
            for source in (source["secret"] for source in sources):
                secret = self.secrets[source.get("secretName", source.get("name"))]
                items = source.get("items", [{"key": key, "path": key} for key in secret])
                is_there = secret.keys() if source.get("optional") else {i["key"] for i in items}
                files |= {i["path"]: secret[i["key"]] for i in items if i["key"] in is_there}
            found[volume["name"]] = self._written(spec, pod, files, projected["defaultMode"])
        return found

    def _empty(self, spec: Object, pod: str) -> Path:
        path = self.directory / f"{pod}-{next(self._numbers)}"
        path.mkdir()
        os.chown(path, 0, spec["securityContext"]["fsGroup"])
        path.chmod(0o2777)
        return path

    def _written(self, spec: Object, pod: str, files: Files, mode: int) -> Path:
        """As kubelet writes a secret: files behind a link, which an update replaces."""
        path = self._empty(spec, pod)
        data = path / "..2026_01_01_00_00_00.1"
        data.mkdir()
        (path / "..data").symlink_to(data.name)
        for name, content in files.items():
            (data / name).write_bytes(content)
            os.chown(data / name, 0, spec["securityContext"]["fsGroup"])
            (data / name).chmod(mode)
            (path / name).symlink_to(f"..data/{name}")
        return path

    def _aliases(self, service: Object) -> list[str]:
        """Names that lead to its pods; a Service with a port of its own needs more than a name."""
        name = service["metadata"]["name"]
        if service["spec"].get("clusterIP") == "None":
            return list(_names_of(name))
        return [f"pods.{name}"]

    def _target(self, service: Object) -> str:
        (listed,) = service["spec"]["ports"]
        for pod in self.objects:
            template = pod["spec"].get("template", {}) if "spec" in pod else {}
            labels = template.get("metadata", {}).get("labels", {})
            if service["spec"]["selector"].items() <= labels.items():
                ports: list[dict[str, Any]] = template["spec"]["containers"][0]["ports"]
                return str(
                    next(p["containerPort"] for p in ports if p["name"] == listed["targetPort"])
                )
        raise AssertionError(f"no pod belongs to {service['metadata']['name']}")


def secret_of(found: Object) -> Files:
    """The files of a Secret."""
    plain = {key: text.encode() for key, text in found.get("stringData", {}).items()}
    return plain | {key: base64.b64decode(text) for key, text in found.get("data", {}).items()}


def bytes_of(amount: str) -> int:
    """An amount of memory."""
    return int(amount[:-2]) * _UNITS[amount[-2:]]


def _names_of(name: str, service: str = "") -> tuple[str, ...]:
    own = f"{name}.{service}" if service else name
    return (own, f"{own}.{NAMESPACE}", f"{own}.{NAMESPACE}.svc")


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: environment.get(found[1], found[0]), text)
