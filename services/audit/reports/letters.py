"""The mail that says what became of a report of a schedule."""

from __future__ import annotations

from collections.abc import Sequence

from services.audit.notices.domain import Text
from services.audit.reports.domain import Report, Status, written


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
