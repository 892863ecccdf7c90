"""The file of an export of what is held about a person."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from servicekit.errors import invalid_field
from servicekit.texts import email_fault, name_fault, normal_email, tidy
from servicekit.times import format_rfc3339

FORMAT: Final = "evergreen person data v1"
SHORTEST: Final = 3
"""Characters of a name: shorter ones are in too many words."""
MOST_RECORDS: Final = 50_000
"""Records of an export."""


@dataclass(frozen=True, slots=True)
class Sought:
    """Who is looked for."""

    emails: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def read(cls, emails: Sequence[str], names: Sequence[str]) -> Sought:
        """Who is looked for, as a request says it.

        Raises:
            DomainError: INVALID_ARGUMENT.
        """
        if not emails and not names:
            raise invalid_field("emails", "give an address, or names")
        addresses = []
        for number, email in enumerate(emails):
            address = normal_email(email)
            if (fault := email_fault(address)) is not None:
                raise invalid_field(f"emails[{number}]", fault)
            addresses.append(address)
        found = []
        for number, name in enumerate(map(tidy, names)):
            fault = name_fault(name)
            if fault is None and len("".join(filter(str.isalnum, name))) < SHORTEST:
                fault = f"must have {SHORTEST} letters or digits: others would be found with it"
            if fault is not None:
                raise invalid_field(f"names[{number}]", fault)
            found.append(name)
        return cls(tuple(dict.fromkeys(addresses)), tuple(dict.fromkeys(found)))


@dataclass(frozen=True, slots=True)
class Found:
    """A record of a service about a person."""

    service: str
    kind: str
    id: str
    content: Mapping[str, Any]


def begin_line(sought: Sought, org_name: str, at: datetime, by: str) -> str:
    """The first line: what was asked for."""
    return _line(
        {
            "personData": FORMAT,
            "exportedAt": format_rfc3339(at),
            "exportedBy": by,
            "organisation": org_name,
            "emails": list(sought.emails),
            "names": list(sought.names),
        }
    )


def record_line(org_id: str, org_name: str, found: Found) -> str:
    """A record."""
    record: dict[str, Any] = {
        "organisation": {"id": org_id, "name": org_name},
        "service": found.service,
        "kind": found.kind,
    }
    if found.id:
        record["id"] = found.id
    return _line({"record": {**record, "content": found.content}})


def searched_line(org_id: str, service: str, rows: int) -> str:
    """What was looked through, whatever was found."""
    return _line({"searched": {"organisationId": org_id, "service": service, "rows": rows}})


def end_line(records: int, *, complete: bool) -> str:
    """The last line: without it the file is not complete."""
    return _line({"end": {"records": records, "complete": complete}})


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
