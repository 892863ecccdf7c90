"""Mails about reports of schedules: what became of one, and why one could not be begun."""

from __future__ import annotations

from collections.abc import Sequence

from services.audit.notices.domain import Text
from services.audit.reports.domain import Report, Schedule, Status, written


def ended(report: Report) -> Sequence[Text]:
    """The mail in its languages: nothing of what is in the report."""
    as_of = written(report.as_of)
    if report.status is Status.READY:
        get = f"evergreen reports download {report.id} -o report"
        return (
            Text(
                "en",
                f"The report {report.kind} is ready",
                (f"It is of {as_of}, and has {report.rows} rows.", f"Download it with:\n{get}"),
            ),
            Text(
                "de",
                f"Der Bericht {report.kind} ist fertig",
                (f"Er ist vom {as_of} und hat {report.rows} Zeilen.", f"Herunterladen mit:\n{get}"),
            ),
        )
    return (
        Text(
            "en",
            f"The report {report.kind} could not be made",
            (f"It was to be of {as_of}. The reason:\n{report.error}",),
        ),
        Text(
            "de",
            f"Der Bericht {report.kind} konnte nicht erstellt werden",
            (f"Er sollte vom {as_of} sein. Der Grund:\n{report.error}",),
        ),
    )


def not_begun(schedule: Schedule, reason: str) -> Sequence[Text]:
    """The mail that a report is due and cannot be begun, in its languages."""
    due = written(schedule.next_run_at) if schedule.next_run_at else "-"
    look = f"evergreen reports schedules list\nevergreen reports list --kind {schedule.kind}"
    return (
        Text(
            "en",
            f"The scheduled report {schedule.kind} cannot be made",
            (
                f"It has been due since {due}, and is tried again every five minutes until it can"
                f" be made. The reason:\n{reason}",
                f"See what there is with:\n{look}",
            ),
        ),
        Text(
            "de",
            f"Der geplante Bericht {schedule.kind} kann nicht erstellt werden",
            (
                f"Er ist seit {due} fällig und wird alle fünf Minuten noch einmal versucht, bis es"
                f" geht. Der Grund:\n{reason}",
                f"Nachsehen mit:\n{look}",
            ),
        ),
    )
