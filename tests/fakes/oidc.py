"""A provider of single sign-on in this process: it signs as one does, or lies as no real one would.

What real ones do is tested with them (`tests/external/test_single_sign_on.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

CLIENT = "evergreen"
SECRET = "a secret: of the client/+%"
Claims = dict[str, Any]


@dataclass
class Key:
    """A key that signs."""

    id: str
    algorithm: str
    private: Any

    @classmethod
    def make(cls, id_: str, algorithm: str = "ES256") -> Key:
        made: Any
        if algorithm.startswith(("RS", "PS")):
            made = rsa.generate_private_key(65537, 2048)
        elif algorithm == "EdDSA":
            made = ed25519.Ed25519PrivateKey.generate()
        else:
            made = ec.generate_private_key(ec.SECP256R1())
        return cls(id_, algorithm, made)

    def published(self) -> dict[str, Any]:
        """As a JWK (RFC 7517)."""
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        found = algorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**found, "kid": self.id, "use": "sig", "alg": self.algorithm}

    def sign(self, claims: Claims, **header: Any) -> str:
        head = {"kid": self.id, **header}
        return jwt.encode(claims, self.private, self.algorithm, head)


@dataclass
class FakeProvider:
    """What the provider knows, how it lies, and what it was asked."""

    issuer: str
    people: dict[str, Claims] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=lambda: [Key.make("k1")])
    change_token: Callable[[Claims], Claims] = lambda claims: claims
    """What becomes of the claims of an ID token before they are signed."""
    sign: Callable[[Claims], str] | None = None
    """Signs in the place of the first key."""
    document: dict[str, Any] = field(default_factory=dict)
    """What its document has instead; `None` for what it has not."""
    userinfo: Claims | None = None
    """What its user-info endpoint says, instead of the person's claims."""
    only_in_userinfo: tuple[str, ...] = ()
    """Claims that are not in ID tokens."""
    answers: dict[str, tuple[int, bytes, dict[str, str]]] = field(default_factory=dict)
    """Whole answers, by the path."""
    says_issuer: bool = True
    hang: threading.Event = field(default_factory=threading.Event)
    lie: str = ""
    """`hang`, `drip`, `cut` or `flood` for all that is asked, or nothing."""
    asked: list[str] = field(default_factory=list)
    """The paths that were asked for."""
    codes: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)
    """Code → subject and parameters of the question."""
    ahead: float = 0.0
    """By how many seconds its clock is ahead."""

    def person(self, name: str, *groups: str, **claims: Any) -> str:
        """Adds somebody, whose `sub` is answered."""
        known = {"email": f"{name}@school.example", "email_verified": True, "groups": list(groups)}
        self.people[name] = known | claims
        return name

    def authorize(self, url: str, name: str) -> dict[str, str]:
        """What the provider sends back when somebody logs in at the address that a browser was led
        to."""
        asked = {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert "openid" in asked["scope"].split()
        code = uuid4().hex
        self.codes[code] = (name, asked)
        back = {"code": code, "state": asked["state"]}
        return back | ({"iss": self.issuer} if self.says_issuer else {})

    def id_token(self, name: str, nonce: str, **more: Any) -> str:
        """A signed ID token."""
        known = {k: v for k, v in self.people[name].items() if k not in self.only_in_userinfo}
        now = int(time.time() + self.ahead)
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "sub": name,
            "nonce": nonce,
            "iat": now,
            "exp": now + 300,
            **known,
            **more,
        }
        claims = self.change_token(claims)
        return self.sign(claims) if self.sign is not None else self.keys[0].sign(claims)

    def logout_token(self, **changed: Any) -> str:
        """A logout token; `None` for a claim that it has not."""
        now = int(time.time() + self.ahead)
        claims: Claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 120,
            "jti": uuid4().hex,
            "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
        } | changed
        claims = {name: value for name, value in claims.items() if value is not None}
        return self.keys[0].sign(claims, typ="logout+jwt")

    def answer(self, path: str, body: dict[str, str], headers: Any) -> tuple[int, dict[str, Any]]:
        if path == "/.well-known/openid-configuration":
            whole = {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize?tenant=1",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
                "userinfo_endpoint": f"{self.issuer}/userinfo",
                "response_types_supported": ["code", "id_token"],
                "id_token_signing_alg_values_supported": ["ES256", "RS256"],
                "authorization_response_iss_parameter_supported": self.says_issuer,
            } | self.document
            return 200, {name: value for name, value in whole.items() if value is not None}
        if path == "/keys":
            return 200, {"keys": [key.published() for key in self.keys]}
        if path == "/userinfo":
            name = headers["authorization"].removeprefix("Bearer ")
            if self.userinfo is not None:
                return 200, self.userinfo
            return 200, {"sub": name, **self.people[name]}
        if path == "/token":
            return self._token(body, headers)
        return 404, {}

    def _token(self, body: dict[str, str], headers: Any) -> tuple[int, dict[str, Any]]:
        pair = base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode()
        if [unquote(part) for part in pair.split(":")] != [CLIENT, SECRET]:
            return 401, {"error": "invalid_client"}
        name, asked = self.codes.pop(body.get("code", ""), ("", {}))
        digest = hashlib.sha256(body["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if (
            not name
            or body["redirect_uri"] != asked["redirect_uri"]
            or challenge != asked["code_challenge"]
        ):
            return 400, {"error": "invalid_grant"}
        token = self.id_token(name, asked["nonce"])
        return 200, {"access_token": name, "token_type": "Bearer", "id_token": token}


class _Handler(BaseHTTPRequestHandler):
    provider: FakeProvider
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve({})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["content-length"])).decode()
        self._serve({name: values[0] for name, values in parse_qs(text).items()})

    def _serve(self, body: dict[str, str]) -> None:
        known = self.provider
        path = urlsplit(self.path).path
        known.asked.append(path)
        if known.lie == "hang":
            known.hang.wait(30)
            self.close_connection = True
            return
        if known.lie == "cut":
            self.close_connection = True
            return
        if path in known.answers:
            status, content, headers = known.answers[path]
        else:
            status, said = known.answer(path, body, self.headers)
            content, headers = json.dumps(said).encode(), {"content-type": "application/json"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if known.lie == "flood":
            content = b'{"issuer": "' + b"x" * (1 << 20) + b'"}'
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        try:
            if known.lie == "drip":
                for one in content:
                    self.wfile.write(bytes([one]))
                    if known.hang.wait(0.3):
                        break
            else:
                self.wfile.write(content)
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running() -> Iterator[FakeProvider]:
    """A provider on a port of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.block_on_close = False
    found = FakeProvider(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"provider": found})
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.hang.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
