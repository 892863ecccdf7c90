"""The API of Kubernetes as far as the chart and its jobs use it: objects in memory, over HTTPS.

It knows one account, and checks no schema. As a real one does, it refuses a change of an immutable
Secret, a change of a version that is not there any more, and a patch of an unknown kind.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import yaml

from deploy.certificates import SERVER, Authority, now

Object = dict[str, Any]

TOKEN: Final = "of-the-pod"
NAMESPACE: Final = "fleet"
_KINDS: Final = {
    "api/v1": {
        "secrets": "Secret",
        "pods": "Pod",
        "persistentvolumeclaims": "PersistentVolumeClaim",
    },
    "apis/apps/v1": {"deployments": "Deployment"},
}
_PATH: Final = re.compile(
    r"/(api/v1|apis/apps/v1)/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(?:/([a-z]+))?"
)


@dataclass
class FakeKubernetes:
    """An API server's objects, and what it was asked to change."""

    port: int
    account: Path
    """What a pod finds of its service account."""
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    """(plural, name) → object, all in one namespace."""
    writes: list[str] = field(default_factory=list)
    """Method, kind and name of every change."""
    before_write: Callable[[str], None] = lambda _: None
    """Called before a change counts; what it raises breaks the connection."""
    after_write: Callable[[str], None] = lambda _: None
    token: str = TOKEN
    """Of the account that may do everything that is allowed."""
    allowed: Callable[[str], bool] = lambda _: True
    """Told a kind and a name."""
    busy: list[int] = field(default_factory=list)
    """Statuses that the next calls are answered with."""
    calls: int = 0

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self.lock = threading.RLock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """As every pod is told."""
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def put(self, plural: str, name: str, **parts: Any) -> Object:
        """Makes an object, or replaces it."""
        with self.lock:
            metadata = {"name": name, "namespace": NAMESPACE, **parts.pop("metadata", {})}
            metadata["resourceVersion"] = str(next(self._numbers))
            kind = next(kinds[plural] for kinds in _KINDS.values() if plural in kinds)
            found: Object = {"kind": kind, "metadata": metadata, **parts}
            self.objects[plural, name] = found
            return found

    def secret(self, name: str, *, immutable: bool = False, **data: bytes) -> Object:
        """Makes a Secret."""
        encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
        parts = {"immutable": True} if immutable else {}
        return self.put("secrets", name, data=encoded, **parts)

    def data(self, name: str) -> dict[str, bytes]:
        """What a Secret holds."""
        found = self.objects["secrets", name].get("data") or {}
        return {key: base64.b64decode(value) for key, value in found.items()}

    def kubeconfig(self, directory: Path) -> Path:
        """Leads Helm here."""
        path = directory / "kubeconfig"
        named = {"name": "fake"}
        server = {"server": self.url, "certificate-authority": str(self.account / "ca.crt")}
        text = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [named | {"cluster": server}],
            "users": [named | {"user": {"token": self.token}}],
            "contexts": [named | {"context": {"cluster": "fake", "user": "fake"}}],
        }
        path.write_text(yaml.safe_dump(text))
        path.chmod(0o600)
        return path

    def answer(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> tuple[int, Object]:
        """An HTTP status, and the answer."""
        parts = urlsplit(path)
        self.calls += 1
        if self.busy:
            return (code := self.busy.pop(0)), _status(code, "the server is busy")
        if headers.get("Authorization") != f"Bearer {self.token}":
            return 401, _status(401, "Unauthorized")
        if (group := parts.path.strip("/")) in _KINDS:
            return 200, _resources(group)
        if (found := _PATH.fullmatch(parts.path)) is None:
            return 404, _status(404, f"there is no {parts.path}")
        _, namespace, plural, name, sub = found.groups()
        if namespace != NAMESPACE or not self.allowed(f"{plural}/{name}"):
            return 403, _status(403, f'{plural} "{name}" is forbidden')
        if method == "PATCH" and headers.get("Content-Type") != "application/merge-patch+json":
            return 415, _status(415, "the body of the request was in an unknown format")
        if method == "GET" and name is None:
            return 200, self._list(plural, parse_qs(parts.query).get("labelSelector", [""])[0])
        if method == "GET":
            one = self.objects.get((plural, name))
            return (200, one) if one else (404, _status(404, f'{plural} "{name}" not found'))
        what = f"{method} {plural}/{name or body['metadata']['name']}" + (f"/{sub}" if sub else "")
        self.before_write(what)
        answered = self._write(method, plural, name, body)
        if answered[0] < 300:
            self.writes.append(what)
            self.after_write(what)
        return answered

    def _list(self, plural: str, selector: str) -> Object:
        kind = next(kinds[plural] for kinds in _KINDS.values() if plural in kinds)
        items = [
            item
            for (of, _), item in sorted(self.objects.items())
            if of == plural and _matches(item["metadata"].get("labels", {}), selector)
        ]
        return {"kind": f"{kind}List", "apiVersion": "v1", "metadata": {}, "items": items}

    def _write(self, method: str, plural: str, name: str | None, body: Any) -> tuple[int, Object]:
        with self.lock:
            name = name or body["metadata"]["name"]
            there = self.objects.get((plural, name))
            if method == "POST":
                if there:
                    return 409, _status(409, f'{plural} "{name}" already exists')
                given = {key: value for key, value in body.items() if key != "kind"}
                return 201, self.put(plural, name, **given)
            if there is None:
                return 404, _status(404, f'{plural} "{name}" not found')
            if method == "DELETE":
                del self.objects[plural, name]
                return 200, _status(200, "")
            changed = _merged(there, body) if method == "PATCH" else body
            wanted = body.get("metadata", {}).get("resourceVersion")
            if wanted and wanted != there["metadata"]["resourceVersion"]:
                return 409, _status(409, "the object has been modified")
            if there.get("immutable") and changed.get("data") != there.get("data"):
                return 422, _status(
                    422, "data: Forbidden: field is immutable when `immutable` is set"
                )
            parts = {key: value for key, value in changed.items() if key != "kind"}
            return 200, self.put(plural, name, **parts)


def _matches(labels: Object, selector: str) -> bool:
    for part in filter(None, re.split(r",(?![^(]*\))", selector)):
        if (among := re.fullmatch(r"(\S+) in \(([^)]*)\)", part.strip())) is not None:
            if labels.get(among[1]) not in re.split(r",\s*", among[2]):
                return False
        else:
            key, _, value = part.partition("=")
            if labels.get(key) != value:
                return False
    return True


def _merged(there: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(there) if isinstance(there, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _status(code: int, message: str) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Success" if code < 300 else "Failure",
        "message": message,
        "reason": {404: "NotFound", 409: "Conflict", 422: "Invalid"}.get(code, ""),
        "code": code,
    }


def _resources(group: str) -> Object:
    verbs = ["create", "delete", "get", "list", "patch", "update"]
    resources = [
        {"name": plural, "singularName": "", "namespaced": True, "kind": kind, "verbs": verbs}
        for plural, kind in _KINDS[group].items()
    ]
    version = group.partition("/")[2]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


@contextmanager
def kubernetes() -> Iterator[FakeKubernetes]:
    """An API server on loopback, with a certificate that the account's `ca.crt` has signed."""
    fake: FakeKubernetes

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # An answer is one packet: its body would wait 40 ms for the receipt of its header.
        wbufsize = -1

        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            code, answer = fake.answer(self.command, self.path, body, self.headers)
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A test broke the connection."""

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        authority = Authority.ensure_in(directory / "ca", "Cluster CA")
        files = directory / "api.crt", directory / "api.key"
        authority.ensure_files(*files, ["127.0.0.1"], SERVER, now())
        account = directory / "account"
        account.mkdir()
        (account / "token").write_text(TOKEN)
        (account / "namespace").write_text(NAMESPACE)
        (account / "ca.crt").write_bytes(authority.certificate_file.read_bytes())
        server = Server(("127.0.0.1", 0), Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*files)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        fake = FakeKubernetes(server.server_address[1], account)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
