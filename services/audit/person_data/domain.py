"""The file of an export of what is held about a person."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from servicekit.errors import invalid_field
from servicekit.texts import email_fault, name_fault, normal_email, tidy
from servicekit.times import format_rfc3339

FORMAT: Final = "evergreen person data v1"
SHORTEST: Final = 3
"""Characters of a name: shorter ones are in too many words,"""
SHORTEST_IDEOGRAPHS: Final = 2
"""but for names in Chinese, Japanese and Korean."""
_IDEOGRAPHS: Final = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
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
            shortest = SHORTEST_IDEOGRAPHS if _IDEOGRAPHS.search(name) else SHORTEST
            if fault is None and len("".join(filter(str.isalnum, name))) < shortest:
                fault = f"must have {shortest} letters or digits: others would be found with it"
            if fault is None and "@" in normal_email(name).strip("@"):
                fault = "is an address: give it in emails, of which the log tells"
            if fault is not None:
                raise invalid_field(f"names[{number}]", fault)
            found.append(name)
        return cls(tuple(dict.fromkeys(addresses)), tuple(dict.fromkeys(found)))


@dataclass(frozen=True, slots=True)
class Searched:
    """How far the search in a service is."""

    org_id: str
    service: str
    rows: int = 0
    left_out: int = 0
    """Those of the rows that could not be read, or in part alone."""


@dataclass(frozen=True, slots=True)
class Found:
    """A record of a service about a person."""

    service: str
    kind: str
    id: str
    content: str
    """What it says, as JSON."""


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
    content = f',"content":{found.content}}}}}\n'
    return _line({"record": record}).removesuffix("}}\n") + content


def searched_line(searched: Searched) -> str:
    """What was looked through, whatever was found."""
    said = {
        "organisationId": searched.org_id,
        "service": searched.service,
        "rows": searched.rows,
        **_left_out(searched.left_out),
    }
    return _line({"searched": said})


def end_line(records: int, left_out: int, *, whole: bool) -> str:
    """The last line: without it the file is not complete.

    Args:
        left_out: rows that could not be read, or in part alone.
        whole: whether all was looked through.
    """
    end = {"records": records, "complete": whole and not left_out, **_left_out(left_out)}
    return _line({"end": end})


def _left_out(rows: int) -> dict[str, int]:
    return {"leftOut": rows} if rows else {}


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
