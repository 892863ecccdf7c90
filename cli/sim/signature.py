"""Whether a policy's signature is good, as the agent finds out.

All devices of an organisation get the same policy, so a document that was checked before is only
compared: every answer can be looked at.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Final

from cli.client import read_text
from cli.errors import CliError
from servicekit.errors import DomainError
from servicekit.security.signing import PublicKey, read_pem_bundle
from services.policy.authoring.document import parse_document
from services.policy.authoring.goencoding import encode_document

_REMEMBERED: Final = 64


class Signatures:
    """Checks ENVELOPEs against pinned keys."""

    def __init__(self, keys: list[PublicKey]) -> None:
        self._keys = keys
        self._good: dict[str, Any] = {}

    @classmethod
    def pinned(cls, file: Path) -> Signatures:
        """The keys of a PEM file.

        Raises:
            CliError: it has none, or cannot be read.
        """
        try:
            return cls(read_pem_bundle(read_text(file)))
        except ValueError as error:
            raise CliError(f"{file} has no policy key: {error}") from error

    def __call__(self, envelope: dict[str, Any]) -> bool:
        """Whether one of the keys has signed the envelope's document."""
        signature, document = envelope.get("signature"), envelope.get("policy")
        if not isinstance(signature, str):
            return False
        if signature in self._good and self._good[signature] == document:
            return True
        try:
            covered = encode_document(parse_document(document))
            sealed = base64.b64decode(signature, validate=True)
        except (DomainError, ValueError):
            return False
        if not any(key.verifies(covered, sealed) for key in self._keys):
            return False
        if len(self._good) >= _REMEMBERED:
            self._good.clear()
        self._good[signature] = document
        return True
