"""Passkeys (WebAuthn, level 2): what a browser is asked, and what of its answer is true.

The person is verified by the device, with a fingerprint or a PIN, at every use: a passkey alone is
two factors. No attestation is asked for, so that every make of device will do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import webauthn
from webauthn.helpers import base64url_to_bytes
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

MAX_RESPONSE: Final = 16_384
"""Characters of a browser's answer."""
_TIMEOUT_MS: Final = 300_000


class PasskeyError(Exception):
    """A browser's answer is none, or is not true."""


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """The site that passkeys are for."""

    id: str
    """The name of its host."""
    origin: str
    """`https://HOST[:PORT]`"""

    @classmethod
    def at(cls, public_url: str) -> RelyingParty | None:
        """The site at an address; `None` where it is not known, or is no name of a host."""
        parts = urlsplit(public_url)
        host = parts.hostname or ""
        if not host or host.replace(".", "").isdigit() or ":" in host:
            return None
        return cls(host, f"{parts.scheme}://{parts.netloc}")


@dataclass(frozen=True, slots=True)
class NewPasskey:
    """What a browser has made."""

    credential_id: bytes
    public_key: bytes = field(repr=False)
    sign_count: int
    backed_up: bool
    """Whether it is in several devices of its owner."""
    aaguid: UUID
    """The make of the device, where it tells."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a browser's answer says of itself, before it is verified."""

    credential_id: bytes
    challenge: bytes
    user_handle: bytes
    response: dict[str, Any] = field(repr=False)


def creation_options(
    site: RelyingParty, user_id: UUID, email: str, challenge: bytes, known: Sequence[bytes]
) -> str:
    """What a browser is asked to make, as JSON.

    Args:
        known: the ids of those that the user has: a device is to have one.
    """
    options = webauthn.generate_registration_options(
        rp_id=site.id,
        rp_name="Evergreen",
        user_id=user_id.bytes,
        user_name=email,
        challenge=challenge,
        timeout=_TIMEOUT_MS,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[PublicKeyCredentialDescriptor(id=one) for one in known],
    )
    return str(webauthn.options_to_json(options))


def request_options(site: RelyingParty, challenge: bytes, known: Sequence[bytes] = ()) -> str:
    """What a browser is asked to prove, as JSON.

    Args:
        known: the ids of the user's; none where the user is to be found by the passkey.
    """
    options = webauthn.generate_authentication_options(
        rp_id=site.id,
        challenge=challenge,
        timeout=_TIMEOUT_MS,
        allow_credentials=[PublicKeyCredentialDescriptor(id=one) for one in known],
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return str(webauthn.options_to_json(options))


def claimed(response: str) -> Claimed:
    """Reads a browser's answer.

    Raises:
        PasskeyError: it is none.
    """
    if len(response) > MAX_RESPONSE:
        raise PasskeyError("the answer is too long")
    try:
        found = json.loads(response)
        inner = found["response"]
        said = json.loads(base64url_to_bytes(inner["clientDataJSON"]))
        handle = inner.get("userHandle")
        return Claimed(
            credential_id=base64url_to_bytes(found["rawId"]),
            challenge=base64url_to_bytes(said["challenge"]),
            user_handle=base64url_to_bytes(handle) if handle else b"",
            response=found,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as broken:
        raise PasskeyError("the answer cannot be read") from broken


def registered(site: RelyingParty, answer: Claimed, challenge: bytes) -> NewPasskey:
    """Verifies what a browser has made.

    Raises:
        PasskeyError: it is not what was asked for.
    """
    try:
        found = webauthn.verify_registration_response(
            credential=answer.response,
            expected_challenge=challenge,
            expected_rp_id=site.id,
            expected_origin=site.origin,
            require_user_verification=True,
        )
        return NewPasskey(
            credential_id=found.credential_id,
            public_key=found.credential_public_key,
            sign_count=found.sign_count,
            backed_up=found.credential_backed_up,
            aaguid=UUID(found.aaguid),
        )
    except (WebAuthnException, ValueError, KeyError, TypeError, AttributeError) as broken:
        raise PasskeyError(str(broken)) from broken


def verified(
    site: RelyingParty, answer: Claimed, challenge: bytes, public_key: bytes
) -> tuple[int, bool]:
    """Verifies what a browser proves; answers the device's count of uses, and whether several
    devices have the passkey. What the count has to be is the caller's to judge.

    Raises:
        PasskeyError: it proves nothing.
    """
    try:
        found = webauthn.verify_authentication_response(
            credential=answer.response,
            expected_challenge=challenge,
            expected_rp_id=site.id,
            expected_origin=site.origin,
            credential_public_key=public_key,
            credential_current_sign_count=0,
            require_user_verification=True,
        )
    except (WebAuthnException, ValueError, KeyError, TypeError, AttributeError) as broken:
        raise PasskeyError(str(broken)) from broken
    return found.new_sign_count, found.credential_backed_up
