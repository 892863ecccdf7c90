"""The API of the cluster that this program runs in, with the rights of its pod's account."""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx

Object = dict[str, Any]

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds `token`, `ca.crt` and `namespace`."""
_GROUPS: Final = {"secrets": "api/v1", "pods": "api/v1", "deployments": "apis/apps/v1"}
_BUSY: Final = frozenset({429, 500, 502, 503, 504})
_MOST_SAID: Final = 200


class KubernetesError(Exception):
    """The cluster does not answer, refuses, or lacks an object; the message says which."""


class ConflictError(KubernetesError):
    """The object has been changed since it was read."""


@dataclass(frozen=True, slots=True)
class Api:
    """The API server, and the namespace that this program's pod is in."""

    url: str
    namespace: str
    account: Path = ACCOUNT
    """The directory with the account's token, which is replaced every hour, and the CA."""
    timeout: float = 30.0
    """Seconds for one attempt."""
    attempts: int = 6
    """How often a call is made while the server is busy or cannot be reached."""
    pause: float = 2.0
    """Seconds between two attempts."""

    @classmethod
    def of_pod(cls, environment: Mapping[str, str], account: Path = ACCOUNT) -> Api:
        """The API of the cluster that this program runs in, as every pod is told.

        Raises:
            KubernetesError: this is no pod, or one without a service account's token.
        """
        try:
            host = environment["KUBERNETES_SERVICE_HOST"]
            port = environment["KUBERNETES_SERVICE_PORT"]
        except KeyError as missing:
            raise KubernetesError(f"this is no pod of Kubernetes: {missing} is not set") from None
        try:
            namespace = (account / "namespace").read_text(encoding="ascii").strip()
        except OSError as error:
            raise KubernetesError(f"this pod has no service account's token: {error}") from error
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", namespace, account)

    def get(self, plural: str, name: str) -> Object | None:
        """An object; `None` where there is none.

        Raises:
            KubernetesError: it cannot be read.
        """
        answer = self._call("GET", plural, name)
        return None if answer.status_code == HTTPStatus.NOT_FOUND else _read(answer)

    def list(self, plural: str, selector: str) -> list[Object]:
        """The objects with these labels.

        Raises:
            KubernetesError: they cannot be read.
        """
        answer = self._call("GET", plural, "", params={"labelSelector": selector})
        found: list[Object] = _read(answer)["items"]
        return found

    def patch(self, plural: str, name: str, change: Object) -> Object:
        """Merges a change into an object (RFC 7396).

        Raises:
            ConflictError: the change names a version that the object does not have any more.
            KubernetesError: it is not there, or cannot be changed.
        """
        headers = {"Content-Type": "application/merge-patch+json"}
        return _read(self._call("PATCH", plural, name, json=change, headers=headers))

    def replace(self, plural: str, wanted: Object) -> Object:
        """Replaces an object at once, by one with the version that was read.

        Raises:
            ConflictError: it has been changed since. So it is, too, where an attempt whose answer
                was lost did it.
            KubernetesError: it is not there, or cannot be changed.
        """
        return _read(self._call("PUT", plural, wanted["metadata"]["name"], json=wanted))

    def _call(self, method: str, plural: str, name: str, **more: Any) -> httpx.Response:
        path = f"/{_GROUPS[plural]}/namespaces/{self.namespace}/{plural}"
        path += f"/{name}" if name else ""
        reason = ""
        for attempt in range(1, self.attempts + 1):
            try:
                with self._client() as client:
                    answer = client.request(method, path, **more)
                if answer.status_code not in _BUSY:
                    return answer
                reason = f"({answer.status_code}) {_said(answer)}"
            except (OSError, httpx.HTTPError) as error:
                reason = str(error) or type(error).__name__
            if attempt < self.attempts:
                time.sleep(self.pause)
        raise KubernetesError(f"{self.url} does not answer {method} {path}: {reason}")

    def _client(self) -> httpx.Client:
        """With the token and the CA of now: both are replaced while a pod runs."""
        token = (self.account / "token").read_text(encoding="ascii").strip()
        return httpx.Client(
            base_url=self.url,
            timeout=self.timeout,
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(cafile=self.account / "ca.crt"),
            trust_env=False,
        )


def data_of(secret: Object) -> dict[str, bytes]:
    """The values of a Secret."""
    return {key: base64.b64decode(text) for key, text in (secret.get("data") or {}).items()}


def as_data(values: Mapping[str, bytes]) -> dict[str, str]:
    """Values as a Secret has them in `data`."""
    return {key: base64.b64encode(value).decode() for key, value in values.items()}


def _read(answer: httpx.Response) -> Object:
    what = f"{answer.request.method} {answer.request.url.path}"
    if not answer.is_success:
        kind = ConflictError if answer.status_code == HTTPStatus.CONFLICT else KubernetesError
        raise kind(f"the cluster refuses {what} ({answer.status_code}): {_said(answer)}")
    try:
        found: Object = answer.json()
    except ValueError as error:
        raise KubernetesError(f"the cluster answers {what} with no JSON") from error
    return found


def _said(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:_MOST_SAID]
