"""JSON Web Tokens under Ed25519 or P-256 (RFC 7518, RFC 7519, RFC 8037, RFC 8725)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jwt

from servicekit.security.signing import PublicKey, Signer
from servicekit.security.suites import ED25519, ES256

_NAMES: Final = {ED25519: "EdDSA", ES256: "ES256"}
"""The algorithms of our keys, as tokens name them."""
_FOREIGN: Final[Mapping[str, tuple[str, str]]] = {
    "RS256": ("RSA", ""),
    "RS384": ("RSA", ""),
    "RS512": ("RSA", ""),
    "PS256": ("RSA", ""),
    "PS384": ("RSA", ""),
    "PS512": ("RSA", ""),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""How tokens of others may be signed: the type and the curve of the key; never by a secret that is
shared."""
FOREIGN_ALGORITHMS: Final = frozenset(_FOREIGN)
_RSA_BITS: Final = range(2048, 8193)
_MEMBERS: Final[Mapping[str, Mapping[str, int]]] = {
    "RSA": {"n": 1400, "e": 16},
    "EC": {"crv": 16, "x": 128, "y": 128},
    "OKP": {"crv": 16, "x": 128},
}
"""The members of each type's public keys (RFC 7518, RFC 8037), and how long each may be."""


def encode(claims: dict[str, Any], signer: Signer, kind: str) -> str:
    """A token; its header names the key and what kind of token it is (`typ`)."""
    return jwt.encode(
        claims,
        signer.private,
        algorithm=_NAMES[signer.public.algorithm],
        headers={"kid": signer.public.id, "typ": kind},
    )


def header(token: str) -> dict[str, Any]:
    """What the header says, which is not verified.

    Raises:
        ValueError: it is no token.
    """
    try:
        found: dict[str, Any] = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError as broken:
        raise ValueError("not a token") from broken
    return found


def decode(
    token: str,
    key: PublicKey,
    *,
    issuer: str,
    audience: str,
    required: Collection[str],
    lapsed: bool = False,
) -> dict[str, Any]:
    """What a token says that the key signed.

    Args:
        token: the token.
        key: the key that its header names.
        issuer: who has to have issued it.
        audience: whom it has to be for.
        required: claims that it must have.
        lapsed: takes one that has expired, too.

    Raises:
        ValueError: the token is not good.
    """
    try:
        found: dict[str, Any] = jwt.decode(
            token,
            key.verifier,
            algorithms=[_NAMES[key.algorithm]],
            issuer=issuer,
            audience=audience,
            options={"require": list(required), "verify_exp": not lapsed},
        )
    except jwt.InvalidTokenError as wrong:
        raise ValueError("the token is not good") from wrong
    return found


def unverified(token: str) -> dict[str, Any]:
    """What a token says, whoever has made it.

    Raises:
        ValueError: it is no token.
    """
    try:
        found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError as broken:
        raise ValueError("not a token") from broken
    return found


def is_signed_by(token: str, keys: Iterable[dict[str, Any]]) -> bool:
    """Whether one of some keys (RFC 7517) has signed a token, whatever it says.

    Raises:
        ValueError: a key is none of ours.
    """
    try:
        found = [jwt.PyJWK(key) for key in keys]
    except jwt.PyJWTError as broken:
        raise ValueError("not a key") from broken
    if not {key.algorithm_name for key in found} <= set(_NAMES.values()):
        raise ValueError("not a key of ours")
    for key in found:
        try:
            jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                options={"verify_aud": False, "verify_exp": False},
            )
        except jwt.InvalidTokenError:
            continue
        return True
    return False


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A public key of somebody else (RFC 7517)."""

    id: str
    """Its `kid`; empty when it has none."""
    kind: str
    """Its `kty`."""
    curve: str
    algorithm: str
    """The only one that it is for; empty for any that its kind has."""
    document: Mapping[str, str] = field(repr=False)
    """Its type, and the members of its public part; private ones would be worked with."""

    def fits(self, algorithm: str) -> bool:
        """Whether it verifies what is signed so."""
        kind, curve = _FOREIGN[algorithm]
        return (
            self.kind == kind
            and (not curve or self.curve == curve)
            and self.algorithm in {"", algorithm}
        )


class UnknownKeyError(ValueError):
    """None of the keys is the one that a token names: there may be newer ones."""


def foreign_keys(document: Mapping[str, Any], most: int) -> tuple[ForeignKey, ...]:
    """The keys of a JWK Set that verify signatures; keys for anything else are left out, and so
    are private ones and those that are too long.

    Raises:
        ValueError: it is none, or has more than `most`.
    """
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise ValueError("has no list of keys")
    if len(listed) > most:
        raise ValueError(f"has more than {most} keys")
    return tuple(
        ForeignKey(
            id=str(key.get("kid", "")),
            kind=key["kty"],
            curve=str(key.get("crv", "")),
            algorithm=str(key.get("alg", "")),
            document={name: key[name] for name in ("kty", *_MEMBERS[key["kty"]])},
        )
        for key in listed
        if isinstance(key, dict)
        and _is_public(key)
        and key.get("use", "sig") == "sig"
        and str(key.get("alg", "")) in {"", *FOREIGN_ALGORITHMS}
    )


def _is_public(key: Mapping[str, Any]) -> bool:
    kind = key.get("kty")
    if not isinstance(kind, str) or kind not in _MEMBERS or "d" in key:
        return False
    return all(
        isinstance(found := key.get(name), str) and found.isascii() and 0 < len(found) <= longest
        for name, longest in _MEMBERS[kind].items()
    )


def decode_foreign(
    token: str, keys: Sequence[ForeignKey], kinds: Collection[str]
) -> dict[str, Any]:
    """What a token of somebody else says, if one of the keys has signed it. Of what it says
    nothing is checked: who it is from, whom it is for, when it ends.

    Args:
        token: the token.
        keys: the keys of the issuer that it has to be from.
        kinds: what its header may say that it is (`typ`), in lower case; saying nothing is fine.

    Raises:
        UnknownKeyError: none of the keys is the one that it names.
        ValueError: it is not good.
    """
    head = header(token)
    algorithm = head.get("alg")
    if not isinstance(algorithm, str) or algorithm not in _FOREIGN:
        raise ValueError("the algorithm is not taken")
    if "crit" in head:
        raise ValueError("it wants something that is not known here")
    kind = str(head.get("typ", "")).lower().removeprefix("application/")
    if kind and kind not in kinds:
        raise ValueError("it is another kind of token")
    named = head.get("kid")
    fitting = [key for key in keys if key.fits(algorithm)]
    found = [key for key in fitting if key.id == named] if named is not None else fitting
    if not found:
        raise UnknownKeyError("none of the keys is the one that it names")
    if named is None and len(found) > 1:
        raise ValueError("it names no key, and there are several")
    key = found[0]
    try:
        public = jwt.PyJWK(dict(key.document), algorithm).key
        if key.kind == "RSA" and public.key_size not in _RSA_BITS:
            raise ValueError("the key is too short, or too long")
        claims: dict[str, Any] = jwt.decode(
            token,
            public,
            algorithms=[algorithm],
            options={
                "verify_aud": False,
                "verify_exp": False,
                "verify_iat": False,
                "verify_iss": False,
                "verify_jti": False,
                "verify_nbf": False,
                "verify_sub": False,
            },
        )
    except (jwt.PyJWTError, TypeError, OverflowError) as wrong:
        raise ValueError("the signature is wrong") from wrong
    return claims
