"""What audit tells: exports of the audit log, its forwarders, reports, and restores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal
from uuid import UUID

from contract.events.base import (
    AT,
    ID,
    Action,
    CallsRefused,
    Export,
    KeyRotation,
    Outcome,
    Since,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredBackup:
    """Up to when, and up to which entry of the chain, the backup goes."""

    point: datetime
    sequence: int
    hash: str
    release: str
    tree_before: Annotated[
        str, Since("0.2.0"), "The origin of the tree's checkpoints before; empty for none."
    ] = ""
    tree: Annotated[str, Since("0.2.0"), "Their origin since; empty for none."] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditExported(Action):
    """A user began to export the audit log, or to verify it."""

    NAME: ClassVar[str] = "audit.exported"
    RESOURCE: ClassVar[str] = "tenants/{id}/audit"
    after: Export


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonSought:
    """Who was looked for."""

    emails: Annotated[tuple[str, ...], "The person's addresses."]
    names: Annotated[int, "How many names; not which, for the log is for ever."]


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonDataExported(Action):
    """A user began to export what is held about one person."""

    NAME: ClassVar[str] = "audit.person_data_exported"
    RESOURCE: ClassVar[str] = "tenants/{id}/person-data"
    after: PersonSought


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored(Action):
    """The database went back to a backup; the chain goes on behind the entry that it ends with."""

    NAME: ClassVar[str] = "audit.restored"
    RESOURCE: ClassVar[str] = "backups/{id}"
    after: RestoredBackup


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """Which entry lost its content, and why."""

    sequence: int
    hash: str
    action: Annotated[str, "The action that it was of."]
    occurred_at: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRedacted(Action):
    """The operator took out the content of an entry. Its place, time, action and hash stay."""

    NAME: ClassVar[str] = "audit.entry_redacted"
    RESOURCE: ClassVar[str] = "audit-entries/{id}"
    after: Redaction


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionSnapshot:
    """For how many years a tenant says that its log is kept: 0 is for ever, null nothing."""

    keep_years: int | None
    keep_from: Annotated[UUID | None, "The tenant of who says it: this one, or one above it."]


@dataclass(frozen=True, slots=True, kw_only=True)
class LegalHold:
    """Why nothing of a log may be pruned or redacted."""

    reason: str
    held_from: Annotated[UUID, "The tenant of who set it: this one, or one above it."]


@dataclass(frozen=True, slots=True, kw_only=True)
class _RetentionAction(Action):
    RESOURCE: ClassVar[str] = "tenants/{id}/audit-retention"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionUpdated(_RetentionAction):
    """A tenant says otherwise for how long its log is kept."""

    NAME: ClassVar[str] = "audit.retention_updated"
    before: RetentionSnapshot
    after: RetentionSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class LegalHoldSet(_RetentionAction):
    """Nothing of the log of a tenant and of those below it may be pruned or redacted."""

    NAME: ClassVar[str] = "audit.legal_hold_set"
    before: LegalHold | None
    after: LegalHold


@dataclass(frozen=True, slots=True, kw_only=True)
class LegalHoldReleased(_RetentionAction):
    """A legal hold holds no more."""

    NAME: ClassVar[str] = "audit.legal_hold_released"
    before: LegalHold


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedEntries:
    """Entries of a chain, and the file that has them."""

    from_: Annotated[int, "The position of the first one."]
    to: Annotated[int, "The position of the last one."]
    count: int
    hash: Annotated[str, "The hash of the last one."]
    archive_sha256: Annotated[str, "The SHA-256 of the archived file."]


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived(Action):
    """The operator wrote the oldest entries of a chain into an archive."""

    NAME: ClassVar[str] = "audit.archived"
    RESOURCE: ClassVar[str] = "tenants/{id}/audit"
    after: ArchivedEntries


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned(Action):
    """The operator took out the oldest entries of a chain, which an archive has."""

    NAME: ClassVar[str] = "audit.pruned"
    RESOURCE: ClassVar[str] = "tenants/{id}/audit"
    after: ArchivedEntries


_ARCHIVED: Final = ArchivedEntries(
    from_=1, to=48112, count=48112, hash="9f" * 32, archive_sha256="3c" * 32
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRotated(KeyRotation):
    """The next key that signs checkpoints was made."""

    NAME: ClassVar[str] = "audit.key_rotated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderSnapshot:
    """Where entries of the audit log are sent, without secrets."""

    name: str
    kind: Literal["webhook", "syslog"]
    enabled: bool
    target: Annotated[str, "Where to, without a query."]
    format: Literal["cloudevents", "ocsf", "splunk-hec", "json", "cef"]
    below_too: Annotated[bool, "Whether the entries of all tenants below are sent, too."]
    actions: tuple[str, ...]
    excluded_actions: tuple[str, ...]
    outcomes: tuple[str, ...]
    headers: Annotated[tuple[str, ...], "The names of a webhook's own headers."]
    disabled_reason: Annotated[
        str, "`BY_USER`, `GONE`, `ADDRESS_REFUSED`, `SECRET_UNREADABLE`, or empty."
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _ForwarderAction(Action):
    RESOURCE: ClassVar[str] = "forwarders/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderCreated(_ForwarderAction):
    """A forwarder was created."""

    NAME: ClassVar[str] = "audit.forwarder_created"
    after: ForwarderSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderUpdated(_ForwarderAction):
    """A forwarder was changed. Equal snapshots differ in what they do not show, such as secrets."""

    NAME: ClassVar[str] = "audit.forwarder_updated"
    before: ForwarderSnapshot
    after: ForwarderSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderDeleted(_ForwarderAction):
    """A forwarder was deleted."""

    NAME: ClassVar[str] = "audit.forwarder_deleted"
    before: ForwarderSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderTest:
    """What came of a test."""

    name: Annotated[str, "The forwarder's name."]
    delivered: bool
    error: Annotated[str, "What went wrong, for example `TIMEOUT`; empty when nothing did."]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderTested(_ForwarderAction):
    """A forwarder was tested. The message of the test itself has this type, too."""

    NAME: ClassVar[str] = "audit.forwarder_tested"
    after: ForwarderTest


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderReplay:
    """From when on entries are sent again."""

    name: Annotated[str, "The forwarder's name."]
    starting: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderReplayed(_ForwarderAction):
    """A forwarder was made to send entries again."""

    NAME: ClassVar[str] = "audit.forwarder_replayed"
    after: ForwarderReplay


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderSecret:
    """How the secrets of a webhook go over."""

    name: Annotated[str, "The forwarder's name."]
    overlap_until: Annotated[datetime, "Until when the secret before signs, too."]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderSecretRotated(_ForwarderAction):
    """A webhook's messages are signed with a new secret."""

    NAME: ClassVar[str] = "audit.forwarder_secret_rotated"
    after: ForwarderSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderHealth:
    """How a forwarder does."""

    name: Annotated[str, "The forwarder's name."]
    status: Literal["active", "failing", "disabled"]
    reason: Annotated[str, "What went wrong, for example `HTTP_503`; empty when nothing did."]
    since: Annotated[datetime, "Since when."]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderFailing(_ForwarderAction):
    """A forwarder has delivered nothing for a quarter of an hour. It goes on trying."""

    NAME: ClassVar[str] = "audit.forwarder_failing"
    after: ForwarderHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderRecovered(_ForwarderAction):
    """A forwarder that was told to be failing delivers again."""

    NAME: ClassVar[str] = "audit.forwarder_recovered"
    after: ForwarderHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderDisabled(_ForwarderAction):
    """The system disabled a forwarder; what waits stays where it is."""

    NAME: ClassVar[str] = "audit.forwarder_disabled"
    after: ForwarderHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderQuarantined:
    """A message that a target refused for good."""

    name: Annotated[str, "The forwarder's name."]
    entry_id: UUID
    reason: Annotated[str, "Why, for example `HTTP_413`."]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderQuarantine(_ForwarderAction):
    """A message was quarantined; those behind it are sent."""

    NAME: ClassVar[str] = "audit.forwarder_quarantine"
    after: ForwarderQuarantined


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderRetry:
    """How many quarantined messages are sent once more."""

    name: Annotated[str, "The forwarder's name."]
    messages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderQuarantineRetried(_ForwarderAction):
    """Quarantined messages are sent once more."""

    NAME: ClassVar[str] = "audit.forwarder_quarantine_retried"
    after: ForwarderRetry


