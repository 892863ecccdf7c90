"""What audit tells: exports of the audit log, its forwarders, and restores of the installation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal
from uuid import UUID

from contract.events.base import AT, ID, Action, CallsRefused, Export, KeyRotation, Since


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
class Restored(Action):
    """The database went back to a backup; the chain goes on behind the entry that it ends with."""

    NAME: ClassVar[str] = "audit.restored"
    RESOURCE: ClassVar[str] = "backups/{id}"
    after: RestoredBackup


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
    AuditCallsRefused.example("ForwarderService/CreateForwarder"),
)
"""One of each; this is the list of what audit sends."""
