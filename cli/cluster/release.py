"""An installation of the Helm chart: its services, and the Secrets that a restore fills."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cli.errors import CliError
from contract.contexts import CONTEXTS
from deploy.kubernetes.api import Api, Object, as_data, data_of

STOPPED: Final = "evergreen.io/replicas-before-restore"
"""The annotation of a Deployment that was stopped: how many pods it had."""
_RESTARTED: Final = "evergreen.io/restarted-by-restore"
_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_SECONDS: Final = 600.0
_PAUSE_SECONDS: Final = 2.0
_ENDED: Final = frozenset({"Succeeded", "Failed"})

Tell = Callable[[str], None]
"""Takes a line for a person."""


class ClusterError(CliError):
    """The release lacks something, or does not do what it is told."""


@dataclass(frozen=True, slots=True)
class Release:
    """The services and the gateway of a release."""

    api: Api
    name: str
    """What the names of its objects begin with."""
    instance: str
    """The release's name, as its pods' labels have it."""
    seconds: float = _SECONDS
    """How long pods may take to end or to become ready."""

    def check(self) -> None:
        """Makes sure that all services are there.

        Raises:
            ClusterError: they are not, or may not be seen.
        """
        for name in self._services():
            self._deployment(name)

    def stop(self) -> None:
        """Scales the services to nothing; each notes how many pods it had, in the same change."""
        for name in self._services():
            found = self._deployment(name)
            if STOPPED in (found["metadata"].get("annotations") or {}):
                if found["spec"].get("replicas", 1):
                    self.api.patch("deployments", name, {"spec": {"replicas": 0}})
                continue
            # One that somebody stopped by hand is to serve afterwards, too.
            had = max(1, found["spec"].get("replicas", 1))
            change = {"metadata": {"annotations": {STOPPED: str(had)}}, "spec": {"replicas": 0}}
            self.api.patch("deployments", name, change)

    async def until_stopped(self) -> None:
        """Waits until no pod of a service is left.

        Raises:
            ClusterError: some do not end.
        """
        selector = (
            f"app.kubernetes.io/instance={self.instance},"
            f"app.kubernetes.io/component in ({', '.join(CONTEXTS)})"
        )
        left: list[str] = []

        def stopped() -> bool:
            pods = self.api.list("pods", selector)
            left[:] = [
                pod["metadata"]["name"]
                for pod in pods
                if pod.get("status", {}).get("phase") not in _ENDED
            ]
            return not left

        await self._wait(stopped, lambda: f"pods do not end: {', '.join(left)}")

    def start(self) -> None:
        """Gives the services the pods that they had."""
        for name in self._services():
            had = (self._deployment(name)["metadata"].get("annotations") or {}).get(STOPPED)
            if had is not None:
                change = {"metadata": {"annotations": {STOPPED: None}}}
                self.api.patch("deployments", name, change | {"spec": {"replicas": int(had)}})

    def restart_gateway(self, run: str) -> None:
        """Lets the gateway's pods be replaced, one after the other; once for each run."""
        gateway = f"{self.name}-gateway"
        template = self._deployment(gateway)["spec"].get("template", {}).get("metadata", {})
        if (template.get("annotations") or {}).get(_RESTARTED) != run:
            noted = {"template": {"metadata": {"annotations": {_RESTARTED: run}}}}
            self.api.patch("deployments", gateway, {"spec": noted})

    async def until_ready(self) -> None:
        """Waits until services and gateway serve.

        Raises:
            ClusterError: some do not.
        """
        waits: list[str] = []

        def ready() -> bool:
            names = [*self._services(), f"{self.name}-gateway"]
            waits[:] = [name for name in names if not _is_rolled_out(self._deployment(name))]
            return not waits

        await self._wait(ready, lambda: f"not ready: {', '.join(waits)}; see their logs")

    async def _wait(self, done: Callable[[], bool], otherwise: Callable[[], str]) -> None:
        give_up_at = time.monotonic() + self.seconds
        while not done():
            if time.monotonic() > give_up_at:
                raise ClusterError(otherwise())
            await asyncio.sleep(_PAUSE_SECONDS)

    def _services(self) -> list[str]:
        return [f"{self.name}-{context}" for context in CONTEXTS]

    def _deployment(self, name: str) -> Object:
        found = self.api.get("deployments", name)
        if found is None:
            raise ClusterError(f"there is no Deployment {name}; install the chart first")
        return found


def _is_rolled_out(deployment: Object) -> bool:
    """As `kubectl rollout status` has it."""
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status", {})
    return bool(
        status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
        and status.get("updatedReplicas", 0) >= wanted
        and status.get("availableReplicas", 0) >= wanted
        and status.get("replicas", 0) <= status.get("updatedReplicas", 0)
    )


