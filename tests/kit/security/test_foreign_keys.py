"""Keys that others publish."""

from __future__ import annotations

import time
from typing import Any

import jwt as signing
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from servicekit.security import jwt

_KINDS = frozenset({"jwt"})
_PRIVATE = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def _published(algorithm: str, **more: Any) -> dict[str, Any]:
    public = _PRIVATE[algorithm].public_key()
    found = signing.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True)
    return {**found, "kid": algorithm, "use": "sig", "alg": algorithm, **more}


def _keys(*published: dict[str, Any]) -> tuple[jwt.ForeignKey, ...]:
    return jwt.foreign_keys({"keys": list(published)}, 50)


@pytest.mark.parametrize("algorithm", sorted(_PRIVATE))
def test_public_keys_verify(algorithm: str) -> None:
    """Each type of key, whatever else was published with it."""
    keys = _keys(_published(algorithm, x5c=["AAAA"], key_ops=["verify"]))
    token = signing.encode({"sub": "anna"}, _PRIVATE[algorithm], algorithm, {"kid": algorithm})
    assert jwt.decode_foreign(token, keys, _KINDS) == {"sub": "anna"}


def test_private_keys_are_left_out() -> None:
    """The primes of an RSA key would be searched for, for hours, while nothing else goes on."""
    since = time.monotonic()
    huge = {"n": "x" * 180_000, "d": "x" * 180_000}
    for algorithm in _PRIVATE:
        assert _keys(_published(algorithm, d="AQAB")) == ()
    assert _keys(_published("RS256", **huge)) == ()
    # A list of keys that was kept holds no private part either.
    (key,) = _keys(_published("RS256", p="AQAB", q="AQAB", dp="AQAB"))
    assert set(key.document) == {"kty", "n", "e"}
    assert time.monotonic() - since < 5


@pytest.mark.parametrize(
    ("algorithm", "wrong"),
    [
        ("RS256", {"n": "x" * 1401}),
        ("RS256", {"e": "x" * 17}),
        ("RS256", {"n": 7}),
        ("RS256", {"n": ""}),
        ("RS256", {"kty": ["RSA"]}),
        ("ES256", {"x": "x" * 129}),
        ("ES256", {"y": None}),
        ("EdDSA", {"x": {}}),
    ],
)
def test_keys_that_are_none_are_left_out(algorithm: str, wrong: dict[str, Any]) -> None:
    """Too long, of another type, or missing."""
    assert _keys(_published(algorithm, **wrong)) == ()
