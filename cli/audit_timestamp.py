"""Timestamps of RFC 3161: an authority signs that it saw the digest of a file at a time.

The request is a handful of bytes in DER. The answer is kept as it came, for `openssl ts -verify`
and for lawyers; here it is only looked at whether it answers this request.
"""

from __future__ import annotations

import secrets
from typing import Final

import httpx

from cli.errors import CliError
from servicekit.security.digests import sha256

_SHA256: Final = bytes.fromhex("0609608648016503040201")
_SECONDS: Final = 30.0
_MOST: Final = 1 << 20
_INTEGER, _OCTETS, _BOOLEAN, _SEQUENCE = 0x02, 0x04, 0x01, 0x30
_GRANTED: Final = (0, 1)


def _der(tag: int, content: bytes) -> bytes:
    """A value in DER, of at most 127 bytes."""
    return bytes([tag, len(content)]) + content


def request(data: bytes, nonce: bytes) -> bytes:
    """The query for a timestamp of some data, with the authority's certificate in the answer.

    Args:
        data: what is to be stamped.
        nonce: what tells the answer from an older one; its first bit is not set.
    """
    return _der(
        _SEQUENCE,
        _der(_INTEGER, b"\x01") + _imprint(data) + _der(_INTEGER, nonce) + _der(_BOOLEAN, b"\xff"),
    )


def _imprint(data: bytes) -> bytes:
    algorithm = _der(_SEQUENCE, _SHA256 + b"\x05\x00")
    return _der(_SEQUENCE, algorithm + _der(_OCTETS, sha256(data)))


def stamp(url: str, data: bytes) -> bytes:
    """Asks an authority for a timestamp; answers its reply.

    Raises:
        CliError: it gave none.
    """
    nonce = bytes([secrets.randbelow(0x7F) + 1]) + secrets.token_bytes(7)
    headers = {"content-type": "application/timestamp-query"}
    try:
        answer = httpx.post(url, content=request(data, nonce), headers=headers, timeout=_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CliError(f"{url} cannot be reached: {error or type(error).__name__}") from error
    if answer.is_error:
        raise CliError(f"{url} answered {answer.status_code} {answer.reason_phrase}")
    reply = answer.content
    if len(reply) > _MOST or _status(reply) not in _GRANTED:
        raise CliError(f"{url} gave no timestamp")
    if _imprint(data) not in reply or _der(_INTEGER, nonce) not in reply:
        raise CliError(f"{url} gave a timestamp of something else")
    return reply


def _status(reply: bytes) -> int | None:
    """The status of a reply: `TimeStampResp`, in it `PKIStatusInfo`, in it an integer."""
    rest = _inside(_inside(reply))
    if len(rest) < 3 or rest[0] != _INTEGER or rest[1] != 1:
        return None
    return rest[2]


def _inside(data: bytes) -> bytes:
    """What is in a sequence, with all that follows; empty for something else."""
    if len(data) < 2 or data[0] != _SEQUENCE:
        return b""
    more = data[1] & 0x7F if data[1] & 0x80 else 0
    return data[2 + more :]