_ADMIN: Final = {
    "password": "secrets/admin_password",
    "enrollment-secret": "secrets/enrollment_secret",
}
_GATEWAY: Final = {
    "tls.crt": "tls/server.crt",
    "tls.key": "tls/server.key",
    "ca.crt": "tls/ca.crt",
}
_AUTHORITIES: Final = {"gateway.crt": "tls/ca.crt", "gateway.key": "tls/ca.key"}
_REPLACED: Final = "replaced-by-restore."
"""What the keys begin with under which a Secret keeps what it held."""


@dataclass(frozen=True, slots=True)
class ReleaseSecrets:
    """Where the keys of a release are (`cli.backup.places.Place`).

    The master key is read as it is mounted and never changed. Of the Secrets, only those that the
    chart made are filled from an archive.
    """

    api: Api
    mounted: Path
    """The file with the master key."""
    admin: str
    """The Secret with the first Owner's password; empty where the operator gives it."""
    gateway: str
    """The Secret with the gateway's certificate, likewise."""
    authorities: str
    """The Secret with its CA, with which the certificate is renewed."""
    public_url: str

    @contextlib.contextmanager
    def master_key(self, _archived: bytes) -> Iterator[bytes]:
        """The installation's own."""
        try:
            key = self.mounted.read_bytes()
        except OSError as error:
            raise ClusterError(f"the master key cannot be read: {error}") from error
        yield key

    def check(self) -> None:
        """Makes sure that the Secrets are there.

        Raises:
            ClusterError: they are not, or may not be read.
        """
        for name in filter(None, (self.admin, self.gateway, self.authorities)):
            if self.api.get("secrets", name) is None:
                raise ClusterError(f"there is no Secret {name}; run helm upgrade first")

    def stage(self, files: Mapping[str, bytes]) -> StagedSecrets:
        """Takes from an archive what the Secrets are to hold."""
        staged = StagedSecrets(self.api)
        if self.admin:
            staged.take(self.admin, _ADMIN, files)
        if self.gateway and self._is_for_this_host(files):
            staged.take(self.gateway, _GATEWAY, files)
            if self.authorities and set(_AUTHORITIES.values()) <= files.keys():
                staged.take(self.authorities, _AUTHORITIES, files)
        staged.left = sorted(files.keys() - staged.taken - {"secrets/master_key"})
        return staged

    def _is_for_this_host(self, files: Mapping[str, bytes]) -> bool:
        from deploy.certificates import is_for  # noqa: PLC0415

        certificate = files.get("tls/server.crt")
        return (
            certificate is not None
            and "tls/server.key" in files
            and is_for(certificate, files["tls/server.key"], self.public_url)
        )


@dataclass(slots=True)
class StagedSecrets:
    """What Secrets are to hold (`cli.backup.places.Stage`)."""

    api: Api
    left: list[str] = field(default_factory=list)
    """The names of what has no place here."""
    taken: set[str] = field(default_factory=set)
    wanted: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def take(self, secret: str, keys: Mapping[str, str], files: Mapping[str, bytes]) -> None:
        """Takes files for the keys of a Secret."""
        found = {key: files[name] for key, name in keys.items() if name in files}
        self.taken.update(keys.values())
        if found:
            self.wanted[secret] = found

    def put(self) -> None:
        """Fills the Secrets, each by one change; what they held stays beside it.

        By a merge, which leaves no copy of the values in an annotation, and removes one that
        `kubectl apply` left.
        """
        for name, wanted in self.wanted.items():
            secret = self.api.get("secrets", name)
            if secret is None:
                raise ClusterError(f"the Secret {name} is gone; run helm upgrade")
            held = data_of(secret)
            # As Compose and `make run` have them, with a line break that a Secret has not.
            new = {key: _as_kept(key, value) for key, value in wanted.items()}
            old = {_REPLACED + k: held[k] for k, v in new.items() if held.get(k, v) != v}
            is_new = any(held.get(key) != value for key, value in new.items())
            change: Object = {"data": as_data(new | old)} if is_new else {}
            if _APPLIED in (secret["metadata"].get("annotations") or {}):
                change["metadata"] = {"annotations": {_APPLIED: None}}
            if change:
                self.api.patch("secrets", name, change)

    def discard(self) -> None:
        """Forgets them."""
        self.wanted.clear()


def _as_kept(key: str, value: bytes) -> bytes:
    return value.strip() if key in _ADMIN else value