_FORWARDER: Final = ForwarderSnapshot(
    name="SIEM",
    kind="webhook",
    enabled=True,
    target="https://siem.school.example/hooks/evergreen",
    format="cloudevents",
    below_too=True,
    actions=("policy.*", "identity.login_failed"),
    excluded_actions=(),
    outcomes=(),
    headers=("Authorization",),
    disabled_reason="",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportWish:
    """What a report is asked for."""

    kind: Annotated[str, "For example `devices-not-seen`."]
    parameters: Annotated[Mapping[str, object], "With what is taken when not given."]
    formats: tuple[str, ...]
    requested_by: Annotated[str, "Who asked for it: a user, a program or a schedule."]
    as_of: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRemoved(ReportWish):
    """A report that is no more, and why."""

    reason: Annotated[
        Literal["asked", "expired", "newer", "room"],
        "`asked`: somebody deleted it. `expired`: it was kept as long as reports are. `newer`: its"
        " schedule keeps only so many. `room`: another one needed its place.",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportMade:
    """A report that is ready."""

    kind: str
    requested_by: str
    as_of: datetime
    rows: int
    bytes: int
    manifest_sha256: Annotated[str, "The SHA-256 of what is signed in the manifest."]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFailure:
    """A report that was not made."""

    kind: str
    requested_by: str
    reason: Annotated[
        str,
        "`NOT_AVAILABLE`, `TOO_MANY_ROWS`, `TOO_LARGE`, `REPORTS_FULL`, `TOO_LONG`, `TOO_LATE` or"
        " `INTERNAL`.",
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDownload:
    """What was downloaded."""

    kind: str
    file: Annotated[str, "The file's name."]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportScheduleSnapshot:
    """Which reports are made by themselves, and when."""

    kind: str
    parameters: Mapping[str, object]
    formats: tuple[str, ...]
    every: Literal["day", "week", "month"]
    on: int
    hour: int
    time_zone: str
    keep: int
    enabled: bool
    notify: Annotated[
        tuple[str, ...],
        Since("0.3.0"),
        "Who gets a mail when a report is ready, or could not be made.",
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReportAction(Action):
    RESOURCE: ClassVar[str] = "reports/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequested(_ReportAction):
    """A report was asked for, by somebody or by a schedule."""

    NAME: ClassVar[str] = "audit.report_requested"
    after: ReportWish


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCreated(_ReportAction):
    """A report is ready. Its manifest is signed, and this is its digest."""

    NAME: ClassVar[str] = "audit.report_created"
    after: ReportMade


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFailed(_ReportAction):
    """A report could not be made; nothing of it is kept."""

    NAME: ClassVar[str] = "audit.report_failed"
    OUTCOME: ClassVar[Outcome] = "failed"
    after: ReportFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDownloaded(_ReportAction):
    """A user or a program began to download a file of a report."""

    NAME: ClassVar[str] = "audit.report_downloaded"
    after: ReportDownload


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportDeleted(_ReportAction):
    """A report was deleted, by somebody or by the system."""

    NAME: ClassVar[str] = "audit.report_deleted"
    before: ReportRemoved


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReportScheduleAction(Action):
    RESOURCE: ClassVar[str] = "report-schedules/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportScheduleCreated(_ReportScheduleAction):
    """A schedule of reports was created."""

    NAME: ClassVar[str] = "audit.report_schedule_created"
    after: ReportScheduleSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportScheduleUpdated(_ReportScheduleAction):
    """A schedule of reports was changed."""

    NAME: ClassVar[str] = "audit.report_schedule_updated"
    before: ReportScheduleSnapshot
    after: ReportScheduleSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportScheduleDeleted(_ReportScheduleAction):
    """A schedule of reports was deleted; its reports stay until they expire."""

    NAME: ClassVar[str] = "audit.report_schedule_deleted"
    before: ReportScheduleSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertState:
    """Something that is or was the matter."""

    kind: Annotated[str, "For example `devices-not-seen`."]
    subject: Annotated[str, "What it is about; empty for the tenant as a whole."]
    text: Annotated[str, "What is the matter, in English."]
    raised_at: datetime
    facts: Annotated[Mapping[str, object], "The numbers that it was raised by."]


@dataclass(frozen=True, slots=True, kw_only=True)
class _AlertAction(Action):
    RESOURCE: ClassVar[str] = "alerts/{id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRaised(_AlertAction):
    """Something is the matter."""

    NAME: ClassVar[str] = "audit.alert_raised"
    after: AlertState


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertResolved(_AlertAction):
    """It is not the matter any more, or nobody wants to hear of it."""

    NAME: ClassVar[str] = "audit.alert_resolved"
    after: AlertState


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRulesSnapshot:
    """When something is an alert for a tenant, and who gets mails."""

    inherited: Annotated[
        bool, "Whether what a tenant above has said counts, whose addresses are not named."
    ]
    rules: Annotated[Mapping[str, object], "What was said of kinds, by their names."]
    emails: tuple[str, ...]
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRulesUpdated(Action):
    """A tenant says otherwise when something is an alert, or who is told."""

    NAME: ClassVar[str] = "audit.alert_rules_updated"
    RESOURCE: ClassVar[str] = "tenants/{id}/alert-rules"
    before: AlertRulesSnapshot
    after: AlertRulesSnapshot


_ALERT: Final = AlertState(
    kind="devices-not-seen",
    subject="",
    text="12 of 40 devices have not called for 7 days",
    raised_at=AT,
    facts={"number": 12, "of": 40, "days": 7},
)
_RULES: Final = AlertRulesSnapshot(
    inherited=False,
    rules={"devices-not-seen": {"enabled": True, "thresholds": {"percent": 25}}},
    emails=("it@school.example",),
    roles=("Owner",),
)


_WISH: Final = ReportWish(
    kind="devices-not-seen",
    parameters={"days": 30},
    formats=("csv", "json", "html"),
    requested_by="admin@school.example",
    as_of=AT,
)
_SCHEDULE: Final = ReportScheduleSnapshot(
    kind="devices-not-seen",
    parameters={"days": 30},
    formats=("html",),
    every="week",
    on=1,
    hour=3,
    time_zone="Europe/Berlin",
    keep=12,
    enabled=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCallsRefused(CallsRefused):
    """Calls of a user to audit were refused.

    Told every ten seconds, once for each user, RPC and reason. `ROLE_MAY_NOT`: the user's role may
    not do this. `FOREIGN_TENANT`: the call names a tenant that exists, and is not below the user's.
    """

    NAME: ClassVar[str] = "audit.calls_refused"


EXAMPLES: Final[tuple[Action, ...]] = (
    AuditExported(
        id=ID, after=Export(format="csv", filter={"occurredAfter": "2026-09-01T07:58:03Z"})
    ),
    PersonDataExported(id=ID, after=PersonSought(emails=("anna@school.example",), names=1)),
    Restored(
        id=ID,
        after=RestoredBackup(
            point=AT,
            sequence=41,
            hash="9f" * 32,
            release="0.1.0",
            tree_before="evergreen.school.example/audit/5f0c2a17",
            tree="evergreen.school.example/audit/9b41d3e0",
        ),
    ),
    EntryRedacted(
        id=ID,
        after=Redaction(
            sequence=41,
            hash="9f" * 32,
            action="identity.login_failed",
            occurred_at=AT,
            reason="a password was typed in place of an address",
        ),
    ),
    RetentionUpdated(
        id=ID,
        before=RetentionSnapshot(keep_years=None, keep_from=None),
        after=RetentionSnapshot(keep_years=7, keep_from=ID),
    ),
    LegalHoldSet(id=ID, before=None, after=LegalHold(reason="case 4711", held_from=ID)),
    LegalHoldReleased(id=ID, before=LegalHold(reason="case 4711", held_from=ID)),
    Archived(id=ID, after=_ARCHIVED),
    Pruned(id=ID, after=_ARCHIVED),
    KeyRotated.example("audit"),
    ForwarderCreated(id=ID, after=_FORWARDER),
    ForwarderUpdated(id=ID, before=_FORWARDER, after=_FORWARDER),
    ForwarderDeleted(id=ID, before=_FORWARDER),
    ForwarderTested(id=ID, after=ForwarderTest(name="SIEM", delivered=False, error="TIMEOUT")),
    ForwarderReplayed(id=ID, after=ForwarderReplay(name="SIEM", starting=AT)),
    ForwarderSecretRotated(id=ID, after=ForwarderSecret(name="SIEM", overlap_until=AT)),
    ForwarderFailing(
        id=ID, after=ForwarderHealth(name="SIEM", status="failing", reason="HTTP_503", since=AT)
    ),
    ForwarderRecovered(
        id=ID, after=ForwarderHealth(name="SIEM", status="active", reason="", since=AT)
    ),
    ForwarderDisabled(
        id=ID, after=ForwarderHealth(name="SIEM", status="disabled", reason="GONE", since=AT)
    ),
    ForwarderQuarantine(
        id=ID, after=ForwarderQuarantined(name="SIEM", entry_id=ID, reason="HTTP_413")
    ),
    ForwarderQuarantineRetried(id=ID, after=ForwarderRetry(name="SIEM", messages=3)),
    ReportRequested(id=ID, after=_WISH),
    ReportCreated(
        id=ID,
        after=ReportMade(
            kind="devices-not-seen",
            requested_by="admin@school.example",
            as_of=AT,
            rows=12,
            bytes=4711,
            manifest_sha256="9f" * 32,
        ),
    ),
    ReportFailed(
        id=ID,
        after=ReportFailure(
            kind="devices-not-seen", requested_by="admin@school.example", reason="NOT_AVAILABLE"
        ),
    ),
    ReportDownloaded(
        id=ID, after=ReportDownload(kind="devices-not-seen", file="devices-not-seen.csv")
    ),
    ReportDeleted(
        id=ID,
        before=ReportRemoved(
            kind="devices-not-seen",
            parameters={"days": 30},
            formats=("csv", "json", "html"),
            requested_by="admin@school.example",
            as_of=AT,
            reason="asked",
        ),
    ),
    ReportScheduleCreated(id=ID, after=_SCHEDULE),
    ReportScheduleUpdated(id=ID, before=_SCHEDULE, after=_SCHEDULE),
    ReportScheduleDeleted(id=ID, before=_SCHEDULE),
    AlertRaised(id=ID, after=_ALERT),
    AlertResolved(id=ID, after=_ALERT),
    AlertRulesUpdated(id=ID, before=_RULES, after=_RULES),
    AuditCallsRefused.example("ForwarderService/CreateForwarder"),
)
"""One of each; this is the list of what audit sends."""
