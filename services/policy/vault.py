"""How policies and documents that hold secrets lie in the database: open, or sealed.

A sealed row has in one column, `sealed_secrets`, what is missing in others. It names the row, and
opens in no other one. Rows are read in either form at any time. The previous release reads the open
form alone, so that sealing is a setting, for when that release runs no more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, Protocol

from servicekit.security.sealing import Sealer, SealingError

PURPOSE: Final = "policy-secret"
SEALED: Final = "sealed_secrets"
"""The column."""
SECRETS: Final = r'"passphrase":\s*"[^"]|"passphrases":|"(eap|data|secrets)":\s*[{]\s*"'
"""What JSON has that holds secrets: a regular expression for Python and for PostgreSQL. Within a
text the quotes are escaped."""
_SECRETS: Final = re.compile(SECRETS)
DIGEST: Final = "coalesce(v.document_digest, sha256(v.document))"
"""The SHA-256 of the document of `policy.versions v`."""
HOLDS_SECRETS: Final = (
    f"(v.sealed_secrets IS NOT NULL OR convert_from(v.document, 'UTF8') ~ '{SECRETS}')"
)
"""Whether it has any."""
NAMES_SECRETS: Final = r"[{]{2}secret\."
"""What the text of a template has that names secrets: a regular expression for PostgreSQL."""


class Row(Protocol):
    """A row with its columns by name."""

    def __getitem__(self, name: str, /) -> Any:
        """A column's value."""


class Vault:
    """Seals what is to be stored and opens what was.

    Args:
        sealer: of `PURPOSE`.
        seals: whether rows with secrets are stored sealed.
    """

    def __init__(self, sealer: Sealer, *, seals: bool) -> None:
        self._sealer = sealer
        self._seals = seals

    @property
    def seals(self) -> bool:
        """Whether rows with secrets are stored sealed."""
        return self._seals

    def stored(self, place: str, columns: Mapping[str, str | bytes | None]) -> dict[str, Any]:
        """The columns as they are stored, with `SEALED`.

        Args:
            place: names the row.
            columns: JSON, as text or in UTF-8.
        """
        found: dict[str, Any] = {**columns, SEALED: None}
        if not self._seals or not any(map(holds_secrets, columns.values())):
            return found
        texts = {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in columns.items()
            if value is not None
        }
        said = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
        found[SEALED] = self.seal(place, said)
        return found | {name: b"" if isinstance(columns[name], bytes) else "" for name in texts}

    def opened(self, place: str, row: Row, *names: str) -> dict[str, Any]:
        """The columns of a row as they were before they were stored.

        Args:
            place: names the row.
            row: with `SEALED`.
            names: the columns; the first one is never empty.

        Raises:
            SealingError: it was sealed with another master key, or for another row.
        """
        found = {name: row[name] for name in names}
        # What the previous release writes into a sealed row counts in place of it.
        if row[SEALED] is None or row[names[0]]:
            return found
        for name, text in json.loads(self.open(place, row[SEALED])).items():
            if name in found:
                found[name] = text.encode() if isinstance(found[name], bytes) else text
        return found

    def seal(self, place: str, text: str) -> bytes:
        """A text that opens in its place alone."""
        return self._sealer.seal(f"{place}\n{text}".encode())

    def open(self, place: str, sealed: bytes) -> str:
        """The text that `seal` was given.

        Raises:
            SealingError: it was sealed with another master key, or for another place.
        """
        where, _, text = self._sealer.open(sealed).partition(b"\n")
        if where != place.encode():
            raise SealingError("it was sealed for another row")
        return text.decode()

    def fingerprint(self, place: str, text: str) -> str:
        """Tells texts in one place from each other, and nothing of them without the master key."""
        return self._sealer.mark(f"{place}\n{text}")[:4].hex()


def holds_secrets(column: str | bytes | None) -> bool:
    """Whether a text of JSON that is stored holds anything to be sealed."""
    if column is None:
        return False
    text = column.decode() if isinstance(column, bytes) else column
    return _SECRETS.search(text) is not None


def of_policy(tenant_id: object, policy_id: object) -> str:
    """Names a row of `policy.policies`."""
    return f"policies/{tenant_id}/{policy_id}"


def of_version(tenant_id: object, version: int) -> str:
    """Names a row of `policy.versions`."""
    return f"versions/{tenant_id}/{version}"


def of_variable(tenant_id: object, variable_id: object) -> str:
    """Names a row of `policy.variable`."""
    return f"variables/{tenant_id}/{variable_id}"


def of_document(tenant_id: object, digest: bytes) -> str:
    """Names a row of `policy.documents`."""
    return f"documents/{tenant_id}/{digest.hex()}"
