"""JSON Web Tokens under Ed25519 (RFC 7519, RFC 8037, RFC 8725)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

import jwt

from servicekit.security.signing import PublicKey, Signer

_ALGORITHM: Final = "EdDSA"


def encode(claims: dict[str, Any], signer: Signer, kind: str) -> str:
    """A token; its header names the key and what kind of token it is (`typ`)."""
    return jwt.encode(
        claims,
        signer.private,
        algorithm=_ALGORITHM,
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
            algorithms=[_ALGORITHM],
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
        found = [jwt.PyJWK(key, _ALGORITHM) for key in keys]
    except jwt.PyJWTError as broken:
        raise ValueError("not a key") from broken
    for key in found:
        try:
            jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                options={"verify_aud": False, "verify_exp": False},
            )
        except jwt.InvalidTokenError:
            continue
        return True
    return False
