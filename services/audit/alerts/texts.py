"""What mails say of alerts, in English and German: nothing of what is in entries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from services.audit.alerts.domain import (
    ATTESTATION_FAILED,
    BACKUP_TOO_OLD,
    CERTIFICATE_ENDS,
    DEVICES_NOT_SEEN,
    ENROLLMENTS_REFUSED,
    FORWARDER_FAILING,
    LOGINS_REFUSED,
    MOST_LINES,
    POLICY_BEHIND,
    WITNESS_AWAY,
    Alert,
    Change,
)
from services.audit.notices.domain import Text

_LONGEST_NAME: Final = 120
_LINES: Final[Mapping[str, tuple[str, str]]] = {
    DEVICES_NOT_SEEN: (
        "{number} of {of} devices have not called for {days} days",
        "{number} von {of} Geräten haben sich seit {days} Tagen nicht gemeldet",
    ),
    POLICY_BEHIND: (
        "{number} of {of} devices do not have the policy in force after {hours} hours",
        "{number} von {of} Geräten haben die geltende Richtlinie nach {hours} Stunden nicht",
    ),
    ATTESTATION_FAILED: (
        "the boot of {subject} failed its check",
        "der Start von {subject} hat die Prüfung nicht bestanden",
    ),
    ENROLLMENTS_REFUSED: (
        "{number} enrollments were refused within an hour",
        "{number} Anmeldungen von Geräten wurden innerhalb einer Stunde abgewiesen",
    ),
    LOGINS_REFUSED: (
        "{number} logins failed within an hour",
        "{number} Anmeldungen sind innerhalb einer Stunde gescheitert",
    ),
    FORWARDER_FAILING: (
        "the forwarder “{name}” delivers nothing",
        "die Weiterleitung „{name}“ stellt nichts zu",
    ),
    BACKUP_TOO_OLD: (
        "the newest backup is {hours} hours old",
        "die neueste Sicherung ist {hours} Stunden alt",
    ),
    CERTIFICATE_ENDS: (
        "the certificate of {subject} ends on {date}",
        "das Zertifikat von {subject} endet am {date}",
    ),
    WITNESS_AWAY: (
        "the witness “{name}” does not sign the audit log ({reason})",
        "der Zeuge „{name}“ unterschreibt das Audit-Protokoll nicht ({reason})",
    ),
}
_OF_A_FORWARDER: Final = (
    "a certificate of the forwarder “{name}” ends on {date}",
    "ein Zertifikat der Weiterleitung „{name}“ endet am {date}",
)
_WHAT: Final = {
    "raised": ("Alert", "Alarm"),
    "lasts": ("Still", "Weiterhin"),
    "resolved": ("Resolved", "Behoben"),
    "open": ("Open", "Offen"),
}
_MORE: Final = ("… and {count} more", "… und {count} weitere")
_SEE: Final = (
    "All of them: `evergreen alerts list`. Who gets these mails, and when something is an alert:"
    " `evergreen alerts rules`.",
    "Alle: `evergreen alerts list`. Wer diese Mails bekommt und wann etwas ein Alarm ist:"
    " `evergreen alerts rules`.",
)
_DIGEST: Final = (
    "Open alerts: {count}",
    "Offene Alarme: {count}",
)
_LANGUAGES: Final = ("en", "de")


def line_of(alert: Alert, language: int = 0) -> str:
    """An alert in a line: in English (0) or German (1)."""
    known = {name: str(value)[:_LONGEST_NAME] for name, value in alert.facts.items()} | {
        "subject": alert.subject or "-"
    }
    lines = _LINES.get(alert.kind)
    if lines is None:
        # A later release has raised it.
        return alert.kind
    if alert.kind == CERTIFICATE_ENDS and "name" in known:
        lines = _OF_A_FORWARDER
    return lines[language].format_map(_Known(known))


class _Known(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"


def told(changes: Sequence[Change], organisation: str) -> Sequence[Text]:
    """The mail about what became of alerts of one kind."""
    return _texts(
        organisation,
        [(change.what, change.alert) for change in changes],
        lambda language, first: f"{_WHAT[changes[0].what][language]}: {first}",
    )


def digest(alerts: Sequence[Alert], count: int, opened: int, organisation: str) -> Sequence[Text]:
    """The daily mail about all that is open, and what was resolved and not told.

    Args:
        alerts: the first ones.
        count: how many there are.
        opened: how many are open.
        organisation: the tenant's name.
    """
    return _texts(
        organisation,
        [("resolved" if alert.resolved_at else "open", alert) for alert in alerts],
        lambda language, _: _DIGEST[language].format(count=opened),
        count,
    )


def _texts(
    organisation: str,
    found: Sequence[tuple[str, Alert]],
    subject: Callable[[int, str], str],
    count: int | None = None,
) -> Sequence[Text]:
    texts = []
    for at, language in enumerate(_LANGUAGES):
        lines = [f"{_WHAT[what][at]}: {line_of(alert, at)}" for what, alert in found[:MOST_LINES]]
        more = (len(found) if count is None else count) - len(lines)
        if more > 0:
            lines.append(_MORE[at].format(count=more))
        texts.append(
            Text(
                language,
                f"{subject(at, line_of(found[0][1], at))} ({organisation})",
                (organisation, "\n".join(lines), _SEE[at]),
            )
        )
    return texts
