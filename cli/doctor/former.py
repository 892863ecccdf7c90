"""Public names of before: who still calls by them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cli.doctor.finding import Check, judged, skipped, warning
from cli.doctor.public import Public
from cli.former_names import callers, lines_of_home

CALLERS: Final = "former.callers"
_MOST_TOLD: Final = 5


def checks(former: Sequence[Public], logs: Path | None) -> list[Check]:
    """Whether the old names can be dropped, where there are some."""
    if not former:
        return []
    if logs is None:
        why = "give the gateway's log to `evergreen former-names --log -`"
        return [skipped(CALLERS, why)]
    names = ", ".join(address.host for address in former)
    found = callers(lines_of_home(logs))
    devices = list(dict.fromkeys(caller.subject for caller in found if caller.subject))
    if not found:
        return [judged(CALLERS, [], f"nobody calls by {names}, since the gateway's log begins")]
    more = ", …" if len(devices) > _MOST_TOLD else ""
    told = f" ({', '.join(devices[:_MOST_TOLD])}{more})" if devices else ""
    who = f"{len(devices)} devices and users{told}" if devices else "somebody without a token"
    finding = warning(
        "FORMER_NAME_USED",
        f"{who} called by {names}, the last one at {found[0].last}",
        "`evergreen former-names` lists them. Give them the new address (docs/moving.md) before"
        " you take the old one out of FORMER_PUBLIC_URLS.",
    )
    return [judged(CALLERS, [finding])]
