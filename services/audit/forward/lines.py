"""An entry as a message of syslog (RFC 5424), with JSON or CEF behind its structured data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from servicekit.build import current
from servicekit.times import format_rfc3339, parse_rfc3339
from services.audit.forward.domain import Format, Outcome, Syslog, outcome_of
from services.audit.forward.formats import Item, UnreadableError, seconds_of

_LONGEST_MSGID: Final = 32
_LONGEST_HOST: Final = 255
_NOTICE, _WARNING, _INFORMATIONAL = 5, 4, 6
_INFORMATIONAL_ACTIONS: Final = frozenset({"identity.login_succeeded", "identity.logged_out"})
_SD_ESCAPED: Final = re.compile(r'(["\\\]])')
_NOT_PRINTED: Final = re.compile(r"[^\x21-\x7e]")
_CEF_SEVERITY: Final = {_INFORMATIONAL: 2, _NOTICE: 4, _WARNING: 7}
_LONGEST_PARAMETER: Final = 256
_NAMING: Final = ("id", "type", "time", "tenantid", "auditsequence", "audithash")
_SHORT: Final = 48
"""Characters of a text in the shortest message, which has to fit into 1,024 bytes."""


class Lines:
    """Makes messages.

    Args:
        syslog: where they go, and how.
        host: the public name of the installation.
    """

    def __init__(self, syslog: Syslog, host: str) -> None:
        self._syslog = syslog
        self._host = _NOT_PRINTED.sub("", host)[:_LONGEST_HOST] or "-"

    def message(self, item: Item) -> bytes:
        """The message of an entry, at most as long as the target takes.

        Raises:
            UnreadableError: none can be made.
        """
        try:
            whole = self._line(item, item.record, truncated=False)
            if len(whole) <= self._syslog.max_bytes:
                return whole
            data = {**item.data, "before": None, "after": None}
            shorter = {**item.record, "data": data, "audittruncated": True}
            cut = self._line(item, shorter, truncated=True)
            if len(cut) > self._syslog.max_bytes:
                # Who writes much into an entry does not keep the receiver from hearing of it.
                cut = self._line(item, _least(item.record), truncated=True)
        except (ValueError, TypeError, KeyError, RecursionError) as broken:
            raise UnreadableError("no line can be made of it") from broken
        if len(cut) > self._syslog.max_bytes:
            raise UnreadableError("the record is too long")
        return cut

    def frame(self, message: bytes) -> bytes:
        """A message as a stream has it."""
        if self._syslog.framing == "newline":
            return message + b"\n"
        return f"{len(message)} ".encode() + message

    def _line(self, item: Item, record: Mapping[str, Any], *, truncated: bool) -> bytes:
        data: Mapping[str, Any] = record["data"]
        action = str(data["action"])
        severity = _severity(record, action)
        priority = self._syslog.facility * 8 + severity
        # With six digits at most, as RFC 5424 has it.
        time = format_rfc3339(parse_rfc3339(record["time"]))
        message_id = _NOT_PRINTED.sub("", action)[:_LONGEST_MSGID] or "-"
        head = f"<{priority}>1 {time} {self._host} evergreen - {message_id}"
        structured = self._structured(item, record, data, truncated=truncated)
        if self._syslog.format is Format.CEF:
            return f"{head} {structured} {cef(record, severity)}".encode()
        # In ASCII: neither a byte order mark nor line feeds are needed, or can be misread.
        text = json.dumps(record, separators=(",", ":"), ensure_ascii=True)
        return f"{head} {structured} {text}".encode("ascii")

    def _structured(
        self, item: Item, record: Mapping[str, Any], data: Mapping[str, Any], *, truncated: bool
    ) -> str:
        values = {
            "id": item.id,
            "tenant": record.get("tenantid", ""),
            "sequence": record.get("auditsequence", ""),
            "hash": record.get("audithash", ""),
            "action": data["action"],
            "actor": data.get("actor", ""),
            "outcome": outcome_of(record).value,
        }
        if truncated:
            values["truncated"] = "true"
        if record.get("auditredacted"):
            values["redacted"] = "true"
        parameters = "".join(
            f' {name}="{_parameter(value)}"' for name, value in values.items() if value != ""
        )
        return f"[{self._syslog.sd_id}{parameters}]"


def _least(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What tells an entry from others, and lets it be found in the log."""
    data = record["data"]
    named = {name: record[name] for name in _NAMING if name in record}
    texts = {name: str(data.get(name, ""))[:_SHORT] for name in ("action", "resource", "actor")}
    short = {name: text.encode("ascii", "replace").decode() for name, text in texts.items()}
    short["outcome"] = outcome_of(record).value
    return {**named, "data": short, "audittruncated": True}


def _parameter(value: object) -> str:
    text = _one_line(str(value))[:_LONGEST_PARAMETER]
    return _SD_ESCAPED.sub(r"\\\1", text).encode("ascii", "replace").decode()


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _severity(record: Mapping[str, Any], action: str) -> int:
    if outcome_of(record) is not Outcome.SUCCESS:
        return _WARNING
    return _INFORMATIONAL if action in _INFORMATIONAL_ACTIONS else _NOTICE


def cef(record: Mapping[str, Any], severity: int) -> str:
    """An entry in ArcSight's Common Event Format, version 0.

    Raises:
        KeyError, ValueError: the record is no event of this system.
    """
    data: Mapping[str, Any] = record["data"]
    action = str(data["action"])
    header = "|".join(
        _cef_header(part)
        for part in (
            "Evergreen",
            "Evergreen",
            current().version,
            action,
            action.replace(".", " ").replace("_", " "),
            str(_CEF_SEVERITY[severity]),
        )
    )
    values: dict[str, object] = {
        "rt": round(seconds_of(record) * 1000),
        "externalId": record["id"],
        "suser": data.get("actor", ""),
        "suid": data.get("actorId", ""),
        "src": data.get("sourceIp", ""),
        "act": action,
        "outcome": outcome_of(record).value,
        "request": data.get("resource", ""),
        "cs1Label": "tenant",
        "cs1": record.get("tenantid", ""),
        "cs2Label": "hash",
        "cs2": record.get("audithash", ""),
        "cn1Label": "sequence",
        "cn1": record.get("auditsequence", ""),
        "cs3Label": "requestId",
        "cs3": data.get("requestId", ""),
    }
    for number, side in ((4, "before"), (5, "after")):
        if data.get(side) is not None:
            values[f"cs{number}Label"] = side
            values[f"cs{number}"] = json.dumps(data[side], separators=(",", ":"))
    extension = " ".join(
        f"{name}={_cef_value(value)}" for name, value in values.items() if value != ""
    )
    return f"CEF:0|{header}|{extension}"


def _cef_header(text: str) -> str:
    return _one_line(text).replace("\\", "\\\\").replace("|", "\\|")


def _cef_value(value: object) -> str:
    return _one_line(str(value)).replace("\\", "\\\\").replace("=", "\\=")
